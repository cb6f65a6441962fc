"""Decoding of one sequence after a long prompt: our engine against mlx-lm, same weights.

Our engine prefills the prompt before time is measured. mlx-lm's cache is filled with random keys
and values: a second prefill would take minutes on a CPU, and speed does not depend on the values.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache, trim_prompt_cache

from sgl_mlx import machine
from sgl_mlx.benchmarks.micro.paired_runs import Pair, measure_pairs
from sgl_mlx.core import SamplingParams
from sgl_mlx.metal_kernels.mode import mode
from sgl_mlx.models.adapter import LayerShape
from sgl_mlx.models.loader import LoadedModel, load
from sgl_mlx.runtime.attention.decode import Epoch
from sgl_mlx.runtime.engine import Engine
from sgl_mlx.runtime.pool.kv import KVPool
from sgl_mlx.runtime.scheduler.plan import Row

WITHOUT_KERNELS, WITH_KERNELS = 0.97, 1.0
"""Least ratio of our speed to mlx-lm's that is required: without our kernels, and with them."""


def measure(
    name: str | None,
    contexts: Sequence[int],
    layers: int | None = None,
    repeats: int = 3,
    new_tokens: int = 64,
) -> Iterator[Pair]:
    """Measure a model after prompts of several lengths; yield each pair as soon as it is measured.

    Args:
        name: name of the model, as for `models.loader.load`.
        contexts: lengths of the prompts in tokens.
        layers: number of the model's first layers to keep; None keeps all.
    """
    dtype = None if machine.on_gpu() else "float32"
    ours, theirs = (_cut(load(name, dtype=kind), layers) for kind in (None, dtype))
    longest = max(contexts) + 2 * new_tokens
    size: dict[str, Any] = {"context_length": longest, "max_total_tokens": 2 * longest}
    with Engine(model=ours, speculate="off", **size) as engine:
        for context in contexts:
            yield _measure(engine, theirs.model, context, repeats, new_tokens)


def _measure(engine: Engine, model: Any, context: int, repeats: int, new_tokens: int) -> Pair:
    draw = random.Random(context)
    prompt = [draw.randrange(1000, 20000) for _ in range(context)]
    engine.generate(input_ids=prompt, sampling_params={"max_new_tokens": 0})
    cache = engine.run_on_model(lambda _: _filled_cache(model, context - 1))
    params = {"max_new_tokens": new_tokens, "temperature": 0, "ignore_eos": True}

    def ours() -> float:
        started = time.perf_counter()
        engine.generate(input_ids=prompt, sampling_params=params)
        return new_tokens / (time.perf_counter() - started)

    def decode(_: Any) -> float:
        started = time.perf_counter()
        steps = generate_step(
            mx.array(prompt[-1:]), model, max_tokens=new_tokens, prompt_cache=cache
        )
        taken = sum(1 for _ in steps)
        seconds = time.perf_counter() - started
        trim_prompt_cache(cache, cache[0].offset - (context - 1))
        return taken / seconds

    name = f"decode B=1, {context:,} tokens before"
    bar = WITHOUT_KERNELS if mode() == "off" else WITH_KERNELS
    return measure_pairs(name, "tok/s", bar, ours, lambda: engine.run_on_model(decode), repeats)


def opening_milliseconds(tokens: int = 32768, layers: int = 32, tries: int = 7) -> float:
    """Return the milliseconds to open a decode epoch of one sequence, in the fastest try.

    Almost only Python is measured: a layer has one head of one element, so next to nothing is
    copied. The slots of the prefix of `tokens` tokens are scattered over the pool.
    """
    pool = KVPool([LayerShape(1, 1, 1)] * layers, tokens, mx.float32)
    prefix = tuple(1 + i * 7 % tokens for i in range(tokens))
    row = Row("row", (1,), prefix, (1,), tokens, sample=True, params=SamplingParams())
    best = float("inf")
    for _ in range(tries):
        started = time.perf_counter()
        Epoch(pool, [row], 64)
        best = min(best, time.perf_counter() - started)
    return best * 1e3


def _filled_cache(model: Any, tokens: int) -> list[Any]:
    cache: list[Any] = make_prompt_cache(model)
    for layer, x in zip(model.layers, cache, strict=True):
        attention = layer.self_attn
        dim = attention.k_proj.weight.shape[0] // attention.n_kv_heads
        shape = 1, attention.n_kv_heads, tokens, dim
        dtype = attention.q_proj.weight.dtype
        x.update_and_fetch(*(mx.random.normal(shape).astype(dtype) for _ in range(2)))
        mx.eval(x.state)
    return cache


def _cut(loaded: LoadedModel, layers: int | None) -> LoadedModel:
    """Keep only the first `layers` layers of a model, in place; None keeps all.

    Returns the model with a fingerprint of its own, as its KV is not that of the whole model.
    """
    if layers is not None:
        trunk = loaded.model.model
        trunk.layers = trunk.layers[:layers]
    return replace(loaded, fingerprint=f"{loaded.fingerprint} {layers} layers")
