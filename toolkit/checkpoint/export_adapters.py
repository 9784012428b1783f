"""Adapters of a checkpoint, as peft's files or added to the weights that they were trained beside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PretrainedConfig

from toolkit.checkpoint.reader import CheckpointReader
from toolkit.checkpoint.sound_weight import check_fits, sound_weight
from toolkit.errors import CheckpointError
from toolkit.models.adapters import file_name, merge_adapters
from toolkit.models.assets import resolve
from toolkit.models.files import ADAPTER_CONFIG
from toolkit.models.loading import load_weights
from toolkit.models.random_weights import RandomWeights, fill
from toolkit.models.stages import build_skeleton
from toolkit.models.weights_digest import weights_digest

ADAPTER_WEIGHTS = "adapter_model.safetensors"


def holds_adapters(model_folder: Path) -> bool:
    """Whether the checkpoints of the run with this model folder hold adapters: then it has the file that says of what."""
    return (model_folder / ADAPTER_CONFIG).is_file()


def base_of(model_folder: Path) -> str:
    """The checkpoint beside which the adapters were trained: a folder, or a hub name."""
    return str(json.loads((model_folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"])


def write_adapters(reader: CheckpointReader, out: Path, dtype: torch.dtype) -> None:
    """Write what was trained to `out` in `dtype`, under peft's names."""
    tensors = {
        file_name(name): sound_weight(reader, name, dtype).to(dtype).contiguous() for name in reader.manifest.shapes
    }
    save_file(tensors, out / ADAPTER_WEIGHTS, metadata={"format": "pt"})


def merged(
    reader: CheckpointReader, model_folder: Path, kind: Any, config: PretrainedConfig, dtype: torch.dtype
) -> Any:
    """The model that `kind` makes of `config`, its weights the base model's with the adapters added in fp32, in `dtype`.

    Raises CheckpointError when the base model is not the one that the adapters were trained beside.
    """
    model = _base(reader, model_folder, kind, config)
    weights = {name: sound_weight(reader, name, torch.float32) for name in reader.manifest.shapes}
    merge_adapters(model, model_folder, weights)
    for name, parameter in model.named_parameters():
        check_fits(reader, name, parameter.data, dtype)
        parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    return model


def _base(reader: CheckpointReader, model_folder: Path, kind: Any, config: PretrainedConfig) -> nn.Module:
    run = reader.manifest.run
    recipe = run["recipe"]
    if recipe["model.weights"] == "random":
        model = build_skeleton(kind, config)
        fill(model, RandomWeights(kind, config, recipe["seed"], recipe["model.config"]))
        return model
    source = base_of(model_folder)
    if weights_digest(source) != run["facts"]["weights"]:
        raise CheckpointError(
            f"the weights in {source} are not those that the adapters in {reader.folder} were trained beside",
            expected="the base model as it was when the run began",
            do=f"put it back, or name a copy of it in {model_folder / ADAPTER_CONFIG} (base_model_name_or_path)",
        )
    trained = list(reader.manifest.shapes)
    return load_weights(
        kind, resolve(source, weights=True), config, {"zero_optimization": {"stage": 0}}, remade=trained
    )[0]
