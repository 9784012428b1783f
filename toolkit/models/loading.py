"""From a name to a model in memory: tokenizer, configuration, weights, on every rank alike.

Weights come from one place under every strategy: a checkpoint directory. What no checkpoint holds yet, a model from
scratch or a new classification head, is built once by rank 0 (`materialise`) and read back like any other, so that
the starting point does not depend on how the ranks are arranged.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase
from transformers.integrations import HfDeepSpeedConfig

from toolkit.errors import ModelError, did_you_mean
from toolkit.models.assets import ASSETS, resolve
from toolkit.models.output_layer import output_layer, renew
from toolkit.recipe import Model

_READ_ERRORS = (OSError, ValueError, KeyError, TypeError, SafetensorError)
DROPOUT_NAMES = ("dropout", "dropout_prob", "dropout_rate", "pdrop")


def load_tokenizer(model: Model) -> PreTrainedTokenizerBase:
    """The recipe's tokenizer. Raises ModelError when there is none."""
    field = "model.path" if model.tokenizer is None else "model.tokenizer"
    name = model.tokenizer or model.path or ""
    try:
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(resolve(name))
    except _READ_ERRORS as error:
        raise _unreadable("tokenizer", field, name, error) from None
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise _unreadable("tokenizer", field, name, TypeError("no tokenizer files"))
    return tokenizer


def load_config(model: Model, *, vocabulary_size: int, overrides: Mapping[str, Any]) -> PretrainedConfig:
    """The architecture: the checkpoint's config with the recipe's and the task's (`overrides`) fields laid over it."""
    if model.path is not None:
        try:
            config = AutoConfig.from_pretrained(resolve(model.path))
        except _READ_ERRORS as error:
            raise _unreadable("configuration", "model.path", model.path, error) from None
    else:
        config = _config_from_scratch(model, vocabulary_size)
    changes = {**model.config, **overrides, **_dropout(config, model.dropout)}
    for name, value in changes.items():
        if not hasattr(config, name):
            raise ModelError(
                f"model.config[{name!r}]={value!r}: {type(config).__name__} has no such field{did_you_mean(name, config.to_dict())}",
                expected="a field of the architecture's own config",
                do="see config.json of the checkpoint for the fields there are",
            )
        try:
            setattr(config, name, value)
        except (TypeError, ValueError, StrictDataclassError) as error:
            raise _unbuildable({name: value}, error) from None
    config._attn_implementation = model.attention
    config.use_cache = False
    return config


def _config_from_scratch(model: Model, vocabulary_size: int) -> PretrainedConfig:
    known = transformers.CONFIG_MAPPING
    if model.architecture not in known:
        raise ModelError(
            f"model.architecture={model.architecture!r}{did_you_mean(str(model.architecture), known)}",
            expected="a model_type of transformers, such as llama, qwen3 or gpt2",
            do="correct model.architecture",
        )
    config: PretrainedConfig = known[model.architecture]()
    if "vocab_size" not in model.config:
        config.vocab_size = vocabulary_size
    return config


def _dropout(config: PretrainedConfig, probability: float | None) -> dict[str, float]:
    if probability is None:
        return {}
    fields = [
        name
        for name, value in config.to_dict().items()
        if name.endswith(DROPOUT_NAMES) and isinstance(value, int | float)
    ]
    if not fields:
        raise ModelError(
            f"model.dropout={probability}: {type(config).__name__} has no dropout",
            expected="an architecture with dropout, or None",
            do="remove model.dropout",
        )
    return dict.fromkeys(fields, probability)


def check_sequence_length(config: PretrainedConfig, sequence_length: int) -> None:
    """Raise ModelError when the model has fewer positions than `sequence_length`."""
    limit = getattr(config, "max_position_embeddings", None)
    if isinstance(limit, int) and 0 < limit < sequence_length:
        raise ModelError(
            f"batch.sequence_length={sequence_length} is longer than the model's {limit} positions",
            expected=f"at most {limit}",
            do=f"set batch.sequence_length={limit} or less",
        )


def check_overrides(kind: Any, model: Model, config: PretrainedConfig, unchanged: PretrainedConfig) -> None:
    """Raise ModelError when model.config gives no network, or one whose weights have other shapes than the checkpoint's.

    `kind` is one of transformers' auto classes, `unchanged` the config without model.config. Nothing is allocated.
    """
    if not model.config:
        return
    try:
        wanted = _shapes(kind, config)
    except Exception as error:
        # Every architecture fails in its own way on numbers that do not fit together.
        raise _unbuildable(model.config, error) from None
    if model.weights == "random":
        return
    stored = _shapes(kind, unchanged)
    changed = [name for name, shape in wanted.items() if stored.get(name, shape) != shape]
    if changed:
        name = changed[0]
        raise ModelError(
            f"model.config={model.config}: {name} has shape {stored[name]} in the checkpoint and {wanted[name]} with it",
            expected="with pretrained weights, only fields that change no weight's shape",
            do="take the field that changes it out of model.config, or train from scratch with model.weights='random'",
        )


def _shapes(kind: Any, config: PretrainedConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"), _quiet():
        network = kind.from_config(copy.deepcopy(config))
    return {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}


def _unbuildable(given: Mapping[str, Any], error: Exception) -> ModelError:
    return ModelError(
        f"model.config={dict(given)}: no model can be built: {' '.join(str(error).split())[:200] or type(error).__name__}",
        expected="values of the architecture's own config that fit together",
        do="correct model.config; config.json of a checkpoint of this architecture shows usual values",
    )


def materialise(
    kind: Any, model: Model, config: PretrainedConfig, directory: Path, seed: int, *, new_head: bool = False
) -> list[str]:
    """Write the run's starting weights to `directory` in fp32; call it on rank 0 alone.

    `kind` is one of transformers' auto classes. With `new_head` the output layer of a classifier is made anew even if
    the checkpoint has one. Returns the names of weights that start at random values although the recipe asks for
    pretrained ones.
    """
    head = output_layer(kind, config) if new_head and model.weights == "pretrained" else []
    torch.manual_seed(seed)
    if model.weights == "random":
        network = kind.from_config(config, dtype=torch.float32)
        fresh: list[str] = []
    else:
        network, fresh = _from_pretrained(kind, resolve(str(model.path)), config, remade=head)
        renew(network, [name for name in head if name not in fresh])
        fresh = sorted({*fresh, *head})
    network.save_pretrained(directory)
    return fresh


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
        with _quiet():
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
    except (*_READ_ERRORS, RuntimeError) as error:
        raise _unreadable("model", "model.path", source, error) from None
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


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _unreadable(what: str, field: str, name: str, error: Exception) -> ModelError:
    reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    return ModelError(
        f"{field}={name!r}: its {what} cannot be loaded{did_you_mean(name, ASSETS)}: {reason}",
        expected="a Hugging Face directory (config.json, model.safetensors, tokenizer.json), a name `toolkit fetch` knows, or a reachable hub name",
        do="check the path, or run `toolkit fetch NAME`",
    )
