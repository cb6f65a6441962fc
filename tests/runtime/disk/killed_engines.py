"""Engines on one disk cache that are killed at random moments, and started again.

`python -m tests.runtime.disk.killed_engines 500` kills 500 of them and prints what it found. They
are forked from this process, which has imported everything and used nothing of MLX.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from sgl_mlx.core import SamplingParams
from sgl_mlx.runtime.disk.block_folder import BlockFolder
from sgl_mlx.runtime.engine import Engine

SLOTS = 400
LIMIT = 600_000
"""Bytes of the disk cache: less than all prompts take, so that blocks are evicted."""
AT_ONCE = 2
_PREFIXES = [[3 + (i * 31 + j * 7) % 250 for j in range(200)] for i in range(4)]
PROMPTS = [[*prefix, *range(10 + 7 * i, 40 + 7 * i)] for prefix in _PREFIXES for i in range(3)]
ASKED = SamplingParams(temperature=0, max_new_tokens=4, ignore_eos=True)
_LATEST = 1.5
"""Most seconds that an engine lives, from its fork on."""


@dataclass
class Found:
    """Counts of a run; `wrong` and `unread` must be 0.

    Attributes:
        answers: answers that the killed engines gave.
        wrong: those with other tokens than an engine without a disk cache gives.
        restored: tokens that engines found in their cache at a prompt's first use.
        files: block files that the last kill left.
        damaged: those that a reading found damaged and removed.
        unread: those that could be neither read nor removed.
        over: how often the folder was larger than its limit.
    """

    kills: int = 0
    answers: int = 0
    wrong: int = 0
    restored: int = 0
    files: int = 0
    damaged: int = 0
    unread: int = 0
    over: int = 0
    examples: list[str] = field(default_factory=list)


def ask(engine: Engine, order: list[int], tell: Callable[[str], None]) -> None:
    """Ask for some prompts at once; tell each one's number, cached tokens and answer."""
    futures = {i: engine.submit(PROMPTS[i], ASKED) for i in order}
    for i, future in futures.items():
        [answer] = future.result()
        tell(json.dumps([i, answer.cached_tokens, answer.token_ids]))


def live(model: str, disk: str | None, seed: int, pipe: int) -> None:
    """Run an engine until it is killed; without `disk`, answer every prompt once."""
    draw = random.Random(seed)

    def tell(line: str) -> None:
        os.write(pipe, f"{line}\n".encode())

    options = {} if disk is None else {"disk_cache_dir": disk, "disk_cache_bytes": LIMIT}
    with Engine(model, max_total_tokens=SLOTS, **options) as engine:
        if disk is None:
            ask(engine, list(range(len(PROMPTS))), tell)
            return
        while True:
            ask(engine, draw.sample(range(len(PROMPTS)), 3), tell)


def forked(model: str, disk: str | None, seed: int) -> tuple[int, int]:
    """Fork an engine; return its process id and the pipe of its answers."""
    read, write = os.pipe()
    child = os.fork()
    if child:
        os.close(write)
        return child, read
    with suppress(BaseException):
        os.close(read)
        live(model, disk, seed, write)
    os._exit(0)


def lines(pipe: int) -> Iterator[list[int]]:
    """Yield the whole lines of a pipe whose writer has ended, decoded."""
    with os.fdopen(pipe, "rb") as stream:
        for line in stream.read().split(b"\n")[:-1]:
            yield json.loads(line)


def kill_engines(model: str, disk: Path, kills: int, seed: int = 0) -> Found:
    """Kill `kills` engines on the folder `disk`, two of which live at a time."""
    draw, found, seeds = random.Random(seed), Found(), iter(range(10**9))
    child, pipe = forked(model, None, 0)
    os.waitpid(child, 0)
    right = {i: tokens for i, _, tokens in lines(pipe)}
    assert len(right) == len(PROMPTS)

    def start() -> tuple[int, int, float]:
        return *forked(model, str(disk), next(seeds)), time.monotonic() + draw.random() * _LATEST

    alive = [start() for _ in range(AT_ONCE)]
    while found.kills < kills:
        child, pipe, moment = victim = min(alive, key=lambda each: each[2])
        time.sleep(max(moment - time.monotonic(), 0))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found.kills += 1
        for i, cached, tokens in lines(pipe):
            found.answers += 1
            found.restored += cached
            if tokens != right[i]:
                found.wrong += 1
                found.examples.append(f"prompt {i}: {tokens} instead of {right[i]}")
        alive.remove(victim)
        alive.append(start())
        found.over += sum(file.stat().st_size for file in _files(disk)) > LIMIT
    for child, pipe, _ in alive:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(pipe)
    look(disk, found)
    return found


def _files(disk: Path) -> list[Path]:
    return [file for file in disk.glob("*.safetensors") if file.exists()]


def look(disk: Path, found: Found) -> None:
    """Read every file that the kills left, as the next engine would."""
    folder = BlockFolder(disk, LIMIT)
    names = folder.keys()
    found.files = len(names)
    readable = {f"{name}.safetensors" for name in names if folder.read(name) is not None}
    found.damaged = len(names) - len(readable)
    found.unread = len({file.name for file in disk.iterdir()} - readable - {"lock"})


@contextmanager
def _toy() -> Iterator[str]:
    from tests.runtime.conftest import write_toy  # computes, so it runs in a process of its own

    with TemporaryDirectory() as folder:
        target = Path(folder, "toy")
        child = os.fork()
        if not child:
            write_toy(target)
            os._exit(0)
        os.waitpid(child, 0)
        yield str(target)


if __name__ == "__main__":
    with _toy() as model, TemporaryDirectory() as disk:
        sys.stdout.write(json.dumps(asdict(kill_engines(model, Path(disk), int(sys.argv[1])))))
