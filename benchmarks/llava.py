"""Questions about pictures, with the caches for pictures and without, on the same weights.

The shape is LLaVA-Bench's: 24 pictures with one to five questions each, 60 in all, in a random
order. Without the caches every question has its picture processed, encoded and prefilled.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow

from sgl_mlx.benchmarks.pairs import Pair
from sgl_mlx.core import Image, Prompt, SamplingParams, Text
from sgl_mlx.runtime.engine import Engine

BAR = 1.7
"""What the paper has over llama.cpp on this benchmark (arXiv 2312.07104, section 6.2)."""

WITHOUT: Mapping[str, Any] = {"disable_radix_cache": True, "image_cache_bytes": 1}
"""Options of an engine that keeps nothing about a picture."""

_SIZES = ((480, 640), (640, 480), (512, 512), (768, 1024))
_SUBJECTS = ("the light", "the foreground", "the colours", "the people", "the mood")
_REQUESTS = (
    "Describe {} of this picture in two sentences.",
    "What would a photographer say about {} here?",
    "Is there anything unusual about {}? Explain.",
    "Write a caption that mentions {}.",
    "What does {} tell about where this was taken?",
)


@dataclass(frozen=True)
class Phases:
    """Seconds of one run; `rest` is queueing, tokenizing and Python."""

    open: float
    process: float
    encode: float
    prefill: float
    decode: float
    rest: float


@dataclass(frozen=True)
class Run:
    """All questions once."""

    seconds: float
    phases: Phases
    encoded: int
    computed_tokens: int
    prompt_tokens: int

    @property
    def hit_rate(self) -> float:
        return 1 - self.computed_tokens / self.prompt_tokens

    def to_dict(self) -> dict[str, Any]:
        phases = {name: round(value, 3) for name, value in vars(self.phases).items()}
        return {**vars(self), "phases": phases, "hit_rate": round(self.hit_rate, 4)}


class LlavaBench:
    """The pair of `sgl-mlx bench llava`.

    Args:
        ours: an engine with its caches.
        theirs: one opened with `WITHOUT`.
        folder: for the pictures' files.
        new_tokens: of each answer.
    """

    def __init__(
        self,
        ours: Engine,
        theirs: Engine,
        folder: Path,
        images: int = 24,
        questions: int = 60,
        new_tokens: int = 32,
    ) -> None:
        self._ours = ours
        self._theirs = theirs
        self._params = SamplingParams(
            temperature=0, max_new_tokens=new_tokens, ignore_eos=True, token_healing=False
        )
        files = [write_picture(folder, number) for number in range(images)]
        self._prompts = [_ask(files[i], n) for n, i in enumerate(spread(images, questions))]

    def runs(self) -> tuple[Run, Run]:
        """Ours and theirs, each with nothing cached before."""
        for engine in (self._ours, self._theirs):  # not measured: what is compiled and allocated
            engine.submit((Text("What is this?"),), self._params).result()
            engine.flush_cache()
        return self._run(self._ours), self._run(self._theirs)

    def pair(self, ours: Run, theirs: Run) -> Pair:
        count = len(self._prompts)
        speeds = (count / ours.seconds,), (count / theirs.seconds,)
        return Pair("questions about pictures", "questions/s", *speeds, BAR)

    def _run(self, engine: Engine) -> Run:
        before = engine.get_server_info()["stats"]
        started = time.perf_counter()
        for future in [engine.submit(prompt, self._params) for prompt in self._prompts]:
            future.result()
        seconds = time.perf_counter() - started
        after = engine.get_server_info()["stats"]
        spent = {name: after[name] - before[name] for name in after}
        return Run(
            seconds=round(seconds, 3),
            phases=_phases(spent, seconds),
            encoded=spent["encoded_images"],
            computed_tokens=spent["computed_tokens"],
            prompt_tokens=spent["prompt_tokens"],
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
        # files are opened while the model runs, so that it may be below nothing
        rest=max(seconds - known, 0.0),
    )


def spread(images: int, questions: int) -> list[int]:
    """The picture of each question: at most five a picture, each at least once."""
    draw = random.Random(0)
    counts = [1] * images
    while sum(counts) < questions:
        open_ones = [i for i, count in enumerate(counts) if count < len(_REQUESTS)]
        if not open_ones:
            raise ValueError(f"{images} pictures have at most {len(_REQUESTS) * images} questions")
        counts[draw.choice(open_ones)] += 1
    asked = [i for i, count in enumerate(counts) for _ in range(count)]
    draw.shuffle(asked)
    return asked


def question(number: int) -> str:
    """One of 25."""
    subject = _SUBJECTS[number // len(_REQUESTS) % len(_SUBJECTS)]
    return _REQUESTS[number % len(_REQUESTS)].format(subject)


def _ask(file: Path, number: int) -> Prompt:
    before = "A chat about pictures. The assistant answers in detail.\nUSER: "
    return (Text(before), Image(file), Text(f"\n{question(number)}\nASSISTANT:"))


def write_picture(folder: Path, number: int) -> Path:
    """A photograph's size and smoothness: coarse noise, blown up, as JPEG."""
    height, width = _SIZES[number % len(_SIZES)]
    coarse = np.random.default_rng(number).integers(0, 256, (24, 32, 3)).astype(np.uint8)
    picture = Pillow.fromarray(coarse).resize((width, height), Pillow.Resampling.BICUBIC)
    file = folder / f"{number}.jpg"
    picture.save(file, quality=90)
    return file
