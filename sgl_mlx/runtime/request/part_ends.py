"""Where the parts of a prompt end, in tokens.

A model with recurrent layers may keep a snapshot of its state at such an end. Later prompts that
begin with the same parts continue from the snapshot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

from sgl_mlx.core import Part, Text
from sgl_mlx.runtime.cache.radix import common_prefix

Tokens = tuple[int, ...]


def part_ends(
    before: Tokens, part: Part, after: Tokens, extend: Callable[[Tokens, str], Tokens]
) -> Iterator[int]:
    """Yield how many tokens of `after` come before `part`, and before each end in `Text.ends`.

    A token that merges text on both sides of an end is not counted.

    Args:
        before: tokens of the prompt before `part`.
        after: tokens of the prompt up to the end of `part`.
        extend: returns given tokens with a text appended.
    """
    yield common_prefix(before, after, 0)
    if isinstance(part, Text):
        for start, end in pairwise((0, *part.ends)):
            before = extend(before, part.text[start:end])
            yield common_prefix(before, after, 0)
