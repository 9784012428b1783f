"""main(recipe): what `deepspeed recipes/x.py`, `accelerate launch recipes/x.py`, `torchrun` and `python` run."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from toolkit.cli.dry_run import print_dry_run, target_here
from toolkit.cli.flags import Invocation, parse, split_launcher_flags
from toolkit.cli.following import given_flags, smaller_micro_batch
from toolkit.cli.launcher_config import check_launcher_config, check_process_count
from toolkit.cli.launcher_environment import check_launcher_environment
from toolkit.cli.output import exit_code_of
from toolkit.data.reading.find_files import check_location
from toolkit.data.reading.weighted import weighted
from toolkit.ds_config.golden import assumed_target
from toolkit.ds_config.render import accumulation_steps, render
from toolkit.errors import InputError, collect, together
from toolkit.heavy_imports import heavy_imports
from toolkit.library_messages import are_shown, show_all
from toolkit.recipe import Recipe
from toolkit.recipe.mesh import mesh_of
from toolkit.recipe.recipe import InconsistentRecipe


def main(recipe: Recipe, argv: Sequence[str] | None = None) -> int:
    """Run `recipe` as the command line says; returns the exit code."""
    return exit_code_of(lambda: _main(recipe, sys.argv[1:] if argv is None else argv))


def _main(recipe: Recipe, argv: Sequence[str]) -> int:
    script = Path(sys.argv[0])
    launcher, rest = split_launcher_flags(argv)
    output_dir = Path("runs") / script.stem
    try:
        invocation = parse(recipe, rest, output_dir=output_dir, description=_describe(script, recipe), prog=script.name)
    except InconsistentRecipe as error:
        starts = not {"dry_run", "preview", "rehearse"} & given_flags(rest)
        raise together([*error.parts, *_faults(error.recipe, _world_size(error.recipe, starts))]) from None
    return run(recipe, invocation, script.stem, launcher.deepspeed_config)


def _describe(script: Path, recipe: Recipe) -> str:
    return f"{recipe.note or 'A training recipe.'}\n\nStart: deepspeed -q --num_gpus {recipe.launch.devices} {script}"


def run(file: Recipe, invocation: Invocation, name: str, deepspeed_config: Path | None) -> int:
    """Check everything that needs no torch, then train (or only show what would be trained).

    `file` is the recipe as its file has it, `invocation.recipe` the same with this start's flags.
    """
    if invocation.verbose:
        show_all()
    recipe = invocation.recipe
    check_process_count()
    starts = not (invocation.dry_run or invocation.preview or invocation.rehearse)
    check_launcher_environment(will_start=starts)
    world_size = _world_size(recipe, starts)
    recipe, more = smaller_micro_batch(recipe, invocation.given, world_size)
    if recipe.parallel.auto or recipe.batch.auto_micro_size:
        with heavy_imports():
            from toolkit.plan.start import resolved  # it traces the model, which needs torch

        per_host = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or recipe.launch.devices)
        recipe, decided = resolved(recipe, world_size, per_host)
        invocation = replace(invocation, recipe=recipe)
        more = [*more, decided]
    faults = _faults(recipe, world_size)
    if faults:
        raise together(faults)
    target = assumed_target(recipe, world_size)
    config = render(recipe, target)
    check_launcher_config(config, deepspeed_config, file=file)
    if os.environ.get("RANK", "0") == "0":
        for note in (*invocation.notes, *more):
            print(note, flush=True)
    if invocation.dry_run:
        if os.environ.get("RANK", "0") == "0":
            target = target_here(recipe, target)
            print_dry_run(recipe, target, render(recipe, target), name)
        return 0
    if invocation.rehearse:
        from toolkit.cli.rehearse import rehearse

        return rehearse(recipe, target, config, name)
    for part in weighted(recipe.data.train, "data.train"):
        check_location(part.location, recipe.data.split, "data.train")
    if recipe.data.evaluation is not None:
        for part in weighted(recipe.data.evaluation, "data.evaluation"):
            check_location(part.location, recipe.data.evaluation_split, "data.evaluation")
    # Heavy imports only now: a typo must not wait for torch.
    if invocation.preview:
        with heavy_imports():
            from toolkit.cli.preview import print_preview

        return print_preview(recipe, invocation.preview)
    from toolkit.train import run_folder, trackers

    run_folder.check(invocation.output_dir, invocation.resume, recipe, changed_data=invocation.resume_changed_data)
    trackers.check(recipe.tracking)
    try:
        return _train(recipe, invocation, name)
    except KeyboardInterrupt:
        # The launcher may pass the same key press on once more.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt(_what_continues(invocation.output_dir, invocation.resume)) from None


def _what_continues(output_dir: Path, resume: str | None) -> str:
    """How a run that was interrupted goes on."""
    from toolkit.checkpoint.manifest import complete_steps

    steps = complete_steps(output_dir / "checkpoints")
    if steps:
        return f"--resume auto --output_dir {output_dir} continues from its last checkpoint, of step {steps[-1]}"
    if resume not in (None, "auto"):
        return f"{output_dir} has no checkpoint yet: the same command begins again from {resume}"
    return f"{output_dir} has no checkpoint yet: --resume auto --output_dir {output_dir} begins again"


def _train(recipe: Recipe, invocation: Invocation, name: str) -> int:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not are_shown():
        # When a host vanishes, torch's stack frames would bury the message that names it. Read while torch is imported.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    with heavy_imports():
        from toolkit.train.run import RunOptions, train
    return train(recipe, RunOptions(name, invocation.output_dir, invocation.resume, invocation.resume_changed_data))


def _world_size(recipe: Recipe, starts: bool) -> int:
    """What the launcher says. Without one it is one rank; what is only shown is meant for the recipe's own launch section."""
    text = os.environ.get("WORLD_SIZE", "")
    return int(text) if text.isdigit() else 1 if starts else recipe.launch.world_size


def _faults(recipe: Recipe, world_size: int) -> list[InputError]:
    """What `recipe` asks for and does not exist, or does not go with `world_size` ranks."""
    return collect(
        lambda: _check_task(recipe),
        lambda: accumulation_steps(recipe, mesh_of(recipe.parallel, world_size)),
    )


def _check_task(recipe: Recipe) -> None:
    recipe.task.check_metric(recipe.evaluation.metric)
