"""Hidden states come from the same layers as logits, in chunks of any size."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from sgl_mlx.errors import UnsupportedModelError
from sgl_mlx.models import hidden
from tests.models.toy import toy_config, toy_model

TOKENS = [5, 9, 3, 3, 17, 2, 11]


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3_text", "gpt_oss", "qwen3_moe"])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_the_head_makes_logits_of_a_hidden_state(
    architecture: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hidden, "CHUNK", chunk)
    model = toy_model(architecture, toy_config(architecture))
    found = mx.array(hidden.last_hidden_state(lambda f: f(model), TOKENS))
    logits = model(mx.array([TOKENS]))[0, -1]
    head = getattr(model, "lm_head", None) or _embedding(model).as_linear
    np.testing.assert_allclose(np.array(head(found)), np.array(logits), rtol=2e-3, atol=2e-3)


def test_a_model_that_gives_logits_alone_is_refused() -> None:
    class Flat(nn.Module):
        layers: tuple[nn.Module, ...] = ()

    flat = Flat()
    with pytest.raises(UnsupportedModelError, match="hidden states"):
        hidden.last_hidden_state(lambda f: f(flat), TOKENS)


def _embedding(model: nn.Module) -> nn.Embedding:
    return next(m for m in model.modules() if isinstance(m, nn.Embedding))
