"""Faults planted in the runtime, each of which the self-check must find and shrink.

A fault must not change what a request computed alone answers, or nothing could be compared.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import pytest

from sgl_mlx.core import StreamEvent
from sgl_mlx.lang.transcript import Transcript
from sgl_mlx.runtime import runner, sampler
from sgl_mlx.runtime.cache import radix
from sgl_mlx.runtime.cache.holding import Holding
from sgl_mlx.runtime.cache.node_states import NodeStates
from sgl_mlx.runtime.cache.prefix_cache import PrefixCache
from sgl_mlx.runtime.cache.radix import RadixTree
from sgl_mlx.runtime.disk.block_folder import BlockFolder
from sgl_mlx.runtime.pool.states import EpochStates
from sgl_mlx.runtime.request.encode import Encoded
from sgl_mlx.runtime.request.output import TextOutput
from sgl_mlx.runtime.sampler import Sampler, Scored
from sgl_mlx.runtime.scheduler import scheduler
from sgl_mlx.runtime.scheduler.named import Named
from sgl_mlx.runtime.scheduler.plan import Row
from sgl_mlx.runtime.scheduler.queues import Queues
from sgl_mlx.runtime.scheduler.sequence import Sequence
from sgl_mlx.selfcheck.ways import (
    BATCHED,
    CACHED,
    DRAFTED,
    FORKED,
    RESTARTED,
    RESTORED,
    STREAMED,
    Way,
)

Patch = pytest.MonkeyPatch
Plant = Callable[[Patch], None]


@dataclass(frozen=True)
class Mutation:
    """A planted fault.

    Attributes:
        ways: the ways in which programs are run.
        kind: the toy; see `models.KINDS`.
        slots: slots of the pool.
        states: slots of recurrent state; None for as many as fit.
        new: most tokens of an answer.
        seed: seed of the programs, with which the fault shows soon.
    """

    what: str
    plant: Plant
    ways: tuple[Way, ...]
    kind: str = "plain"
    slots: int = 512
    states: int | None = None
    new: int = 6
    seed: int = 0


MUTATIONS: dict[str, Mutation] = {}


def fault(what: str, *ways: Way, **options: Any) -> Callable[[Plant], Plant]:
    """Return a decorator that lists a function that plants a fault."""

    def listed(plant: Plant) -> Plant:
        MUTATIONS[what] = Mutation(what, plant, ways, **options)
        return plant

    return listed


# -- the cache ------------------------------------------------------------------------------------


@fault("the prefix is one token too long", CACHED)
def one_more_token(patch: Patch) -> None:
    whole = radix.common_prefix

    def longer(edge: tuple[int, ...], tokens: tuple[int, ...], start: int) -> int:
        return min(whole(edge, tokens, start) + 1, len(edge), len(tokens) - start)

    patch.setattr(radix, "common_prefix", longer)


@fault("a stale slot: the table of a prefix names the slot of another token", CACHED)
def stale_slot(patch: Patch) -> None:
    whole = PrefixCache.open

    def opened(self: PrefixCache, tokens: tuple[int, ...], namespace: Any = radix.PLAIN) -> Holding:
        holding = whole(self, tokens, namespace)
        if holding.shared > 1:
            holding.table[0] = holding.table[1]
        return holding

    patch.setattr(PrefixCache, "open", opened)


@fault("a missing lock: a snapshot is evicted unread", CACHED, kind="recurrent", states=6)
def no_pin(patch: Patch) -> None:
    patch.setattr(NodeStates, "pin", lambda self, node: None)
    patch.setattr(NodeStates, "unpin", lambda self, node: None)


@fault("the wrong namespace: joined branches share the cache of plain text", CACHED, seed=3)
def one_namespace(patch: Patch) -> None:
    patch.setattr(Encoded, "namespace", property(lambda self: radix.PLAIN))


@fault("wrong positions after a cached prefix", CACHED)
def wrong_position(patch: Patch) -> None:
    whole = Sequence.row

    def row(self: Sequence, *args: Any, **options: Any) -> Row:
        made = whole(self, *args, **options)
        return replace(made, position=made.position + 1) if self.cached_tokens else made

    patch.setattr(Sequence, "row", row)


@fault("a state one token off is kept after an epoch", CACHED, kind="recurrent", seed=34)
def state_off_by_one(patch: Patch) -> None:
    for method in ("put_aside", "final"):
        patch.setattr(EpochStates, method, _one_ahead(getattr(EpochStates, method)))


def _one_ahead(whole: Callable[..., Any]) -> Callable[..., Any]:
    def ahead(self: EpochStates, *args: Any) -> Any:
        steps = self._steps
        self._steps = [steps[-1]]
        found = whole(self, *args)
        self._steps = steps
        return found

    return ahead


@fault("a snapshot of the prefix before is taken", CACHED, kind="recurrent")
def older_snapshot(patch: Patch) -> None:
    whole = RadixTree.match_state

    def match_state(self: RadixTree, tokens: Any, namespace: Any = radix.PLAIN) -> Any:
        found = whole(self, tokens, namespace)
        with_state = [node for node in found.node.path() if node.state]
        if len(with_state) > 1:
            with_state[0].state, with_state[1].state = with_state[1].state, with_state[0].state
        return found

    patch.setattr(RadixTree, "match_state", match_state)


# -- the batch ------------------------------------------------------------------------------------


@fault("noise of the first row for all rows", BATCHED)
def shared_noise(patch: Patch) -> None:
    whole = Sampler._draw

    def draw(self: Sampler, logits: mx.array, step: int) -> mx.array:
        rows = self._rows
        self._rows = [rows[0]] * len(rows)
        drawn = whole(self, logits, step)
        self._rows = rows
        return drawn

    patch.setattr(Sampler, "_draw", draw)


@fault("logprobs of the first row for all rows", BATCHED)
def first_logprobs(patch: Patch) -> None:
    whole = Scored.rows

    def rows(self: Scored, tokens: Any, first: int, last: int, top: int) -> Any:
        return whole(self, tokens, 0, last - first, top)

    patch.setattr(Scored, "rows", rows)


@fault("the mask of another row's constraint", BATCHED)
def another_mask(patch: Patch) -> None:
    whole = Named.masks

    def masks(self: Named, places: Any) -> Any:
        found = whole(self, places)
        return dict(zip(found, list(found.values())[::-1], strict=True))

    patch.setattr(Named, "masks", masks)


@fault("penalties count the tokens of another row", BATCHED)
def another_penalty(patch: Patch) -> None:
    whole = sampler._Penalties.__init__

    def made(self: Any, rows: Any, vocabulary: int) -> None:
        outputs = [row.output for row in rows][::-1]
        rows = [replace(row, output=o) for row, o in zip(rows, outputs, strict=True)]
        whole(self, rows, vocabulary)

    patch.setattr(sampler._Penalties, "__init__", made)


@fault("preemption loses a token", BATCHED, slots=280, new=16)
def lost_at_preemption(patch: Patch) -> None:
    whole = Queues.retract

    def retract(self: Queues, s: Sequence) -> None:
        whole(self, s)
        if len(s.output_tokens) > 1:
            del s.tokens[-2]

    patch.setattr(Queues, "retract", retract)


# -- drafts, streams, forks -----------------------------------------------------------------------


@fault("a drafted token is accepted unseen", DRAFTED, seed=1)
def accepts_all(patch: Patch) -> None:
    def accept(row: Row, sampled: tuple[int, ...]) -> tuple[int, ...]:
        drafted = row.tokens[len(row.tokens) - row.drafted :]
        return (*drafted, sampled[-1])

    patch.setattr(runner, "accept", accept)


@fault("a dropped token after a draft", DRAFTED, new=16)
def dropped_token(patch: Patch) -> None:
    whole = scheduler.append

    def append(s: Sequence, tokens: tuple[int, ...], scores: Any) -> Any:
        return whole(s, tokens[:1] + tokens[2:], scores)

    patch.setattr(scheduler, "append", append)


@fault("a streamed piece is lost", STREAMED)
def lost_piece(patch: Patch) -> None:
    whole = TextOutput._tell

    def tell(self: TextOutput, end: int) -> None:
        send = self._on_event

        def shorter(event: StreamEvent) -> None:
            assert send is not None
            send(replace(event, text=event.text[1:]) if event.finish_reason is None else event)

        self._on_event = None if send is None else shorter
        whole(self, end)
        self._on_event = send

    patch.setattr(TextOutput, "_tell", tell)


@fault("branches of a fork write to one transcript", FORKED)
def one_transcript(patch: Patch) -> None:
    whole = Transcript.fork

    def fork(self: Transcript, gap: int = 0) -> Transcript:
        child = whole(self, gap)
        child.parts = self.parts
        return child

    patch.setattr(Transcript, "fork", fork)


# -- disk and processes ---------------------------------------------------------------------------


@fault("a disk block of another prefix", RESTORED)
def another_block(patch: Patch) -> None:
    whole = BlockFolder.read

    def read(self: BlockFolder, key: str) -> Any:
        return whole(self, min(self.keys()))

    patch.setattr(BlockFolder, "read", read)


@fault("noise that depends on the process", RESTARTED)
def noise_of_process(patch: Patch) -> None:
    whole = sampler._uniform
    patch.setattr(sampler, "_uniform", lambda seed, at: whole(seed + os.getpid(), at))
