"""Engines that use one disk cache, one after the other.

`python -m tests.runtime.ranks.disk FILE MODEL FOLDER` writes to a file, as lines of JSON, what each
engine answered and how much it read from disk.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

from sgl_mlx.core import SamplingParams
from sgl_mlx.runtime.engine import Engine

GREEDY = SamplingParams(max_new_tokens=6, temperature=0, ignore_eos=True)
LENGTHS = 150, 210, 270
SLOTS = 320
"""Fewer than the prompts have tokens, so that all but the last are evicted."""


def prompts() -> list[list[int]]:
    """Prompts of several blocks; nothing of them is equal."""
    draw = random.Random(5)
    return [[draw.randrange(3, 90) for _ in range(length)] for length in LENGTHS]


def answers(model: str, folder: str | None) -> dict[str, Any]:
    """Ask all prompts twice in turn; return the tokens, and how many were read from disk."""
    options: dict[str, Any] = {"max_total_tokens": SLOTS, "speculate": "off"}
    with Engine(model, disk_cache_dir=folder, **options) as engine:
        asked = [engine.submit(p, GREEDY).result(600)[0] for p in prompts() * 2]
        stats = engine.get_server_info()["stats"]
    return {
        "tokens": [list(answer.token_ids) for answer in asked],
        "restored": stats["restored_tokens"],
    }


def damage(folder: Path) -> None:
    """Remove all blocks of the last rank's part."""
    for file in max(folder.iterdir()).glob("*.safetensors"):
        file.unlink()


def main(file: str, model: str, folder: str) -> None:
    """Fill the folder, use it, use it with a rank's part missing, and use it again."""
    import mlx.core as mx

    mx.disable_compile()  # on a CPU it calls a C++ compiler for every shape
    with Path(file).open("w") as out:
        for step in ("fill", "use", "damage", "use again"):
            if step == "damage":
                damage(Path(folder))
            out.write(json.dumps(answers(model, folder)) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
