"""Modelled time per token of a single sequence on an Apple chip: our engine against mlx-lm.

Our engine runs without its kernels here. Both sides read the weights and the sequence's keys and
values once per token. They differ in copying. mlx-lm's cache grows by 256 tokens at a time. Our
decode epochs gather the prefix once and then grow too; their copies are counted by running the real
code on a pool with one element per token. At the end of each epoch the GPU also waits for Python.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx

from sgl_mlx.benchmarks.modelled.apple import KV_SHARE
from sgl_mlx.benchmarks.modelled.kernel_model import EPOCH, Chip
from sgl_mlx.benchmarks.modelled.mac_memory import LLAMA_8B
from sgl_mlx.core import SamplingParams
from sgl_mlx.models.adapter import LayerShape
from sgl_mlx.runtime.attention.decode import Epoch
from sgl_mlx.runtime.pool.kv import KVPool
from sgl_mlx.runtime.scheduler.plan import Row

CONTEXTS = {1024: 0.02, 8192: 0.04, 32768: 0.08}
"""Lengths of prompts in tokens, with the share by which our engine may be slower than mlx-lm."""

TOKENS = 512
"""Number of generated tokens, over which the time of copies is averaged."""

READ = 4.22e9
"""Bytes of weights read per token by Llama 3.1 8B in 4 bits: all but the embedding."""

ALLOCATION = 50e-3 / 1e9
"""Assumed seconds that Metal takes to allocate a byte of a new buffer (mlx-audio-swift#229)."""

WAIT = 6e-3
"""Assumed seconds that the GPU waits per epoch, while Python builds a step of 32 layers.

Measured on Linux."""

OPENING = 60e-9
"""Assumed seconds that Python takes per token of the prefix when an epoch begins or continues.

It is more than `bench engine --context` measures on Linux."""

_MLX_LM_STEP = 256


@dataclass(frozen=True)
class Stream:
    """Modelled times of one sequence after a prompt of `context` tokens.

    Attributes:
        ours, mlx_lm: milliseconds per token.
        bar: how much slower our engine may be, as a share of mlx-lm's time.
    """

    context: int
    ours: float
    mlx_lm: float
    bar: float

    @property
    def slower(self) -> float:
        """How much slower our engine is, as a share of mlx-lm's time."""
        return self.ours / self.mlx_lm - 1

    def to_dict(self) -> dict[str, Any]:
        return {"modelled": True, **asdict(self), "slower": round(self.slower, 4)}


def streams(chip: Chip) -> Iterator[Stream]:
    """Yield the modelled times on a chip for each prompt length of `CONTEXTS`."""
    for context, bar in CONTEXTS.items():
        yield stream(chip, context, bar)


def stream(chip: Chip, context: int, bar: float) -> Stream:
    """Model `TOKENS` generated tokens after a prompt of `context` tokens; `bar` as in `Stream`."""
    bandwidth = KV_SHARE * chip.bandwidth * 1e9
    kv = KVPool.bytes_per_slot(LLAMA_8B.layers, mx.float16)
    read = TOKENS * (READ + kv * (context + TOKENS / 2)) / bandwidth
    columns = range(context, context + TOKENS, _MLX_LM_STEP)
    theirs = read + sum(_copy(n * kv, bandwidth) for n in columns)
    copied = copies(context, TOKENS)
    epochs = -(-TOKENS // EPOCH)
    ours = read + sum(_copy(n * kv, bandwidth) for n in copied)
    ours += 2 * TOKENS * kv / bandwidth  # the tails, read and written to the pool
    ours += epochs * (WAIT + OPENING * (context + TOKENS))
    return Stream(context, 1e3 * ours / TOKENS, 1e3 * theirs / TOKENS, bar)


def copies(context: int, tokens: int) -> list[int]:
    """Return the number of tokens in each copy that our epochs make of a sequence's KV.

    Args:
        context: tokens of the prompt.
        tokens: tokens that are generated.
    """
    pool = KVPool([LayerShape(1, 1, 1)], context + tokens, mx.float16)
    slots = tuple(range(1, context + tokens + 1))
    epoch: Epoch | None = None
    found = []
    for start in range(context, context + tokens, EPOCH):
        row = Row(
            id="row",
            tokens=(0,),
            prefix=slots[:start],
            slots=slots[start : start + EPOCH],
            position=start,
            sample=True,
            params=SamplingParams(),
        )
        before = 0 if epoch is None else _capacity(epoch)
        if epoch is None or not epoch.go_on([row], EPOCH):
            epoch = Epoch(pool, [row], EPOCH)
            before = 0
        if _capacity(epoch) != before:
            found.append(start)
        for _ in range(EPOCH):
            epoch.begin_step()
    return found


def _capacity(epoch: Epoch) -> int:
    return int(epoch.arrays()[0].shape[2])


def _copy(size: float, bandwidth: float) -> float:
    """Return the seconds to copy `size` bytes into a newly allocated buffer."""
    return size * (2 / bandwidth + ALLOCATION)


def assumptions(chip: Chip) -> list[str]:
    """Return the assumptions that the modelled times depend on, one per line."""
    return [
        f"{LLAMA_8B.name} on {chip.name}: {READ / 1e9:g} GB of weights read per token, "
        f"{KV_SHARE:.0%} of {chip.bandwidth:g} GB/s",
        f"{TOKENS} tokens are generated; mlx-lm copies its cache every {_MLX_LM_STEP}, ours as "
        "its own code does",
        f"a new buffer takes {ALLOCATION * 1e12:g} ms per GB to allocate, on both sides",
        f"once in {EPOCH} tokens the GPU waits {WAIT * 1e3:g} ms for Python, and Python reads the "
        f"row's slots at {OPENING * 1e9:g} ns per token",
    ]
