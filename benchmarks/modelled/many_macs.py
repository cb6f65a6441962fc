"""Modelled times of one model over several Macs, tensor parallel and pipelined.

Nothing runs. Bytes follow from the model's shape, the times of the links from published figures,
and the times of the chip from `apple`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sgl_mlx.benchmarks.modelled.apple import Machine
from sgl_mlx.benchmarks.modelled.token_counts import Work

_BYTES = 2
"""Bytes of one number of the hidden states, at float16."""
_REDUCTIONS = 2
"""All-reduces of a layer under tensor parallelism: after attention and after the feed-forward."""
CONTEXT = 1024
"""Tokens before each decoding row."""


@dataclass(frozen=True)
class Link:
    """A connection between two Macs.

    Attributes:
        latency: seconds of a message without content.
        bandwidth: bytes per second in one direction.
        mesh: True if every pair of Macs has a link, and an all-reduce is one exchange between all;
            False for a ring, in which it takes `2 * (macs - 1)` messages one after the other.
        source: where the figures were published.
    """

    name: str
    latency: float
    bandwidth: float
    mesh: bool
    source: str

    def send(self, size: float) -> float:
        """Return the seconds of one message of `size` bytes."""
        return self.latency + size / self.bandwidth

    def all_reduce(self, size: float, macs: int) -> float:
        """Return the seconds in which `macs` Macs add up `size` bytes."""
        if self.mesh:
            return self.send(size)
        return 2 * (macs - 1) * self.send(size / macs)

    def sent(self, size: float, macs: int) -> float:
        """Return the bytes that each Mac sends in an all-reduce of `size` bytes."""
        return (macs - 1) * size if self.mesh else 2 * (macs - 1) * size / macs


LINKS = (
    Link(
        "Thunderbolt 5, TCP (ring)",
        300e-6,
        0.5e9,
        False,
        "300 us: adwaitx.com on Apple's TN3205, March 2026; 0.5 GB/s: mlx issue 3207, rsync",
    ),
    Link(
        "Thunderbolt 5, RDMA (JACCL)",
        50e-6,
        3.8e9,
        True,
        "under 50 us: the same article; 3.8 GB/s: mlx issue 3207, sustained",
    ),
    Link(
        "Thunderbolt 5, RDMA at best",
        9e-6,
        10e9,
        True,
        "5 to 9 us: users, techboards.net 5374 on mlx PR 2808; 80 Gb/s: the link's nominal rate",
    ),
)


@dataclass(frozen=True)
class Step:
    """One step of a model over several Macs.

    Attributes:
        way: "tensor" or "pipeline".
        tokens: tokens of the step, over all rows.
        sent: bytes that a Mac sends in the step; in a pipeline, every Mac but the last.
        link_seconds: seconds that the step spends in the link.
        seconds: seconds of the whole step.
        alone: seconds of the same step on one Mac that holds the whole model.
    """

    way: str
    link: str
    kind: str
    tokens: int
    sent: float
    link_seconds: float
    seconds: float
    alone: float

    @property
    def ratio(self) -> float:
        """Speed relative to one Mac."""
        return self.alone / self.seconds

    def to_dict(self) -> dict[str, Any]:
        return {"modelled": True, **vars(self), "ratio": round(self.ratio, 3)}

    def __str__(self) -> str:
        return (
            f"{self.way:<8} {self.link:<28} {self.kind:<8} {self.tokens:>4} tokens: "
            f"{self.sent / 2**20:>8.3f} MiB per Mac, link {1e3 * self.link_seconds:>8.2f} ms, "
            f"step {1e3 * self.seconds:>8.2f} ms, one Mac {1e3 * self.alone:>8.2f} ms "
            f"{self.ratio:>5.2f}x"
        )


def steps(machine: Machine, macs: int) -> Iterator[Step]:
    """Yield steps of decoding and of prefill over `macs` Macs, for each link and each way."""
    works = [("decode", rows, _decode(rows)) for rows in (1, 8, 32)]
    works += [("prefill", tokens, Work(tokens, 0, 1)) for tokens in (512,)]
    for link in LINKS:
        for kind, tokens, work in works:
            alone = machine.seconds(work)
            yield tensor_step(machine, macs, link, kind, tokens, alone)
            yield pipeline_step(machine, macs, link, kind, tokens, alone)


def tensor_step(
    machine: Machine, macs: int, link: Link, kind: str, tokens: int, alone: float
) -> Step:
    """Return a step whose matrices and heads are shared evenly by all Macs.

    Args:
        kind: "decode" or "prefill".
        tokens, alone: see `Step`.
    """
    size = _hidden(machine, tokens)
    count = _REDUCTIONS * machine.model.layers
    spent = count * link.all_reduce(size, macs)
    sent = count * link.sent(size, macs)
    return Step("tensor", link.name, kind, tokens, sent, spent, alone / macs + spent, alone)


def pipeline_step(
    machine: Machine, macs: int, link: Link, kind: str, tokens: int, alone: float
) -> Step:
    """Return a step whose layers lie on one Mac after another; one Mac computes at a time.

    The arguments are those of `tensor_step`.
    """
    size = _hidden(machine, tokens)
    spent = (macs - 1) * link.send(size)
    return Step("pipeline", link.name, kind, tokens, size, spent, alone + spent, alone)


def assumptions(macs: int) -> list[str]:
    """Return the assumptions that the modelled steps depend on, one per line."""
    return [
        *(
            f"{link.name}: {1e6 * link.latency:g} us, {link.bandwidth / 1e9:g} GB/s ({link.source})"
            for link in LINKS
        ),
        "of the chips, only m4-max comes with Thunderbolt 5; others are modelled as if they did",
        f"{macs} equal Macs; hidden states travel at float16, {_REDUCTIONS} all-reduces per layer",
        "mesh: each Mac sends all it has to every other at once; ring: 2 x (Macs - 1) messages",
        f"tensor parallel: the chip's time is divided by {macs}, as if all of it were matrices, "
        "keys and values; links and chips never work at the same time",
        "pipeline: one step in flight, so the Macs work one after the other; its use is memory",
        f"decoding rows have {CONTEXT} tokens before them; a share of the model fits each Mac",
        "plans and tokens take a few hundred bytes per step, and are left out",
    ]


def _decode(rows: int) -> Work:
    return Work(0, rows, rows, context=CONTEXT)


def _hidden(machine: Machine, tokens: int) -> int:
    """Return the bytes of the hidden states of `tokens` tokens."""
    return tokens * machine.model.hidden * _BYTES
