"""One run: start the processes, prepare, resume, train, export, and say where everything lies."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.checkpoint.durable import storage_errors, write_json
from toolkit.checkpoint.export import renew
from toolkit.checkpoint.export_folder import read_stamp
from toolkit.checkpoint.manifest import complete_steps, folder_name, read_manifest, remove_leftovers
from toolkit.checkpoint.reader import load
from toolkit.data.batches import StreamedBatches
from toolkit.ds_config.check import check_config
from toolkit.ds_config.explain import explain
from toolkit.ds_config.findings import raise_findings
from toolkit.ds_config.golden import to_json
from toolkit.ds_config.render import render
from toolkit.engine import device, process
from toolkit.engine.hosts import check_agreement, watched
from toolkit.errors import CheckpointError
from toolkit.recipe import Recipe
from toolkit.recipe.mesh import model_ranks
from toolkit.train import run_folder
from toolkit.train.build import build_engine
from toolkit.train.claim import claimed
from toolkit.train.inputs import Inputs, prepare_inputs
from toolkit.train.interrupts import Interrupt, caught
from toolkit.train.loop import Loop
from toolkit.train.metrics import MetricsLog, cut_after
from toolkit.train.progress import Display
from toolkit.train.run_folder import RunFolder
from toolkit.train.trackers import Trackers


@dataclass(frozen=True)
class RunOptions:
    """What belongs to one start and not to the recipe."""

    name: str
    output_dir: Path
    resume: str | None = None
    """None: a new run; "auto": continue if there is anything to continue; else a checkpoint folder."""


def train(recipe: Recipe, options: RunOptions, *, keep_group: bool = False) -> int:
    """Run `recipe`; returns the exit code. Raises ToolkitError with its own exit code.

    `keep_group` leaves the process group to the caller, who may have several runs to do in it.
    """
    me = process.from_environment(recipe.parallel)
    target = device.target(me.world_size, wanted=recipe.launch.device, model_ranks=model_ranks(recipe.parallel))
    config = render(recipe, target)
    raise_findings(check_config(config, target=target), f"the configuration of {options.name}")
    display = Display(is_main=me.is_main)
    folder = RunFolder(options.output_dir)
    for line in explain(recipe, target, config):
        display.say(line)
    launch = recipe.launch
    with watched(me, timeout_s=launch.timeout_s, host_timeout_s=launch.host_timeout_s, say=display.say):
        inputs = prepare_inputs(recipe, me.data_rank, me.mesh.data, display)
        process.start(me, timeout_s=launch.timeout_s)
        try:
            check_agreement(me, config)
            with caught() as interrupt, claimed(folder.path, me):
                return _train(recipe, options, me, folder, config, inputs, interrupt)
        finally:
            if not keep_group:
                process.stop()


def _train(
    recipe: Recipe,
    options: RunOptions,
    me: process.Process,
    folder: RunFolder,
    config: dict[str, Any],
    inputs: Inputs,
    interrupt: Interrupt,
) -> int:
    began = time.monotonic()
    start = process.agree(lambda: _claim(recipe, options, folder, config, me))
    display = Display(is_main=me.is_main, total_steps=inputs.total_steps, first_step=start.step)
    display.say(device.versions())
    if start.step >= inputs.total_steps or _stopped_early(recipe, start):
        display.say(f"{folder.path} is complete: {start.step} of {inputs.total_steps} steps are done")
        return _finish(recipe, folder, me, display, start.step, began)
    if isinstance(inputs.batches, StreamedBatches):
        inputs.batches.exchange = process.GlooExchange()
    engine = build_engine(recipe, inputs, config, me, folder, display)
    loop = Loop(recipe, inputs, engine, me, folder, display, interrupt, identity=_identity(recipe, options))
    data_state = None
    if start.checkpoint is not None:
        manifest = load(engine, start.checkpoint, me.rank, me.world_size)
        data_state = manifest.run["data"]
        loop.watch.load(manifest.run["watch"])
        loop.saved_step, loop.last_good = start.step, start.checkpoint
        display.say(f"continuing from {start.checkpoint} (written by {manifest.world_size} ranks)")
    if me.is_main:
        cut_after(folder.metrics, start.step)
        loop.log = MetricsLog(folder.metrics)
        loop.trackers = Trackers(recipe.tracking, folder.path, run_folder.flatten(recipe), start.step, display.say)
    try:
        step = loop.run(start.step, data_state)
    finally:
        if loop.log is not None and loop.trackers is not None:
            loop.log.close()
            loop.trackers.close()
    engine.close()
    # One rank may have seen a signal that the others have not; all must take the same way out.
    interrupt.signal = next((seen for seen in process.gather_objects(interrupt.signal) if seen is not None), None)
    if interrupt.signal is not None and step < inputs.total_steps:
        display.say(
            f"interrupted: step {step} of {inputs.total_steps} is saved; continue with --resume auto --output_dir {folder.path}"
        )
        return interrupt.exit_code
    _say_gain(loop, display)
    return _finish(recipe, folder, me, display, step, began)


@dataclass(frozen=True)
class Start:
    """Where a run begins."""

    step: int
    checkpoint: Path | None


def _claim(
    recipe: Recipe, options: RunOptions, folder: RunFolder, config: Mapping[str, Any], me: process.Process
) -> Start:
    """Find where to begin, and (rank 0) make the folder this run's."""
    start = find_start(options, folder, recipe)
    if me.is_main:
        with storage_errors("preparing the run folder", folder.path):
            folder.path.mkdir(parents=True, exist_ok=True)
            remove_leftovers(folder.checkpoints)
            write_json(folder.path / "recipe.json", recipe.model_dump(mode="json"))
            (folder.path / "ds_config.json").write_text(to_json(config), encoding="utf-8")
    return start


def find_start(options: RunOptions, folder: RunFolder, recipe: Recipe) -> Start:
    """The checkpoint to continue from, or step 0. Raises CheckpointError when the one asked for cannot be used."""
    if options.resume is None:
        return Start(0, None)
    run_folder.check_same_run(folder.path, recipe)
    steps = complete_steps(folder.checkpoints)
    if options.resume == "auto":
        return Start(steps[-1], folder.checkpoints / folder_name(steps[-1])) if steps else Start(0, None)
    checkpoint = Path(options.resume)
    step = read_manifest(checkpoint).step
    run_folder.check_same_run(checkpoint.resolve().parent.parent, recipe)
    newer = [other for other in steps if other > step]
    if newer:
        raise CheckpointError(
            f"--resume {options.resume} is step {step}, and {folder.path} already holds step {newer[-1]}",
            expected="to continue from the newest checkpoint, or in another folder",
            do=f"pass --resume auto, or --resume {options.resume} with a new --output_dir",
        )
    return Start(step, checkpoint)


def _stopped_early(recipe: Recipe, start: Start) -> bool:
    """Whether the run in the folder has ended before its last step because its metric no longer improved."""
    patience = recipe.evaluation.early_stopping_patience
    if not patience or start.checkpoint is None:
        return False
    return bool(read_manifest(start.checkpoint).run["watch"]["bad_evaluations"] >= patience)


def _identity(recipe: Recipe, options: RunOptions) -> dict[str, Any]:
    card = {
        "base model": recipe.model.path or f"{recipe.model.architecture} from scratch",
        "data": recipe.data.train,
        "sequences per step": recipe.batch.global_size,
        "tokens per sequence": recipe.batch.sequence_length,
        "optimizer": recipe.optimizer.type,
        "peak learning rate": recipe.optimizer.learning_rate,
        "seed": recipe.seed,
    }
    return {"name": options.name, "task": recipe.task.name, "card": card}


def _say_gain(loop: Loop, display: Display) -> None:
    if len(loop.evaluations) >= 2:
        first, last = loop.evaluations[0], loop.evaluations[-1]
        changes = (f"{key} {first[key]:.4f} -> {last[key]:.4f}" for key in last if key != "step")
        display.say(f"held-out: {', '.join(changes)}")


def _finish(recipe: Recipe, folder: RunFolder, me: process.Process, display: Display, step: int, began: float) -> int:
    """Export and say where everything lies."""

    def write() -> str:
        exported = _export(recipe, folder, display) if me.is_main else ""
        if me.local_rank == 0:
            for leftover in folder.path.glob(".initial-*"):
                shutil.rmtree(leftover, ignore_errors=True)
        return exported

    exported = process.agree(write)
    seconds = time.monotonic() - began
    places = f"metrics in {folder.metrics}, checkpoints in {folder.checkpoints}{exported}"
    display.say(f"done: {step} steps in {seconds / 60:.1f} min; {places}")
    return 0


def _export(recipe: Recipe, folder: RunFolder, display: Display) -> str:
    """Make export/ what this run's recipe asks for; says where the model is."""
    wanted = recipe.checkpoint
    if not wanted.export:
        found = read_stamp(folder.export)
        if found is not None:
            display.say(f"{folder.export} stays the model of step {found[0].step}: checkpoint.export=False")
        return ""
    stamp, aside = renew(folder.path, folder.export, wanted.export_dtype, keep_best=wanted.keep_best)
    if aside is not None:
        display.say(f"{folder.export} held files that this run had not written: all of it is now {aside}")
    which = f"step {stamp.step}, the best" if stamp.best else f"step {stamp.step}"
    return f", model in {folder.export} ({which}, {stamp.dtype})"
