"""Proposals of drafters: from the text so far, from the tree, and from recent outputs."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from sgl_mlx.runtime.cache.radix import PLAIN, RadixTree
from sgl_mlx.runtime.speculation.context import ContextDrafter
from sgl_mlx.runtime.speculation.tree import TreeDrafter
from tests.runtime.truth import make_sequence, recorder

ids = itertools.count()


def test_a_repeated_text_is_continued_as_before() -> None:
    s = make_sequence(ids, (1, 2, 3, 4, 5, 6, 9, 1, 2, 3), 20)
    found = ContextDrafter().propose(s, 4)
    assert found is not None
    assert found.tokens == (4, 5, 6, 9)


def test_a_short_period_is_repeated_to_the_limit() -> None:
    found = ContextDrafter().propose(make_sequence(ids, (1, 2, 3, 1, 2, 3), 20), 8)
    assert found is not None
    assert found.tokens == (1, 2, 3, 1, 2, 3, 1, 2)


def test_new_text_gets_no_proposal() -> None:
    assert ContextDrafter().propose(make_sequence(ids, (1, 2, 3, 4, 5), 20), 8) is None


@given(st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=12), max_size=6), st.data())
def test_the_tree_proposes_only_what_it_holds(paths: list[list[int]], data: st.DataObject) -> None:
    tree, slots = RadixTree(), itertools.count(1)
    for path in paths:
        tree.insert(path, [next(slots) for _ in path])
    whole = data.draw(st.sampled_from(paths)) if paths else [1]
    cut = data.draw(st.integers(1, len(whole)))
    found = TreeDrafter(tree).propose(make_sequence(ids, tuple(whole[:cut]), 9), 5)
    below = [tuple(p[cut:]) for p in paths if p[:cut] == whole[:cut] and len(p) > cut]
    assert (found is not None) == bool(below)
    if found is not None:
        assert 1 <= len(found.tokens) <= 5
        assert any(path[: len(found.tokens)] == found.tokens for path in below)
    tree.check()


def test_pictures_are_never_proposed() -> None:
    tree = RadixTree()
    picture = 2**200
    tree.insert((1, 2, 3, picture, picture, 4), list(range(1, 7)))
    found = TreeDrafter(tree).propose(make_sequence(ids, (1, 2), 9), 5)
    assert found is not None
    assert found.tokens == (3,)


def test_recent_outputs_serve_other_prompts_of_their_namespace_only() -> None:
    drafter = TreeDrafter(RadixTree())
    done = make_sequence(ids, (7, 8), 20)
    done.tokens += [1, 2, 3, 4, 5, 6]
    recorder(done)
    drafter.ended(done)
    again = make_sequence(ids, (9, 9, 2, 3, 4), 20)
    found = drafter.propose(again, 8)
    assert found is not None
    assert found.tokens == (5, 6)
    elsewhere = make_sequence(ids, (9, 9, 2, 3, 4), 20)
    elsewhere.namespace = "another user"
    assert drafter.propose(elsewhere, 8) is None
    assert elsewhere.namespace != PLAIN
