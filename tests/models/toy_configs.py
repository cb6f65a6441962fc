"""Configurations of toy size for the architectures of mlx-lm, as tables.

A configuration is filled field by field from `SIZES`, by the field's name, then from the
architecture's entry in `VARIANTS` (`RECURRENT` for those of `recurrent_configs`); anything else
keeps its default. Windows, scalings and sinks are switched on and small, so that the lengths used
in the checks go well beyond them.
"""

from __future__ import annotations

from typing import Any

NO_MODELS = {"activations", "base", "bitlinear_layers", "cache", "gated_delta", "mla", "pipeline"}
NO_MODELS |= {"rope_utils", "ssm", "switch_layers"}
"""Modules of `mlx_lm.models` that are parts of others."""

WINDOW = 8
VOCABULARY = 97
LAYERS = 4

Config = dict[str, Any]

LAYER_TYPES = ["sliding_attention", "full_attention"] * (LAYERS // 2)
SIZES: Config = {
    "vocab_size": VOCABULARY,
    "num_vocab": VOCABULARY,
    **dict.fromkeys(["hidden_size", "hidden_dim", "n_embd", "model_dim", "d_model"], 32),
    **dict.fromkeys(
        ["intermediate_size", "n_inner", "ffn_hidden_size", "ff_intermediate_size"], 48
    ),
    "intermediate_size_mlp": 48,
    **dict.fromkeys(["num_hidden_layers", "num_layers", "n_layer", "n_layers"], LAYERS),
    "num_transformer_layers": LAYERS,
    **dict.fromkeys(["num_attention_heads", "num_heads", "n_head", "n_heads"], 4),
    **dict.fromkeys(["num_key_value_heads", "num_kv_heads", "n_kv_heads"], 2),
    "num_attention_groups": 2,
    **dict.fromkeys(["head_dim", "kv_channels", "hidden_size_per_head"], 8),
    **dict.fromkeys(["sliding_window", "window_size", "sliding_window_size"], WINDOW),
    **dict.fromkeys(["loop_window_size", "attention_window_size"], WINDOW),
    "sliding_window_pattern": 2,
    "layer_types": LAYER_TYPES,
    **dict.fromkeys(["rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps"], 1e-5),
    **dict.fromkeys(["layernorm_epsilon", "norm_epsilon"], 1e-5),
    **dict.fromkeys(["rope_theta", "rope_local_base_freq", "rotary_emb_base"], 1000.0),
    **dict.fromkeys(["rope_local_theta", "swa_rope_theta", "rope_freq_constant"], 500.0),
    **dict.fromkeys(["max_position_embeddings", "n_positions", "n_ctx"], 512),
    **dict.fromkeys(["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"], 4),
    **dict.fromkeys(["num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts"], 2),
    **dict.fromkeys(["moe_top_k", "num_experts_per_token"], 2),
    **dict.fromkeys(["moe_intermediate_size", "shared_expert_intermediate_size"], 24),
    **dict.fromkeys(["moe_shared_expert_intermediate_size", "expert_ffn_hidden_size"], 24),
    **dict.fromkeys(["shared_intermediate_size", "share_expert_dim"], 24),
    **dict.fromkeys(["n_shared_experts", "num_shared_experts", "num_shared_expert"], 1),
    **dict.fromkeys(["moe_num_shared_experts", "first_k_dense_replace", "num_dense_layers"], 1),
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    **dict.fromkeys(["n_group", "topk_group"], 1),
    **dict.fromkeys(["kv_lora_rank", "q_lora_rank"], 16),
    **dict.fromkeys(["qk_rope_head_dim", "v_head_dim", "qk_nope_head_dim"], 8),
    "rotary_dim": 8,
    **dict.fromkeys(["partial_rotary_factor", "rotary_pct"], 0.5),
    **dict.fromkeys(["routed_scaling_factor", "scale_depth", "scale_emb"], 1.5),
    **dict.fromkeys(["embedding_multiplier", "residual_multiplier", "logits_scaling"], 1.5),
    "attention_multiplier": 0.3,
    "query_pre_attn_scalar": 8.0,
    "attn_logit_softcapping": 5.0,
    "final_logit_softcapping": 20.0,
    "dim_model_base": 16,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "hidden_act": "silu",
    "num_nextn_predict_layers": 0,
}
"""Names of fields, and their toy values."""

YARN = {
    "type": "yarn",
    "rope_type": "yarn",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LONGROPE = {
    "type": "longrope",
    "original_max_position_embeddings": 16,
    "short_factor": [1.0] * 4,
    "long_factor": [1.0, 1.5, 2.0, 3.0],
    "short_mscale": 1.0,
    "long_mscale": 1.2,
}
SCALED_BY_POSITION = YARN | {"llama_4_scaling_beta": 0.5, "original_max_position_embeddings": 8}
BY_LAYER_TYPE = {
    "full_attention": {"rope_type": "default", "rope_theta": 1000.0, "partial_rotary_factor": 0.5},
    "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
}
ALL_FULL = {"layer_types": ["full_attention"] * LAYERS, "sliding_window": None}
MLA = {"num_key_value_heads": 4}
DENSE_FIRST = {"first_k_dense_replace": 1, "moe_layer_freq": 1}
CLA = {"use_cla": True, "cla_share_factor": 2, "use_mixed_mlp_moe": True, "use_qk_norm": True}
GEMMA3N = {
    "arch": "gemma3n",
    "num_kv_shared_layers": 2,
    "vocab_size_per_layer_input": VOCABULARY,
    "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
    "hidden_size_per_layer_input": 8,
    "altup_num_inputs": 2,
    "altup_coef_clip": 100.0,
    "altup_correct_scale": True,
    "altup_active_idx": 0,
    "laurel_rank": 4,
}
GEMMA4 = {
    "num_kv_shared_layers": 2,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8,
    "global_head_dim": 16,
    "num_global_key_value_heads": 1,
    "rope_parameters": BY_LAYER_TYPE,
    "intermediate_size": 24,
}
LONGCAT = MLA | {
    "attention_method": "MLA",
    "zero_expert_type": "identity",
    "zero_expert_num": 2,
    "mla_scale_q_lora": True,
    "mla_scale_kv_lora": True,
}
SPARSE_BLOCKS = {
    "index_n_heads": 2,
    "index_head_dim": 8,
    "index_block_size": 4,
    "index_topk_blocks": 2,
}
MOE_LATER = ["dense", "sparse", "sparse", "sparse"]
INDEXED = MLA | {"index_head_dim": 16, "index_n_heads": 2, "index_topk": 4}

VARIANTS: dict[str, list[Config]] = {
    "llama": [
        {"layer_types": None, "sliding_window": None},
        {},
        ALL_FULL | {"rope_scaling": LLAMA3},
        ALL_FULL | {"rope_scaling": YARN},
        ALL_FULL | {"rope_scaling": LONGROPE},
        ALL_FULL | {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
    ],
    "afm7": [{"num_kv_reuse_layers": 2, "head_dim": None}],
    "afmoe": [{"num_experts_per_tok": 2}],
    "bailing_moe": [{"topk_group": 1}],
    "cohere2": [{"sliding_window_pattern": 2}],
    "dbrx": [
        {
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1000.0},
            "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
        }
    ],
    "deepseek": [DENSE_FIRST],
    "deepseek_v2": [
        MLA | DENSE_FIRST | {"topk_method": "greedy", "rope_scaling": YARN},
        MLA | DENSE_FIRST | {"topk_method": "greedy", "q_lora_rank": None, "rope_scaling": YARN},
    ],
    "deepseek_v3": [MLA | DENSE_FIRST, MLA | DENSE_FIRST | {"rope_scaling": YARN}],
    "deepseek_v32": [INDEXED | DENSE_FIRST, INDEXED | DENSE_FIRST | {"index_topk": 24}],
    "ernie4_5_moe": [{"moe_layer_start_index": 1, "moe_layer_end_index": 3}],
    "exaone4": [{"sliding_window_pattern": "LG", "rope_scaling": LLAMA3}],
    "exaone_moe": [{"is_moe_layer": [False, True, True, True]}],
    "gemma3": [{"text_config": {"arch": "gemma3_text"}}],
    "gemma3n": [{"text_config": GEMMA3N}],
    "gemma4": [{"text_config": GEMMA4 | {"arch": "gemma4_text"}}],
    "gemma4_text": [
        GEMMA4,
        GEMMA4 | {"enable_moe_block": True},
        GEMMA4 | {"attention_k_eq_v": True},
    ],
    "glm4_moe_lite": [MLA],
    "glm_moe_dsa": [
        INDEXED | DENSE_FIRST | {"rope_parameters": {"rope_theta": 1000.0, "rope_type": "default"}}
    ],
    "gpt_bigcode": [{"multi_query": True, "num_key_value_heads": 1}],
    "gpt2": [{"num_key_value_heads": 4}],
    "gpt_neox": [{"num_key_value_heads": 4}],
    "hunyuan": [
        {"rope_scaling": {"type": "dynamic", "alpha": 2.0, "factor": 1.0}, **CLA},
        {"rope_scaling": {"type": "dynamic", "alpha": 2.0, "factor": 1.0}, **CLA, "use_cla": False},
    ],
    "hunyuan_v1_dense": [{"rope_scaling": {"type": "dynamic", "alpha": 2.0, "factor": 1.0}}],
    "internlm3": [{}, {"rope_scaling": {"type": "dynamic", "rope_type": "dynamic", "factor": 2.0}}],
    "iquestloopcoder": [{"num_key_value_heads": 2}],
    "kimi_k25": [{"text_config": {"arch": "deepseek_v3", **MLA, **DENSE_FIRST}}],
    "kimi_vl": [{"text_config": {"arch": "deepseek_v3", **MLA, **DENSE_FIRST}}],
    "laguna": [{"rope_parameters": BY_LAYER_TYPE}],
    "lille-130m": [{"n_embd": 256, "block_size": 512}],
    "llama4": [
        {
            "text_config": {
                "arch": "llama4",
                "attention_chunk_size": 8,
                "interleave_moe_layer_step": 2,
                "rope_scaling": LLAMA3,
                "use_qk_norm": True,
                "floor_scale": 8,
                "num_experts_per_tok": 1,
            }
        }
    ],
    "llama4_text": [{"no_rope_layers": [1, 1, 1, 0], "use_qk_norm": True}],
    "longcat_flash": [LONGCAT],
    "longcat_flash_ngram": [LONGCAT | {"emb_split_num": 2, "ngram_vocab_size_ratio": 2}],
    "minicpm3": [MLA | {"rope_scaling": LONGROPE}],
    "mimo_v2_flash": [
        {
            "hybrid_layer_pattern": [1, 0, 1, 0],
            "moe_layer_freq": [0, 1, 1, 1],
            "add_swa_attention_sink_bias": True,
            "add_full_attention_sink_bias": True,
            "swa_num_attention_heads": 4,
            "swa_num_key_value_heads": 1,
            "swa_head_dim": 16,
            "swa_v_head_dim": 8,
            "attention_value_scale": 0.7,
        }
    ],
    "minimax_m3_vl": [
        {"text_config": {"arch": "minimax_m3_vl", "mlp_layer_types": MOE_LATER}},
        {"text_config": {"arch": "minimax_m3_vl", "mlp_layer_types": MOE_LATER, **SPARSE_BLOCKS}},
        {
            "text_config": {
                **{"arch": "minimax_m3_vl", "mlp_layer_types": MOE_LATER, **SPARSE_BLOCKS},
                **{"index_topk_blocks": 6, "index_local_blocks": 2},
            }
        },
    ],
    "ministral3": [{"rope_parameters": SCALED_BY_POSITION}],
    "mistral3": [{"text_config": {"arch": "llama", "model_type": "llama"}}],
    "mistral4": [MLA | {"rope_parameters": SCALED_BY_POSITION}],
    "mellum": [{"rope_parameters": BY_LAYER_TYPE}],
    "nanbeige": [{"num_loops": 2}],
    "nemotron-nas": [
        {
            "block_configs": [
                {"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 1.0}},
                {"attention": {"no_op": True}, "ffn": {"ffn_mult": 1.0}},
                {"attention": {"no_op": True}, "ffn": {"replace_with_linear": True}},
                {"attention": {"n_heads_in_group": 4}, "ffn": {"ffn_mult": 1.0}},
            ]
        }
    ],
    "nemotron": [{"hidden_act": "relu2"}],
    "openelm": [
        {
            "ffn_dim_divisor": 8,
            "num_query_heads": [4] * LAYERS,
            "num_kv_heads": [2, 2, 4, 2],
            "ffn_multipliers": [1.0, 1.5, 2.0, 2.0],
        }
    ],
    "phi3": [
        {"partial_rotary_factor": 1.0},
        {"partial_rotary_factor": 1.0, "rope_scaling": LONGROPE},
    ],
    "phimoe": [{"rope_scaling": LONGROPE}],
    "phi": [{"num_key_value_heads": 2}],
    "pixtral": [{"text_config": {"arch": "llama"}}],
    "plamo": [{"n_shared_head": 2}],
    "qwen2_vl": [{"text_config": {"arch": "qwen2"}}],
    "qwen3_vl": [{"text_config": {"arch": "qwen3"}}],
    "qwen3_vl_moe": [{"text_config": {"arch": "qwen3_moe"}}],
    "smollm3": [{"no_rope_layers": [1, 0, 1, 0]}],
    "spark2_5": [{"rope_parameters": BY_LAYER_TYPE, "hidden_act": "gelu"}],
    "stablelm": [{}, {"use_parallel_residual": True, "qk_layernorm": True}],
    "step3p5": [
        {
            "partial_rotary_factors": [0.5, 1.0, 0.5, 1.0],
            "moe_layers_enum": "2,3",
            "attention_other_setting": {"num_attention_heads": 4, "num_attention_groups": 2},
        }
    ],
    "talkie": [{}],
    "telechat3": [{}, {"rope_scaling": YARN}],
    "youtu_llm": [MLA],
}
"""Fields of architectures beyond `SIZES`; one variant for each kind of layer.

`text_config` is itself filled from the tables, for the arguments that `arch` has.
"""

ON_METAL = {"bitnet": "on a GPU only; checked with its Metal kernel replaced by plain MLX"}
"""Architectures that mlx-lm computes by Metal kernels alone, and how they are checked without."""

WITHOUT_TOY = {
    "muse_spark": "mlx-lm computes it by Metal kernels alone, and the check runs on a CPU",
    "olmo": "mlx-lm needs the package ai2-olmo for it",
    "phi3small": "mlx-lm's own block-sparse attention crashes on the CPU, where all is checked",
}
"""Architectures that cannot be checked, and why."""
