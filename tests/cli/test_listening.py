"""Present objects are exempt from garbage collection, so that its pauses are short."""

from __future__ import annotations

import gc
import weakref

from sgl_mlx.cli.listening import freeze_present_objects


class Node:
    """An object that a cycle keeps alive."""


def test_what_is_present_is_never_visited_again_and_what_comes_later_is_freed() -> None:
    freeze_present_objects()
    try:
        assert gc.get_freeze_count() > 10_000
        left = len(gc.get_objects())
        assert left < 1000
        node = Node()
        node.itself = node  # type: ignore[attr-defined]
        seen = weakref.ref(node)
        del node
        gc.collect()
        assert seen() is None
    finally:
        gc.unfreeze()
