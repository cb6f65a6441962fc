"""The engine with drafts against the same engine without, on the same prompts.

Drafts are tokens guessed ahead, which the model checks in one step (speculative decoding). Both
engines have the same weights and run in this process. They write the same text, except after ties
(`differing`). The gain depends on the text: text that repeats the prompt is drafted well, prose is
not.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from sgl_mlx.benchmarks.micro.paired_runs import Pair, measure_pairs
from sgl_mlx.runtime.engine import Engine

_RECORD = """{"name": "Alice Johnson", "email": "alice.johnson@example.com", "phone": "555-0143",
 "address": {"street": "12 Harbour Road", "city": "Springfield", "country": "United States"},
 "orders": [{"id": 1182, "item": "wooden chair", "price": 49.99, "shipped": true},
            {"id": 1183, "item": "desk lamp", "price": 19.50, "shipped": false}]}"""
_MEAN = """def mean({0}):
    total = 0
    count = 0
    for value in {0}:
        total = total + value
        count = count + 1
    if count == 0:
        raise ValueError("mean of no values")
    return total / count
"""
_MEDIAN = """def median({0}):
    ordered = sorted({0})
    count = len(ordered)
    if count == 0:
        raise ValueError("median of no values")
    middle = count // 2
    if count % 2 == 1:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) / 2
"""
_CODE = "\n\n".join(part.format("values") for part in (_MEAN, _MEDIAN))
_EDITED = _MEAN.format("numbers").partition("    if")[0]
_DOCUMENT = """The lighthouse at Cape Farewell was built in 1874 from local stone. Its lamp burned
whale oil until 1902, when it was converted to paraffin. The keeper and his family lived in the
cottage below the tower and grew their own vegetables. The light was automated in 1963, and the
last keeper moved to the mainland in the spring of the same year. Since then the cottage has been
rented to visitors, who come for the birds and the silence. A small museum on the ground floor
shows the old lamp, the logbooks, and photographs of every family that lived there."""

COPIED = {
    "JSON record rewritten": f"The record:\n{_RECORD}\n\nThe same record again:\n{_RECORD[:60]}",
    "code edited": f"# statistics.py\n{_CODE}\n\n# statistics.py, with the arguments renamed to "
    f"numbers\n{_EDITED}",
    "quotes from a document": f"{_DOCUMENT}\n\nThe text, word for word:\n\n{_DOCUMENT[:100]}",
}
"""Prompts whose answer mostly repeats them, by kind."""
PROSE = (
    "Once upon a time there was a lighthouse keeper who",
    "The best way to learn a new language is",
    "When the train finally arrived, nobody on the platform",
    "My grandmother kept a garden that",
    "In the year 2090 the first city on the Moon",
    "The recipe for a good winter soup begins",
    "He opened the letter and could not believe",
    "There are three reasons why bridges fail:",
)


class Accepted(NamedTuple):
    """Token counts of our engine's last run of one row: written, drafted, and accepted."""

    written: int
    drafted: int
    accepted: int


class SpeculationBench:
    """The measurements of `sgl-mlx bench speculation`.

    Args:
        ours: an engine that drafts.
        theirs: an engine on the same weights that does not draft.
        repeats: number of measured pairs for each row of the table.
        tokens: output tokens of each request.

    Attributes:
        accepted: counts of each row, by the row's name.
        differing: number of answers in each row's last runs that differ between the engines, by the
            row's name. Where two tokens are equally likely within rounding, either may be written.
    """

    def __init__(self, ours: Engine, theirs: Engine, repeats: int, tokens: int) -> None:
        self._engines = ours, theirs
        self._repeats = repeats
        self._tokens = tokens
        self.accepted: dict[str, Accepted] = {}
        self.differing: dict[str, int] = {}

    def pairs(self) -> Iterator[Pair]:
        """Measure each row of the table; yield it as soon as it is measured."""
        for rows, bar in ((1, 2.0), (8, 1.3), (32, 0.98)):
            for kind, prompt in COPIED.items():
                yield self._pair(f"{kind}, B={rows}", bar, _copies(prompt, rows))
        yield self._pair("the same program again, B=1", 2.5, [PROSE[0]], again=True)
        for rows in (1, 8, 32):
            prompts = [f"{i}. {PROSE[i % len(PROSE)]}" for i in range(rows)]
            yield self._pair(f"prose, B={rows}", 0.98, prompts, temperature=0.8)
        yield self._pair("random tokens, B=1", 0.97, [self._noise()], temperature=2.0)

    def _pair(
        self,
        name: str,
        bar: float,
        prompts: list[Any],
        temperature: float = 0.0,
        again: bool = False,
    ) -> Pair:
        """Measure one row of the table: output tokens per second of a batch, with both engines.

        Args:
            prompts: texts, or lists of token ids.
            again: True keeps the cache between runs, so that the engine already knows the output
                from the warm-up. False empties the cache before each run.
        """
        params = {
            "temperature": temperature,
            "max_new_tokens": self._tokens,
            "ignore_eos": True,
            "seed": 1,
        }
        given = "prompt" if isinstance(prompts[0], str) else "input_ids"
        written: dict[Engine, list[str]] = {}

        def run(engine: Engine) -> float:
            if not again:
                engine.flush_cache()
            started = time.perf_counter()
            asked: dict[str, Any] = {given: prompts, "sampling_params": params}
            answers: Any = engine.generate(**asked)
            seconds = time.perf_counter() - started
            metas = [answer["meta_info"] for answer in answers]
            written[engine] = [answer["text"] for answer in answers]
            if engine is ours:
                self.accepted[name] = Accepted(
                    sum(meta["completion_tokens"] for meta in metas),
                    sum(meta.get("drafted_tokens", 0) for meta in metas),
                    sum(meta.get("accepted_tokens", 0) for meta in metas),
                )
            tokens: int = sum(meta["completion_tokens"] for meta in metas)
            return tokens / seconds

        ours, theirs = self._engines
        pair = measure_pairs(
            name, "tok/s", bar, lambda: run(ours), lambda: run(theirs), self._repeats
        )
        self.differing[name] = sum(
            a != b for a, b in zip(written[ours], written[theirs], strict=True)
        )
        return pair

    def _noise(self) -> list[int]:
        r = random.Random(0)
        return [r.randrange(1000, 20_000) for _ in range(100)]


def _copies(prompt: str, rows: int) -> list[str]:
    """Return `rows` different prompts; all but the first begin with a number."""
    return [prompt] + [f"Task {i}.\n{prompt}" for i in range(1, rows)]
