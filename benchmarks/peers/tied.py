"""A launcher whose command ends with the process that asked for it, however that one ends.

`python -I -S tied.py PIPE COMMAND…` runs COMMAND as its child. PIPE is the read end of a pipe
whose write end the asking process alone holds. When that process ends, even by SIGKILL, the
operating system closes the write end, and the launcher kills its whole process group. It must
therefore lead a group of its own. This works on Linux and macOS alike.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from threading import Thread

CANNOT_START = 126
"""The exit code shells give for a program that cannot be executed."""


def launcher(pipe: int, command: Sequence[str]) -> list[str]:
    """Return the command line that runs `command` tied to a pipe.

    Args:
        pipe: a file descriptor that the launcher inherits.
    """
    # isolated and without site-packages, Python starts in some 10 ms
    return [sys.executable, "-I", "-S", __file__, str(pipe), *command]


def run(pipe: int, command: Sequence[str]) -> int:
    """Run the command to its end and return its exit code; end by the same signal as it did."""
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
    """Wait for the end of the pipe, then kill this process and all it started."""
    while os.read(pipe, 1):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(run(int(sys.argv[1]), sys.argv[2:]))
