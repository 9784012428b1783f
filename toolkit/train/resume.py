"""Where a run begins: what a checkpoint holds, whether it is this run's, and how much of its state still applies.

Rank 0 decides all of it and tells the others.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.checkpoint.durable import sync_files, sync_folder
from toolkit.checkpoint.manifest import Manifest, complete_steps, folder_name, read_manifest
from toolkit.errors import CheckpointError
from toolkit.recipe import Recipe
from toolkit.storage import storage_errors
from toolkit.train import facts, run_folder
from toolkit.train.facts import Facts
from toolkit.train.metrics import cut_after
from toolkit.train.resume_fields import Change, Role
from toolkit.train.run_folder import RunFolder
from toolkit.train.watch import Watch

History = list[dict[str, Any]]
"""[{"step", "changed": {field: [before, now]}}]: what was changed on the way, each time after step `step`."""

RATE_FIELDS = ("schedule.", "optimizer.learning_rate", "optimizer.adam_learning_rate", "steps", "epochs")
"""Beginnings of the fields that may move the learning rate."""


@dataclass(frozen=True)
class Start:
    """Where a run begins, and what it takes over."""

    step: int = 0
    checkpoint: Path | None = None
    watch: Mapping[str, Any] | None = None
    """State of the watch, as far as it belongs to this run; None for a new run."""
    forgets_metric: bool = False
    """Whether what the schedule has heard of evaluations was measured with something else."""
    data: Mapping[str, Any] | None = None
    """Position in the data; None where it has none that applies."""
    history: History = field(default_factory=list)
    moves_rate: bool = False
    """Whether something changed that the learning rate depends on."""
    notes: tuple[str, ...] = ()
    """What to say about it."""
    found: Facts = field(default_factory=dict)
    """Of this run."""

    def told(self, name: str, now: Any) -> Any:
        """The value of the recipe field `name` over the whole run: "5e-05, from step 21 0.0001" where it was changed."""
        parts: list[str] = []
        for entry in self.history:
            if name in entry["changed"]:
                before, after = entry["changed"][name]
                parts += ([] if parts else [f"{before}"]) + [f"from step {entry['step'] + 1} {after}"]
        return ", ".join(parts) or now


def find_start(
    recipe: Recipe, folder: RunFolder, resume: str | None, found: Facts, watch: Watch, *, changed_data: bool
) -> Start:
    """The checkpoint to continue from, or step 0; `watch` takes over what is its own.

    Raises CheckpointError when the checkpoint that was asked for cannot be used, or belongs to another run.
    """
    if resume is None:
        return Start(found=found)
    stored = run_folder.stored_recipe(folder.path)
    run_folder.compare(folder.path, stored, recipe, changed_data=changed_data)
    checkpoint = _checkpoint(folder, resume)
    if checkpoint is None:
        return Start(found=found, notes=(f"{folder.path} holds no checkpoint yet: the run begins at step 0",))
    manifest = read_manifest(checkpoint)
    run = manifest.run
    changed = run_folder.compare(checkpoint, run["recipe"], recipe, changed_data=changed_data)
    notes = _check_facts(checkpoint, manifest, found, changed, changed_data=changed_data)
    said = [change for change in changed if change.role is not Role.SURROUNDING]
    if said:
        notes.append(f"changed after step {manifest.step}: {', '.join(change.line() for change in said)}")
    kept = complete_steps(checkpoint.resolve().parent) if recipe.checkpoint.keep_best else None
    notes += filter(None, [watch.take(run["watch"], kept=kept)])
    owner = run["data"]["owner"]
    return Start(
        step=manifest.step,
        checkpoint=checkpoint,
        watch=watch.state(),
        forgets_metric=not watch.owns(run["watch"]),
        data=run["data"]["position"] if owner == found["examples"] and not _order_changed(changed) else None,
        history=_history(run["history"], manifest.step, said),
        moves_rate=any(change.name.startswith(RATE_FIELDS) for change in changed),
        notes=tuple(notes),
        found=found,
    )


def _checkpoint(folder: RunFolder, resume: str) -> Path | None:
    steps = complete_steps(folder.checkpoints)
    if resume == "auto":
        return folder.checkpoints / folder_name(steps[-1]) if steps else None
    checkpoint = Path(resume)
    step = read_manifest(checkpoint).step
    newer = [other for other in steps if other > step]
    if newer:
        raise CheckpointError(
            f"--resume {resume} is step {step}, and {folder.path} already holds step {newer[-1]}",
            expected="to continue from the newest checkpoint, or in another folder",
            do=f"pass --resume auto, or --resume {resume} with a new --output_dir",
        )
    return checkpoint


def _check_facts(
    checkpoint: Path, manifest: Manifest, found: Facts, changed: list[Change], *, changed_data: bool
) -> list[str]:
    """Raise CheckpointError when the run in `checkpoint` is made of something else; what to say about what may change."""
    different = list(facts.differences(manifest.run["facts"], found))
    wrong = [(fact, text) for fact, text in different if not (changed_data and facts.is_about_data(fact))]
    if wrong:
        blamed = [
            change.refusal()
            for change in changed
            if change.role is Role.CONTENT and any(facts.comes_from(fact, change.name) for fact, _ in wrong)
        ]
        what = "; ".join(text for _, text in wrong)
        about_data = all(facts.is_about_data(fact) for fact, _ in wrong)
        raise run_folder.other_run(checkpoint, f"{what}{_because(blamed)}", about_data=about_data)
    step = manifest.step + 1
    return [f"{text}; steps from {step} on are drawn from what is there now" for _, text in different]


def _because(blamed: list[str]) -> str:
    return f"; {', '.join(blamed)}" if blamed else ""


def _order_changed(changed: list[Change]) -> bool:
    return any(change.role is Role.IDENTITY for change in changed)


def _history(history: History, step: int, said: list[Change]) -> History:
    if not said:
        return list(history)
    return [*history, {"step": step, "changed": {change.name: [change.before, change.now] for change in said}}]


def why_complete(recipe: Recipe, start: Start, watch: Watch, total_steps: int) -> str:
    """Why there is nothing left to do after `start`; empty when there is."""
    if start.checkpoint is None:
        return ""
    if start.step > total_steps:
        return f"{start.step} steps are done, more than the {total_steps} asked for"
    if start.step == total_steps:
        return f"{start.step} of {total_steps} steps are done"
    patience = recipe.evaluation.early_stopping_patience
    if patience and watch.bad_evaluations >= patience:
        return (
            f"{start.step} of {total_steps} steps are done, and it stopped early: {watch.metric} had not improved for "
            f"{watch.bad_evaluations} evaluations ({watch.best_so_far}); a larger evaluation.early_stopping_patience continues it"
        )
    return ""


def rate_line(start: Start, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What the resume does to the learning rate, from the schedule's saved state and today's; empty where nothing could."""
    old, new = before["next_rates"][0], now["next_rates"][0]
    what = f"learning rate at step {start.step + 1}"
    if old == new:
        return f"{what}: {new:.1e}, as it would have been" if start.moves_rate else ""
    digits = 1 if f"{old:.1e}" != f"{new:.1e}" else 4
    return f"{what}: {old:.{digits}e} -> {new:.{digits}e}"


def adopt(start: Start, folder: RunFolder, *, keep_best: bool, say: Callable[[str], None]) -> None:
    """Bring what `start` needs of another run into `folder`: its checkpoint, the best one where it is kept, the model's files, its metrics.

    So that the new folder is whole by itself: a kill before its first save loses nothing, and the best so far can be
    exported. Files are linked where the file system can: checkpoints are never changed once they are written. Where it
    cannot, copying may take long, and is said.
    """
    if start.checkpoint is None or start.watch is None:
        return
    checkpoint = start.checkpoint.resolve()
    if checkpoint.parent == folder.checkpoints.resolve():
        return
    with storage_errors("bringing the checkpoint over", folder.path):
        folder.checkpoints.mkdir(parents=True, exist_ok=True)
        model = checkpoint.parent.parent / folder.model.name
        # The metrics first: a folder with a checkpoint is taken for a run that has them.
        metrics = model.with_name(folder.metrics.name)
        if metrics.is_file() and not folder.metrics.exists():
            shutil.copy2(metrics, folder.metrics)
            cut_after(folder.metrics, start.step)
        if model.is_dir() and not folder.model.exists():
            shutil.copytree(model, folder.model)
        if keep_best and start.watch["best"] is not None and start.watch["best_step"] != start.step:
            name = folder_name(start.watch["best_step"])
            _bring(checkpoint.parent / name, folder.checkpoints / name, say)
        _bring(checkpoint, folder.checkpoints / folder_name(start.step), say)


def _bring(checkpoint: Path, target: Path, say: Callable[[str], None]) -> None:
    if target.exists():
        return
    temporary = target.with_name(f".writing-{target.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    files = list(checkpoint.iterdir())
    try:
        for file in files:
            os.link(file, temporary / file.name)
    except OSError:  # another file system, or one without links
        size = sum(file.stat().st_size for file in files) / 2**30
        say(f"copying {checkpoint} ({size:.1f} GiB) to {target.parent}: it cannot be linked there")
        _copy(files, temporary)
    sync_files(temporary)
    temporary.rename(target)
    sync_folder(target.parent)


def _copy(files: list[Path], folder: Path) -> None:
    """Copy `files` into `folder`, which an error does not leave on a disk that is perhaps full."""
    try:
        for file in files:
            (folder / file.name).unlink(missing_ok=True)
            shutil.copy2(file, folder / file.name)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
