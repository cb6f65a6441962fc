"""Processes that start a server and are ended: `TOKEN=… killed_parents.py SIGNAL [SECONDS]…`.

For each number, a fork of this process starts a server whose command line holds TOKEN, and gets
the signal so many seconds later. Without numbers, this process starts a server itself.
"""

from __future__ import annotations

import os
import signal
import sys
import time

from sgl_mlx.benchmarks.peers.server import running

SERVER = "import time; time.sleep(600)"


def start(token: str) -> None:
    """Start a server that never answers, and wait for it."""
    command = [sys.executable, "-I", "-c", SERVER, token]
    with running("a server", lambda port: command, "/health", start_timeout=600):
        raise AssertionError("it has no port, so it never comes up")


def end_one(token: str, sign: int, seconds: float) -> None:
    """Fork a parent, and send it the signal from so many seconds later on until it ends.

    Again and again, as a user presses Ctrl-C: Python drops an interrupt that comes in a destructor.
    """
    parent = os.fork()
    if parent == 0:
        start(token)
    time.sleep(seconds)
    while os.waitpid(parent, os.WNOHANG) == (0, 0):
        os.kill(parent, sign)
        time.sleep(0.05)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
    token, sign, moments = os.environ["TOKEN"], int(sys.argv[1]), sys.argv[2:]
    for moment in moments:
        end_one(token, sign, float(moment))
    if not moments:
        start(token)
