"""What a model's files say about special tokens and generation: the tokenizer's ids, the checkpoint's settings, where to stop."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoConfig, GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils import GENERATION_CONFIG_NAME

from toolkit.errors import ModelError
from toolkit.models.assets import resolve

SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
START = "decoder_start_token_id"
"""Field of an encoder-decoder: the token before every target."""


def use_special_ids(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, given: Mapping[str, Any]) -> None:
    """Let `config` have the tokenizer's ids in the place of its architecture's defaults, except for those in `given`."""
    for name in SPECIAL_IDS:
        if name not in given:
            set_field(config, name, getattr(tokenizer, name))
    if getattr(config, "is_encoder_decoder", False) and START not in given:
        ids = (tokenizer.bos_token_id, tokenizer.cls_token_id, tokenizer.pad_token_id)
        setattr(config, START, next((token for token in ids if token is not None), None))


def set_field(config: PretrainedConfig, name: str, value: Any) -> None:
    """Set a field where the model reads it: in the config, and in that of its text model where it has one of its own."""
    for part in (config, text_config(config)):
        if hasattr(part, name):
            setattr(part, name, value)


def text_config(config: PretrainedConfig) -> PretrainedConfig:
    """The part of `config` that generation reads: its text model's where it has several models."""
    try:
        found: PretrainedConfig = config.get_text_config(decoder=True)
    except ValueError:  # several, none of which is the one
        return config
    return found


def train_shared_padding(model: nn.Module, config: PretrainedConfig) -> None:
    """Let a model from scratch learn the embedding of a padding token that also begins or ends texts.

    torch keeps the gradient of an embedding's padding row at zero, which is meant for a token that means nothing.
    """
    stated = text_config(config)
    meaningful = {*end_ids(getattr(stated, "eos_token_id", None)), getattr(stated, "bos_token_id", None)}
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.padding_idx in meaningful:
            module.padding_idx = None


def restore_use_cache(config: PretrainedConfig, path: str | None) -> None:
    """Training needs no cache of keys and values; what the checkpoint at `path` or the architecture says of it is for users."""
    original = AutoConfig.from_pretrained(resolve(path)) if path else type(config)()
    stated = getattr(original, "use_cache", None)
    if stated is None:
        vars(config).pop("use_cache", None)
    else:
        config.use_cache = stated


def stated_generation(path: str | None, config: PretrainedConfig) -> dict[str, Any]:
    """The generation settings of the checkpoint at `path`, as its file has them, else those that follow from `config`.

    Raises ModelError for a file that transformers cannot load: the export would not load either.
    """
    file = _file(path)
    if file is None:
        derived = GenerationConfig.from_model_config(config).to_diff_dict()
        return {key: value for key, value in derived.items() if not key.startswith("_") and value is not None}
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        GenerationConfig.from_dict(dict(values))
        unknown = [token for name in SPECIAL_IDS for token in end_ids(values.get(name)) if not isinstance(token, int)]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is no token id")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{file} is no generation config: {' '.join(str(error).split())[:200]}",
            expected="settings that transformers can load; the export takes them over",
            do="correct that file, or remove it: generation then follows config.json",
        ) from None
    found: dict[str, Any] = values
    return found


def _file(path: str | None) -> Path | None:
    """The checkpoint's own settings of generation, or None."""
    file = Path(resolve(path)) / GENERATION_CONFIG_NAME if path else None
    return file if file is not None and file.is_file() else None


def flaw(path: str | None, values: Mapping[str, Any]) -> str | None:
    """A line about settings that transformers would not save, None for sound ones. They are kept as they are: so does it.

    They are those of `stated_generation` for the checkpoint at `path`.
    """
    try:
        GenerationConfig.from_dict(dict(values)).validate(strict=True)
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        origin = "generation_config.json of the checkpoint" if _file(path) else "what the config says of generation"
        return f"{origin} is kept as it is, though transformers objects: {reason}"
    return None


def end_ids(value: Any) -> list[int]:
    """An eos_token_id, whether it is one id, several or none, as a list."""
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def stop_at(config: PretrainedConfig, generation: dict[str, Any], tokens: Sequence[int]) -> list[int]:
    """Make both end texts at `tokens` too, besides where they do; returns the tokens at which `generation` did not."""
    before = end_ids(generation.get("eos_token_id"))
    added = [token for token in tokens if token not in before]
    if added:
        generation["eos_token_id"] = _one_or_more([*before, *added])
    configured = end_ids(getattr(text_config(config), "eos_token_id", None))
    missing = [token for token in tokens if token not in configured]
    if missing:
        set_field(config, "eos_token_id", _one_or_more([*configured, *missing]))
    return added


def _one_or_more(ids: list[int]) -> int | list[int]:
    return ids[0] if len(ids) == 1 else ids
