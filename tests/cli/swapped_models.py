"""Open and close models of `sgl-mlx serve` in turn; print the memory of the process each time.

Run as `swapped_models.py MODEL`; it prints a JSON list of the resident bytes with no model open.
"""

from __future__ import annotations

import asyncio
import json
import sys

import psutil

from sgl_mlx.cli.engine import free_memory, keep_freed_memory_together
from sgl_mlx.cli.served_models import served_models
from sgl_mlx.core import SamplingParams, Text
from sgl_mlx.server.residents import Residents

ROUNDS = 3
TOKENS = 16384


def main(path: str) -> None:
    """Swap two models, of which one fits at a time, and close all after each round."""
    keep_freed_memory_together()
    models = served_models([("a", path), ("b", path)], [], {"max_total_tokens": TOKENS})
    budget = max(model.nbytes for model in models)
    residents = Residents(models, budget, lambda _, engine: engine, free_memory)

    async def visit(name: str) -> None:
        async with residents.borrowed(name) as engine:
            # The grammar's tables are made beside the first requests, and then stay: each round
            # must have them, however fast the machine is.
            params = SamplingParams(max_new_tokens=4, regex="[a-z ]+")
            await asyncio.wrap_future(engine.submit((Text("Hello"),), params, rid=name))

    async def rounds() -> list[int]:
        found = []
        for _ in range(ROUNDS):
            for name in ("a", "b"):
                await visit(name)
            await residents.close()
            found.append(psutil.Process().memory_info().rss)
        return found

    sizes = asyncio.run(rounds())
    print(json.dumps({"closed": sizes, "model": models[0].nbytes}))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1])
