"""The tables that the kernels read."""

from __future__ import annotations

import pytest

from sgl_mlx.metal_kernels.plan import DecodePlan, ExtendPlan, ExtendRow, SharedSpan, tile_rows


def test_rows_of_an_extend_lie_one_after_another() -> None:
    plan = ExtendPlan([ExtendRow([7, 3], 4), ExtendRow([], 1), ExtendRow([9], 2)])
    assert plan.slots.tolist() == [7, 3, 9, 0, 0, 0, 0, 0]
    assert plan.table.tolist() == [0, 2, 0, 4, 2, 0, 4, 1, 2, 1, 5, 2]


def test_a_tile_holds_32_pairs_of_token_and_head() -> None:
    plan = ExtendPlan([ExtendRow([], 17), ExtendRow([], 16)])
    tiles, count = plan.tiles(2)
    assert tiles.tolist()[: 2 * count] == [0, 0, 0, 32, 1, 0]
    assert plan.tiles(1)[1] == 2
    assert plan.tiles(2)[0] is tiles


def test_tiles_of_wide_heads_have_fewer_rows() -> None:
    assert [tile_rows(*width) for width in ((128, 128), (192, 128), (256, 256))] == [32, 32, 16]
    assert [tile_rows(*width) for width in ((512, 512), (576, 512))] == [8, 8]
    plan = ExtendPlan([ExtendRow([], 17)])
    assert (plan.tiles(1, 8)[1], plan.tiles(1, 16)[1], plan.tiles(1, 32)[1]) == (3, 2, 1)
    shared = DecodePlan([[]] * 17, [SharedSpan(0, 17, 0, [1])])
    assert [shared.shared_tiles(1, rows)[1] for rows in (8, 16, 32)] == [3, 2, 1]


def test_no_table_is_so_small_that_mlx_passes_it_in_another_address_space() -> None:
    extend, decode = ExtendPlan([ExtendRow([], 1)]), DecodePlan([[]])
    tables = [extend.slots, extend.table, extend.tiles(1)[0], decode.slots, decode.table]
    tables += [decode.items, decode.merges, decode.shared_partials, decode.shared_tiles(1)[0]]
    assert [table.size for table in tables] == [8] * len(tables)


def test_prefix_and_tail_of_a_decode_row_are_cut_into_chunks() -> None:
    plan = DecodePlan([[5, 6, 7], []], width=6, chunk=4)
    items = plan.items.reshape(-1, 4).tolist()
    assert items == [[0, 0, 4, 0], [0, 4, 8, 0], [0, 8, 9, 0], [1, 0, 4, 0], [1, 4, 6, 0]]
    assert plan.merges.reshape(2, 4).tolist() == [[0, 3, 0, 0], [3, 2, 0, 0]]


def test_a_row_merges_the_partials_of_every_span_that_covers_it() -> None:
    spans = [SharedSpan(0, 3, 0, [1, 2, 3]), SharedSpan(1, 3, 3, [4])]
    plan = DecodePlan([[8], [], [9]], spans, chunk=2)
    assert plan.starts == [3, 4, 4]
    assert plan.ends == [4, 4, 5]
    assert plan.slots.tolist() == [8, 9, 1, 2, 3, 4, 0, 0]
    first_two, third, nested = plan.shared_tiles(1)[0].reshape(-1, 8).tolist()
    assert first_two == [2, 0, 2, 0, 3, 0, 4, 0]
    assert third == [4, 2, 1, 0, 3, 3, 4, 0]
    assert nested == [5, 3, 1, 1, 2, 6, 4, 0]
    assert [row[2:] for row in plan.merges.reshape(3, 4).tolist()] == [[0, 2], [2, 3], [5, 3]]
    assert plan.shared_partials.tolist() == [0, 3, 1, 4, 6, 2, 5, 7]


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([SharedSpan(0, 3, 0, [1])], "there are 2 rows"),
        ([SharedSpan(0, 2, 5, [1])], r"starts at 5; the spans before it end at \[0\]"),
        ([SharedSpan(0, 1, 0, [1]), SharedSpan(0, 2, 1, [2])], r"end at \[0, 1\]"),
        ([SharedSpan(0, 2, 0, [])], "with 0 slots"),
    ],
)
def test_spans_that_leave_a_gap_are_refused(spans: list[SharedSpan], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecodePlan([[], []], spans)


def test_rows_without_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        ExtendPlan([ExtendRow([1], 0)])
    with pytest.raises(ValueError, match="at least one row"):
        DecodePlan([])
    with pytest.raises(ValueError, match="tokens=9, width=9"):
        DecodePlan([[]], tokens=9, width=9)
