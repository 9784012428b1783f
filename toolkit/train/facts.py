"""What a run is made of, beyond the names in its recipe: digests of the data, the tokenizer, the model's config."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from toolkit.data.store import processor_hash
from toolkit.models.config import DROPOUT_NAMES
from toolkit.models.weights_digest import weights_digest
from toolkit.recipe import Recipe
from toolkit.train.inputs import Inputs

Facts = dict[str, Any]
"""JSON-able; what decides, together with the fields of Role.IDENTITY, what step N is."""

OF_NO_WEIGHT = ("transformers_version", "dtype", "torch_dtype", "use_cache", "architectures", "label2id")
"""Fields of a model's config that say nothing about the network, or say it twice."""

SOURCES = {
    "config": ("model.path", "model.config", "model.architecture"),
    "weights": ("model.path",),
    "tokenizer": ("model.tokenizer", "model.path"),
    "chat_template": ("model.tokenizer", "model.path"),
}
"""Fact -> recipe fields it comes from; any other comes from those of the data."""


def gather(recipe: Recipe, inputs: Inputs) -> Facts:
    """The facts of the run that `recipe` describes. Reads a few megabytes at most; for rank 0."""
    template, streaming = getattr(inputs.processor, "chat_template", None), recipe.data.streaming
    return {
        "config": _config(inputs.model_config),
        "weights": None if recipe.model.is_new else weights_digest(str(recipe.model.path)),
        "tokenizer": processor_hash(inputs.processor),
        "chat_template": None if template is None else _digest(template),
        # A stream is not encoded in advance: what its source holds, and how the first rows are read.
        "examples": asdict(inputs.batches.contents()) | ({"source": inputs.data_content} if streaming else {}),
    }


def _config(config: Any) -> dict[str, Any]:
    plain = json.loads(json.dumps(config.to_dict(), sort_keys=True, default=str))
    return {
        name: value
        for name, value in plain.items()
        # Dropout is a setting, which may change (model.dropout).
        if name not in OF_NO_WEIGHT and not name.startswith("_") and not name.endswith(DROPOUT_NAMES)
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def differences(stored: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(fact, how it differs, in words) of every fact that is not that of the run."""
    before, after = stored["config"], now["config"]
    # Another version of transformers may know other fields: those that both have are compared.
    for name in sorted(before.keys() & after.keys()):
        if before[name] != after[name]:
            what = "the classes" if name == "id2label" else f"the model's {name}"
            yield "config", f"{what}: {_short(after[name])} (the run has {_short(before[name])})"
    # An older checkpoint of a run from a hub name may not know.
    if None not in (stored["weights"], now["weights"]) and stored["weights"] != now["weights"]:
        yield "weights", "the weights that the run started from have other content"
    if stored["chat_template"] != now["chat_template"]:
        yield "chat_template", "the chat template has other content"
    elif stored["tokenizer"] != now["tokenizer"]:
        yield "tokenizer", "the tokenizer has other content"
    if stored["examples"] != now["examples"]:
        yield "examples", f"the training examples have other content{_sequences(stored['examples'], now['examples'])}"


def _short(value: Any) -> str:
    text = ", ".join(map(str, value.values())) if isinstance(value, dict) else repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _sequences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    if before["sequences"] == now["sequences"]:
        return ""
    return f": {now['sequences']} sequences (the run has {before['sequences']})"


def comes_from(fact: str, name: str) -> bool:
    """Whether the recipe field `name` may be what changed `fact`."""
    return name in SOURCES[fact] if fact in SOURCES else name.startswith(("data.", "task."))


def is_about_data(fact: str) -> bool:
    """Whether --resume_changed_data lets `fact` change: which examples come next, not what the model is."""
    return fact in ("examples", "tokenizer", "chat_template")
