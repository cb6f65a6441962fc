"""Lines of streamed answers."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from sgl_mlx.benchmarks.peers.lines import Lines

_TEXT = st.text(st.sampled_from("ab\n é\u2028\u0085\x0b\x1e"), max_size=30)


@given(_TEXT, st.sets(st.integers(1, 60)), st.sampled_from(["\n", "\r\n"]))
def test_only_line_feeds_end_lines_however_the_bytes_are_cut(
    text: str, cuts: set[int], end: str
) -> None:
    data = text.replace("\n", end).encode()
    edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    lines = Lines()
    found = [line for a, b in itertools.pairwise(edges) for line in lines.feed(data[a:b])]
    whole, rest = text.split("\n")[:-1], text.split("\n")[-1]
    assert [*found, *lines.rest()] == [*whole, *([rest] if rest else [])]
