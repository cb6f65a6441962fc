"""A prefix is found only by requests of the same `extra_key`, in memory and on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_mlx.core import Parallel, Prompt, SamplingParams, Text
from sgl_mlx.errors import InvalidParamsError
from sgl_mlx.runtime.engine import Engine
from sgl_mlx.runtime.request.encode import Encoded
from sgl_mlx.runtime.request.output import Silent
from tests.runtime.conftest import MakeEngine

LONG = "one two three four five six seven eight nine ten " * 8
ONE = SamplingParams(max_new_tokens=1, temperature=0)
KEYS = st.text(max_size=4)


def cached(engine: Engine, prompt: Prompt, key: str | None) -> int:
    return engine.submit(prompt, ONE, extra_key=key).result()[0].cached_tokens


@pytest.fixture
def engine(make_engine: MakeEngine) -> Engine:
    return make_engine()


def open_toy(folder: Path, disk: Path) -> Engine:
    return Engine(str(folder), max_total_tokens=1500, disk_cache_dir=str(disk))


@pytest.mark.parametrize(
    "prompt",
    [
        (Text(LONG),),
        (Text(LONG), Parallel(((Text(" left"),), (Text(" right"),))), Text(" end")),
    ],
    ids=["text", "branches"],
)
def test_only_the_same_key_finds_a_prefix(engine: Engine, prompt: Prompt) -> None:
    first, again = ([cached(engine, prompt, key) for key in (None, "a", "b")] for _ in range(2))
    assert len(set(first)) == 1  # what a prompt's own branches share, and nothing of other keys
    assert min(again) > first[0] + 90


def test_choices_are_scored_in_their_own_part_of_the_cache(engine: Engine) -> None:
    assert cached(engine, (Text(LONG),), "a") == 0
    prompt = (Text(LONG),)
    assert engine.score(prompt, ["x", "y"], extra_key="b").result().cached_tokens == 0
    assert engine.score(prompt, ["x", "y"], extra_key="a").result().cached_tokens > 90


def test_the_disk_cache_keeps_keys_apart(toy_folder: Path, tmp_path: Path) -> None:
    prompt = (Text(LONG),)
    with open_toy(toy_folder, tmp_path) as engine:
        cached(engine, prompt, "a")
    with open_toy(toy_folder, tmp_path) as engine:
        assert cached(engine, prompt, "b") == 0
        assert cached(engine, prompt, None) == 0
        assert cached(engine, prompt, "a") >= 128


@given(KEYS, KEYS, st.integers(0, 2), st.integers(0, 2))
def test_namespaces_are_equal_only_for_equal_keys_and_prompts(
    left: str, right: str, gap: int, other: int
) -> None:
    a, b = (
        Encoded((1,), gap=g).sequence("s", Silent(), ONE, extra_key=key).namespace
        for key, g in ((left, gap), (right, other))
    )
    assert (a == b) == ((left, gap) == (right, other))


def test_a_key_that_is_no_text_is_refused(engine: Engine) -> None:
    with pytest.raises(InvalidParamsError, match="extra_key must be a text"):
        engine.submit((Text("x"),), ONE, extra_key=5)  # type: ignore[arg-type]
