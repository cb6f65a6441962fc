"""The slot allocator against a set."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sgl_mlx.runtime.cache.slots import SlotAllocator


class SlotMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.slots = SlotAllocator(0)
        self.free: set[int] = set()
        self.taken: set[int] = set()

    @initialize(capacity=st.integers(0, 40))
    def start(self, capacity: int) -> None:
        self.slots = SlotAllocator(capacity)
        self.free = set(range(1, capacity + 1))

    @rule(count=st.integers(0, 12))
    def alloc(self, count: int) -> None:
        if count > len(self.free):
            with pytest.raises(ValueError, match="slots wanted"):
                self.slots.alloc(count)
            return
        one_run = any(set(range(s, s + count)) <= self.free for s in self.free)
        got = self.slots.alloc(count)
        assert len(got) == count
        assert got == sorted(got)
        assert set(got) <= self.free
        assert not (one_run and count) or got[-1] - got[0] == count - 1
        self.free -= set(got)
        self.taken |= set(got)

    @rule(more=st.integers(1, 9))
    def grow(self, more: int) -> None:
        old = self.slots.capacity
        self.slots.grow(old + more)
        self.free |= set(range(old + 1, old + more + 1))

    @rule(data=st.data())
    def free_some(self, data: st.DataObject) -> None:
        order = data.draw(st.permutations(sorted(self.taken)))
        given = order[: data.draw(st.integers(0, len(order)))]
        self.slots.free(given)
        self.taken -= set(given)
        self.free |= set(given)

    @rule(slot=st.integers(-1, 420))
    def free_what_is_not_taken(self, slot: int) -> None:
        if slot not in self.taken:
            with pytest.raises(ValueError, match="not all in use"):
                self.slots.free([slot])

    @invariant()
    def agrees_with_the_set(self) -> None:
        self.slots.check()
        assert set(self.slots.free_slots()) == self.free
        assert self.slots.free_count == len(self.free)


TestSlots = SlotMachine.TestCase
# derandomize: CI runs the same steps each time, so that a failure is the change's own
TestSlots.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, derandomize=True
)


def test_a_slot_given_back_twice_at_once_is_refused() -> None:
    slots = SlotAllocator(4)
    slots.alloc(3)
    with pytest.raises(ValueError, match=r"2\.\.2 are not all in use"):
        slots.free([2, 2])


def test_allocation_prefers_one_run_over_the_lowest_slots() -> None:
    slots = SlotAllocator(10)
    slots.alloc(10)
    slots.free([1, 2, 5, 6, 7])
    assert slots.alloc(3) == [5, 6, 7]


def test_scattered_slots_are_handed_out_when_no_run_is_long_enough() -> None:
    slots = SlotAllocator(5)
    slots.alloc(5)
    slots.free([1, 3, 5])
    assert slots.alloc(3) == [1, 3, 5]
