"""Plans that travel without what the other end knows arrive as they were."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_mlx.core import SamplingParams
from sgl_mlx.runtime.ranks.growing import GrowingRows
from sgl_mlx.runtime.scheduler.plan import Decode, Extend, Plan, Row
from sgl_mlx.runtime.scheduler.wire import from_json, to_json

numbers = st.lists(st.integers(0, 3), max_size=5).map(tuple)
rows = st.builds(
    Row,
    id=st.sampled_from("abc"),
    tokens=st.just((1,)),
    prefix=numbers,
    slots=numbers,
    position=st.just(0),
    sample=st.just(True),
    params=st.just(SamplingParams()),
    output=numbers,
    history=numbers,
)
several = st.lists(rows, max_size=4).map(tuple)
plans = st.builds(Extend, several) | st.builds(
    Decode, st.just(("a",)), st.just(4), st.just(True), several
)


def travel(plan: Plan, here: GrowingRows, there: GrowingRows) -> tuple[Plan, int]:
    """Send a plan; return what arrives, and the bytes sent."""
    kept, cut = here.cut(plan)
    sent = json.dumps(kept) + to_json(cut)
    found = from_json(to_json(cut))
    assert isinstance(found, Extend | Decode)
    return there.mend(json.loads(json.dumps(kept)), found), len(sent)


@given(st.lists(plans, max_size=6))
def test_every_plan_arrives_as_it_was(sent: list[Plan]) -> None:
    here, there = GrowingRows(), GrowingRows()
    for plan in sent:
        assert travel(plan, here, there)[0] == plan


def test_the_bytes_of_a_step_do_not_grow_with_the_context() -> None:
    here, there = GrowingRows(), GrowingRows()

    def step(row: int, length: int) -> Row:
        slots = tuple(range(row * 10_000, row * 10_000 + length + 16))
        sampling = SamplingParams()
        return Row(f"{row}", (5,), slots[:length], slots[length:], length, True, sampling)

    def sent(length: int) -> int:
        plan = Extend(tuple(step(row, length) for row in range(32)))
        arrived, size = travel(plan, here, there)
        assert arrived == plan
        return size

    assert sent(8192) > 1_000_000
    assert sent(8208) < 20_000


def test_a_count_that_does_not_fit_is_an_error() -> None:
    plan = Extend((Row("a", (1,), (), (2,), 0, True, SamplingParams()),))
    with pytest.raises(ValueError, match="row a refers to more"):
        GrowingRows().mend([[1, 0, 0]], plan)
