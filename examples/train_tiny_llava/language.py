"""The default language model in torch, frozen, and the prompt of the program around a picture."""

from __future__ import annotations

import copy

import numpy as np
import torch
import torch.nn.functional as F
from digits import DIGITS, read_digit
from mlx.utils import tree_flatten
from PIL import Image
from torch import Tensor
from transformers import LlamaConfig, LlamaModel

from sgl_mlx.core import Text
from sgl_mlx.models.loader import LoadedModel
from sgl_mlx.testing import ScriptedBackend
from sgl_mlx.tokenizer import Tokenizer


def text_config(loaded: LoadedModel) -> LlamaConfig:
    """Return the model's configuration as transformers has it."""
    given = {key: value for key, value in loaded.config.items() if not key.startswith("rope")}
    rope = {"rope_type": "default", "rope_theta": loaded.config["rope_theta"]}
    return LlamaConfig(**given, rope_parameters=rope)


def fill(model: LlamaModel, loaded: LoadedModel) -> None:
    """Copy the weights, and freeze them in bfloat16."""
    weights = {
        name.removeprefix("model."): torch.from_numpy(np.array(values))
        for name, values in tree_flatten(loaded.model.parameters())
    }
    model.load_state_dict(weights)
    model.to(torch.bfloat16).requires_grad_(False).eval()


def prompt_around_picture(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Tokens before and after the picture, where the digit comes next, from the program itself."""
    recorder = ScriptedBackend("", render_chat=tokenizer.render_chat)
    read_digit.run(Image.new("L", (8, 8)), backend=recorder)
    call = next(call for call in recorder.calls if call.kind == "score")
    before, after = (part.text for part in call.prompt if isinstance(part, Text))
    return tokenizer.encode(before), tokenizer.encode(after, add_special=False)


class Reader:
    """Reads a digit from the features of a picture, by the language model's next token.

    Args:
        model: frozen; gradients flow through it to the features.
    """

    def __init__(self, model: LlamaModel, tokenizer: Tokenizer) -> None:
        before, after = prompt_around_picture(tokenizer)
        self._model = model
        self._after = model.embed_tokens(torch.tensor([after]))
        self._digits = torch.tensor([tokenizer.encode(d, add_special=False)[0] for d in DIGITS])
        with torch.no_grad():  # all pictures stand after the same text, computed once
            self._before = model(torch.tensor([before]), use_cache=True).past_key_values

    def loss(self, features: Tensor, digits: Tensor) -> Tensor:
        """Cross-entropy of the digit's token, among all tokens."""
        return F.cross_entropy(self._logits(features), self._digits[digits])

    @torch.no_grad()
    def read(self, features: Tensor) -> Tensor:
        """The likeliest digit `(n,)` for features `(n, patches, width)`, as `select` finds it."""
        return self._logits(features)[:, self._digits].argmax(-1)

    def _logits(self, features: Tensor) -> Tensor:
        cache = copy.deepcopy(self._before)
        cache.batch_repeat_interleave(len(features))
        after = self._after.expand(len(features), -1, -1)
        inputs = torch.cat([features.to(after.dtype), after], 1)
        hidden = self._model(inputs_embeds=inputs, past_key_values=cache).last_hidden_state
        return F.linear(hidden[:, -1], self._model.embed_tokens.weight).float()
