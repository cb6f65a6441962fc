"""Waits for what other threads and processes do.

They are bounded, so that a test fails where it would hang; and patient, so that it does not fail on
a machine that does much else.
"""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE = 180.0
"""Seconds after which a test calls something a failure that should have happened."""


def eventually(happened: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    """Wait until `happened()` is true; fail after `seconds`, saying `what` did not happen."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, f"it did not happen within {seconds:g} seconds: {what}"
        time.sleep(0.005)
