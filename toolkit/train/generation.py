"""Special ids and settings of generation: decided before anything is saved or loaded, so that training and export share them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedTokenizerBase

from toolkit.models.generation import (
    SPECIAL_IDS,
    START,
    end_ids,
    flaw,
    set_field,
    stated_generation,
    stop_at,
    text_config,
    use_special_ids,
)
from toolkit.recipe import Recipe
from toolkit.tasks.base import Task


def decide_generation(
    recipe: Recipe, task: Task, config: Any, rows: Any, say: Callable[[str], None]
) -> dict[str, Any] | None:
    """Settings of generation for the export; ids that the tokenizer or the data decide are put into `config`, too."""
    model, tokenizer = recipe.model, task.tokenizer
    if task.reads_padding:
        before = getattr(text_config(config), "pad_token_id", None)
        if before not in (None, tokenizer.pad_token_id):
            say(f"padding: token {tokenizer.pad_token_id} of the tokenizer instead of the checkpoint's {before}")
        set_field(config, "pad_token_id", tokenizer.pad_token_id)
    is_new_language = model.is_new and (model.path is None or model.tokenizer is not None)
    if is_new_language and task.vocabulary_size is not None:
        use_special_ids(config, tokenizer, model.config)
    stops = task.stop_tokens(rows)
    if stops is None:
        return None
    generation = task.generation_settings(stated_generation(model.path, config))
    decided = SPECIAL_IDS if is_new_language else [name for name in SPECIAL_IDS if name in model.config]
    generation |= {name: getattr(text_config(config), name, None) for name in decided}
    if getattr(config, "is_encoder_decoder", False):
        before = generation.get(START)
        generation[START] = before if before is not None and not is_new_language else getattr(config, START, None)
    if generation.get("pad_token_id") is None:
        generation["pad_token_id"] = tokenizer.pad_token_id
    before = end_ids(generation.get("eos_token_id"))
    added = stop_at(config, generation, stops)
    for line in (_where_it_stops(tokenizer, added, before), flaw(model.path, generation)):
        if line:
            say(line)
    return {name: value for name, value in generation.items() if value is not None}


def _where_it_stops(tokenizer: PreTrainedTokenizerBase, added: list[int], before: list[int]) -> str | None:
    """What differs from where the checkpoint stops, in one line."""

    def named(ids: list[int]) -> str:
        return ", ".join(f"{tokenizer.convert_ids_to_tokens(token)} ({token})" for token in ids)

    if not added:
        return None
    as_before = f", as well as at {named(before)}" if before else ""
    return f"answers end with {named(added)}: what the export generates stops there{as_before}"
