"""From a name to a tokenizer and to weights in memory, on every rank alike.

Weights come from one place under every strategy: a checkpoint directory. A new classification head, which no checkpoint
holds yet, is built once by rank 0 (`materialise`) and read back like any other, so that the starting point does not
depend on how the ranks are arranged.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase
from transformers.integrations import HfDeepSpeedConfig

from toolkit.errors import ModelError
from toolkit.models.assets import resolve
from toolkit.models.files import check_files, unreadable
from toolkit.models.output_layer import output_layer, renew
from toolkit.models.quiet import quiet
from toolkit.recipe import Model

READ_ERRORS = (OSError, ValueError, KeyError, TypeError, SafetensorError, ImportError, RuntimeError, pickle.PickleError)
"""What transformers raises for files that it cannot read."""


def load_tokenizer(model: Model) -> PreTrainedTokenizerBase:
    """The recipe's tokenizer. Raises ModelError when there is none."""
    field = "model.path" if model.tokenizer is None else "model.tokenizer"
    name = model.tokenizer or model.path or ""
    source = resolve(name, field)
    check_files(field, source)
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(source)
    except READ_ERRORS as error:
        raise unreadable("tokenizer", field, name, source, error) from None
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise unreadable("tokenizer", field, name, source, TypeError("no tokenizer files"))
    return tokenizer


def materialise(
    kind: Any, model: Model, config: PretrainedConfig, directory: Path, seed: int, *, new_head: bool = False
) -> list[str]:
    """Write a checkpoint's weights and what it lacks of a head to `directory` in fp32; call it on rank 0 alone.

    `kind` is one of transformers' auto classes. With `new_head` the output layer of a classifier is made anew even if
    the checkpoint has one. Returns the names of weights that start at random values although the recipe asks for
    pretrained ones.
    """
    head = output_layer(kind, config) if new_head else []
    torch.manual_seed(seed)
    source = resolve(str(model.path), weights=True)
    network, fresh = _from_pretrained(kind, source, config, remade=head)
    check_missing([name for name in fresh if not _is_of_a_head(network, name)], source, network)
    renew(network, [name for name in head if name not in fresh])
    network.save_pretrained(directory)  # type: ignore[operator]
    return sorted({*fresh, *head})


def _is_of_a_head(network: Any, name: str) -> bool:
    """Whether a weight belongs to a task: it lies outside the base model, or is the pooler, which only some tasks train."""
    return not name.startswith(f"{network.base_model_prefix}.") or "pooler" in name


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
    kind: Any, source: str, config: PretrainedConfig, deepspeed_config: Mapping[str, Any]
) -> tuple[nn.Module, list[str]]:
    """The model with its weights in fp32; under ZeRO-3 each rank only ever holds its share.

    Returns the model and the names of weights that the checkpoint did not have.
    """
    with _partitioned(deepspeed_config):
        return _from_pretrained(kind, source, config)


def _from_pretrained(
    kind: Any, source: str, config: PretrainedConfig, remade: Sequence[str] = ()
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
