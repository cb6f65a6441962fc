"""Engines on toy models with recurrent layers or windows, and mlx-lm's own answers, one by one."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models import cache as caches_of

from sgl_mlx.models.adapter import Adapter
from sgl_mlx.models.loader import LoadedModel
from sgl_mlx.runtime import assembly
from sgl_mlx.runtime.engine import Engine
from sgl_mlx.tokenizer import Tokenizer
from tests.models.conftest import TOKENS
from tests.models.toy import toy_configs, toy_model
from tests.models.toy_configs import VOCABULARY

Open = Callable[..., Engine]

HYBRIDS = [
    "qwen3_next",
    "qwen3_5",
    "lfm2",
    "nemotron_h",
    "granitemoehybrid",
    "falcon_h1",
    "jamba",
    "olmo_hybrid",
    "kimi_linear",
    "bailing_moe_linear",
    "plamo2",
]
"""Architectures with layers of attention and recurrent layers."""
WINDOWED = [
    "gemma3_text",
    "gpt_oss",
    "cohere2",
    "ministral3",
    "llama4",
    "exaone4",
    "gemma3n",
    "mimo_v2_flash",
]
"""Architectures with layers of full attention and layers with a sliding window, or chunks."""
_LIMITED = (caches_of.ArraysCache, caches_of.RotatingKVCache, caches_of.ChunkedKVCache)
PURE = ["mamba", "mamba2", "rwkv7"]
"""Architectures without any layer of attention."""


def toy_of(architecture: str) -> nn.Module:
    """A toy in its first configuration that has recurrent layers or layers with a window.

    Its vocabulary is that of the tokenizer, where its configuration names it.
    """
    for config in toy_configs(architecture):
        made = toy_model(architecture, config | {"vocab_size": len(TOKENS)})
        caches = caches_of.make_prompt_cache(made)
        parts = [
            p for c in caches for p in (c.caches if isinstance(c, caches_of.CacheList) else [c])
        ]
        if any(isinstance(part, _LIMITED) for part in parts):
            return made
    raise AssertionError(f"no configuration of {architecture} has such layers")


@cache
def module_of(architecture: str) -> nn.Module:
    """mlx-lm's module that no adapter has touched."""
    return toy_of(architecture)


@cache
def alone(architecture: str, prompt: tuple[int, ...], new: int) -> list[int]:
    """mlx-lm's greedy continuation of a prompt, computed alone."""
    module = module_of(architecture)
    caches, fed, made = caches_of.make_prompt_cache(module), list(prompt), []
    for _ in range(new):
        logits = module(mx.array([fed]), cache=caches)[0, -1]
        made.append(int(mx.argmax(logits).item()))
        fed = made[-1:]
    return made


def loaded(architecture: str, tokenizer: Tokenizer) -> LoadedModel:
    """A toy as `models.load` would return it."""
    return LoadedModel(
        model=toy_of(architecture),
        config={"max_position_embeddings": 1024},
        tokenizer=tokenizer,
        name=architecture,
        path=Path(architecture),
        fingerprint=architecture,
        weight_bytes=1,
    )


def open_hybrid(
    architecture: str, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> Engine:
    """An engine on a toy; every architecture that an adapter can run is accepted."""
    monkeypatch.setattr(assembly, "adapter_for", Adapter)
    monkeypatch.setattr(assembly, "load", lambda name, **_: loaded(name, tokenizer))
    given = {"max_total_tokens": 2000, "chunked_prefill_size": 16, "speculate": "off", **options}
    return Engine(architecture, **given)


def greedy(engine: Engine, prompts: Sequence[Sequence[int]], new: int) -> list[list[int]]:
    """The answers to prompts asked at once."""
    params = {"max_new_tokens": new, "temperature": 0, "ignore_eos": True}
    answers = engine.generate(input_ids=[list(p) for p in prompts], sampling_params=params)
    return [answer["output_ids"] for answer in answers]


def text(seed: int, length: int) -> tuple[int, ...]:
    return tuple(random.Random(seed).choices(range(VOCABULARY), k=length))
