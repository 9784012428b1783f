"""Tiny random configurations of the causal language models that the installed transformers knows, one call for each."""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 96
LAYERS = 4
HEADS = 4
KV_HEADS = 2

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # Experts.
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
    # Multi-head latent attention.
    "q_lora_rank": 12,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    # Attention over selected tokens, or over a window.
    "index_topk": 6,
    "index_head_dim": 8,
    "index_n_heads": 2,
    "sliding_window": 8,
    # Linear attention.
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_heads": 4,
    "linear_head_dim": 8,
    "query_pre_attn_scalar": 8,
}
"""Laid over every configuration as far as it has the field."""

LONG = {"max_position_embeddings": 131072}
"""For rotary tables that are stretched from a length of their own."""

_BART: dict[str, Any] = {
    "d_model": 32,
    **{f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in (("layers", 2), ("ffn_dim", 48))},
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), HEADS),
    "decoder_start_token_id": 2,
}
_RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 16}

OVERRIDES: dict[str, dict[str, Any]] = {
    "apertus": LONG,
    "aria_text": {"moe_num_experts": 4, "moe_topk": 2},
    "bailing_hybrid": {"layer_group_size": 2},
    **dict.fromkeys(("bart", "blenderbot", "blenderbot-small", "m2m_100", "marian", "mbart", "pegasus"), _BART),
    "cohere_compass_text": {
        "rope_parameters": {
            "full_attention": None,
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
        },
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "cwm": LONG,
    "deepseek_v3": {"first_k_dense_replace": 1},
    "deepseek_v32": {"first_k_dense_replace": 1},
    "deepseek_v4": {
        "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4},
        "hc_mult": 2,
        "mlp_layer_types": ["hash_moe", "moe", "moe", "moe"],
        "o_groups": 2,
        "o_lora_rank": 8,
    },
    "deberta": _RELATIVE,
    "deberta-v2": {**_RELATIVE, "position_buckets": 4, "norm_rel_ebd": "layer_norm", "conv_kernel_size": 3},
    "dots1": {"n_shared_experts": 1, "first_k_dense_replace": 1},
    "dots3_note_text": {
        "head_dim": 12,
        "shared_experts_intermediate_size": 16,
        "swa_num_attention_heads": HEADS,
        "swa_num_key_value_heads": HEADS,
        "swa_q_lora_rank": 12,
        "swa_kv_lora_rank": 8,
        "swa_head_dim": 12,
        "swa_qk_nope_head_dim": 8,
        "swa_qk_rope_head_dim": 4,
        "swa_v_head_dim": 8,
    },
    "gemma3": {
        "text_config": {name: SIZES[name] for name in SIZES if not name.endswith("_token_id")},
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        "mm_tokens_per_image": 4,
    },
    "gemma3_text": {"layer_types": ["sliding_attention", "full_attention"] * 2},
    "gemma3n_text": {"num_kv_shared_layers": 0, "vocab_size_per_layer_input": VOCABULARY},
    "gemma4_text": {"hidden_size_per_layer_input": 0, "global_head_dim": 8},
    "gemma4_unified_text": {"global_head_dim": 8},
    "glm_moe_dsa": {"first_k_dense_replace": 1, "indexer_types": ["full", "shared", "full", "shared"]},
    "gpt_oss": LONG,
    "hy_v4": {"hc_mult": 2, "indexer_types": ["full", "shared", "full", "shared"]},
    "inkling_text": {
        "swa_num_attention_heads": HEADS,
        "swa_num_key_value_heads": KV_HEADS,
        "swa_head_dim": 8,
        "d_rel": 4,
        "rel_extent": 16,
        "layer_types": ["hybrid_sliding", "hybrid"] * 2,
    },
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "kolibri1": {"layer_types": ["sliding_attention", "full_attention"] * 2},
    "longcat_flash": {"num_layers": LAYERS, "head_dim": 4, "zero_expert_num": 2},
    "minimax_m3_vl_text": {
        "dense_intermediate_size": 48,
        "shared_intermediate_size": 16,
        "rotary_dim": 4,
        "index_block_size": 4,
        "index_topk_blocks": 2,
    },
    "ministral3": LONG,
    "modernbert": {"layer_types": ["full_attention", "sliding_attention"] * 2, "local_attention": 6},
    **{name: {"d_ff": 48, "d_kv": 8, "decoder_start_token_id": 0} for name in ("mt5", "t5", "umt5")},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 16},
    "phi4_multimodal": {
        "original_max_position_embeddings": 64,
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "crop_size": 28,
            "image_size": 28,
        },
        "audio_config": {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_blocks": 1,
            "num_attention_heads": 2,
            "ext_pw_out_channel": 16,
            "nemo_conv_channels": 16,
        },
    },
}
"""By model_type, over SIZES: what would otherwise be large, or of one kind of layer only."""

WITHOUT_PLAN = ("bloom", "falcon", "gemma3", "gpt2", "opt")
"""Model types without a pipeline plan of their own that we can cut all the same."""


def planned() -> list[str]:
    """Model types of all causal language models whose configuration carries a pipeline plan."""
    return sorted(
        kind for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if getattr(CONFIG_MAPPING[kind], "base_model_pp_plan", None)
    )


def tiny_config(model_type: str, **changes: Any) -> PretrainedConfig:
    """A configuration of `model_type` with 4 layers, width 32, 4 heads of which 2 hold keys, and 96 tokens; no dropout.

    `changes` come last. Raises KeyError for a model type that transformers does not know.
    """
    config: PretrainedConfig = CONFIG_MAPPING[model_type](**{**tiny_fields(model_type), **changes})
    return config


def tiny_fields(model_type: str) -> dict[str, Any]:
    """The fields of `tiny_config`."""
    kind = CONFIG_MAPPING[model_type]
    known = {*getattr(kind, "__dataclass_fields__", {}), *kind.attribute_map}
    fields = {name: value for name, value in SIZES.items() if name in known}
    fields |= {name: 0.0 for name in known if name.endswith(("dropout", "dropout_prob", "dropout_rate", "pdrop"))}
    if "kv_lora_rank" in known:
        fields["num_key_value_heads"] = HEADS  # Every head unfolds keys of its own.
    return {**fields, **OVERRIDES.get(model_type, {})}
