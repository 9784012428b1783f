"""One short training run of a stage: its speed, its share of the device's peak, its memory; or what its kernels are."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WARM_UP = 2
"""Steps not counted: allocators settle, kernels are compiled and tuned."""


@dataclass(frozen=True)
class Running:
    """An engine, and what it trains on."""

    recipe: Any
    inputs: Any
    engine: Any
    config: Any
    me: Any
    folder: Any
    display: Any
    plan: Any = None
    """What was planned before the weights were there, where that was asked for and can be."""

    def run_loop(self) -> list[dict[str, Any]]:
        """The toolkit's loop over the recipe's steps, without checkpoints; its records."""
        from harness.loop import run_loop

        parts = (self.recipe, self.inputs, self.engine, self.config, self.me, self.folder, self.display)
        return run_loop(*parts, saves=False)


@contextmanager
def running(recipe: Any, folder: Path, *, plain_logits: bool = False, plans: bool = False) -> Iterator[Running]:
    """The engine of `recipe` in this process, which is freed afterwards, as is `folder`.

    `plain_logits`: the loss is taken from the model's own logits, which the toolkit otherwise never makes. With `plans`
    the run is planned first, as every run is.
    """
    from harness.engine import configured

    from toolkit.engine import process
    from toolkit.train.build import build_engine
    from toolkit.train.inputs import prepare_inputs
    from toolkit.train.progress import Display
    from toolkit.train.run_folder import RunFolder

    display = Display(is_main=True, total_steps=recipe.steps or 0)
    me = process.from_environment(recipe.parallel)
    inputs = prepare_inputs(recipe, 0, 1, display)
    trained = None if inputs.adapters is None else inputs.adapters.trained
    config = configured(recipe, 1, inputs.model_config, trained)
    plan = _plan(recipe, inputs) if plans else None
    start_process(config)
    shutil.rmtree(folder, ignore_errors=True)
    with drawn_on_the_device():
        engine = build_engine(recipe, inputs, config, me, RunFolder(folder), display)
    if plain_logits:
        # The mark that toolkit.models.heads.token_loss looks at.
        engine.model.get_output_embeddings().returns_loss = False
    try:
        yield Running(recipe, inputs, engine, config, me, RunFolder(folder), display, plan)
    finally:
        engine.close()
        shutil.rmtree(folder, ignore_errors=True)


def _plan(recipe: Any, inputs: Any) -> Any:
    """The plan that a run of `recipe` makes for the device that is here; None where it makes none."""
    from toolkit.engine import device
    from toolkit.models.model_size import model_size
    from toolkit.train.planned import plan_run

    size = model_size(inputs.task.auto_class, inputs.model_config, recipe.model.config, inputs.adapters)
    return plan_run(recipe, inputs, device.target(1, wanted="auto"), size, least=0)


@contextmanager
def drawn_on_the_device() -> Iterator[None]:
    """Draw random weights on the device: a core of the host takes a minute for 8 billion, and no figure depends on them."""
    import torch

    from toolkit.engine import device
    from toolkit.models.random_weights import RandomWeights

    parameter = RandomWeights.parameter

    def drawn(weights: RandomWeights, name: str) -> torch.Tensor:
        with device.current() if device.kind() == "cuda" else nullcontext():
            return parameter(weights, name)

    RandomWeights.parameter = drawn  # type: ignore[method-assign]
    try:
        yield
    finally:
        RandomWeights.parameter = parameter  # type: ignore[method-assign]


def start_process(config: Mapping[str, Any]) -> None:
    """Bind the device and join a process group of one, with the threads that an optimizer on the host needs."""
    from toolkit.engine import process

    process.start(process.from_environment(), host_optimizer="offload_optimizer" in config["zero_optimization"])


def measure_training(recipe: Any, folder: Path, *, plans: bool = False) -> dict[str, Any]:
    """Train `recipe`; speed over the steps after WARM_UP, peak memory over all. With `plans` what the run's plan said, too,
    and what was in memory at the fullest moment of the last step."""
    from harness.memory import outside_gib, reset_peak
    from harness.peak import Allocations

    with running(recipe, folder, plans=plans) as run:
        reset_peak()  # that of loading says nothing about a step
        allocations = Allocations(run.inputs.batches, recipe.steps - 1) if plans else None
        if allocations is not None:
            run.inputs.batches = allocations
        records = [record for record in run.run_loop() if "loss" in record]
        found = _planned(run.plan) | ({} if allocations is None else allocations.summary())
        found["outside_gib"] = outside_gib()
    counted = records[WARM_UP : -1 if plans else None]
    seconds = sum(record["step_time_s"] for record in counted)
    found |= {
        "steps": len(counted),
        "tokens_per_second": sum(record["tokens"] for record in counted) / seconds,
        "step_time_s": seconds / len(counted),
        "peak_gib": max(record["memory_gib"] for record in records),
        "reserved_gib": max(record.get("memory_reserved_gib", 0.0) for record in records),
        "first_loss": records[0]["loss"],
        "last_loss": records[-1]["loss"],
    }
    for name in ("tflops_per_device", "mfu"):
        values = [record[name] for record in counted if record.get(name) is not None]
        if values:
            found[name] = statistics.median(values)
    return found


def _planned(made: Any) -> dict[str, Any]:
    """What `made`, a run's plan, says."""
    if made is None:
        return {}
    plan, seconds = made.planned, made.planned.seconds
    return {
        "planned_gib": plan.memory.tensors / 2**30,
        "planned_s": seconds.total,
        "planned_parts": {name: size / 2**30 for name, size in plan.memory.device.items()},
        "planned_moment": plan.memory.moment,
        "planned_work": {"flops": seconds.flops, "moved": seconds.moved, "rest_s": seconds.rest},
    }


def profile_training(recipe: Any, folder: Path, device: str) -> dict[str, Any]:
    """Train `recipe`; what the device did in the steps after WARM_UP."""
    from harness.profile import Profiled

    with running(recipe, folder) as run:
        profiled = Profiled(run.inputs.batches, WARM_UP, device)
        run.inputs.batches = profiled
        run.run_loop()
    return profiled.summary()
