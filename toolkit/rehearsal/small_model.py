"""The model of a rehearsal: the recipe's architecture with small sizes and random weights, its own tokenizer beside it.

Only a checkpoint's description is read (config.json, tokenizer, processor). Where that is not on this host, another of its kind
stands in, and that is said.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModel, PretrainedConfig

from toolkit.data.byte_tokenizer import write_byte_tokenizer
from toolkit.errors import ModelError
from toolkit.models.assets import ASSETS, resolve
from toolkit.models.config import load_config
from toolkit.models.hub import DESCRIPTION
from toolkit.models.scale import MOST_PARAMETERS, check_size, scale_down
from toolkit.recipe import Model, Recipe
from toolkit.tasks import task_class
from toolkit.train.inputs import load_task

CONFIG, INDEX = "config.json", "*.index.json"
USUAL = {"AutoModelForCausalLM": "llama", "AutoModelForSeq2SeqLM": "t5", "AutoModelForImageClassification": "vit"}
"""transformers' auto class -> the architecture that stands in for a name that tells none; else BERT."""

MOST_WHOLE = 30_000_000
"""A model of at most so many parameters is trained as it is where no rule scales it down."""


@dataclass(frozen=True)
class SmallModel:
    """What lies in its folder."""

    model: Model
    """The recipe's section for it."""
    name: str
    """transformers' class."""
    parameters: int | None
    """None for a module of the recipe's own."""
    is_whole: bool
    """Whether it has its own size: no rule scales it down."""
    own_tokens: bool
    """Whether rows are read with the recipe's own tokenizer or processor."""
    stand_ins: list[str]
    """What is not the recipe's own, in words."""


def write_small_model(recipe: Recipe, folder: Path, *, num_layers: int) -> SmallModel:
    """Write the scaled-down model of `recipe` to `folder`. Raises ModelError for an architecture that cannot be scaled down."""
    kind, model = task_class(recipe.task).auto_class, recipe.model
    stand_ins: list[str] = []
    size = _write_processor(recipe, folder, stand_ins)
    config, is_own = _config(recipe, kind, size, stand_ins)
    small, parameters = _scaled(config, kind, num_layers, size)
    stored = None if model.is_new else _stored_kind(small, kind, is_own)
    small.save_pretrained(folder)
    if stored is not None:
        torch.manual_seed(recipe.seed)
        stored(small).save_pretrained(folder)
    changes: dict[str, Any] = {"path": str(folder), "tokenizer": None}
    # Those of the recipe's own are in the configuration already.
    changes |= {"architecture": None, "config": {}, "dropout": None}
    name = transformers.models.auto.auto_factory._get_model_class(small, kind._model_mapping).__name__
    return SmallModel(model.model_copy(update=changes), name, parameters, small is config, size is None, stand_ins)


def _write_processor(recipe: Recipe, folder: Path, stand_ins: list[str]) -> int | None:
    """Put what rows are read with into `folder`; the number of its tokens where it is none of the recipe's."""
    folder.mkdir(parents=True, exist_ok=True)
    model = recipe.model
    field, place = ("model.path", model.path) if model.tokenizer is None else ("model.tokenizer", model.tokenizer)
    if place is None:
        return None
    try:
        source = Path(resolve(place, field))
    except ModelError as error:
        if Path(place).exists():
            raise
        if not recipe.task.needs_processor:
            return None
        if recipe.task.reads_media:
            raise _description_needed(error, place) from None
        stand_ins.append(f"the tokenizer: {place!r} is not here{_cure(place)}, so each byte of a text is a token")
        return write_byte_tokenizer(folder)
    for pattern in DESCRIPTION:
        for file in source.glob(pattern):
            if file.name != CONFIG and not file.match(INDEX):
                shutil.copy(file, folder / file.name)
    return None


def _cure(place: str) -> str:
    return f" (`toolkit fetch {place}`)" if place in ASSETS else ""


def _description_needed(error: ModelError, place: str) -> ModelError:
    if place in ASSETS:
        return error
    return ModelError(
        f"{place!r} is not on this host, and images or recordings are not read without its processor",
        expected="its description: config.json and the files of its processor; no weights",
        do=f"once, with a network: hf download {place} --include '*.json' '*.txt' '*.model'",
    )


def _config(recipe: Recipe, kind: Any, size: int | None, stand_ins: list[str]) -> tuple[PretrainedConfig, bool]:
    """The architecture at its full size, and whether it is the recipe's own."""
    model = recipe.model.model_copy(update={"attention": "auto"})
    if model.path is None and size is None:
        size = load_task(recipe).vocabulary_size
    try:
        return load_config(model, vocabulary_size=size, overrides={}), True
    except ModelError as error:
        place = str(model.path)
        if model.path is None or Path(place).exists() or _is_here(place):
            raise
        if recipe.task.reads_media and (recipe.task.needs_processor or place in ASSETS):
            raise _description_needed(error, place) from None
    architecture = _likely(place, kind, recipe.task.name)
    stand_ins.append(
        f"the architecture: {place!r} is not here{_cure(place)}, so a {architecture} of transformers' usual form stands in"
    )
    other = Model(architecture=architecture, weights="random", tokenizer="none")
    return load_config(other, vocabulary_size=size, overrides={}), False


def _is_here(place: str) -> bool:
    """Whether the description of the checkpoint is in a cache."""
    try:
        resolve(place)
    except ModelError:
        return False
    return True


def _likely(place: str, kind: Any, task: str) -> str:
    """The architecture whose name stands in that of the checkpoint, the longest of those; else the usual one for `kind`."""
    words = re.findall(r"[a-z0-9]+", place.rpartition("/")[2].lower())
    ends = ["".join(words[index:]) for index in range(len(words))]
    known: list[str] = list(kind._model_mapping._model_mapping)
    found = [name for name in known if any(end.startswith(re.sub(r"[^a-z0-9]", "", name)) for end in ends)]
    usual = "llama" if task == "reward_model" else USUAL.get(kind.__name__, "bert")
    return max(found, key=len, default=usual)


def _scaled(config: PretrainedConfig, kind: Any, num_layers: int, size: int | None) -> tuple[PretrainedConfig, int]:
    """`config` with small sizes, or as it is where no rule scales it and it is small enough; and its parameters."""
    try:
        small = scale_down(config, num_layers=num_layers, key_value_heads=2, vocabulary_size=size)
        text = small.get_text_config()
        # The vocabulary is that of the recipe's tokenizer, which is kept.
        embeddings = getattr(text, "vocab_size", 0) * getattr(text, "hidden_size", 0)
        return small, check_size(kind, small, at_most=MOST_PARAMETERS + 4 * embeddings)
    except ModelError as error:
        if size is None and (whole := _size(kind, config)) is not None:
            return config, whole
        do = f"{error.do}, or start the recipe itself with a few --steps"
        raise ModelError(error.what, expected=error.expected, do=do) from None


def _size(kind: Any, config: PretrainedConfig) -> int | None:
    try:
        return check_size(kind, config, at_most=MOST_WHOLE)
    except ModelError:
        return None


def _stored_kind(config: PretrainedConfig, kind: Any, is_own: bool) -> Any:
    """What makes the model whose weights a checkpoint like the recipe's has."""
    names = config.architectures or []
    if is_own and names and hasattr(transformers, names[0]):
        return getattr(transformers, names[0])
    heads = ("SequenceClassification", "TokenClassification", "QuestionAnswering")
    return (AutoModel if kind.__name__.endswith(heads) else kind).from_config
