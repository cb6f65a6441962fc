"""Shared stretches of prefixes, against their definition."""

from __future__ import annotations

from itertools import count, islice, pairwise

from hypothesis import given
from hypothesis import strategies as st

from sgl_mlx.core import SamplingParams
from sgl_mlx.runtime.attention.spans import (
    FREE_PADDING,
    MOST_PADDING,
    Span,
    batches,
    shared_spans,
)
from sgl_mlx.runtime.runner import arrange
from sgl_mlx.runtime.scheduler.plan import Row

MIN = 3


def row(prefix: tuple[int, ...], tokens: int = 1, name: str = "r") -> Row:
    return Row(
        id=name,
        tokens=(0,) * tokens,
        prefix=prefix,
        slots=(0,) * tokens,
        position=len(prefix),
        sample=True,
        params=SamplingParams(),
    )


@st.composite
def prefixes(draw: st.DrawFn) -> list[tuple[int, ...]]:
    """Prefixes that branch off each other, as those in a radix tree do: a slot follows one slot."""
    found: list[tuple[int, ...]] = [()]
    fresh = 1
    for _ in range(draw(st.integers(1, 9))):
        parent = draw(st.sampled_from(found))
        kept = draw(st.integers(0, len(parent)))
        added = draw(st.integers(0, 2 * MIN))
        found.append((*parent[:kept], *range(fresh, fresh + added)))
        fresh += added
    return sorted(draw(st.permutations(found)))


def covers(span: Span, index: int) -> bool:
    return span.first <= index < span.last


@given(prefixes())
def test_every_key_of_every_prefix_is_attended_exactly_once(found: list[tuple[int, ...]]) -> None:
    spans, private = shared_spans([row(p) for p in found], MIN)
    for i, prefix in enumerate(found):
        mine = sorted((s for s in spans if covers(s, i)), key=lambda s: s.start)
        keys: tuple[int, ...] = ()
        for span in mine:
            assert span.start == len(keys)
            keys += span.slots
        assert private[i] == len(keys)
        assert keys + prefix[private[i] :] == prefix


@given(prefixes())
def test_a_span_is_long_enough_and_of_several_rows(found: list[tuple[int, ...]]) -> None:
    spans, _ = shared_spans([row(p) for p in found], MIN)
    assert all(len(span.slots) >= MIN and span.last - span.first >= 2 for span in spans)


@given(prefixes())
def test_neighbours_read_apart_less_than_what_pays_to_share(found: list[tuple[int, ...]]) -> None:
    spans, _ = shared_spans([row(p) for p in found], MIN)
    for i, (a, b) in enumerate(pairwise(found)):
        common = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
        common = min(len(a), len(b)) if common is None else common
        together = sum(len(s.slots) for s in spans if covers(s, i) and covers(s, i + 1))
        assert together <= common < together + MIN


@given(prefixes())
def test_every_span_is_in_one_batch_with_none_of_the_same_rows(
    found: list[tuple[int, ...]],
) -> None:
    spans, _ = shared_spans([row(p) for p in found], MIN)
    grouped = batches(spans)
    assert sorted((s.first, s.start) for b in grouped for s in b) == sorted(
        (s.first, s.start) for s in spans
    )
    for batch in grouped:
        assert all(a.last <= b.first for a, b in pairwise(batch))


def test_a_level_of_a_tree_is_one_batch() -> None:
    fresh = count(1)
    leaves: list[tuple[int, ...]] = [()]
    for branches, length in [(1, 512), (4, 250), (2, 256), (4, 16)]:
        leaves = [(*p, *islice(fresh, length)) for p in leaves for _ in range(branches)]
    spans, _ = shared_spans([row(p) for p in leaves], 32)
    assert [len(batch) for batch in batches(spans)] == [1, 4, 8]


def test_spans_that_would_be_mostly_padding_are_batches_of_their_own() -> None:
    def span(first: int, length: int) -> Span:
        return Span(first, first + 2, 0, tuple(range(length)))

    long, short, tiny = span(0, 8000), span(2, 2000), span(4, 40)
    assert MOST_PADDING * 2 * (8000 + 2000) + FREE_PADDING < 2 * 2 * 8000
    assert batches([tiny, short, long]) == [[long], [short], [tiny]]
    assert batches([span(0, 200), tiny]) == [[span(0, 200), tiny]]  # too little to care


def test_rows_that_share_nothing_have_no_spans() -> None:
    assert shared_spans([row((1, 2, 3)), row((4, 5, 6))], MIN) == ([], [0, 0])


def test_single_tokens_stand_first_and_like_prefixes_side_by_side() -> None:
    rows = [row((1,), 2, "a"), row((5,), 1, "b"), row((1,), 1, "c"), row((5,), 3, "d")]
    assert "".join(r.id for r in arrange(rows)) == "cbad"
