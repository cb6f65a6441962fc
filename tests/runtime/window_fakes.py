"""A runner that also models layers with a sliding window, which have slots of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sgl_mlx.runtime.cache.tier import GrowWindows, Load, Spill, Transfer
from sgl_mlx.runtime.scheduler.plan import Decode, Extend, Row, RowWindow, StepResult
from tests.runtime.fakes import FakeRunner, FakeStore
from tests.runtime.truth import Kv


class WindowStore(FakeStore):
    """A second tier in memory that also keeps blocks of windows.

    Attributes:
        window: what each window slot holds; the runner's.
        windows_loaded: number of window slots that were loaded so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.window: dict[int, Kv] = {}
        self.windows_loaded = 0

    def move(self, transfers: Sequence[Transfer], memory: dict[int, Kv]) -> None:
        for transfer in transfers:
            windows = isinstance(transfer, Spill | Load) and transfer.windows
            if isinstance(transfer, Load) and windows:
                super().move([transfer], self.window)
                self.window.pop(0, None)  # tokens that the tree had already
                self.windows_loaded += sum(map(bool, transfer.slots))
            else:
                super().move([transfer], self.window if windows else memory)


class WindowRunner(FakeRunner):
    """A fake runner of a model with full and windowed layers; see `fakes`.

    Every key that a new token sees in its window must be where the row says, in every step.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.window: dict[int, Kv] = {}
        if isinstance(self._store, WindowStore):
            self._store.window = self.window
        assert self._cache.windows is not None
        self._window_slots = self._cache.windows.capacity

    def _enlarge(self, transfers: tuple[Transfer, ...]) -> None:
        super()._enlarge(transfers)
        grown = [t.slots for t in transfers if isinstance(t, GrowWindows)]
        assert grown == sorted(grown)
        self._window_slots = max([self._window_slots, *grown])

    def _extend(self, plan: Extend) -> StepResult:
        self.flush()
        self._store.move(plan.transfers, self.memory)
        self.check_tree()
        result = super()._extend(replace(plan, transfers=()))
        for row in plan.rows:
            self.window |= {
                own: self.memory[slot]
                for slot, own in zip(row.slots, _window(row).slots, strict=True)
            }
        return result

    def _open(self, plan: Decode) -> None:
        self.check_tree()
        super()._open(plan)

    def flush(self) -> None:
        """Write the KV of the epoch."""
        for row in self._rows:
            self.window.update(zip(_window(row).slots, self._tails[row.id].keys, strict=False))
        super().flush()

    def lose_everything(self) -> None:
        super().lose_everything()
        self.window.clear()

    def check_tree(self) -> None:
        """Assert that window slots in the tree hold KV of their tokens, while no epoch is open."""
        for node in self._cache.tree.nodes():
            kept = node.slots[len(node.slots) - len(node.window) :]
            assert [self.window[x] for x in node.window] == [self.memory[x] for x in kept]

    def _check_rows(self, rows: tuple[Row, ...]) -> None:
        super()._check_rows(rows)
        written = [slot for row in rows for slot in _window(row).slots]
        assert 0 not in written
        assert max(written, default=0) <= self._window_slots
        assert len(set(written)) == len(written), "one window slot for two tokens"
        nodes = [slot for node in self._cache.tree.nodes() for slot in node.window]
        used = set(nodes).union(*(_window(row).prefix for row in rows))
        assert not used.intersection(written), "writes over KV in use"

    def _check_prefixes(self, rows: tuple[Row, ...]) -> None:
        super()._check_prefixes(rows)
        assert self._cache.windows is not None
        for row in rows:
            assert len(_window(row).slots) == len(row.slots)
            needed = self._feed(row).context.keys[: len(row.prefix)]
            seen = row.position - self._cache.windows.reach
            for slot, key in zip(row.keys(windowed=True), needed, strict=True):
                assert key.position < seen or self.window.get(slot) == key, "not in the window"


def _window(row: Row) -> RowWindow:
    assert row.window is not None, "a row without window slots"
    return row.window
