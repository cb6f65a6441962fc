"""The live page in a browser: it shows the server's state and asks nobody else."""

from __future__ import annotations

import re
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx

from sgl_mlx.runtime.engine import Engine
from tests.benchmarks.suite.report.browser import CHROMIUM, PATIENCE, SWITCHES, needs_chromium

PAGE = files("sgl_mlx.server.pages").joinpath("index.html").read_text("utf-8")
HEAD = "You help with the weather of many cities. " * 4


def browse(url: str, profile: Path) -> tuple[str, list[str]]:
    """The page's document after three seconds, and what Chromium complains of."""
    assert CHROMIUM is not None
    result = subprocess.run(
        [
            CHROMIUM,
            *SWITCHES,
            f"--user-data-dir={profile}",
            "--virtual-time-budget=3000",
            "--dump-dom",
            url,
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    told = [line for line in result.stderr.splitlines() if "CONSOLE" in line]
    return result.stdout, told


def test_browsers_get_a_page_and_others_a_line(script: Any, client: httpx.Client) -> None:
    _, url = script("x", api_keys=["secret"])
    page = client.get(url, headers={"accept": "text/html,*/*"})
    assert page.headers["content-type"].startswith("text/html")
    assert "connect-src 'self'" in page.headers["content-security-policy"]
    assert client.get(url).text == "sgl-mlx serves scripted\n"
    assert client.head(url).status_code == 200


def test_the_page_names_no_other_host() -> None:
    assert not re.search(r"https?://|//[a-z]|@import|\bsrc=", PAGE.replace('"data:,"', ""))


@needs_chromium
def test_a_browser_shows_what_prompts_share(
    toy_engine: Engine, serve: Any, client: httpx.Client, tmp_path: Path
) -> None:
    toy_engine.flush_cache()
    url = serve(toy_engine, model_names=["the-toy"])
    for text in (f"At 10:41: {HEAD}", f"At 10:41: {HEAD}<b>bold?</b>", f"At 10:42: {HEAD}"):
        body = {"prompt": text, "max_tokens": 1, "stream": True}
        assert client.post(f"{url}/v1/completions", json=body).status_code == 200
    shown, complaints = browse(url, tmp_path)
    assert complaints == []
    for text in ("the-toy", ">live<", "hit rate", "slots:", "At 10:4", "A date or time differs"):
        assert text in shown
    assert "&lt;b&gt;bold?&lt;/b&gt;" in shown
    assert "3 prompts" in shown


@needs_chromium
def test_a_browser_without_a_key_is_asked_for_one(script: Any, tmp_path: Path) -> None:
    _, url = script("x", api_keys=["secret"])
    shown, _ = browse(url, tmp_path)
    assert "needs an API key" in shown
    assert 'class="asked"' in shown
