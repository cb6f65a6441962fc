"""Where the parts of a prompt end, in tokens.

A model with recurrent layers may leave a snapshot there, for prompts that begin in the same way.
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
    """Yield the lengths of prefixes of `after` that end where a part or a piece of a text ends.

    A token that merges text on both sides of an end is not in the prefix.

    Args:
        before: tokens of the prompt before `part`.
        after: tokens of the prompt with `part`.
        extend: appends a text to tokens.
    """
    yield common_prefix(before, after, 0)
    if isinstance(part, Text):
        for start, end in pairwise((0, *part.ends)):
            before = extend(before, part.text[start:end])
            yield common_prefix(before, after, 0)
