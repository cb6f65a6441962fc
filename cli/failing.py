"""The end of a server's process when its engine has failed."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from sgl_mlx.server.engine import ServedEngine

FAILED = 70
"""Exit code after a failure of the engine; EX_SOFTWARE of sysexits.h."""
_LOOK = 0.5
"""Seconds between two looks at the engines."""
_ANSWERS = 1.0
"""Seconds for the error answers to reach their clients."""


def exit_when_failed(engines: Callable[[], Sequence[ServedEngine]]) -> None:
    """Watch engines on a thread of its own; when one has failed, say why and end the process.

    The process ends without any clean-up, because a thread that hangs cannot be waited for.
    """

    def watch() -> None:
        while not (reasons := [engine.failure for engine in engines() if engine.failure]):
            time.sleep(_LOOK)
        click.echo(f"{reasons[0]}; exiting with code {FAILED}", err=True)
        time.sleep(_ANSWERS)
        os._exit(FAILED)

    threading.Thread(target=watch, name="sgl-mlx failures", daemon=True).start()
