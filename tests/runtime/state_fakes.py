"""A runner that also models recurrent state: which prefix each state slot has seen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from sgl_mlx.runtime.cache.radix import PLAIN
from sgl_mlx.runtime.cache.tier import GrowStates, LoadState, SpillState, Transfer
from sgl_mlx.runtime.scheduler.plan import Decode, Extend, Row, StepResult
from tests.runtime.fakes import FakeRunner, FakeStore
from tests.runtime.truth import Context, Kv

FRESH = 0
"""Content of slot 0: the state before a first token."""


def digest_of(tokens: Iterable[int]) -> int:
    """The state after a prefix of ordinary text."""
    context = Context(PLAIN, [])
    for position, token in enumerate(tokens):
        context.feed(token, position)
    return context.digests[-1]


class StateStore(FakeStore):
    """A second tier in memory that also keeps snapshots: the state, then the KV of the rest.

    Args:
        states: what each state slot holds; the runner's.
    """

    def __init__(self) -> None:
        super().__init__()
        self.states: dict[int, int] = {}
        self.states_loaded = 0

    def move(self, transfers: Sequence[Transfer], memory: dict[int, Kv]) -> None:
        for transfer in transfers:
            if isinstance(transfer, SpillState):
                state = Kv(self.states[transfer.state], -1)
                kept = [state, *(memory[slot] for slot in transfer.slots)]
                assert self.blocks.get(transfer.key, kept) == kept, "one key for two contents"
                if not self.full:
                    self.blocks[transfer.key] = kept
            elif isinstance(transfer, LoadState):
                state, *tail = self.held.pop(transfer.reading).kv
                self.states[transfer.state] = state.content
                self.states_loaded += 1
                assert len(transfer.slots) == len(tail) - transfer.skip
                memory.update(zip(transfer.slots, tail[transfer.skip :], strict=True))
            else:
                super().move([transfer], memory)


class StateRunner(FakeRunner):
    """A fake runner of a model with recurrent layers; see `fakes`.

    A state is the digest of its prefix. Those of an epoch reach their slots when it is over, as
    they were after the last step whose plan named the row. `state_reads` counts reads of snapshots.
    `checks_keys` is False for a model without attention, which needs no KV.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.states: dict[int, int] = {0: FRESH}
        if isinstance(self._store, StateStore):
            self._store.states = self.states
        self.state_reads = 0
        self.checks_keys = True
        assert self._cache.snapshots is not None
        self._state_slots = self._cache.snapshots.capacity
        self._named: dict[str, int] = {}

    def _enlarge(self, transfers: tuple[Transfer, ...]) -> None:
        super()._enlarge(transfers)
        grown = [t.slots for t in transfers if isinstance(t, GrowStates)]
        self._state_slots = max([self._state_slots, *grown])

    def _extend(self, plan: Extend) -> StepResult:
        self.flush()
        self._store.move(plan.transfers, self.memory)
        self.check_snapshots()
        self._check_states(plan.rows)
        result = super()._extend(replace(plan, transfers=()))
        for row in plan.rows:
            self._write(row, self._state(row, len(row.tokens)))
        return result

    def _open(self, plan: Decode) -> None:
        self._check_states(plan.opening)
        super()._open(plan)
        self._named = {}

    def _decode(self, plan: Decode) -> StepResult:
        result = super()._decode(plan)
        self._named.update(dict.fromkeys(plan.ids, self._steps))
        return result

    def flush(self) -> None:
        """Write the KV and the states of the epoch."""
        for row in self._rows:
            if row.id in self._named:
                tail = self._tails[row.id]
                done = len(tail.context.digests) - len(tail.keys) - 1 + self._named[row.id]
                self._write(row, tail.context.digests[done])
        super().flush()

    def check_snapshots(self) -> None:
        """Assert that every snapshot is the state of its prefix; call it while no epoch is open."""
        for node in self._cache.tree.nodes():
            if node.state:
                prefix = [t for n in reversed(list(node.path())) for t in n.tokens]
                assert self.states[node.state] == digest_of(prefix), prefix

    def lose_everything(self) -> None:
        super().lose_everything()
        self.states.clear()
        self.states[0] = FRESH

    def _check_prefixes(self, rows: tuple[Row, ...]) -> None:
        if not self.checks_keys:
            for row in rows:
                keys = self._feed(row).context.keys
                self.memory.update(zip(row.prefix, keys, strict=False))
        super()._check_prefixes(rows)

    def _state(self, row: Row, count: int) -> int:
        """The state after the first `count` new tokens of a row."""
        done = row.position + min(count, len(row.tokens) - row.drafted)
        if not done:
            return FRESH
        truth = self._feed(row)
        if not row.drafted or count < len(row.tokens):
            return truth.digest(done)
        context = Context(self.sequences[row.id].namespace, truth.context.keys[:done])
        for position, token in enumerate(row.tokens[-row.drafted :], done):
            context.feed(token, position)
        return context.digests[-1]

    def _write(self, row: Row, state: int) -> None:
        assert row.state is not None
        self.states[row.state[1]] = state

    def _check_states(self, rows: tuple[Row, ...]) -> None:
        """Every row reads the state of its own prefix, and writes what nobody else needs."""
        pairs = [row.state for row in rows]
        written = [pair[1] for pair in pairs if pair is not None]
        assert len(written) == len(rows), "a row without a state"
        assert 0 not in written
        assert all(max(pair) <= self._state_slots for pair in pairs if pair is not None)
        assert len(set(written)) == len(written), "one slot for two states"
        cached = {node.state for node in self._cache.tree.nodes()}
        assert not cached.intersection(written), "writes over a snapshot"
        for row, (read, own) in zip(rows, [p for p in pairs if p is not None], strict=True):
            assert self.states.get(read) == self._state(row, 0), row
            assert read == own or read not in written
            assert (read == 0) == (row.position == 0)
            self.state_reads += read in cached and read != 0
