"""The folder of a run: who may write to it, and where a resumed run continues. Imports no torch.

recipe.json  ds_config.json  metrics.jsonl  model/  checkpoints/  export/  tensorboard/
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.checkpoint.manifest import read_manifest
from toolkit.errors import CheckpointError, LaunchError, RecipeError
from toolkit.recipe import Recipe
from toolkit.recipe.removed import without_removed
from toolkit.train import run_lock

IDENTITY = (
    "model.path",
    "model.architecture",
    "model.weights",
    "model.config",
    "data.train",
    "data.split",
    "data.subset",
    "data.max_examples",
    "data.streaming",
    "data.shuffle",
    "data.packing",
    "data.overlong",
    "data.evaluation_examples",
    "task.name",
    "task.train_on",
    "batch.global_size",
    "batch.sequence_length",
    "optimizer.type",
    "seed",
)
"""Fields that a resumed run must share with the one it continues: they fix what step N means."""


@dataclass(frozen=True)
class RunFolder:
    """Paths inside a run's folder."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """One JSON object per line."""
        return self.path / "metrics.jsonl"

    @property
    def export(self) -> Path:
        """The Hugging Face directory written at the end."""
        return self.path / "export"

    @property
    def model(self) -> Path:
        """Config and tokenizer of the model in training."""
        return self.path / "model"


def check(path: Path, resume: str | None, recipe: Recipe) -> None:
    """Raise LaunchError when a run in `path` could not start: one in progress or an earlier one there, or no right to write.

    With `resume`, CheckpointError when there is nothing whole to continue, or it belongs to another run than `recipe`.
    """
    run_lock.check_free(path)
    if resume is None and (path / "metrics.jsonl").exists():
        raise LaunchError(
            f"--output_dir {path} already holds a run",
            expected="a new folder, or the wish to continue",
            do="pass --resume auto to continue it, or another --output_dir",
        )
    existing = path
    while not existing.exists():
        existing = existing.parent
    problem = _problem_with_writing(existing)
    if problem:
        raise LaunchError(
            f"--output_dir {path}: {existing} {problem}",
            expected="a folder this user may write to",
            do="pass another --output_dir",
        )
    if resume is not None:
        check_same_run(path, recipe)
    if resume not in (None, "auto"):
        checkpoint = Path(str(resume))
        read_manifest(checkpoint)
        check_same_run(checkpoint.resolve().parent.parent, recipe)


def _problem_with_writing(folder: Path) -> str:
    """Why nothing can be written into `folder`; empty when it can."""
    if not folder.is_dir():
        return "is a file"
    try:
        # Asking for permissions is not enough: they say yes to root on a read-only file system, and in /proc.
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return f"cannot be written to ({error.strerror})"


def flatten(recipe: Recipe) -> dict[str, Any]:
    """Dotted name -> JSON-able value of every field."""
    flat: dict[str, Any] = {}
    for name, value in recipe.model_dump(mode="json").items():
        if isinstance(value, dict) and isinstance(getattr(recipe, name), object) and name in type(recipe).model_fields:
            flat |= {f"{name}.{key}": inner for key, inner in value.items()}
        else:
            flat[name] = value
    return flat


def check_same_run(path: Path, recipe: Recipe) -> None:
    """Raise CheckpointError when the run in `path` was another one than `recipe` describes."""
    file = path / "recipe.json"
    if not file.is_file():
        return
    try:
        stored = flatten(Recipe(**without_removed(json.loads(file.read_text(encoding="utf-8")))))
    except RecipeError as error:
        # What another version of the toolkit wrote.
        raise CheckpointError(
            f"{file}: {error.what}", expected=error.expected, do=f"in that file, {error.do}; or start a new run"
        ) from None
    except (ValueError, TypeError, OSError, AttributeError):
        raise CheckpointError(
            f"{file} is not readable as a recipe",
            expected="the recipe of the run",
            do="start again in another --output_dir",
        ) from None
    now = flatten(recipe)
    changed = [f"{name}={now[name]!r} (the run has {stored[name]!r})" for name in IDENTITY if now[name] != stored[name]]
    if changed:
        raise CheckpointError(
            f"cannot continue {path}: {'; '.join(changed)}",
            expected="the fields that decide what a step is, as the run has them",
            do="take the flags back, or start a new run in another --output_dir",
        )
