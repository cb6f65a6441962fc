"""LLaVA models of toy size behind engines, and what they must answer, computed plainly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from PIL import Image as Pillow

from sgl_mlx.core import Completion, Image, Part, SamplingParams, Text, Video
from sgl_mlx.models.loader import LoadedModel, load
from sgl_mlx.models.vision.video import read_clip
from sgl_mlx.runtime.engine import Engine
from sgl_mlx.tokenizer import Tokenizer
from tests.models.conftest import KINDS, TOKENS
from tests.models.vision.conftest import read_golden, write_golden

SIZE = len(TOKENS)
IMAGE, VIDEO = SIZE - 2, SIZE - 1
"""Ids of the tokens that stand for pictures."""
FEATURES = 16
"""Tokens of a picture in the toy of LLaVA-1.5."""
PARAMS = SamplingParams(max_new_tokens=8, temperature=0, ignore_eos=True, token_healing=False)

Open = Callable[..., Engine]
Folders = Callable[[str], Path]


def write_llava(folder: Path, name: str = "llava") -> Path:
    """A golden's model with a vocabulary of bytes in place of its own."""
    golden = read_golden(name)
    draw = np.random.default_rng(3)
    weights = dict(golden.weights)
    for key in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
        deviation = weights[key].std()
        weights[key] = draw.normal(0, deviation, (SIZE, weights[key].shape[1])).astype(np.float32)
    config = {**golden.config, "image_token_index": IMAGE, "video_token_index": VIDEO}
    config["text_config"] = {**config["text_config"], "vocab_size": SIZE}
    write_golden(folder, golden, weights=weights, config=config)
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [*TOKENS[:-2], "<image>", "<video>"],
        "tokenizer.ggml.token_type": [*KINDS[:-2], 4, 4],
        "tokenizer.ggml.scores": [-float(n) for n in range(SIZE)],
        "tokenizer.ggml.add_space_prefix": False,
    }
    Tokenizer.from_gguf(metadata).backend.save(str(folder / "tokenizer.json"))
    return folder


def picture(number: int, height: int = 40, width: int = 60) -> Pillow.Image:
    """Noise, another one for each number."""
    draw = np.random.default_rng((number, height, width))
    return Pillow.fromarray(draw.integers(0, 256, (height, width, 3)).astype(np.uint8))


def ask(number: int, question: str = "What is it?") -> tuple[Part, ...]:
    return (Text("Look at this picture: "), Image(picture(number)), Text("\n" + question))


def run(engine: Engine, *prompts: Sequence[Part], params: SamplingParams = PARAMS) -> list[Any]:
    futures = [engine.submit(tuple(prompt), params) for prompt in prompts]
    return [future.result()[0] for future in futures]


def tokens(completion: Completion) -> list[int]:
    return list(completion.token_ids)


def stats(engine: Engine) -> dict[str, Any]:
    found: dict[str, Any] = engine.get_server_info()["stats"]
    return found


class Reference:
    """The same model without runtime, cache or batch: all tokens in one forward pass."""

    def __init__(self, folder: Path) -> None:
        self.loaded: LoadedModel = load(folder, dtype="float32")

    def answer(self, prompt: Sequence[Part], count: int) -> list[int]:
        """The likeliest `count` tokens, one after another."""
        fed = self.embeddings(prompt)
        chosen: list[int] = []
        while len(chosen) < count:
            logits = self._logits(mx.concatenate([fed, self._embed(chosen)]))
            chosen.append(int(mx.argmax(logits[-1]).item()))
        return chosen

    def logprobs(self, prompt: Sequence[Part]) -> list[float]:
        """Log-probabilities of every token of the prompt but the first."""
        tokens = [token for part in prompt for token in self.tokens(part)]
        logits = self._logits(self.embeddings(prompt))
        every = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        return [float(every[i, token].item()) for i, token in enumerate(tokens[1:])]

    def tokens(self, part: Part) -> list[int]:
        if isinstance(part, Text):
            return list(self.loaded.tokenizer.encode(part.text, add_special=False))
        return [VIDEO if isinstance(part, Video) else IMAGE] * len(self._features(part))

    def embeddings(self, prompt: Sequence[Part]) -> mx.array:
        self._alone = sum(isinstance(part, Image) for part in prompt) == 1
        return mx.concatenate([self._fed(part) for part in prompt])

    def _fed(self, part: Part) -> mx.array:
        return self._embed(self.tokens(part)) if isinstance(part, Text) else self._features(part)

    def _features(self, part: Any) -> mx.array:
        vision = self.loaded.vision
        assert vision is not None
        if isinstance(part, Video):
            ((_, image),) = vision.prepare_video(read_clip(part.source, part.num_frames))
        else:
            image = vision.prepare(part.source, alone=self._alone)
        return vision.encode([image])[0]

    def _embed(self, tokens: Sequence[int]) -> mx.array:
        embedded: mx.array = self.loaded.model.model.embed_tokens(mx.array(tokens, mx.int32))
        return embedded

    def _logits(self, fed: mx.array) -> mx.array:
        nothing = mx.zeros((1, len(fed)), mx.int32)
        logits: mx.array = self.loaded.model(nothing, input_embeddings=fed[None])[0]
        return logits


@cache
def reference(folder: Path) -> Reference:
    return Reference(folder)
