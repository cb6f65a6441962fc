"""A request costs the same work whether or not another part of the cache has its prefix.

Work is counted, not timed: steps, forward passes, tokens computed, drafted, read from the pool or
from disk. If two counts of work are equal, their time tells nothing about other parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from sgl_mlx.core import SamplingParams
from sgl_mlx.runtime.engine import Engine
from tests.patience import PATIENCE

PROMPT = [3 + (j * 7) % 250 for j in range(200)]
ASKED = SamplingParams(temperature=0, max_new_tokens=24, ignore_eos=True)
SLOTS = 600
OTHERS = [[3 + (i * 31 + j * 11) % 250 for j in range(200)] for i in range(1, 4)]
"""Prompts that fill the pool, so that what was computed before goes to disk."""
TIMES = ("seconds", "rate")

Work = Mapping[str, float]
Open = Callable[[], Engine]


def counts(engine: Engine) -> dict[str, float]:
    stats = engine.get_server_info()["stats"]
    return {name: n for name, n in stats.items() if not name.endswith(TIMES)}


def ask(engine: Engine, prompt: list[int], key: str) -> None:
    engine.submit(prompt, ASKED, extra_key=key).result(PATIENCE)


def work_of(engine: Engine, prompt: list[int], key: str) -> Work:
    """Return what a request adds to the counts, without what lies in the cache and on disk."""
    before = counts(engine)
    ask(engine, prompt, key)
    after = counts(engine)
    state = {"free_slots", "cached_slots", "peak_slots", "disk_bytes", "disk_waiting_tokens"}
    writes = {"disk_spilled_tokens", "disk_dropped_tokens", "disk_failed_tokens"}
    return {name: n - before[name] for name, n in after.items() if name not in state | writes}


@pytest.fixture
def opened(toy_folder: Path, tmp_path: Path) -> Open:
    def make(folder: str = "disk") -> Engine:
        disk = str(tmp_path / folder)
        return Engine(str(toy_folder), max_total_tokens=SLOTS, disk_cache_dir=disk)

    return make


@pytest.fixture
def alone(opened: Callable[[str], Engine]) -> Work:
    """The work of the prompt in an engine where nobody else has asked for it."""
    with opened("another disk") as engine:
        ask(engine, OTHERS[0], "victim")
        return work_of(engine, PROMPT, "spy")


def test_a_prefix_in_memory_saves_its_owner_work_and_nobody_else(opened: Open, alone: Work) -> None:
    with opened() as engine:
        ask(engine, OTHERS[0], "victim")
        ask(engine, PROMPT, "victim")
        assert work_of(engine, PROMPT, "spy") == alone
        assert work_of(engine, PROMPT, "victim") != alone


def test_a_prefix_on_disk_saves_its_owner_work_and_nobody_else(opened: Open, alone: Work) -> None:
    with opened() as engine:
        ask(engine, PROMPT, "victim")
    with opened() as engine:
        ask(engine, OTHERS[0], "victim")
        assert work_of(engine, PROMPT, "spy") == alone
        own = work_of(engine, PROMPT, "victim")
        assert own["restored_tokens"] > 0
        assert own != alone


def test_a_prefix_that_is_being_computed_does_not_make_others_wait(
    opened: Open, alone: Work
) -> None:
    """Requests of one part that share a new prefix wait for it; those of another do not."""
    with opened() as engine:
        before = counts(engine)
        keys = ["victim", "spy"]
        for future in [engine.submit(PROMPT, ASKED, extra_key=key) for key in keys]:
            assert future.result(PATIENCE)[0].cached_tokens == 0
        computed = counts(engine)["prompt_tokens"] - before["prompt_tokens"]
        assert computed == len(keys) * len(PROMPT)
        assert counts(engine)["cached_tokens"] == before["cached_tokens"]


def test_what_others_wrote_is_no_draft(opened: Open, alone: Work) -> None:
    """Drafts come from a request's own part of the tree: the accepted ones would tell a text."""
    with opened() as engine:
        for _ in range(3):
            ask(engine, OTHERS[0], "victim")
            ask(engine, PROMPT, "victim")
        found = work_of(engine, PROMPT, "spy")
        assert found["drafted_tokens"] == alone["drafted_tokens"]
        assert found["decode_tokens"] == alone["decode_tokens"]
        assert work_of(engine, PROMPT, "victim")["drafted_tokens"] > found["drafted_tokens"]
