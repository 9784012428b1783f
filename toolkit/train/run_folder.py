"""The folder of a run: who may write to it, and whether it is the run that a start wants to continue. Imports no torch.

recipe.json  ds_config.json  plan.json  metrics.jsonl  model/  checkpoints/  predictions/  export/  tensorboard/
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from toolkit.checkpoint.manifest import complete_steps, folder_name, read_manifest
from toolkit.errors import CheckpointError, LaunchError, first_few, plural
from toolkit.recipe import Recipe
from toolkit.storage import why_unwritable
from toolkit.train import run_lock
from toolkit.train.resume_fields import Change, Flat, changes, flatten_json, is_about_data, refused

OWN = {
    "recipe.json",
    "ds_config.json",
    "plan.json",
    "metrics.jsonl",
    "model",
    "checkpoints",
    "predictions",
    "export",
    "tensorboard",
}
"""What a run writes into its folder."""
LOGS = {".log", ".out", ".err"}


@dataclass(frozen=True)
class RunFolder:
    """Paths inside a run's folder."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def plan(self) -> Path:
        """What was planned, and what was measured."""
        return self.path / "plan.json"

    @property
    def metrics(self) -> Path:
        """One JSON object per line."""
        return self.path / "metrics.jsonl"

    @property
    def predictions(self) -> Path:
        """Folder of what the model said of each held-out example, by step."""
        return self.path / "predictions"

    @property
    def export(self) -> Path:
        """The Hugging Face directory written at the end."""
        return self.path / "export"

    @property
    def model(self) -> Path:
        """Config and tokenizer of the model in training."""
        return self.path / "model"


def check(path: Path, resume: str | None, recipe: Recipe, *, changed_data: bool = False) -> None:
    """Raise LaunchError when a run in `path` could not start: one in progress or an earlier one there, or no right to write.

    With `resume`, CheckpointError when there is nothing whole to continue, or it belongs to another run than `recipe`.
    """
    run_lock.check_free(path)
    remains = _remains(path) if resume is None else ""
    if remains:
        raise LaunchError(
            f"--output_dir {path} already holds a run ({remains})",
            expected="a new folder, or --resume",
            do="pass --resume auto to continue it, or another --output_dir",
        )
    strangers = _strangers(path)
    if strangers:
        raise LaunchError(
            f"--output_dir {path} holds {plural(len(strangers), 'file or folder', 'files and folders')}, and nothing of a run: "
            f"{first_few(strangers, 3)}",
            expected="a folder that is new or empty, or a run's; logs may be in it",
            do=f"pass another --output_dir, such as {path / 'run'}",
        )
    if changed_data and resume is None:
        raise LaunchError(
            "--resume_changed_data without --resume",
            expected="a run to continue on other data",
            do="pass --resume auto as well, or take the flag back",
        )
    problem = why_unwritable(path)
    if problem:
        raise LaunchError(
            f"--output_dir {path}: {problem}",
            expected="a folder this user may write to",
            do="pass another --output_dir",
        )
    if resume is not None:
        compare(path, stored_recipe(path), recipe, changed_data=changed_data)
    if resume not in (None, "auto"):
        stored = dict(read_manifest(Path(str(resume))).run["recipe"])
        compare(Path(str(resume)), stored, recipe, changed_data=changed_data)


def _remains(path: Path) -> str:
    """What a run has left in `path` that a new one would write over or take for its own; empty where there is nothing.

    Not recipe.json and model/: a start that failed before its first step leaves them, and may be repeated.
    """
    run = RunFolder(path)
    if run.metrics.exists():
        return run.metrics.name
    steps = complete_steps(run.checkpoints)
    if steps:
        return f"{run.checkpoints.name}/{folder_name(steps[-1])}"
    if run.export.is_dir() and any(run.export.iterdir()):
        return run.export.name
    return ""


def _strangers(path: Path) -> list[str]:
    """What is in `path`, where nothing of it is a run's: its files would lie among those of something else.

    Hidden files are none, and logs neither: `--output_dir X > X/run.log` is a custom.
    """
    if not path.is_dir():
        return []
    names = {entry.name for entry in path.iterdir()}
    if names & OWN:
        return []
    return sorted(name for name in names if not name.startswith(".") and Path(name).suffix not in LOGS)


def compare(path: Path, stored: Flat | None, recipe: Recipe, *, changed_data: bool = False) -> list[Change]:
    """Fields of `recipe` that differ from `stored`, the recipe of the run or checkpoint `path`, and may.

    Raises CheckpointError where one must not. What the fields point to is compared later, once it is read.
    """
    if stored is None:
        return []
    found = changes(stored, recipe)
    streaming = bool(stored.get("data.streaming")) or recipe.data.streaming
    wrong = [
        change for change in refused(found, streaming=streaming) if not (changed_data and is_about_data(change.name))
    ]
    if wrong:
        about_data = all(is_about_data(change.name) for change in wrong)
        raise other_run(path, "; ".join(change.refusal() for change in wrong), about_data=about_data)
    return found


def other_run(path: Path, what: str, *, about_data: bool) -> CheckpointError:
    """The refusal to continue `path` because of `what`."""
    override = ", or pass --resume_changed_data to go on with the new data from the next step on" if about_data else ""
    return CheckpointError(
        f"cannot continue {path}: {what}",
        expected="the fields that decide what a step is, as the run has them",
        do=f"take the flags back, or start a new run in another --output_dir{override}",
    )


def stored_recipe(run: Path) -> Flat | None:
    """The recipe that wrote the newest checkpoint of `run`; before the first, its recipe.json. None for a new folder."""
    steps = complete_steps(run / "checkpoints")
    if steps:
        return dict(read_manifest(run / "checkpoints" / folder_name(steps[-1])).run["recipe"])
    file = run / "recipe.json"
    if not file.is_file():
        return None
    try:
        return flatten_json(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, AttributeError, OSError):
        raise CheckpointError(
            f"{file} is not readable as a recipe",
            expected="the recipe of the run",
            do="start again in another --output_dir",
        ) from None
