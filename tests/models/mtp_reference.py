"""MTP heads in numpy, written from their publications: float64, one sequence, no cache.

Sources: DeepSeek-V3 (arXiv 2412.19437, sections 2.1 and 2.2) for deepseek_v3; the modelling code of
Qwen3-Next and GLM-4.5 in transformers for their decoder layers, and vLLM's `qwen3_next_mtp.py` and
`glm4_moe_mtp.py` for how embedding and hidden state are joined.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.models.mtp_toys import NAMED_AS_DEEPSEEK

Array = NDArray[np.float64]
Config = Mapping[str, Any]


class Reference:
    """A head with the weights of `mtp_toys.random_head`; norms are stored as they are used.

    Args:
        embedding, output: the large model's `(vocabulary, width)`.
    """

    def __init__(
        self,
        architecture: str,
        config: Config,
        head: Mapping[str, Any],
        embedding: Any,
        output: Any,
    ) -> None:
        self._deepseek = architecture in NAMED_AS_DEEPSEEK
        self._attend = {
            "deepseek_v3": self._latent_attention,
            "glm4_moe": self._plain_attention,
        }.get(architecture, self._gated_attention)
        self._config = config.get("text_config", config)
        self._weights = {name: np.asarray(w, np.float64) for name, w in head.items()}
        self._embedding, self._output = (np.asarray(x, np.float64) for x in (embedding, output))

    def __call__(self, tokens: list[int], hidden: Any) -> tuple[Array, Array]:
        """Logits `(tokens, vocabulary)` and hidden states `(tokens, width)`.

        Args:
            tokens: tokens 1, 2 … of the sequence.
            hidden: the large model's hidden states after tokens 0, 1 … `(tokens, width)`.
        """
        names = ("enorm", "hnorm", "eh_proj") if self._deepseek else _QWEN_NAMES
        embedded, before = self._embedding[tokens], np.asarray(hidden, np.float64)
        both = [self._norm(names[0], embedded), self._norm(names[1], before)]
        x = self._linear(names[2], np.concatenate(both, axis=-1))
        block = "" if self._deepseek else "layers.0."
        x = x + self._attend(f"{block}self_attn.", self._norm(f"{block}input_layernorm", x))
        x = x + self._mlp(f"{block}mlp.", self._norm(f"{block}post_attention_layernorm", x))
        x = self._norm("shared_head.norm" if self._deepseek else "norm", x)
        return x @ self._output.T, x

    def guess(self, tokens: list[int], hidden: Any, count: int) -> list[int]:
        """The likeliest tokens after `tokens`, one after another; `hidden` is after all but one."""
        mine, guessed = list(tokens[1:]), list[int]()
        states = np.asarray(hidden, np.float64)
        for _ in range(count):
            logits, own = self(mine, states)
            guessed.append(int(logits[-1].argmax()))
            mine.append(guessed[-1])
            states = np.concatenate([states, own[-1:]])
        return guessed

    def _linear(self, name: str, x: Array) -> Array:
        return x @ self._weights[f"{name}.weight"].T

    def _norm(self, name: str, x: Array, eps: float | None = None) -> Array:
        eps = self._config["rms_norm_eps"] if eps is None else eps
        scale = np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)
        return x / scale * self._weights[f"{name}.weight"]

    def _gated_attention(self, name: str, x: Array) -> Array:
        dim = self._config["head_dim"]
        both = self._linear(f"{name}q_proj", x).reshape(len(x), -1, 2 * dim)
        out = self._grouped(name, both[..., :dim], x) * _sigmoid(both[..., dim:])
        return self._linear(f"{name}o_proj", out.reshape(len(x), -1))

    def _plain_attention(self, name: str, x: Array) -> Array:
        q = self._linear(f"{name}q_proj", x).reshape(len(x), -1, self._config["head_dim"])
        return self._linear(f"{name}o_proj", self._grouped(name, q, x).reshape(len(x), -1))

    def _grouped(self, name: str, q: Array, x: Array) -> Array:
        """Attention of queries `(tokens, heads, dim)`; several heads share keys and values."""
        c, dim = self._config, self._config["head_dim"]
        rope = c.get("rope_parameters") or c
        turned, base = int(dim * rope["partial_rotary_factor"]), rope["rope_theta"]
        k, v = (self._linear(f"{name}{y}_proj", x).reshape(len(x), -1, dim) for y in "kv")
        if f"{name}q_norm.weight" in self._weights:
            q, k = self._norm(f"{name}q_norm", q), self._norm(f"{name}k_norm", k)
        q, k = _rotate(q, turned, base), _rotate(k, turned, base)
        k, v = (np.repeat(y, q.shape[1] // k.shape[1], axis=1) for y in (k, v))
        return _attend(q, k, v, dim**-0.5)

    def _latent_attention(self, name: str, x: Array) -> Array:
        c, length, heads = self._config, len(x), self._config["num_attention_heads"]
        nope, rope, out = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
        q = self._norm(f"{name}q_a_layernorm", self._linear(f"{name}q_a_proj", x), _LATENT_EPS)
        q = self._linear(f"{name}q_b_proj", q).reshape(length, heads, nope + rope)
        joint = self._linear(f"{name}kv_a_proj_with_mqa", x)
        rank = c["kv_lora_rank"]
        latent = self._norm(f"{name}kv_a_layernorm", joint[:, :rank], _LATENT_EPS)
        kv = self._linear(f"{name}kv_b_proj", latent).reshape(length, heads, nope + out)
        turned = _rotate_pairs(joint[:, None, rank:], c["rope_theta"])
        k = np.concatenate([kv[..., :nope], np.repeat(turned, heads, axis=1)], axis=-1)
        q = np.concatenate([q[..., :nope], _rotate_pairs(q[..., nope:], c["rope_theta"])], axis=-1)
        found = _attend(q, k, kv[..., nope:], (nope + rope) ** -0.5)
        return self._linear(f"{name}o_proj", found.reshape(length, -1))

    def _mlp(self, name: str, x: Array) -> Array:
        if f"{name}gate.weight" not in self._weights:
            return self._feed_forward(name, x)
        c, out = self._config, np.zeros_like(x)
        scores = self._linear(f"{name}gate", x)
        scores = _sigmoid(scores) if self._deepseek else _softmax(scores)
        bias = self._weights.get(f"{name}gate.e_score_correction_bias", 0.0)
        chosen = np.argsort(-(scores + bias), axis=-1)[:, : c["num_experts_per_tok"]]
        for i, experts in enumerate(chosen):
            weights = scores[i, experts]
            if c.get("norm_topk_prob", True):
                weights = weights / weights.sum()
            for expert, weight in zip(
                experts, weights * c.get("routed_scaling_factor", 1), strict=True
            ):
                out[i] += weight * self._feed_forward(f"{name}experts.{expert}.", x[i])
        if self._deepseek:
            return out + self._feed_forward(f"{name}shared_experts.", x)
        gate = _sigmoid(self._linear(f"{name}shared_expert_gate", x))
        return out + gate * self._feed_forward(f"{name}shared_expert.", x)

    def _feed_forward(self, name: str, x: Array) -> Array:
        gate, up = (self._linear(f"{name}{kind}_proj", x) for kind in ("gate", "up"))
        return self._linear(f"{name}down_proj", gate * _sigmoid(gate) * up)


_QWEN_NAMES = "pre_fc_norm_embedding", "pre_fc_norm_hidden", "fc"
_LATENT_EPS = 1e-6
"""The default of DeepSeek's own code, whatever the configuration says."""


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def _softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def _attend(q: Array, k: Array, v: Array, scale: float) -> Array:
    scores = np.einsum("qhd,khd->hqk", q, k) * scale
    scores = np.where(np.tri(len(q), dtype=bool), scores, -np.inf)
    return np.einsum("hqk,khd->qhd", _softmax(scores), v)


def _angles(length: int, dims: int, base: float) -> tuple[Array, Array]:
    angles = np.arange(length)[:, None] * base ** (-np.arange(0, dims, 2) / dims)
    return np.cos(angles)[:, None], np.sin(angles)[:, None]


def _rotate(x: Array, dims: int, base: float) -> Array:
    """Rotary embedding of the first `dims` channels; channel i is paired with i + dims / 2."""
    cos, sin = _angles(len(x), dims, base)
    a, b, rest = x[..., : dims // 2], x[..., dims // 2 : dims], x[..., dims:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)


def _rotate_pairs(x: Array, base: float) -> Array:
    """Rotary embedding that pairs neighbouring channels."""
    cos, sin = _angles(len(x), x.shape[-1], base)
    a, b = x[..., 0::2], x[..., 1::2]
    return np.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape)
