"""A page as Chromium shows it, without a window and without the network."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), None)

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on PATH (Debian: apt-get install chromium)"
)

SWITCHES = (
    "--headless",
    "--no-sandbox",  # root cannot have one
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
)

LIGHT, DARK = (f"--blink-settings=preferredColorScheme={scheme}" for scheme in (1, 0))

PATIENCE = 120
"""Seconds; a browser that takes longer hangs."""


def dom(page: Path) -> str:
    """The page's document after it was rendered."""
    return _run(page, "--dump-dom").stdout


def console(page: Path) -> list[str]:
    """Return Chromium's messages about the page: errors, warnings, refused loads."""
    told = _run(page, "--dump-dom").stderr.splitlines()
    return [line for line in told if "CONSOLE" in line]


def picture(page: Path, width: int, height: int, *switches: str) -> Path:
    """A PNG beside the page, of what fits a window of so many pixels."""
    png = page.with_name(f"{page.stem}-{width}.png")
    _run(page, f"--window-size={width},{height}", f"--screenshot={png}", *switches)
    return png


def _run(page: Path, *switches: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    profile = page.with_name("profile")
    shutil.rmtree(profile, ignore_errors=True)
    return subprocess.run(
        [CHROMIUM, *SWITCHES, f"--user-data-dir={profile}", *switches, page.as_uri()],
        capture_output=True,
        encoding="utf-8",
        check=True,
        timeout=PATIENCE,
    )
