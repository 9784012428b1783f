"""One run: start the processes, prepare, resume, train, export, and say where everything lies."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.checkpoint.durable import write_json
from toolkit.checkpoint.export import renew
from toolkit.checkpoint.export_folder import read_stamp
from toolkit.checkpoint.manifest import Manifest, remove_leftovers
from toolkit.checkpoint.reader import load
from toolkit.data.batches import StreamedBatches
from toolkit.ds_config.check import check_config
from toolkit.ds_config.explain import explain, explain_size
from toolkit.ds_config.findings import raise_errors
from toolkit.ds_config.golden import to_json
from toolkit.ds_config.render import render
from toolkit.engine import device, process
from toolkit.engine.hosts import check_agreement, watched
from toolkit.engine.protocol import Engine
from toolkit.errors import DataError, plural
from toolkit.models.model_size import model_size
from toolkit.recipe import Custom, LoRA, Recipe
from toolkit.recipe.mesh import model_ranks
from toolkit.storage import storage_errors
from toolkit.tasks import task_class
from toolkit.train import facts
from toolkit.train.build import build_engine
from toolkit.train.claim import claimed
from toolkit.train.evaluate import forget_predictions
from toolkit.train.inputs import Inputs, prepare_inputs
from toolkit.train.interrupts import Interrupt, caught
from toolkit.train.loop import Loop
from toolkit.train.metrics import MetricsLog, cut_after
from toolkit.train.planned import SETTLED, RunPlan, keep_measured, keep_plan, memory_explained, plan_run
from toolkit.train.progress import Display
from toolkit.train.reference import add_reference
from toolkit.train.resume import Start, adopt, find_start, rate_line, why_complete
from toolkit.train.resume_fields import flatten
from toolkit.train.run_folder import RunFolder
from toolkit.train.trackers import Trackers
from toolkit.train.utilization import prepare_utilization
from toolkit.train.watch import Watch, watch_of


@dataclass(frozen=True)
class RunOptions:
    """What belongs to one start and not to the recipe."""

    name: str
    output_dir: Path
    resume: str | None = None
    """None: a new run; "auto": continue if there is anything to continue; else a checkpoint folder."""
    resume_changed_data: bool = False
    """Continue also where the training data, the tokenizer or the order of the examples is another one."""


def train(recipe: Recipe, options: RunOptions, *, keep_group: bool = False) -> int:
    """Run `recipe`; returns the exit code. Raises ToolkitError with its own exit code.

    `keep_group` leaves the process group to the caller, who may have several runs to do in it.
    """
    device.use_growing_segments()
    me = process.from_environment(recipe.parallel)
    target = device.target(me.world_size, wanted=recipe.launch.device, model_ranks=model_ranks(recipe.parallel))
    config = render(recipe, target)
    raise_errors(check_config(config, target=target), f"the configuration of {options.name}")
    display = Display(is_main=me.is_main)
    folder = RunFolder(options.output_dir)
    for line in explain(recipe, target, config):
        display.say(line)
    launch = recipe.launch
    with watched(me, timeout_s=launch.timeout_s, host_timeout_s=launch.host_timeout_s, say=display.say):
        inputs = prepare_inputs(recipe, me.data_rank, me.mesh.data, display)
        size = model_size(inputs.task.auto_class, inputs.model_config, recipe.model.config, inputs.adapters)
        config = render(recipe, target, size)
        for line in explain_size(recipe, config, size):
            display.say(line)
        made = plan_run(recipe, inputs, target, size) if me.is_main else None
        if made is not None:
            made.check(display, refuse=launch.memory_check == "refuse")
        process.start(me, timeout_s=launch.timeout_s, host_optimizer="offload_optimizer" in config["zero_optimization"])
        try:
            check_agreement(me, config)
            explained = memory_explained(made, f"--output_dir {folder.path}")
            with caught() as interrupt, claimed(folder.path, me), explained:
                return _train(recipe, options, me, folder, config, inputs, interrupt, made)
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
    made: RunPlan | None,
) -> int:
    began = time.monotonic()
    _check_same_data(inputs)
    watch = watch_of(recipe, inputs)
    start = process.from_main(lambda: _claim(recipe, options, folder, inputs, watch))
    say = Display(is_main=me.is_main).say
    process.from_main_at_length(lambda: adopt(start, folder, keep_best=recipe.checkpoint.keep_best, say=say))
    if start.watch is not None:
        watch.load(start.watch)
    display = Display(is_main=me.is_main, total_steps=inputs.total_steps, first_step=start.step, unit=inputs.task.unit)
    display.say(device.versions())
    complete = why_complete(recipe, start, watch, inputs.total_steps)
    if complete:
        for note in start.notes:
            display.say(note)
        unused = "; nothing is trained, so of what changed only what concerns the export acts" if start.notes else ""
        display.say(f"{folder.path} is complete: {complete}{unused}")
        return _finish(recipe, folder, me, display, start.step, began, watch)
    if isinstance(inputs.batches, StreamedBatches):
        inputs.batches.exchange = process.GlooExchange()
    engine = build_engine(recipe, inputs, config, me, folder, display)
    inputs = add_reference(recipe, inputs, engine, me, display)
    loop = Loop(recipe, inputs, engine, me, folder, display, interrupt, watch, _identity(recipe, options, start))
    if start.checkpoint is not None:
        manifest = _restore(engine, start, start.checkpoint, me, display)
        loop.saved_step, loop.last_good = start.step, start.checkpoint
        loop.suspect_from = manifest.run.get("suspect_from")
    for note in start.notes:
        display.say(note)
    if made is not None:
        keep_plan(folder, made)
    step = _run(loop, start, config)
    _say_measured(options.name, loop, made)
    engine.close()
    # One rank may have seen a signal that the others have not; all must take the same way out.
    interrupt.signal = next((seen for seen in process.gather_objects(interrupt.signal) if seen is not None), None)
    if interrupt.signal is not None and step < inputs.total_steps:
        display.say(
            f"interrupted: step {step} of {inputs.total_steps} is saved; continue with --resume auto --output_dir {folder.path}"
        )
        return interrupt.exit_code
    _say_gain(loop, display)
    return _finish(recipe, folder, me, display, step, began, watch)


def _check_same_data(inputs: Inputs) -> None:
    """Raise DataError where a process has read other rows than another. Collective."""
    held_out = None if inputs.held_out is None else inputs.held_out.digest
    found = process.gather_objects((inputs.data_content, held_out))
    for rank, (rows, measured) in enumerate(found):
        if (rows, measured) != found[0]:
            raise DataError(
                f"rank {rank} has other rows in {'data.train' if rows != found[0][0] else 'the held-out set'} than rank 0",
                expected="the same rows on every process",
                do="seed what rows of task.target draws; on several hosts, compare the files",
            )


def _run(loop: Loop, start: Start, config: Mapping[str, Any]) -> int:
    """Train, with the run's records open on rank 0; returns the number of steps taken in all."""
    recipe, folder = loop.recipe, loop.folder
    if loop.me.is_main:
        with storage_errors("preparing the run folder", folder.path):
            write_json(folder.path / "recipe.json", recipe.model_dump(mode="json"))
            (folder.path / "ds_config.json").write_text(to_json(config), encoding="utf-8")
        cut_after(folder.metrics, start.step)
        forget_predictions(folder.predictions, start.step)
        loop.log = MetricsLog(folder.metrics)
        loop.utilization = prepare_utilization(recipe, loop.inputs, config, loop.me.world_size, loop.display)
        loop.trackers = Trackers(recipe.tracking, folder.path, flatten(recipe), start.step, loop.display.say)
    try:
        return loop.run(start.step, start.data)
    finally:
        if loop.log is not None and loop.trackers is not None:
            loop.log.close()
            loop.trackers.close()


def _claim(recipe: Recipe, options: RunOptions, folder: RunFolder, inputs: Inputs, watch: Watch) -> Start:
    """Clear the folder of leftovers, and find where to begin. For rank 0."""
    with storage_errors("preparing the run folder", folder.path):
        folder.path.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder.checkpoints)
    found = facts.gather(recipe, inputs)
    return find_start(recipe, folder, options.resume, found, watch, changed_data=options.resume_changed_data)


CARD = {
    "base model": "model.path",
    "data": "data.train",
    "sequences per step": "batch.global_size",
    "tokens per sequence": "batch.sequence_length",
    "optimizer": "optimizer.type",
    "peak learning rate": "optimizer.learning_rate",
    "seed": "seed",
}
"""Line of the model card -> recipe field."""


def _identity(recipe: Recipe, options: RunOptions, start: Start) -> dict[str, Any]:
    values = flatten(recipe)
    card = {
        what: start.told(name, values[name])
        for what, name in CARD.items()
        if recipe.task.has_length or name != "batch.sequence_length"
    }
    if isinstance(recipe.tuning, LoRA):
        tuning = recipe.tuning
        targets = tuning.target_modules if isinstance(tuning.target_modules, str) else ", ".join(tuning.target_modules)
        card["adapters"] = f"rank {tuning.rank}, alpha {tuning.alpha:g}, on {targets}"
    if recipe.model.is_new:
        own = recipe.task.target if isinstance(recipe.task, Custom) else None
        fields = ", ".join(f"{name}={value}" for name, value in recipe.model.config.items())
        card["base model"] = (
            f"none: from scratch, {own or f'the architecture of {recipe.model.path or recipe.model.architecture}'}"
            + (f" with {fields}" if fields else "")
        )
    return {
        "name": options.name,
        "task": recipe.task.name,
        "auto_class": task_class(recipe.task).auto_class.__name__,
        "card": card,
        "recipe": values,
        "facts": start.found,
        "history": start.history,
    }


def _restore(engine: Engine, start: Start, checkpoint: Path, me: process.Process, display: Display) -> Manifest:
    """Put `engine` into the state saved in `checkpoint`, as far as it applies, and say what that does to the rate."""
    manifest = load(engine, checkpoint, me.rank, me.world_size)
    if start.forgets_metric:
        engine.forget_observed()
    display.say(f"continuing from {checkpoint} (written by {plural(manifest.world_size, 'rank')})")
    line = rate_line(start, manifest.run["engine"]["schedule"], engine.state()["schedule"])
    if line:
        display.say(line)
    return manifest


def _say_measured(name: str, loop: Loop, made: RunPlan | None) -> None:
    """Put what was measured beside the plan. Collective."""
    peak = max(process.gather_objects(loop.peak_gib))
    if made is not None and len(loop.step_seconds) > SETTLED:
        step_s = statistics.median(loop.step_seconds[SETTLED:])
        loop.display.say(keep_measured(name, loop.folder, made, step_s, round(peak * device.GIB)))


def _say_gain(loop: Loop, display: Display) -> None:
    first = loop.watch.first
    if loop.evaluations and first is not None and first["step"] < loop.evaluations[-1]["step"]:
        last = loop.evaluations[-1]
        changes = (f"{key} {first[key]:.4f} -> {last[key]:.4f}" for key in last if key != "step")
        since = f" (since step {first['step']:g})" if first["step"] else ""
        display.say(f"held-out: {', '.join(changes)}{since}")


def _finish(
    recipe: Recipe,
    folder: RunFolder,
    me: process.Process,
    display: Display,
    step: int,
    began: float,
    watch: Watch,
) -> int:
    """Export and say where everything lies."""
    exported = process.from_main_at_length(lambda: _export(recipe, folder, display, watch))
    seconds = time.monotonic() - began
    places = f"metrics in {folder.metrics}, checkpoints in {folder.checkpoints}{exported}"
    display.say(f"done: {plural(step, 'step')} in {seconds / 60:.1f} min; {places}")
    return 0


def _export(recipe: Recipe, folder: RunFolder, display: Display, watch: Watch) -> str:
    """Make export/ what this run's recipe asks for; says where the model is."""
    wanted = recipe.checkpoint
    if not wanted.export:
        found = read_stamp(folder.export)
        if found is not None:
            display.say(f"{folder.export} stays the model of step {found[0].step}: checkpoint.export=False")
        return ""
    stamp, aside = renew(
        folder.path,
        folder.export,
        wanted.export_dtype,
        keep_best=wanted.keep_best and watch.best is not None,
        merge=wanted.merge,
    )
    if aside is not None:
        display.say(f"{folder.export} held files that this run had not written: all of it is now {aside}")
    which = f"step {stamp.step}, the best: {watch.metric} {watch.best:.4f}" if stamp.best else f"step {stamp.step}"
    return f", model in {folder.export} ({which}, {stamp.dtype})"
