"""Models of published size: their configuration is checked, and states are sized, in no memory."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models import qwen3_next

from sgl_mlx.models.adapter import Adapter
from sgl_mlx.models.architectures import check_runs

# config.json of Qwen/Qwen3-Next-80B-A3B-Instruct
QWEN3_NEXT: dict[str, Any] = {
    "model_type": "qwen3_next",
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "intermediate_size": 5120,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "linear_num_value_heads": 32,
    "linear_num_key_heads": 16,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "decoder_sparse_step": 1,
    "shared_expert_intermediate_size": 512,
    "mlp_only_layers": [],
    "moe_intermediate_size": 512,
    "rms_norm_eps": 1e-6,
    "vocab_size": 151936,
    "rope_theta": 10_000_000,
    "partial_rotary_factor": 0.25,
    "max_position_embeddings": 262144,
}
MEGABYTE = 10**6


@pytest.fixture(autouse=True)
def no_weights() -> Any:
    """Fail if a test has computed weights."""
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    yield
    assert mx.get_peak_memory() - before < MEGABYTE


def test_a_configuration_of_80_billion_weights_is_checked_without_them() -> None:
    check_runs(QWEN3_NEXT)


def test_a_sequences_state_has_the_size_of_3144_tokens_keys_and_values() -> None:
    model = qwen3_next.Model(qwen3_next.ModelArgs.from_dict(QWEN3_NEXT))
    model.set_dtype(mx.bfloat16)
    adapter = Adapter(model)
    state = sum(shape.nbytes for shape in adapter.states)
    recurrent, convolution = 32 * 128 * 128 * 4, 3 * 8192 * 2  # float32; the model's own type
    assert state == 36 * (recurrent + convolution)
    keys_and_values = sum(x.heads * (x.key_dim + x.value_dim) * 2 for x in adapter.layers)
    assert len(adapter.layers) == 12
    assert state // keys_and_values == 3144
