"""The cache doctor reads logs of the server and bodies of requests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

HEAD = "You help with the weather of many cities, and answer briefly. " * 4


def write(path: Path, *entries: Any) -> str:
    path.write_text("\n".join(map(json.dumps, entries)))
    return str(path)


def chat(date: str, *said: str) -> dict[str, Any]:
    users = [{"role": "user", "content": text} for text in said]
    return {"messages": [{"role": "system", "content": f"Today is {date}. {HEAD}"}, *users]}


def test_request_bodies_show_what_broke_the_prefix(sgl: Any, tmp_path: Path) -> None:
    log = write(
        tmp_path / "log",
        chat("2026-11-27", "Hi"),
        chat("2026-11-27", "Hi", "And in Rome?"),
        chat("2026-11-28", "Hi", "And in Rome?", "Thanks"),
    )
    told = sgl("cache-doctor", log).stdout
    assert "1: first; 0 of" in told
    assert "2: new; " in told
    assert "3: date; " in told
    assert "A date or time differs" in told
    assert told.endswith("3 prompts; broken prefixes: 1 date\n")


def test_a_servers_log_tells_tokens_and_seconds(sgl: Any, tmp_path: Path) -> None:
    counts = {"prompt_tokens": 100, "cached_tokens": 0, "seconds": 2.0}
    log = write(
        tmp_path / "log",
        {"id": "a", "prompt": f"At 10:41. {HEAD}", **counts},
        {"id": "b", "prompt": f"At 10:42. {HEAD}", **counts},
    )
    shown = json.loads(sgl("cache-doctor", log, "--json").stdout)["prompts"][1]
    assert (shown["id"], shown["because"], shown["nearest"]) == ("b", "date", "a")
    assert shown["cost"] == pytest.approx(2.0, abs=0.1)
    assert "0 of 100 tokens cached" in sgl("cache-doctor", log).stdout


@pytest.mark.parametrize("entry", [{"input": "x"}, {"prompt": [1, 2]}, {"messages": ["x"]}])
def test_prompts_of_every_kind_are_read(sgl: Any, tmp_path: Path, entry: Any) -> None:
    log = write(tmp_path / "log", entry, {**entry, "tools": [{"name": "t"}]})
    assert "2 prompts" in sgl("cache-doctor", log).stdout


@pytest.mark.parametrize(
    ("line", "said"),
    [("{", "line 1 is no JSON"), ("[]", "must be a JSON object"), ('{"a": 1}', "has neither")],
)
def test_a_wrong_line_is_named(sgl: Any, tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "log").write_text(line)
    result = sgl("cache-doctor", str(tmp_path / "log"))
    assert result.exit_code == 1
    assert said in result.stderr


def test_the_log_may_come_from_standard_input(sgl: Any) -> None:
    assert "1 prompts" in sgl("cache-doctor", "-", stdin='{"prompt": "x"}').stdout


def test_only_line_feeds_end_an_entry(sgl: Any, tmp_path: Path) -> None:
    (tmp_path / "log").write_text('{"prompt": "a\u2028b\u0085c"}\n{"prompt": "d"}\n', "utf-8")
    assert "2 prompts; " in sgl("cache-doctor", str(tmp_path / "log")).stdout
