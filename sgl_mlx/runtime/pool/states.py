"""The pool of recurrent states: for each array of state of a model, one array indexed by slot.

As with the KV pool, the arrays are written only after every computation that reads them has been
evaluated. Slot 0 stays zero: it is the state of a sequence before its first token.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import mlx.core as mx

from sgl_mlx.models.states import RowStates, StateShape
from sgl_mlx.runtime.pool.kv import SlotIndex
from sgl_mlx.runtime.scheduler.plan import PoolLost, Row

Arrays = Sequence[mx.array]
"""Arrays `(rows, *shape)`, one for each `StateShape` of a model."""


class StatePool:
    """The recurrent states of a model, as arrays `(slots + 1, *shape)`.

    Args:
        slots: number of slots, without slot 0.
    """

    def __init__(self, shapes: Sequence[StateShape], slots: int) -> None:
        self.shapes = tuple(shapes)
        self.slots = slots
        self.arrays = [mx.zeros((slots + 1, *x.shape), x.dtype) for x in shapes]
        mx.eval(self.arrays)

    @staticmethod
    def bytes_per_slot(shapes: Sequence[StateShape]) -> int:
        """Return the bytes of one sequence's state, all layers together."""
        return sum(x.nbytes for x in shapes)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays)

    def grow(self, slots: int) -> None:
        """Enlarge the pool to `slots`, unless it is larger; the conditions of `write` apply."""
        for i, array in enumerate(self.arrays):
            missing = max(slots - self.slots, 0)
            more = mx.zeros((missing, *array.shape[1:]), array.dtype)
            self.arrays[i] = mx.concatenate([array, more])
            mx.eval(self.arrays[i])
        self.slots = max(slots, self.slots)

    def read(self, slots: Sequence[int]) -> list[mx.array]:
        """Return copies of the states in these slots."""
        where = SlotIndex(slots).where
        return [array[where] for array in self.arrays]

    def write(self, slots: Sequence[int], states: Arrays) -> None:
        """Write evaluated states to these slots; no slot may occur twice.

        Call it only when no unevaluated array refers to the pool; otherwise MLX copies the pool.

        Raises:
            PoolLost: when writing fails, so that the slots may hold anything.
        """
        where = SlotIndex(slots).where
        try:
            for array, new in zip(self.arrays, states, strict=True):
                array[where] = new
            mx.eval(self.arrays)
        except Exception as error:
            raise PoolLost(f"recurrent states could not be written: {error}") from error


class StepStates:
    """The recurrent states of one step's rows, read from the pool and written back."""

    def __init__(self, pool: StatePool, rows: Sequence[Row]) -> None:
        self._pool = pool
        pairs = [row.state for row in rows if row.state is not None]
        assert len(pairs) == len(rows), "a row without a state, and the model has recurrent layers"
        self._slots = [write for _, write in pairs]
        lengths = tuple(len(row.tokens) for row in rows)
        self.rows = RowStates(lengths, pool.read([read for read, _ in pairs]))

    def write(self) -> None:
        """Write the evaluated states after the step to the slots of its rows."""
        self._pool.write(self._slots, self.rows.new)


class EpochStates:
    """The recurrent states of a decode epoch's rows, kept outside the pool until the epoch ends.

    Besides the states of a step submitted ahead, the states after the last step whose result was
    returned are kept. So a row that ends within the epoch keeps its state after its last step.

    Args:
        rows: the epoch's rows, in the order of the batch.
    """

    def __init__(self, pool: StatePool, rows: Sequence[Row]) -> None:
        self._pool = pool
        self._rows = list(rows)
        self._live = list(range(len(rows)))
        self._steps: list[Arrays] = [StepStates(pool, rows).rows.arrays]  # the last returned first
        self._ended: list[tuple[int, Arrays]] = []

    def begin_step(self) -> RowStates:
        """Return the states before the next step, which sets their `new`; then call `end_step`."""
        return RowStates((1,) * len(self._rows), self._steps[-1])

    def end_step(self, states: RowStates) -> None:
        self._steps.append(states.new)

    def put_aside(self, ids: Collection[str]) -> None:
        """Keep, for `final`, the states of ended rows: those not in `ids`, the next plan's ids."""
        ended = [i for i in self._live if self._rows[i].id not in ids]
        for i in ended:
            self._ended.append((i, [array[i : i + 1] for array in self._steps[0]]))
            self._live.remove(i)

    def returned(self) -> None:
        """Forget the states before the oldest submitted step, because that step is returned now."""
        del self._steps[0]

    def arrays(self) -> list[mx.array]:
        """Return the arrays that the next step needs, and those of ended rows."""
        return [*self._steps[-1], *(array for _, arrays in self._ended for array in arrays)]

    def final(self) -> tuple[list[int], list[mx.array]]:
        """Return the slots to write, and each row's state after the last step that named it.

        Call it once, when the epoch is over; the arrays are not evaluated.
        """
        order = [*self._live, *(i for i, _ in self._ended)]
        last = self._steps[0]
        if len(self._live) < len(self._rows):
            chosen = mx.array(self._live, mx.int32)
            last = [mx.take(array, chosen, axis=0) for array in last]
        aside = zip(*(arrays for _, arrays in self._ended), strict=True)
        parts = list(aside) if self._ended else [()] * len(last)
        joined = [mx.concatenate([a, *b]) if b else a for a, b in zip(last, parts, strict=True)]
        slots = [row.state[1] for i in order if (row := self._rows[i]).state is not None]
        return slots, joined
