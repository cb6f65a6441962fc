"""Constrained against free generation of the same number of tokens, on one engine.

The constraint is a regular expression for a record of twelve fields, which forces most of the text.
Free generation writes as many tokens after the same prompts, but the model decodes all of them.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any

from sgl_mlx.benchmarks.micro.paired_runs import Pair, measure_pairs
from sgl_mlx.runtime.engine import Engine

_FIELDS = {
    "name": r'"[A-Z][a-z]{2,9} [A-Z][a-z]{2,9}"',
    "house": r'"(North|South|East|West) Hall"',
    "blood status": r'"(old|new|mixed)"',
    "occupation": r'"(student|teacher|keeper|healer)"',
    "wand wood": r'"(oak|elm|ash|yew)"',
    "wand core": r'"[a-z]{4,10}"',
    "wand length": r"[0-9]{1,2}\.[0-9]",
    "alive": r"(true|false)",
    "patronus": r'"[a-z]{3,9}"',
    "bogart": r'"[a-z]{3,9}"',
    "year of birth": r"19[0-9]{2}",
    "friends": r'\["[A-Z][a-z]{2,9}", "[A-Z][a-z]{2,9}"\]',
}
RECORD = r"\{" + r",".join(rf'\n  "{key}": {value}' for key, value in _FIELDS.items()) + r"\n\}"
"""Regular expression of a record in JSON: a character of a school of magic."""

_NAMES = ("Ada", "Bruno", "Celia", "Dario", "Edith", "Frida", "Gustav", "Hanna")


@dataclass(frozen=True)
class Shares:
    """Effects of the constraint on the constrained runs.

    Attributes:
        forced: share of the output tokens that the grammar forced.
        masks: seconds spent on token masks, over the seconds spent in the model.
    """

    forced: float
    masks: float


class ConstrainedBench:
    """The measurements of `sgl-mlx bench constrained`."""

    def __init__(self, engine: Engine, repeats: int = 3) -> None:
        self._engine = engine
        self._repeats = repeats
        self._forced = self._tokens = 0
        self._mask_seconds = self._model_seconds = 0.0

    def pair(self, rows: int) -> Pair:
        """Measure output tokens per second, constrained (ours) and free (theirs).

        Args:
            rows: number of requests in a batch, up to 8.
        """
        lengths: list[int] = []

        def constrained() -> float:
            before = self._seconds()
            answers, seconds = self._run(rows, [{"regex": RECORD, "max_new_tokens": 400}] * rows)
            after = self._seconds()
            self._mask_seconds += after[0] - before[0]
            self._model_seconds += after[1] - before[1]
            lengths[:] = [a["meta_info"]["completion_tokens"] for a in answers]
            self._forced += sum(a["meta_info"]["forced_tokens"] for a in answers)
            self._tokens += sum(lengths)
            for answer in answers:
                assert re.fullmatch(RECORD, answer["text"]), answer["text"]
            return sum(lengths) / seconds

        def free() -> float:
            params = [{"max_new_tokens": n, "ignore_eos": True} for n in lengths]
            return sum(lengths) / self._run(rows, params)[1]

        return measure_pairs(f"12 fields, B={rows}", "tok/s", 1.0, constrained, free, self._repeats)

    def shares(self) -> Shares:
        return Shares(self._forced / self._tokens, self._mask_seconds / self._model_seconds)

    def _run(self, rows: int, params: list[dict[str, Any]]) -> tuple[list[Any], float]:
        prompts = [f"The record of {name} in JSON:\n" for name in _NAMES[:rows]]
        started = time.perf_counter()
        answers = self._engine.generate(prompts, [{**p, "temperature": 0} for p in params])
        return answers, time.perf_counter() - started

    def _seconds(self) -> tuple[float, float]:
        stats = self._engine.get_server_info()["stats"]
        return stats["mask_seconds"], stats["model_seconds"]
