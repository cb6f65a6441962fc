"""Questions about pictures, with the caches for pictures on and off, on the same weights.

As in LLaVA-Bench there are 24 pictures with one to five questions each, 60 in total, in random
order. Without the caches, each question's picture is processed, encoded and prefilled anew. Only
questions of the same step that show the same picture share its encoding.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow

from sgl_mlx.benchmarks.micro.paired_runs import Pair
from sgl_mlx.core import Completion, Image, Prompt, SamplingParams, Text
from sgl_mlx.runtime.engine import Engine

BAR = 1.7
"""Speed-up over llama.cpp that the paper reports for this benchmark (arXiv 2312.07104, 6.2)."""

WITHOUT: Mapping[str, Any] = {"disable_radix_cache": True, "image_cache_bytes": 1}
"""Engine options that switch the caches for pictures off."""

_QUESTIONS = (2, 3, 2, 5, 2, 3, 1, 2, 3, 2, 4, 2, 3, 2, 3, 2, 4, 2, 3, 2, 1, 2, 3, 2)
"""Number of questions about each picture, as in LLaVA-Bench; the order mixes them evenly."""

_SIZES = ((480, 640), (640, 480), (512, 512), (768, 1024))
_SUBJECTS = ("the light", "the foreground", "the colours", "the people", "the mood")
_REQUESTS = (
    "Describe {} of this picture in two sentences.",
    "What would a photographer say about {} here?",
    "Is there anything unusual about {}? Explain.",
    "Caption this picture with {} in mind.",
    "Tell from {} where this was taken.",
)
_BEFORE = "A chat about pictures. The assistant answers in detail.\nUSER: "


@dataclass(frozen=True)
class Phases:
    """Seconds of one run by phase; `rest` is queueing, tokenizing and Python."""

    open: float
    process: float
    encode: float
    prefill: float
    decode: float
    rest: float


@dataclass(frozen=True)
class Run:
    """Times and counts of one pass over all questions.

    Attributes:
        encoded: number of pictures that were encoded.
        computed_tokens: prompt tokens that were computed.
        prompt_tokens: prompt tokens in total.
        fewest: prompt tokens that even a cache of unlimited size must compute.
    """

    seconds: float
    phases: Phases
    encoded: int
    computed_tokens: int
    prompt_tokens: int
    fewest: int

    @property
    def hit_rate(self) -> float:
        return 1 - self.computed_tokens / self.prompt_tokens

    @property
    def best_hit_rate(self) -> float:
        return 1 - self.fewest / self.prompt_tokens

    def to_dict(self) -> dict[str, Any]:
        phases = {name: round(value, 3) for name, value in vars(self.phases).items()}
        rates = {"hit_rate": self.hit_rate, "best_hit_rate": self.best_hit_rate}
        return {**vars(self), "phases": phases, **{k: round(v, 4) for k, v in rates.items()}}


class LlavaBench:
    """The measurement of `sgl-mlx bench llava`.

    Args:
        ours: an engine with its caches.
        theirs: an engine opened with the options `WITHOUT`.
        folder: where the pictures are written.
        images: number of pictures, up to 24; all 24 have 60 questions.
        new_tokens: number of tokens of each answer.
    """

    def __init__(
        self,
        ours: Engine,
        theirs: Engine,
        folder: Path,
        images: int = len(_QUESTIONS),
        new_tokens: int = 32,
    ) -> None:
        self._ours = ours
        self._theirs = theirs
        self._params = SamplingParams(
            temperature=0, max_new_tokens=new_tokens, ignore_eos=True, token_healing=False
        )
        self._questions = questions(folder, images)

    def runs(self) -> tuple[Run, Run]:
        """Run all questions on each engine with empty caches; return our run, then theirs."""
        for engine in (self._ours, self._theirs):  # warms up: this compiles and allocates
            engine.submit((Text("What is this?"),), self._params).result()
            engine.flush_cache()
        return self._run(self._ours), self._run(self._theirs)

    def pair(self, ours: Run, theirs: Run) -> Pair:
        count = len(self._questions)
        speeds = (count / ours.seconds,), (count / theirs.seconds,)
        return Pair("questions about pictures", "questions/s", *speeds, BAR)

    def _run(self, engine: Engine) -> Run:
        before = engine.get_server_info()["stats"]
        started = time.perf_counter()
        futures = [engine.submit(prompt, self._params) for prompt in self._questions]
        answers = [future.result()[0] for future in futures]
        seconds = time.perf_counter() - started
        after = engine.get_server_info()["stats"]
        spent = {name: after[name] - before[name] for name in after}
        return Run(
            seconds=round(seconds, 3),
            phases=_phases(spent, seconds),
            encoded=spent["encoded_images"],
            computed_tokens=spent["computed_tokens"],
            prompt_tokens=spent["prompt_tokens"],
            fewest=fewest_tokens(self._questions, answers, engine),
        )


def _phases(spent: Mapping[str, float], seconds: float) -> Phases:
    prefill = spent["model_seconds"] - spent["decode_seconds"] - spent["encode_seconds"]
    known = spent["open_seconds"] + spent["process_seconds"] + spent["model_seconds"]
    return Phases(
        open=spent["open_seconds"],
        process=spent["process_seconds"],
        encode=spent["encode_seconds"],
        prefill=prefill,
        decode=spent["decode_seconds"],
        # files are opened while the model runs, so the difference may be negative
        rest=max(seconds - known, 0.0),
    )


def questions(folder: Path, images: int) -> list[Prompt]:
    """Write `images` pictures into `folder`, and return the prompts about them in random order.

    Each prompt asks one question. Prompts about the same picture differ only in the text after the
    picture.
    """
    draw = random.Random(0)
    asked = [
        (_write_picture(folder, number), request, draw.choice(_SUBJECTS))
        for number, count in enumerate(_QUESTIONS[:images])
        for request in draw.sample(_REQUESTS, count)
    ]
    draw.shuffle(asked)
    return [
        (Text(_BEFORE), Image(file), Text(f"\n{request.format(subject)}\nASSISTANT:"))
        for file, request, subject in asked
    ]


def fewest_tokens(prompts: Sequence[Prompt], answers: Sequence[Completion], engine: Engine) -> int:
    """Count the prompt tokens that are computed if each distinct prefix is computed once."""
    nodes: dict[tuple[Any, ...], int] = {}
    for (before, picture, after), answer in zip(prompts, answers, strict=True):
        first, rest = _encoded(before, engine), _encoded(after, engine, special=False)
        shown = answer.prompt_tokens - len(first) - len(rest)
        path: tuple[Any, ...] = ()
        for step, count in [(first, len(first)), (picture, shown), *((t, 1) for t in rest)]:
            path = (*path, step)
            nodes[path] = count
    return sum(nodes.values())


def _encoded(text: Any, engine: Engine, special: bool = True) -> tuple[int, ...]:
    return tuple(engine.tokenizer.encode(text.text, add_special=special))


def _write_picture(folder: Path, number: int) -> Path:
    """Write `<number>.jpg` and return its path: random 24x32 noise, enlarged to one of `_SIZES`.

    Enlarging makes the picture smooth, so that its file is about as large as a photograph's.
    `number` also chooses the size and seeds the noise.
    """
    height, width = _SIZES[number % len(_SIZES)]
    coarse = np.random.default_rng(number).integers(0, 256, (24, 32, 3)).astype(np.uint8)
    picture = Pillow.fromarray(coarse).resize((width, height), Pillow.Resampling.BICUBIC)
    file = folder / f"{number}.jpg"
    picture.save(file, quality=90)
    return file
