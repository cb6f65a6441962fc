"""A reader of the code meets the model early, and nothing that a call does not need."""

from __future__ import annotations

import pytest

from tests.runtime.conftest import write_toy
from tests.runtime.llava import write_llava
from tests.trail import FORWARD, image_trail, text_trails

FILES_BEFORE_THE_MODEL = 20
NOT_NEEDED = {"runtime/cache/restores.py", "runtime/scheduler/background.py"}


@pytest.fixture(scope="module")
def trails(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    folder = tmp_path_factory.mktemp("trail")
    images = {"image": image_trail(write_llava(folder / "image"))}
    return {**text_trails(write_toy(folder / "text")), **images}


def test_generate_comes_to_the_model_after_few_files(trails: dict[str, list[str]]) -> None:
    assert trails["generate"].index(FORWARD) <= FILES_BEFORE_THE_MODEL


def test_no_call_enters_the_second_tier_or_prefetches(trails: dict[str, list[str]]) -> None:
    for name, files in trails.items():
        assert FORWARD in files, name
        assert not NOT_NEEDED & set(files), name
        assert not [file for file in files if file.startswith("runtime/disk")], name


def test_only_a_picture_enters_the_vision_part(trails: dict[str, list[str]]) -> None:
    entered = {n: any("/vision/" in file for file in files) for n, files in trails.items()}
    assert entered == {"generate": False, "gen": False, "select": False, "image": True}
