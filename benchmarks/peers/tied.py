"""Launcher of a command that must end when the calling process ends, even by SIGKILL.

`python -I -S tied.py PIPE COMMAND…` runs COMMAND as a child of the launcher. PIPE is the read end
of a pipe; only the calling process holds the write end. When that process ends, the operating
system closes the write end. The launcher then kills its own process group, with COMMAND in it. The
caller must therefore start the launcher in a new session. This works on Linux and macOS.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from threading import Thread

CANNOT_START = 126
"""Exit code for a program that cannot be executed, as in shells."""


def launcher(pipe: int, command: Sequence[str]) -> list[str]:
    """Return the command line of a launcher that runs `command`.

    Args:
        pipe: file descriptor of the pipe's read end, which the launcher must inherit.
    """
    # isolated and without site-packages, Python starts in some 10 ms
    return [sys.executable, "-I", "-S", __file__, str(pipe), *command]


def run(pipe: int, command: Sequence[str]) -> int:
    """Run the command and return its exit code.

    If a signal ended the command, the launcher ends by the same signal.
    """
    os.set_inheritable(pipe, False)
    Thread(target=_kill_group_after, args=(pipe,), daemon=True).start()
    try:
        child = os.posix_spawn(command[0], [*command], os.environ)
    except OSError as error:
        print(f"{command[0]} cannot be started: {error.strerror}", flush=True)
        return CANNOT_START
    for sign in (signal.SIGTERM, signal.SIGINT):  # the whole group gets them: the command decides
        signal.signal(sign, lambda *_: None)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def _kill_group_after(pipe: int) -> None:
    """Wait until the pipe is closed, then kill this process and its whole process group."""
    while os.read(pipe, 1):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(run(int(sys.argv[1]), sys.argv[2:]))
