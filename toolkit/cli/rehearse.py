"""What --rehearse does: the recipe, scaled down, through its own start on this host's CPU; a line for each phase. No torch."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from toolkit.ds_config.check import check_config
from toolkit.ds_config.findings import raise_errors
from toolkit.ds_config.target import Target
from toolkit.errors import RecipeError, plural
from toolkit.recipe import Recipe
from toolkit.recipe.mesh import Mesh
from toolkit.rehearsal.smaller import SAVED_STEP, STEPS, Smaller, smaller
from toolkit.rehearsal.walk import Rehearsal
from toolkit.rehearsal.walk import rehearse as walk

OF_LAUNCHERS = ("ACCELERATE_", "TORCHELASTIC_", "OMPI_", "PMI_", "SLURM_")
SET_BY_LAUNCHERS = (
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("CROSS_RANK", "CROSS_SIZE", "LOCAL_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_WORLD_SIZE"),
)
"""Variables of a launcher, which began other ranks than those of the rehearsal."""
WIDTH = 12
"""Columns of a phase's name."""


def rehearse(recipe: Recipe, target: Target, config: Mapping[str, Any], name: str) -> int:
    """Rehearse `recipe`, meant for `target` and rendered for it as `config`; returns the exit code.

    Of the processes that a launcher started, the first one does it.
    """
    if os.environ.get("RANK", "0") != "0":
        return 0
    began = time.monotonic()
    _check_guarded()
    raise_errors(check_config(config, target=target), f"the configuration of {name}")
    small = smaller(recipe, target.world_size)
    _say("rehearsal", f"{name} on {plural(small.mesh.world_size, 'CPU rank')} ({small.mesh.describe()})")
    _say("loading", "torch, transformers and DeepSpeed, once for all ranks")
    try:
        with _own_environment(), _ended_by_sigterm(), tempfile.TemporaryDirectory(prefix="rehearsal_") as folder:
            found = walk(small, Path(folder), _say)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("nothing is left behind") from None
    files = f"its record, and {plural(found.files, 'file')} of weights and states"
    rounding = f"; these but for {found.rounding:.0e}, as DeepSpeed's kernel rounds" if found.rounding else ""
    _say("compare", f"step {STEPS} is the same to the last bit: {files}{rounding}")
    for kind, line in report(small, found, target):
        _say(kind, line)
    print(f"rehearsed in {time.monotonic() - began:.0f} s; nothing is left behind", flush=True)
    return 0


def _check_guarded() -> None:
    """Raise RecipeError for a script that runs its recipe also where it is imported, as every rank imports it."""
    script = getattr(sys.modules["__main__"], "__file__", None)
    if script is None or not script.endswith(".py") or "__main__" in Path(script).read_text(encoding="utf-8"):
        return
    raise RecipeError(
        f"{script} runs its recipe wherever it is imported, and each process of a rehearsal imports it",
        expected='main(recipe) under the line: if __name__ == "__main__":',
        do="write that line before main(recipe), and indent main(recipe)",
    )


def _say(phase: str, line: str) -> None:
    print(f"{phase:<{WIDTH}}{line}", flush=True)


def report(small: Smaller, found: Rehearsal, target: Target) -> Iterator[tuple[str, str]]:
    """What was shown, what stood in for what is not here, and what was not shown."""
    yield "shown", f"the configuration for {target.world_size} x {target.device} breaks no rule"
    yield (
        "shown",
        f"{SAVED_STEP} steps, a checkpoint, a resume from it and one step more under {strategy(found.prepared.recipe, small.mesh, found.dtype)}",
    )
    yield from (("stand-in", line) for line in found.prepared.stand_ins)
    left_out = ["the recipe's weights and their loss curve", *found.prepared.not_shown, *small.not_shown]
    yield from (("not shown", line) for line in left_out)


def strategy(recipe: Recipe, mesh: Mesh, dtype: str) -> str:
    """How `recipe` was trained on `mesh`, in parameters of `dtype`."""
    parallel = recipe.parallel
    parts = [f"ZeRO-{parallel.zero_stage}"]
    parts += [
        f"{name} to {place}"
        for name, place in (("optimizer", parallel.offload_optimizer), ("parameters", parallel.offload_param))
        if place != "none"
    ]
    parts += [mesh.describe(), dtype]
    parts += ["LoRA"] if recipe.tuning.name == "lora" else []
    parts += ["activation checkpointing"] if recipe.model.activation_checkpointing else []
    parts += [f"{recipe.model.mlp_tiles} MLP tiles"] if recipe.model.mlp_tiles > 1 else []
    parts += ["packing"] if recipe.data.packing else []
    return ", ".join(parts)


@contextmanager
def _own_environment() -> Iterator[None]:
    """Without the variables of a launcher and without look-ups on a hub; afterwards everything is as it was."""
    before = dict(os.environ)
    for variable in before:
        if variable in SET_BY_LAUNCHERS or variable.startswith(OF_LAUNCHERS):
            del os.environ[variable]
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """A SIGTERM, which launchers pass on a Ctrl-C as, ends what is inside as a Ctrl-C does: the folder goes with it."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
