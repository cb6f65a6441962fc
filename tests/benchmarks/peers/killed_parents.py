"""Processes that start a server and are killed: `TOKEN=… killed_parents.py [SECONDS]…`.

For each number, a fork of this process starts a server whose command line holds TOKEN, and is
killed with SIGKILL so many seconds later. Without numbers, this process starts a server itself.
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


def kill_one(token: str, seconds: float) -> None:
    """Fork a parent and kill it so many seconds later."""
    parent = os.fork()
    if parent == 0:
        start(token)
    time.sleep(seconds)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)


if __name__ == "__main__":
    token, moments = os.environ["TOKEN"], sys.argv[1:]
    for moment in moments:
        kill_one(token, float(moment))
    if not moments:
        start(token)
