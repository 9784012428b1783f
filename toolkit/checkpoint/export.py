"""From a checkpoint to an ordinary Hugging Face directory, the same tensors whichever strategy trained them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoConfig
from transformers.utils import CONFIG_NAME

from toolkit.checkpoint.durable import storage_errors, write_json
from toolkit.checkpoint.manifest import complete_steps, folder_name
from toolkit.checkpoint.reader import CheckpointReader
from toolkit.errors import CheckpointError
from toolkit.tasks import task_class

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BEST = "best.json"
"""Beside the checkpoints: the step and metric of the best evaluation."""
MODEL_FOLDER = "model"
"""In the run folder: config, tokenizer and settings of generation of the model that is trained."""
UNTRAINED = "untrained.safetensors"
"""In that folder, where the model has any: tensors that belong to it and that training leaves as they are."""


def export(source: Path, out: Path, dtype: str) -> Path:
    """Write the weights of `source` (a run folder, or one of its checkpoints) to `out` in `dtype`; returns the checkpoint used.

    Of a run, its best checkpoint where one is kept, else the newest. `out` must be absent or empty.
    Raises CheckpointError for a source without checkpoints, StorageError for a full disk.
    """
    folder = find_checkpoint(source)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise CheckpointError(
            f"{out} already holds files" if out.is_dir() else f"{out} is a file",
            expected="an absent or empty folder",
            do="choose another folder, or delete that one",
        )
    reader = CheckpointReader(folder)
    run = folder.parent.parent
    # Written beside its place and renamed: an interrupted export is never mistaken for a model.
    temporary = out.with_name(f".{out.name}.writing")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    with storage_errors("exporting", out.parent):
        model = _build(reader, run / MODEL_FOLDER, DTYPES[dtype])
        model.save_pretrained(temporary)
        _files_beside_the_weights(run / MODEL_FOLDER, temporary)
        (temporary / "README.md").write_text(_model_card(reader, dtype), encoding="utf-8")
        if out.exists():
            out.rmdir()
        temporary.rename(out)
    return folder


def find_checkpoint(source: Path) -> Path:
    """The checkpoint folder meant by `source`."""
    if (source / "manifest.json").is_file():
        return source
    checkpoints = source / "checkpoints"
    steps = complete_steps(checkpoints)
    if not steps:
        raise CheckpointError(
            f"{source} has no complete checkpoint",
            expected="a run folder with checkpoints/step-*, or one of those folders",
            do="check the path; a run writes its first checkpoint after checkpoint.every_steps steps, and one at the end",
        )
    best = read_best(checkpoints)
    return checkpoints / folder_name(best["step"] if best and best["step"] in steps else steps[-1])


def read_best(checkpoints: Path) -> dict[str, Any] | None:
    """{"step", "metric"} of the best checkpoint, or None."""
    path = checkpoints / BEST
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def write_best(checkpoints: Path, step: int, metric: float) -> None:
    """Remember which checkpoint is the best."""
    write_json(checkpoints / BEST, {"step": step, "metric": metric})


def _build(reader: CheckpointReader, model_folder: Path, dtype: torch.dtype) -> Any:
    """The model of the checkpoint on the CPU; weights as they were trained, cast to `dtype`."""
    config = AutoConfig.from_pretrained(model_folder)
    config.dtype = dtype
    with torch.device("meta"):
        model = task_class(reader.manifest.run["task"]).auto_class.from_config(config, dtype=dtype)
    weights = {name: reader.weight(name).to(dtype) for name in reader.manifest.shapes}
    if (model_folder / UNTRAINED).is_file():
        # In the format they were loaded in: architectures keep such corrections in fp32.
        weights |= load_file(model_folder / UNTRAINED)
    unexpected = model.load_state_dict(weights, strict=False, assign=True).unexpected_keys
    model.tie_weights()
    _check_whole(model, weights, unexpected, reader.folder)
    return model


def _check_whole(model: Any, weights: Mapping[str, torch.Tensor], unexpected: Sequence[str], source: Path) -> None:
    """Raise CheckpointError unless the model holds every tensor of `weights` and no other."""
    replaced = [
        name for name in weights if name not in unexpected and not _is_same(_tensor(model, name), weights[name])
    ]
    if unexpected or replaced:
        raise CheckpointError(
            f"{source} has {sorted([*unexpected, *replaced])[0]}, which {type(model).__name__} with the run's config does not hold",
            expected="the architecture that was trained, with a weight for each of the checkpoint's",
            do="check the config.json in the run's model folder: it must be the one that the run wrote",
        )
    left = sorted(name for name in model.state_dict() if _tensor(model, name).is_meta)
    if left:
        raise CheckpointError(
            f"{source} has no {left[0]}",
            expected="every weight of the architecture",
            do="export another checkpoint",
        )


def _is_same(held: torch.Tensor, given: torch.Tensor) -> bool:
    """Whether tying has left the tensor its values."""
    return not held.is_meta and (held.data_ptr() == given.data_ptr() or torch.equal(held, given))


def _tensor(model: Any, name: str) -> torch.Tensor:
    """The parameter or buffer called `name`."""
    owner, _, last = name.rpartition(".")
    found: torch.Tensor = getattr(model.get_submodule(owner), last)
    return found


def _files_beside_the_weights(model_folder: Path, out: Path) -> None:
    """The tokenizer with its chat template and the settings of generation, as the run wrote them when it began."""
    for file in model_folder.iterdir():
        if file.is_file() and file.name not in (CONFIG_NAME, UNTRAINED) and not file.name.startswith("."):
            shutil.copyfile(file, out / file.name)


def _model_card(reader: CheckpointReader, dtype: str) -> str:
    run = reader.manifest.run
    lines = [f"- {key}: {value}" for key, value in run.get("card", {}).items()]
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "---",
            "",
            f"# {run.get('name', 'model')}",
            "",
            f"Weights in {dtype} after {reader.manifest.step} optimizer steps ({run['task']}).",
            "",
            *lines,
            "",
        ]
    )
