"""From a name to a tokenizer and to weights in memory, on every rank alike, by way of transformers."""

from __future__ import annotations

import pickle
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase
from transformers.integrations import HfDeepSpeedConfig

from toolkit.errors import ModelError
from toolkit.models.assets import resolve
from toolkit.models.files import check_files, unreadable
from toolkit.models.quiet import quiet
from toolkit.models.ties import base_first
from toolkit.recipe import Model

READ_ERRORS = (OSError, ValueError, KeyError, TypeError, SafetensorError, ImportError, RuntimeError, pickle.PickleError)
"""What transformers raises for files that it cannot read."""


@dataclass(frozen=True)
class ProcessorFiles:
    """Where the tokenizer, or another processor, of a recipe is read from."""

    field: str
    """The field that says so."""
    name: str
    """What it says."""
    folder: str

    @classmethod
    def of(cls, model: Model) -> ProcessorFiles:
        """Those of `model.tokenizer`, else of `model.path`. Raises ModelError for a place without a model."""
        field = "model.path" if model.tokenizer is None else "model.tokenizer"
        name = model.tokenizer or model.path or ""
        folder = resolve(name, field)
        check_files(field, folder)
        return cls(field, name, folder)

    @contextmanager
    def reading(self, what: str) -> Iterator[None]:
        """transformers reads in here, without its own messages. Raises ModelError where it cannot make `what` of the files."""
        try:
            with quiet():
                yield
        except READ_ERRORS as error:
            raise self.unreadable(what, error) from None

    def unreadable(self, what: str, error: Exception) -> ModelError:
        """The error for files of which `what` cannot be made."""
        return unreadable(what, self.field, self.name, self.folder, error)


def load_tokenizer(model: Model) -> PreTrainedTokenizerBase:
    """The recipe's tokenizer. Raises ModelError when there is none."""
    files = ProcessorFiles.of(model)
    with files.reading("tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(files.folder)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise files.unreadable("tokenizer", TypeError("no tokenizer files"))
    return tokenizer


def check_missing(missing: list[str], source: str, network: nn.Module) -> None:
    """Raise ModelError for weights of `network` that the checkpoint `source` does not have."""
    if missing:
        raise ModelError(
            f"{source} has no weights for {', '.join(missing[:3])}"
            + (f" and {len(missing) - 3} more" if len(missing) > 3 else ""),
            expected=f"a checkpoint of the whole {type(network).__name__}",
            do="give a checkpoint with these weights, or train from scratch with model.weights='random'",
        )


def load_weights(
    kind: Any,
    source: str,
    config: PretrainedConfig,
    deepspeed_config: Mapping[str, Any],
    *,
    remade: Collection[str] = (),
) -> tuple[nn.Module, list[str]]:
    """The model with its weights in fp32; under ZeRO-3 each rank only ever holds its share.

    Weights `remade` may have another shape in the checkpoint. Returns the model and the names of weights that the checkpoint did not have.
    """
    with _partitioned(deepspeed_config):
        return _from_pretrained(kind, source, config, remade)


def _from_pretrained(
    kind: Any, source: str, config: PretrainedConfig, remade: Collection[str]
) -> tuple[nn.Module, list[str]]:
    try:
        with quiet():
            network, info = kind.from_pretrained(
                source,
                config=config,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=bool(remade),
            )
        mismatched = [found for found in info["mismatched_keys"] if found[0] not in remade]
        if mismatched:
            name, stored, wanted = min(mismatched)
            raise ValueError(f"{name} has shape {tuple(stored)} in the file and {tuple(wanted)} in the model")
    except READ_ERRORS as error:
        raise unreadable("model", "model.path", source, source, error) from None
    base_first(network)
    fresh = {*info["missing_keys"], *(found[0] for found in info["mismatched_keys"])}
    return network, sorted(fresh)


@contextmanager
def _partitioned(deepspeed_config: Mapping[str, Any]) -> Iterator[None]:
    if deepspeed_config["zero_optimization"]["stage"] < 3:
        yield
        return
    # transformers partitions while it loads as long as this object is alive.
    announced = HfDeepSpeedConfig(dict(deepspeed_config))
    try:
        yield
    finally:
        del announced
