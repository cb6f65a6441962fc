"""Configurations of toy size for the architectures whose layers keep recurrent state.

`toy_configs` fills them from its sizes. Widths differ from each other, so that a state in the wrong
place does not fit.
"""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]

GATED_DELTA = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 6,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 2,
    "rope_parameters": {"type": "default", "rope_theta": 1000.0, "partial_rotary_factor": 0.5},
}
QWEN35 = {"arch": "qwen3_5", **GATED_DELTA}
SHORT_CONV = {
    "conv_bias": False,
    "conv_L_cache": 3,
    "full_attn_idxs": [1, 3],
    "layer_types": None,
    "block_dim": 32,
    "block_ff_dim": 48,
    "block_multiple_of": 8,
    "block_ffn_dim_multiplier": 1.0,
    "block_auto_adjust_ff_dim": True,
}
MAMBA_HEADS = {
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_d_ssm": 32,
    "mamba_d_state": 8,
    "mamba_d_conv": 4,
    "mamba_n_groups": 2,
    "mamba_proj_bias": False,
    "mamba_conv_bias": True,
}
NEMOTRON_H = {
    "mamba_num_heads": 4,
    "mamba_head_dim": 8,
    "ssm_state_size": 8,
    "conv_kernel": 4,
    "n_groups": 2,
    "n_group": 2,
    "use_conv_bias": True,
    "norm_topk_prob": True,
}
BAILING = {
    "num_hidden_layers": 4,
    "layer_group_size": 2,
    "group_norm_size": 2,
    "num_key_value_heads": 4,
    "n_group": 2,
    "topk_group": 1,
    "use_qk_norm": True,
    "score_function": "sigmoid",
    "moe_router_enable_expert_bias": True,
}
KDA = {
    "num_key_value_heads": 4,
    "model_max_length": 512,
    "linear_attn_config": {
        "num_heads": 4,
        "head_dim": 8,
        "short_conv_kernel_size": 4,
        "kda_layers": [1, 2, 3],
        "full_attn_layers": [4],
    },
}
K3 = KDA | {
    "arch": "kimi_k3",
    "hidden_act": "situ",
    "routed_expert_hidden_size": 16,
    "mla_use_output_gate": True,
    "rms_norm_eps": 1e-3,  # the norm of an output near zero magnifies its rounding
}
HADAMARD = {
    "schema_version": 2,
    "tensor_namespace": "mlx-vlm-qwen3_5",
    "quantization": {"bits": 2, "group_size": 128, "mode": "affine"},
    "modules": [
        {"path": path, "block": block, "embedding": False, "dtype": "float16"}
        for path, block in (("model.layers.0.mlp.gate_proj", 512), ("lm_head", 0))
    ],
}

RECURRENT: dict[str, list[Config]] = {
    "baichuan_m1": [{"sliding_window_layers": [0, 2], "conv_window": 2}],
    "bailing_hybrid": [BAILING],
    "bailing_moe_linear": [BAILING | {"use_qkv_bias": True}],
    "bailing_moe_v3": [BAILING | {"head_dim": 8}],
    "falcon_h1": [MAMBA_HEADS, MAMBA_HEADS | {"mamba_rms_norm": True}],
    "gear": [
        {"layer_types": ["conv_mixer", "sliding_attention", "conv_mixer", "full_attention"]},
        {"layer_types": ["conv_mixer", "full_attention"] * 2, "attn_logit_softcapping": None},
    ],
    "granitemoehybrid": [
        {"layer_types": ["attention"] * 4},  # as Granite 4 Micro has them
        MAMBA_HEADS | {"layer_types": ["mamba", "attention", "mamba", "mamba"]},
        MAMBA_HEADS
        | {"layer_types": ["mamba", "attention"] * 2, "num_local_experts": None}
        | {"position_embedding_type": "nope"},
    ],
    "jamba": [
        {
            "attn_layer_offset": 1,
            "attn_layer_period": 2,
            "expert_layer_offset": 1,
            "expert_layer_period": 2,
            "mamba_d_conv": 4,
            "mamba_d_state": 8,
            "mamba_expand": 2,
        }
    ],
    "kimi_k3": [{"text_config": K3 | {"attn_res_block_size": 2}}, {"text_config": K3}],
    "kimi_linear": [KDA],
    "lfm2": [SHORT_CONV],
    "lfm2-vl": [{"text_config": SHORT_CONV | {"arch": "lfm2"}}],
    "lfm2_moe": [SHORT_CONV | {"use_expert_bias": True, "norm_topk_prob": True}],
    "mamba": [{"state_size": 4, "conv_kernel": 2, "time_step_rank": 4}],
    "mamba2": [
        {
            "state_size": 8,
            "conv_kernel": 4,
            "n_groups": 2,
            "intermediate_size": 32,
            "time_step_limit": (0.0, 100.0),
            "time_step_rank": 4,
        }
    ],
    "nemotron_h": [
        NEMOTRON_H | {"hybrid_override_pattern": list("M-M*M*ME"), "layer_types": None},
    ],
    "olmo_hybrid": [
        GATED_DELTA | {"layer_types": ["linear_attention", "full_attention"] * 2},
        GATED_DELTA
        | {"layer_types": ["linear_attention"] * 3 + ["full_attention"]}
        | {"linear_allow_neg_eigval": True, "linear_num_key_heads": 4},
    ],
    "plamo2": [{"mamba_d_state": 8, "mamba_num_heads": 4}],
    "prism_hadamard_qwen35": [
        HADAMARD | {"text_config": QWEN35 | {"num_experts": 0, "hidden_size": 512}}
    ],
    "qwen3_5": [{"text_config": QWEN35 | {"num_experts": 0}}, {"text_config": QWEN35}],
    "qwen3_5_moe": [{"text_config": QWEN35}],
    "qwen3_next": [GATED_DELTA | {"norm_topk_prob": True}],
    "recurrent_gemma": [
        {"block_types": ["recurrent", "recurrent", "attention"], "logits_soft_cap": 30.0}
        | {"num_key_value_heads": 1, "conv1d_width": 4}
    ],
    "rwkv7": [
        {
            "a_low_rank_dim": 4,
            "v_low_rank_dim": 4,
            "gate_low_rank_dim": 4,
            "decay_low_rank_dim": 4,
        }
    ],
}
