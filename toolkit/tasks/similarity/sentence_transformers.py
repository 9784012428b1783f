"""The files by which the package sentence-transformers makes vectors of a Hugging Face folder: its modules, one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MODES = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token", "last": "pooling_mode_lasttoken"}
"""Our names of pooling -> its switches."""
OTHER_MODES = ("pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens")


def module_files(
    width: int, *, pooling: str, normalize: bool, longest: int, prompts: Mapping[str, str]
) -> dict[str, Any]:
    """Path in the folder -> JSON-able content, for vectors of `width` numbers of texts of at most `longest` tokens.

    `prompts` are what stands before texts, by their kind.
    """
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    modules = [
        {
            "idx": index,
            "name": str(index),
            "path": f"{index}_{kind}" if index else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for index, kind in enumerate(kinds)
    ]
    switches = {name: name == MODES[pooling] for name in (*MODES.values(), *OTHER_MODES)}
    return {
        "modules.json": modules,
        "sentence_bert_config.json": {"max_seq_length": longest, "do_lower_case": False},
        "config_sentence_transformers.json": {
            "prompts": {name: text for name, text in prompts.items() if text},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
        "1_Pooling/config.json": {"word_embedding_dimension": width, **switches, "include_prompt": True},
    }
