"""Qwen models of toy size behind engines, and what transformers answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sgl_mlx.core import Completion, Generated, Image, Part, Prompt, SamplingParams
from sgl_mlx.runtime.engine import Engine
from sgl_mlx.tokenizer import Tokenizer
from tests.models.conftest import KINDS, TOKENS
from tests.models.vision.conftest import Arrays, read_golden, write_golden
from tests.models.vision.pictures import pictures

Open = Callable[..., Engine]

NAMES = ["qwen3_5", "qwen3_vl", "qwen2_5_vl", "qwen2_vl"]
CASES = ["40x60", "60x40", "16x16", "13x17", "20x100", "several"]
START, END, IMAGE, VIDEO = 60, 61, 62, 63
NEW = 12
PARAMS = SamplingParams(
    max_new_tokens=NEW, temperature=0, ignore_eos=True, token_healing=False, return_logprob=True
)


def opened(folders: Mapping[str, Path]) -> Iterator[Open]:
    """Yield a function that opens an engine on a named model's folder; shut all down in the end."""
    engines: list[Engine] = []

    def make(name: str, **options: Any) -> Engine:
        engines.append(Engine(str(folders[name]), **{"max_total_tokens": 1000, **options}))
        return engines[-1]

    yield make
    for engine in engines:
        engine.shutdown()


def golden(name: str, case: str) -> Arrays:
    return read_golden(name).cases[case]


def said(engine: Engine, ids: Sequence[int]) -> Part:
    """These tokens, whatever other tokens spell the same text."""
    text = engine.tokenizer.decode(list(ids), at_start=False)
    return Generated(text, tuple(ids))


def prompt(engine: Engine, name: str, case: str) -> Prompt:
    """The prompt of a golden: its texts as tokens, its pictures without the tokens around them."""
    shown = iter(pictures(case))
    parts: list[Part] = []
    for ids in _texts(golden(name, case)["tokens"].tolist()):
        parts += [said(engine, ids), Image(next(shown, None))]
    return tuple(parts[:-1])


def _texts(tokens: list[int]) -> Iterator[list[int]]:
    """Yield the tokens before, between and after pictures."""
    text: list[int] = []
    for token in tokens:
        if token == START:
            yield text
            text = []
        elif token not in (IMAGE, END):
            text.append(token)
    yield text


def expected(name: str, case: str) -> list[int]:
    found: list[int] = golden(name, case)["continued"].tolist()
    return found


def expected_logprobs(name: str, case: str) -> list[float]:
    """Log-probabilities of all tokens of the prompt but the first."""
    values = golden(name, case)
    logits = values["logits"].astype(np.float64)
    every = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return [float(every[i, token]) for i, token in enumerate(values["tokens"][1:])]


def ask(engine: Engine, *prompts: Prompt, params: SamplingParams = PARAMS) -> list[Completion]:
    futures = [engine.submit(given, params) for given in prompts]
    return [future.result()[0] for future in futures]


def tokens(completion: Completion) -> list[int]:
    return list(completion.token_ids)


def stats(engine: Engine) -> dict[str, Any]:
    found: dict[str, Any] = engine.get_server_info()["stats"]
    return found


CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A chat template as Qwen's: pictures are marked by three tokens."""
MARKS = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|im_start|>", "<|im_end|>"]


def write_speaking(folder: Path, name: str) -> Path:
    """A golden's model with a vocabulary of bytes and marks in place of its own, and a template."""
    toy, size = read_golden(name), len(TOKENS)
    draw = np.random.default_rng(3)
    weights = dict(toy.weights)
    for key in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
        deviation = weights[key].std()
        weights[key] = draw.normal(0, deviation, (size, weights[key].shape[1])).astype(np.float32)
    start, end, image = size - 5, size - 4, size - 3
    config = toy.config | {"vision_start_token_id": start, "vision_end_token_id": end}
    config |= {"image_token_id": image, "text_config": toy.config["text_config"]}
    config["text_config"] = config["text_config"] | {"vocab_size": size}
    write_golden(folder, toy, weights=weights, config=config)
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [*TOKENS[:-5], *MARKS],
        "tokenizer.ggml.token_type": [*KINDS[:-5], *[3] * 5],
        "tokenizer.ggml.scores": [-float(n) for n in range(size)],
        "tokenizer.ggml.add_space_prefix": False,
    }
    Tokenizer.from_gguf(metadata).backend.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHAT, encoding="utf-8")
    return folder
