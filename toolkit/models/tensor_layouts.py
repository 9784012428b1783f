"""Tensor plans of architectures that bring none, and corrections to those that do: lines of data, read by tensor_plan.

Patterns name modules under a base model of that type; "*" stands for the number of a layer. Where transformers has a plan, an
entry here replaces the plan's entry of the same name.
"""

from __future__ import annotations

from dataclasses import dataclass, field


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
_BERT = Layout(
    {
        "encoder.layer.*.attention.self.query": "colwise",
        "encoder.layer.*.attention.self.key": "colwise",
        "encoder.layer.*.attention.self.value": "colwise",
        "encoder.layer.*.attention.output.dense": "rowwise",
        "encoder.layer.*.intermediate.dense": "colwise",
        "encoder.layer.*.output.dense": "rowwise",
    },
    refused={"add_cross_attention": "cross-attention is not cut"},
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
    "bert": _BERT,
    "electra": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "phi3": _PHI3,
    "phi4_multimodal": _PHI3,
    "glm": Layout(_FUSED_GATE),
    "glm4": Layout(_FUSED_GATE),
    "inkling_text": _INKLING,
    "inkling2_text": _INKLING,
}
"""By model_type."""
