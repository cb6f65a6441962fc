"""Parts of a prompt survive the way through JSON."""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_mlx.core import Generated, Image, Parallel, Prompt, Shift, Text, Video
from sgl_mlx.errors import NotYetError, PromptError
from sgl_mlx.protocol import parts

LEAVES = st.one_of(
    st.builds(Text, st.text(max_size=5)),
    st.builds(Generated, st.text(max_size=5), st.lists(st.integers(0, 99), max_size=3).map(tuple)),
    st.builds(Image, st.text(max_size=5)),
    st.builds(Shift, st.integers(0, 99)),
)
BRANCHES = st.lists(st.lists(LEAVES, max_size=3).map(tuple), max_size=3).map(tuple)
PROMPTS = st.lists(LEAVES | st.builds(Parallel, BRANCHES), max_size=5).map(tuple)


@given(PROMPTS)
def test_a_prompt_comes_back_as_it_went(prompt: Prompt) -> None:
    sent = json.loads(json.dumps(parts.encode(prompt, str)))
    assert parts.decode(sent, lambda _, url: str(url)) == prompt


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5))
def test_other_json_is_refused_or_read(given: Any) -> None:
    texts = isinstance(given, list) and all(isinstance(part, str) for part in given)
    with nullcontext() if texts else pytest.raises(PromptError, match=r"^parts"):
        parts.decode(given, lambda _, url: str(url))


def test_a_video_needs_an_engine() -> None:
    with pytest.raises(NotYetError, match="video"):
        parts.encode((Video("a.mp4", 4),), str)
