"""Tensor plans of architectures that bring none, and corrections to those that do: lines of data, read by tensor_plan.

Patterns name modules under a base model of that type; "*" stands for the number of a layer. Where transformers has a plan, an
entry here replaces the plan's entry of the same name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Layout:
    """What has to be known of an architecture beside transformers' own plan."""

    styles: dict[str, str] = field(default_factory=dict)
    """Pattern of a module or a bare parameter -> a word of tensor_styles.STYLES."""
    counts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Pattern of a module -> its attributes that count what is cut (heads, features); "config.x" is a field of the
    module's own config."""
    per_head: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Pattern of an attention -> its arguments that may have one entry per head."""
    refused: dict[str, str] = field(default_factory=dict)
    """Config field -> why an architecture with a true value there cannot be cut."""


def _separate(attention: str, output: str, enter: str, leave: str, *counts: str) -> Layout:
    # Attention with its own query, key and value matrices, and a feed-forward of two.
    query_key_value = {f"{attention}.{name}_proj": "colwise" for name in "qkv"}
    styles = {**query_key_value, f"{attention}.{output}": "rowwise", enter: "colwise", leave: "rowwise"}
    return Layout(styles, {attention: counts} if counts else {})


_FUSED_GATE = {"layers.*.mlp.gate_up_proj": "packed_colwise", "layers.*.mlp.down_proj": "rowwise"}
# transformers gathers what these fuse and computes the attention on every rank alike; cut by heads nothing is gathered.
_PHI3 = Layout(
    {
        "layers.*.self_attn.qkv_proj": "query_key_value_colwise",
        "layers.*.self_attn.o_proj": "rowwise",
        **_FUSED_GATE,
    },
    {"layers.*.self_attn": ("num_key_value_heads", "config.num_attention_heads")},
)


def _encoder(query_key_value: tuple[str, ...], output: str, enter: str, leave: str, **more: Any) -> Layout:
    # The matrices of an encoder's layer; what else is to be known comes by keyword, as in Layout.
    styles = {**dict.fromkeys(query_key_value, "colwise"), output: "rowwise", enter: "colwise", leave: "rowwise"}
    return Layout(**{**more, "styles": styles | more.get("styles", {})})


def _within(module: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{module}.{name}" for name in names)


_FEED_FORWARD = ("encoder.layer.*.intermediate.dense", "encoder.layer.*.output.dense")
_SELF = "encoder.layer.*.attention.self"
_BERT = _encoder(
    _within(_SELF, "query", "key", "value"),
    "encoder.layer.*.attention.output.dense",
    *_FEED_FORWARD,
    styles={
        **dict.fromkeys(_within("encoder.layer.*.crossattention.self", "query", "key", "value"), "colwise"),
        "encoder.layer.*.crossattention.output.dense": "rowwise",
    },
)
# The embeddings of distances are whole, lose elements on every rank alike, and then meet each rank's heads.
_DEBERTA: dict[str, Any] = {
    "styles": {
        **dict.fromkeys(_within(_SELF, "pos_proj", "pos_q_proj", "pos_key_proj", "pos_query_proj"), "colwise"),
        **dict.fromkeys(_within(_SELF, "q_bias", "v_bias"), "colwise"),
        f"{_SELF}.pos_dropout": "whole_amid_local",
    },
    "counts": {_SELF: ("num_attention_heads",)},
    "refused": {"talking_head": "it mixes the scores of all heads"},
}
_BART = Layout(
    {
        **dict.fromkeys(_within("layers.*.self_attn", "q_proj", "k_proj", "v_proj"), "colwise"),
        **dict.fromkeys(_within("layers.*.encoder_attn", "q_proj", "k_proj", "v_proj"), "colwise"),
        **dict.fromkeys(("layers.*.self_attn.out_proj", "layers.*.encoder_attn.out_proj"), "rowwise"),
        "layers.*.fc1": "colwise",
        "layers.*.fc2": "rowwise",
    },
    {"layers.*.self_attn": ("num_heads",), "layers.*.encoder_attn": ("num_heads",)},
)
_SPEECH = _encoder(
    _within("encoder.layers.*.attention", "q_proj", "k_proj", "v_proj"),
    "encoder.layers.*.attention.out_proj",
    "encoder.layers.*.feed_forward.intermediate_dense",
    "encoder.layers.*.feed_forward.output_dense",
)
_T5_ATTENTION = ("block.*.layer.*.SelfAttention", "block.*.layer.*.EncDecAttention")
_T5 = Layout(
    {
        **{f"{attention}.{name}": "colwise" for attention in _T5_ATTENTION for name in "qkv"},
        **{f"{attention}.o": "rowwise" for attention in _T5_ATTENTION},
        **{f"{attention}.relative_attention_bias": "per_head_columns" for attention in _T5_ATTENTION},
        **dict.fromkeys(_within("block.*.layer.*.DenseReluDense", "wi", "wi_0", "wi_1"), "colwise"),
        "block.*.layer.*.DenseReluDense.wo": "rowwise",
    },
    dict.fromkeys(_T5_ATTENTION, ("n_heads", "inner_dim")),
)
# chunk(2) takes gate and up from the two halves, which a plain "colwise" would hand to different ranks.
_INKLING = Layout({"layers.*.mlp.experts.gate_up_proj": "packed_colwise"})

LAYOUTS: dict[str, Layout] = {
    # Its activation has weights, which see local features only.
    "apertus": Layout({"layers.*.mlp.act_fn": "replicated_with_grad_allreduce"}),
    # The mask it computes from all values would meet local heads: the attention stays whole.
    "doge": Layout({f"layers.*.self_attn.{name}_proj": "replicate" for name in ("q", "k", "v", "dt", "o")}),
    "gpt2": Layout(
        {
            "h.*.attn.c_attn": "thirds_colwise",
            "h.*.attn.c_proj": "rowwise",
            "h.*.mlp.c_fc": "colwise",
            "h.*.mlp.c_proj": "rowwise",
        },
        {"h.*.attn": ("num_heads", "split_size")},
        refused={"add_cross_attention": "cross-attention is not cut"},
    ),
    "gpt_neo": _separate("h.*.attn.attention", "out_proj", "h.*.mlp.c_fc", "h.*.mlp.c_proj", "num_heads"),
    "gptj": _separate("h.*.attn", "out_proj", "h.*.mlp.fc_in", "h.*.mlp.fc_out", "num_attention_heads"),
    "opt": _separate(
        "decoder.layers.*.self_attn", "out_proj", "decoder.layers.*.fc1", "decoder.layers.*.fc2", "num_heads"
    ),
    "bloom": Layout(
        {
            "h.*.self_attention.query_key_value": "colwise",
            "h.*.self_attention.dense": "rowwise",
            "h.*.mlp.dense_h_to_4h": "colwise",
            "h.*.mlp.dense_4h_to_h": "rowwise",
        },
        {"h.*.self_attention": ("num_heads",)},
        {"h.*.self_attention": ("alibi",)},
        {"slow_but_exact": "its code then reads the weights past the modules"},
    ),
    "falcon": Layout(
        {
            "h.*.self_attention.query_key_value": "colwise",
            "h.*.self_attention.dense": "rowwise",
            "h.*.mlp.dense_h_to_4h": "colwise",
            "h.*.mlp.dense_4h_to_h": "rowwise",
        },
        {"h.*.self_attention": ("num_heads", "num_kv_heads")},
        {"h.*.self_attention": ("alibi", "attention_mask")},
    ),
    "mpt": Layout(
        {
            "blocks.*.attn.Wqkv": "thirds_colwise",
            "blocks.*.attn.out_proj": "rowwise",
            "blocks.*.ffn.up_proj": "colwise",
            "blocks.*.ffn.down_proj": "rowwise",
        },
        {"blocks.*.attn": ("n_heads",)},
        {"blocks.*.attn": ("position_bias",)},
    ),
    "albert": _encoder(
        _within("encoder.albert_layer_groups.*.albert_layers.*.attention", "query", "key", "value"),
        "encoder.albert_layer_groups.*.albert_layers.*.attention.dense",
        "encoder.albert_layer_groups.*.albert_layers.*.ffn",
        "encoder.albert_layer_groups.*.albert_layers.*.ffn_output",
    ),
    "deberta": _encoder((f"{_SELF}.in_proj",), "encoder.layer.*.attention.output.dense", *_FEED_FORWARD, **_DEBERTA),
    "deberta-v2": _encoder(
        _within(_SELF, "query_proj", "key_proj", "value_proj"),
        "encoder.layer.*.attention.output.dense",
        *_FEED_FORWARD,
        **_DEBERTA,
    ),
    "distilbert": _encoder(
        _within("transformer.layer.*.attention", "q_lin", "k_lin", "v_lin"),
        "transformer.layer.*.attention.out_lin",
        "transformer.layer.*.ffn.lin1",
        "transformer.layer.*.ffn.lin2",
    ),
    "modernbert": Layout(
        {
            "layers.*.attn.Wqkv": "thirds_colwise",
            "layers.*.attn.Wo": "rowwise",
            "layers.*.mlp.Wi": "packed_colwise",
            "layers.*.mlp.Wo": "rowwise",
        }
    ),
    "mpnet": _encoder(
        _within("encoder.layer.*.attention.attn", "q", "k", "v"),
        "encoder.layer.*.attention.attn.o",
        *_FEED_FORWARD,
        styles={"encoder.relative_attention_bias": "per_head_columns"},
        counts={"encoder.layer.*.attention.attn": ("num_attention_heads", "all_head_size")},
    ),
    **dict.fromkeys(("bert", "bert-generation", "camembert", "electra", "ernie", "roberta", "xlm-roberta"), _BERT),
    **dict.fromkeys(
        ("bart", "blenderbot", "blenderbot-small", "m2m_100", "marian", "mbart", "pegasus", "whisper"), _BART
    ),
    "vit": _encoder(
        _within("layers.*.attention", "q_proj", "k_proj", "v_proj"),
        "layers.*.attention.o_proj",
        "layers.*.mlp.fc1",
        "layers.*.mlp.fc2",
    ),
    **dict.fromkeys(("hubert", "wav2vec2"), _SPEECH),
    **dict.fromkeys(("mt5", "t5", "umt5"), _T5),
    "phi3": _PHI3,
    "phi4_multimodal": _PHI3,
    "glm": Layout(_FUSED_GATE),
    "glm4": Layout(_FUSED_GATE),
    "inkling_text": _INKLING,
    "inkling2_text": _INKLING,
}
"""By model_type."""
