"""From a checkpoint to an ordinary Hugging Face (or peft) directory, the same tensors whichever strategy trained them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoConfig
from transformers.utils import CONFIG_NAME

from toolkit.checkpoint import export_folder
from toolkit.checkpoint.export_adapters import base_of, holds_adapters, merged, write_adapters
from toolkit.checkpoint.export_folder import Stamp
from toolkit.checkpoint.manifest import complete_steps, folder_name, read_manifest
from toolkit.checkpoint.reader import CheckpointReader
from toolkit.checkpoint.sound_weight import sound_weight
from toolkit.errors import CheckpointError
from toolkit.models.custom import AutoCustomModel
from toolkit.models.dtypes import DTYPES
from toolkit.models.files import ADAPTER_CONFIG
from toolkit.recipe import Task as Options
from toolkit.storage import RUN, Remedy, storage_errors, why_unwritable
from toolkit.tasks import task_class

MODEL_FOLDER = "model"
"""In the run folder: config, tokenizer and settings of generation of the model that is trained."""
ELSEWHERE = Remedy("free space, or export to a folder on another disk", "export to another folder")
"""For an export that a user asked for by itself."""
UNTRAINED = "untrained.safetensors"
"""In that folder, where the model has any: tensors that belong to it and that training leaves as they are."""


def export(source: Path, out: Path, dtype: str, *, merge: bool = False) -> Path:
    """Write the weights of `source` (a run folder, or one of its checkpoints) to `out` in `dtype`; returns the checkpoint used.

    Adapters are written as peft's files, or, with `merge`, added to the weights they were trained beside. Of a run, its best checkpoint where one is kept, else the newest. `out` must be absent or empty, and its disk take files.
    Raises CheckpointError for a source without checkpoints, RunFailed for weights that are not finite, StorageError for
    a full disk.
    """
    folder, is_best = _choose(source, None)
    problem = why_unwritable(out)
    if problem:
        raise CheckpointError(
            f"OUT {out}: {problem}",
            expected="an absent or empty folder, where this user may write",
            do=ELSEWHERE.closed,
        )
    if out.exists() and any(out.iterdir()):
        raise CheckpointError(
            f"{out} already holds files",
            expected="an absent or empty folder",
            do="choose another folder, or delete that one",
        )
    if merge and not holds_adapters(_model_folder(folder)):
        raise CheckpointError(
            f"--merge: {folder} holds whole weights, no adapters",
            expected="a run with tuning=LoRA(...)",
            do="leave out --merge",
        )
    _write(folder, out, Stamp.of(folder, dtype, best=is_best, merged=merge), ELSEWHERE)
    return folder


def renew(run: Path, out: Path, dtype: str, *, keep_best: bool, merge: bool = False) -> tuple[Stamp, Path | None]:
    """Make `out` the export of `run` in `dtype`, unless it is that already.

    Returns what it is now, and where an `out` that holds files of others was moved. Raises as `export` does, and then
    leaves the `out` there was.
    """
    folder, is_best = _choose(run, keep_best)
    wanted = Stamp.of(folder, dtype, best=is_best, merged=merge)
    out = out.resolve()  # an export that lies on another disk stays there
    shutil.rmtree(export_folder.beside(out), ignore_errors=True)
    if export_folder.is_current(out, wanted):
        return wanted, None
    return wanted, _write(folder, out, wanted, RUN)


def _write(folder: Path, out: Path, stamp: Stamp, remedy: Remedy) -> Path | None:
    """Write checkpoint `folder` to `out`, in the place of what is there; where that went, if it was not ours to drop."""
    model_folder = _model_folder(folder)
    temporary = export_folder.beside(out)
    with storage_errors(f"exporting step {stamp.step}", out.parent, remedy), _cleared(temporary):
        try:
            reader = CheckpointReader(folder)
            _save(reader, model_folder, temporary, stamp)
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{error.filename or folder} went away while it was read",
                expected="a checkpoint that stays: a run in progress deletes older ones",
                do="export again, or raise checkpoint.keep",
            ) from None
        _files_beside_the_weights(model_folder, temporary, merged=stamp.merged)
        (temporary / "README.md").write_text(_model_card(reader, model_folder, stamp), encoding="utf-8")
        export_folder.write_stamp(temporary, stamp)
        return export_folder.put_in_place(temporary, out)


def _save(reader: CheckpointReader, model_folder: Path, out: Path, stamp: Stamp) -> None:
    """Write the weights, and the config that goes with them."""
    dtype = DTYPES[stamp.dtype]
    if not holds_adapters(model_folder):
        _build(reader, model_folder, dtype).save_pretrained(out)
    elif stamp.merged:
        kind = _auto_class(reader.manifest.run)
        merged(reader, model_folder, kind, _config(model_folder), dtype).save_pretrained(out)
    else:
        write_adapters(reader, out, dtype)


def _model_folder(folder: Path) -> Path:
    """Where the run of checkpoint `folder` keeps the files of its model. Raises CheckpointError where there are none."""
    found = folder.absolute().parent.parent / MODEL_FOLDER
    if not (found / CONFIG_NAME).is_file():
        raise CheckpointError(
            f"{folder} is a checkpoint without the files of its model: there is no {found / CONFIG_NAME}",
            expected=f"the {MODEL_FOLDER} folder of its run, beside the folder of the checkpoints",
            do=f"export it where the run is, or copy that folder along: RUN/{MODEL_FOLDER} to {found}",
        )
    return found


@contextmanager
def _cleared(temporary: Path) -> Iterator[None]:
    """An empty folder for what is being written, which an error does not leave on a disk that is perhaps full."""
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def find_checkpoint(source: Path, *, keep_best: bool | None = None) -> Path:
    """The checkpoint folder meant by `source`; of a run, its best where `keep_best` (None: as it was trained), else its newest.

    Which one is the best, the newest checkpoint knows: there is no other record that a kill could leave behind.
    """
    return _choose(source, keep_best)[0]


def _choose(source: Path, keep_best: bool | None) -> tuple[Path, bool]:
    """The same, and whether it was taken as the best."""
    if (source / "manifest.json").is_file():
        return source, False
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
    return checkpoints / folder_name(watch["best_step"] if is_kept else steps[-1]), is_kept


def _build(reader: CheckpointReader, model_folder: Path, dtype: torch.dtype) -> Any:
    """The model of the checkpoint on the CPU; weights as they were trained, cast to `dtype`."""
    config = _config(model_folder)
    config.dtype = dtype
    with torch.device("meta"):
        model = _auto_class(reader.manifest.run).from_config(config, dtype=dtype)
    # Running statistics stay in fp32, and counts are integers.
    kept = {
        name: torch.float32 if buffer.is_floating_point() else buffer.dtype for name, buffer in model.named_buffers()
    }
    weights = {
        name: sound_weight(reader, name, torch.float32 if name in kept else dtype).to(kept.get(name, dtype))
        for name in reader.manifest.shapes
    }
    if (model_folder / UNTRAINED).is_file():
        # In the format they were loaded in: architectures keep such corrections in fp32.
        weights |= load_file(model_folder / UNTRAINED)
    unexpected = model.load_state_dict(weights, strict=False, assign=True).unexpected_keys
    model.tie_weights()
    _check_whole(model, weights, unexpected, reader.folder)
    return model


def _auto_class(run: Mapping[str, Any]) -> Any:
    """transformers' class for the run's task. Checkpoints of older versions name the task alone."""
    name = run.get("auto_class")
    if name == AutoCustomModel.__name__:
        return AutoCustomModel
    return getattr(transformers, name) if name is not None else task_class(Options.kind(run["task"])).auto_class


def _config(model_folder: Path) -> Any:
    try:
        return AutoConfig.from_pretrained(model_folder)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{model_folder / CONFIG_NAME} cannot be read: {' '.join(str(error).split())[:200]}",
            expected="the config that the run wrote",
            do="put that file back, from a copy of the run or from one of its exports",
        ) from None


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


def _files_beside_the_weights(model_folder: Path, out: Path, *, merged: bool) -> None:
    """The tokenizer with its chat template, the settings of generation and of adapters, the task's own, as the run wrote
    them when it began."""
    left_out = (CONFIG_NAME, UNTRAINED, *([ADAPTER_CONFIG] if merged else []))
    for file in model_folder.rglob("*"):
        place = out / file.relative_to(model_folder)
        # The task's own config.json lies in a folder of its own.
        is_left_out = file.parent == model_folder and file.name in left_out
        if file.is_file() and not is_left_out and not file.name.startswith("."):
            place.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, place)


def _model_card(reader: CheckpointReader, model_folder: Path, stamp: Stamp) -> str:
    run, is_adapter = reader.manifest.run, holds_adapters(model_folder) and not stamp.merged
    head = (
        ["library_name: peft", f"base_model: {base_of(model_folder)}"] if is_adapter else ["library_name: transformers"]
    )
    is_own = run.get("auto_class") == AutoCustomModel.__name__
    if is_own:
        head = ["library_name: toolkit"]
    lines = [f"- {key}: {value}" for key, value in run.get("card", {}).items()]
    averaged = ", an exponential moving average," if reader.has_averages else ""
    return "\n".join(
        [
            "---",
            *head,
            "---",
            "",
            f"# {run.get('name', 'model')}",
            "",
            f"{'Adapters' if is_adapter else 'Weights'}{averaged} in {stamp.dtype} after {reader.manifest.step} optimizer steps ({run['task']}).",
            "",
            *lines,
            *(["", 'Its torch module: `toolkit.load_custom("FOLDER")`.'] if is_own else []),
            "",
        ]
    )
