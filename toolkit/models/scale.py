"""An architecture, scaled down: the same kind of model with few layers, small heads, little width and vocabulary.

Sizes are found by their usual names in the configuration, so that no architecture needs code of its own. What makes it
this architecture stays: kinds of layers, query heads per key-value head, rotary settings, activation, ties.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PretrainedConfig

from toolkit.errors import ModelError
from toolkit.models.config import DROPOUT_NAMES

WIDTH_NAMES = ("intermediate_size", "intermediate_size_mlp", "ffn_dim", "ffn_hidden_size", "n_inner", "d_ff")
"""Endings of fields that hold the width of a feed-forward layer."""

EXPERT_WIDTH_NAMES = ("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size")
EXPERT_COUNT_NAMES = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
KEY_VALUE_HEAD_NAMES = ("num_key_value_heads", "num_kv_heads", "multi_query_group_num")
WINDOW_NAMES = ("sliding_window", "attention_chunk_size", "window_size")

AT_MOST = {
    **dict.fromkeys(EXPERT_COUNT_NAMES, 16),
    **dict.fromkeys(WINDOW_NAMES, 16),
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "qk_head_dim": 32,
    "v_head_dim": 16,
    "d_kv": 16,
    "mamba_d_state": 16,
    "word_embed_proj_dim": 64,
    "num_nextn_predict_layers": 0,
}
"""Field -> the largest value it keeps."""

MOST_PARAMETERS = 5_000_000
"""A scaled-down model with more has a size that is not found by its name."""

LONGEST_RATIO = 8
"""Query heads per key-value head; beyond it the ratio is cut, so that heads stay few."""


def scale_down(
    config: PretrainedConfig, *, num_layers: int, key_value_heads: int, vocabulary_size: int | None
) -> PretrainedConfig:
    """A copy of `config` with `num_layers` layers (more where it has more kinds of them) and small sizes.

    Grouped key-value heads become `key_value_heads`; one stays one; a head for each query stays that. With a
    `vocabulary_size` its first tokens are the special ones of `toolkit.data.words`; without, vocabulary and special tokens stay.
    Raises ModelError for a configuration without the usual names.
    """
    scaled = copy.deepcopy(config)
    if getattr(scaled, "is_encoder_decoder", False) and "decoder" in scaled.sub_configs:
        for side in ("encoder", "decoder"):
            part = scale_down(
                getattr(scaled, side),
                num_layers=num_layers,
                key_value_heads=key_value_heads,
                vocabulary_size=vocabulary_size,
            )
            setattr(scaled, side, part)
        if vocabulary_size is not None:
            _cut_vocabulary(scaled, vocabulary_size)
        return scaled
    try:
        text = scaled.get_text_config()
        _cut_layers(text, num_layers)
        _cut_heads(text, key_value_heads)
        _follow(text)
        if vocabulary_size is not None:
            for part in {id(part): part for part in (scaled, text)}.values():
                _cut_vocabulary(part, vocabulary_size)
        for name, largest in AT_MOST.items():
            value = getattr(text, name, None)
            if isinstance(value, int) and not isinstance(value, bool) and value > largest:
                setattr(text, name, largest)
    except Exception as error:
        # A configuration may refuse a value in any way of its own.
        raise _not_scaled(config, " ".join(str(error).split())[:200]) from None
    return scaled


def comparable(config: PretrainedConfig) -> PretrainedConfig:
    """`config`, one that was scaled down, without what no two strategies compute alike: dropout and a balancing loss."""
    for part in [config, *(getattr(config, name) for name in config.sub_configs if hasattr(config, name))]:
        # Masks drawn on one rank's heads are not those of the whole model: with dropout no strategy could be compared.
        for name, value in part.to_dict().items():
            if name.endswith(DROPOUT_NAMES) and isinstance(value, float | int):
                setattr(part, name, 0.0)
        if getattr(part, "output_router_logits", False):
            # The reference has no balancing loss, and not every strategy can have one.
            part.output_router_logits = False
    return config


def check_size(kind: Any, config: PretrainedConfig, *, at_most: int = MOST_PARAMETERS) -> int:
    """Parameters of the model that `kind`, one of transformers' auto classes, makes of `config`; allocates nothing.

    Raises ModelError when there is none, or when it still has more than `at_most`.
    """
    try:
        with torch.device("meta"):
            size: int = sum(parameter.numel() for parameter in kind.from_config(copy.deepcopy(config)).parameters())
    except Exception as error:
        # Every architecture fails in its own way on numbers that do not fit together.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise _not_scaled(config, f"no model can be built: {reason}") from None
    if size > at_most:
        raise _not_scaled(config, f"it still has {size:,} parameters")
    return size


def _not_scaled(config: PretrainedConfig, reason: str) -> ModelError:
    return ModelError(
        f"{type(config).__name__} cannot be scaled down: {reason}",
        expected="an architecture whose configuration names its sizes in the usual way",
        do="name its sizes in toolkit/models/scale.py",
    )


def _cut_layers(config: Any, wanted: int) -> None:
    """Keep the first layers, and the first of each kind."""
    count = config.num_hidden_layers
    lists = {name: value for name, value in config.to_dict().items() if _is_list_of(value, count)}
    # A list without a repetition numbers the layers; it does not tell their kind.
    telling = [value for value in lists.values() if len(set(map(str, value))) < count]
    kinds = [tuple(str(value[index]) for value in telling) for index in range(count)]
    kept = {kinds.index(kind) for kind in kinds}
    others = [index for index in range(count) if index not in kept]
    chosen = sorted([*kept, *others[: max(0, wanted - len(kept))]])
    # A checkpoint may have fewer layers than the strategies need.
    chosen += [chosen[-1]] * (wanted - len(chosen))
    for name, value in lists.items():
        setattr(config, name, type(value)(value[index] for index in chosen))
    config.num_hidden_layers = len(chosen)


def _is_list_of(value: Any, count: int) -> bool:
    return isinstance(value, list | tuple) and len(value) == count and count > 1


def _cut_heads(config: Any, key_value_heads: int) -> None:
    """Few small heads; widths follow."""
    fields = config.to_dict()
    old_heads, old_width = config.num_attention_heads, config.hidden_size
    name = next((name for name in KEY_VALUE_HEAD_NAMES if name in fields), None)
    grouped = (fields[name] if name else None) or old_heads
    ratio = min(old_heads // grouped, LONGEST_RATIO)
    kept = 1 if grouped == 1 < old_heads else max(key_value_heads, math.ceil(4 / ratio))
    heads = kept * ratio
    size = 16 if heads <= 8 else 8
    # Architectures with a head size of their own keep it apart from the width.
    width = heads * size if fields.get("head_dim") in (None, old_width // old_heads) else heads * size // 2
    if name:
        setattr(config, name, kept)
    config.num_attention_heads = heads
    if "head_dim" in fields:
        config.head_dim = size
    _cut_widths(config, old_width, width)
    _cut_rotary_lists(config, size)


def _follow(config: Any) -> None:
    """Let a decoder be as deep as its encoder, with as many heads."""
    of_decoders = {
        ("decoder_layers", "num_decoder_layers"): config.num_hidden_layers,
        ("decoder_attention_heads",): config.num_attention_heads,
    }
    for names, value in of_decoders.items():
        for name in names:
            if isinstance(getattr(config, name, None), int):
                setattr(config, name, value)


def _cut_widths(config: Any, old: int, new: int) -> None:
    config.hidden_size = new
    for name, value in config.to_dict().items():
        if not isinstance(value, int) or isinstance(value, bool):
            continue
        if name in EXPERT_WIDTH_NAMES:
            setattr(config, name, min(value, new))
        elif name.endswith(WIDTH_NAMES):
            setattr(config, name, min(value, 2 * new))
        elif value == old and name.endswith(("_dim", "_size", "_width")) and name not in ("vocab_size", "head_dim"):
            setattr(config, name, new)


def _cut_rotary_lists(config: Any, head_size: int) -> None:
    """Factors per rotary frequency (longrope): one for each pair of channels."""
    rotary = getattr(config, "rope_parameters", None)
    if isinstance(rotary, Mapping):
        share = float(rotary.get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None) or 1.0)
        pairs = int(head_size * share) // 2
        cut = {key: value[:pairs] if _is_factors(value) else value for key, value in rotary.items()}
        config.rope_parameters = cut


def _is_factors(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0


def _cut_vocabulary(config: Any, size: int) -> None:
    for name in ("vocab_size", "vocab_size_per_layer_input"):
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, size)
    for name, token in (("pad_token_id", 0), ("bos_token_id", 1), ("eos_token_id", 2)):
        setattr(config, name, token)
    if getattr(config, "is_encoder_decoder", False):
        config.decoder_start_token_id = 1
