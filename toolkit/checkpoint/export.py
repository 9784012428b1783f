"""From a checkpoint to an ordinary Hugging Face directory, the same tensors whichever strategy trained them."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer

from toolkit.checkpoint.durable import storage_errors
from toolkit.checkpoint.manifest import complete_steps, folder_name, read_manifest
from toolkit.checkpoint.reader import CheckpointReader
from toolkit.errors import CheckpointError
from toolkit.tasks import task_class

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MODEL_FOLDER = "model"
"""In the run folder: config and tokenizer of the model that is trained."""
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
        _tokenizer_files(run / MODEL_FOLDER, temporary)
        (temporary / "README.md").write_text(_model_card(reader, dtype), encoding="utf-8")
        if out.exists():
            out.rmdir()
        temporary.rename(out)
    return folder


def find_checkpoint(source: Path, *, keep_best: bool | None = None) -> Path:
    """The checkpoint folder meant by `source`; of a run, its best where `keep_best` (None: as it was trained), else its newest.

    Which one is the best, the newest checkpoint knows: there is no other record that a kill could leave behind.
    """
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
    run = read_manifest(checkpoints / folder_name(steps[-1])).run
    if keep_best is None:
        keep_best = run["recipe"]["checkpoint.keep_best"]
    watch = run["watch"]
    is_kept = keep_best and watch["best"] is not None and watch["best_step"] in steps
    return checkpoints / folder_name(watch["best_step"] if is_kept else steps[-1])


def _build(reader: CheckpointReader, model_folder: Path, dtype: torch.dtype) -> Any:
    config = AutoConfig.from_pretrained(model_folder)
    config.use_cache = True
    config.dtype = dtype
    with torch.device("meta"):
        model = task_class(reader.manifest.run["task"]).auto_class.from_config(config, dtype=dtype)
    weights = {name: reader.weight(name).to(dtype) for name in reader.manifest.shapes}
    if (model_folder / UNTRAINED).is_file():
        # In the format they were loaded in: architectures keep such corrections in fp32.
        weights |= load_file(model_folder / UNTRAINED)
    missing = set(model.load_state_dict(weights, strict=False, assign=True).missing_keys)
    model.tie_weights()
    left = sorted(name for name in missing if _tensor(model, name).is_meta)
    if left:
        raise CheckpointError(
            f"{reader.folder} has no {left[0]}",
            expected="every weight of the architecture",
            do="export another checkpoint",
        )
    _generation_config(model, model_folder)
    return model


def _tensor(model: Any, name: str) -> torch.Tensor:
    """The parameter or buffer called `name`."""
    owner, _, last = name.rpartition(".")
    found: torch.Tensor = getattr(model.get_submodule(owner), last)
    return found


def _generation_config(model: Any, model_folder: Path) -> None:
    if (model_folder / "generation_config.json").is_file():
        from transformers import GenerationConfig

        model.generation_config = GenerationConfig.from_pretrained(model_folder)


def _tokenizer_files(model_folder: Path, out: Path) -> None:
    logging.getLogger("transformers.tokenization_utils_base").setLevel(logging.ERROR)
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(out)


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
