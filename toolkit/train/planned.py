"""The plan of a run, made before its weights are loaded: it refuses what cannot fit, and is kept beside what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain

import numpy as np

from toolkit.checkpoint.durable import write_json
from toolkit.data.batches import StoredBatches
from toolkit.ds_config.model_size import ModelSize
from toolkit.ds_config.render import resolved_dtype
from toolkit.ds_config.target import Target
from toolkit.engine import device, process
from toolkit.engine.out_of_memory import is_out_of_memory
from toolkit.errors import LaunchError, RunFailed, ToolkitError
from toolkit.models.quiet import quiet
from toolkit.plan.calibration import Finished, note
from toolkit.plan.choice import as_flags, describe
from toolkit.plan.memory import GIB
from toolkit.plan.remedies import changes_curve, cheapest_changes
from toolkit.plan.report import duration, host_memory, plan_json
from toolkit.plan.speed import Place
from toolkit.plan.start import fitted, gpu_place, processor_place
from toolkit.plan.strategy import Planned, number_format, plan_strategy
from toolkit.plan.subject import Subject
from toolkit.plan.trace import Untraceable
from toolkit.recipe import Recipe
from toolkit.train.inputs import Inputs
from toolkit.train.progress import Display
from toolkit.train.run_folder import RunFolder

LEAST_PARAMETERS = 30_000_000
"""A smaller model finds room anywhere, and is trained before it is planned."""

SETTLED = 2
"""Steps after which a step takes its usual time."""


class RunPlan:
    """What rank 0 knows ahead of a run."""

    def __init__(self, subject: Subject, planned: Planned, target: Target) -> None:
        self.subject, self.planned, self.target = subject, planned, target
        """`planned` has sequences as long as the longest of the data."""

    @property
    def remedies(self) -> str:
        """The cheapest changes that make the run fit, as flags."""
        with quiet():
            found = cheapest_changes(self.subject, self.planned.recipe, self.target, self.planned.place)
        if not found:
            return "plan it on more devices or larger ones: toolkit plan RECIPE --devices N --device NAME"
        said = [
            f"{as_flags(change)} ({plan.memory.peak / GIB:.1f} GiB, {duration(plan.seconds.total)} per step"
            f"{', another loss curve' if changes_curve(change) else ''})"
            for change, plan in found
        ]
        return "pass " + ", or ".join(said)

    def check(self, display: Display, *, refuse: bool = True) -> None:
        """Say what is expected. Raises LaunchError where the run needs more memory than there is, unless told not to `refuse`."""
        plan, hardware = self.planned, self.planned.place.hardware
        peak, limit = plan.memory.peak, plan.limit
        time = "" if hardware.is_assumed else f"; about {duration(plan.seconds.total)} per step"
        host = f", and {host_memory(plan)} of host memory" if plan.memory.host else ""
        display.say(f"plan: {peak / GIB:.1f} GiB of {limit / GIB:.1f} per rank, {plan.memory.moment}{host}{time}")
        if plan.fullness <= 1.0 or not refuse:
            return
        needs, has = f"{peak / GIB:.1f} GiB per rank", f"{limit / GIB:.1f}"
        held, who = plan.memory.device, "a rank" if hardware.is_cpu else "the device"
        if peak <= limit:
            needs, has = f"{plan.host_bytes / GIB:.1f} GiB of host memory", f"{(plan.place.host_memory or 0) / GIB:.1f}"
            held, who = plan.memory.host, "the host"
        parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in _largest(held))
        each = "of each rank: " if held is plan.memory.host else ""
        raise LaunchError(
            f"this run needs {needs} ({each}{parts}), and {who} has {has}",
            expected="a run that fits",
            do=f"{self.remedies}; --launch.memory_check off starts it all the same",
        )


def _largest(sizes: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(sizes.items(), key=lambda item: -item[1])[:4]


def plan_run(
    recipe: Recipe, inputs: Inputs, target: Target, size: ModelSize, *, least: int = LEAST_PARAMETERS
) -> RunPlan | None:
    """Plan the run on the devices that are here. None for models of less than `least` parameters, and where none can be made."""
    subject = Subject(inputs.task, inputs.model_config, inputs.adapters, size)
    if sum(parameter.numel() for parameter in subject.whole.skeleton.parameters()) < least:
        return None
    place = place_here(recipe)
    if isinstance(inputs.batches, StoredBatches) and len(inputs.batches.store):
        recipe = _as_the_data_is(subject, recipe, inputs.batches)
    place, _ = fitted(place, number_format(recipe, resolved_dtype(recipe, target)))
    try:
        with quiet():
            try:
                planned = plan_strategy(subject, recipe, target, place)
            except Untraceable:
                # Only the data tells what a batch is like: the first one stands for all.
                subject.take_batch(next(iter(inputs.batches.iterate(0, 1))).micro_batches[0], recipe)
                planned = plan_strategy(subject, recipe, target, place)
    except (Untraceable, ToolkitError, StopIteration):
        return None
    return RunPlan(subject, planned, target)


def _as_the_data_is(subject: Subject, recipe: Recipe, batches: StoredBatches) -> Recipe:
    """`recipe` with sequences as long as the longest of its data; how full, how trained and how packed they are goes to
    `subject`."""
    store, lengths = batches.store, batches.store.lengths.astype(np.int64)
    subject.target_share = min(1.0, store.num_trained_tokens / max(1, store.num_tokens))
    if not recipe.task.has_length:
        return recipe
    counts = np.fromiter(map(len, batches.sequences), np.int64)
    examples = np.fromiter(chain.from_iterable(batches.sequences), np.int64, counts.sum())
    sums = np.add.reduceat(lengths[examples], np.cumsum(counts) - counts)
    most = int(min(sums.max(), recipe.batch.sequence_length))
    if recipe.data.packing:
        subject.pair_share = min(1.0, float((lengths.astype(np.float64) ** 2).sum()) / (len(sums) * float(most) ** 2))
    else:
        # The rows of a micro-batch are filled up to its longest one.
        micro = min(recipe.batch.micro_size, len(sums))
        rows = np.minimum(sums[: len(sums) // micro * micro], most).reshape(-1, micro)
        subject.filled = float(rows.max(axis=1).mean()) / most
    return recipe.model_copy(update={"batch": recipe.batch.model_copy(update={"sequence_length": most})})


def place_here(recipe: Recipe) -> Place:
    """The devices under this run."""
    me = process.from_environment(recipe.parallel)
    if device.kind() == "cpu":
        return processor_place(me.local_world_size)
    return gpu_place(device.gpu_name() or "", device.total_memory(), me.local_world_size)


def keep_plan(folder: RunFolder, made: RunPlan, measured: Mapping[str, float] | None = None) -> None:
    """Write plan.json, with what was measured once it is."""
    content = plan_json(made.planned)
    if measured is not None:
        content["measured"] = dict(measured)
    write_json(folder.plan, content)


def keep_measured(name: str, folder: RunFolder, made: RunPlan, step_s: float, peak_bytes: int) -> str:
    """Put what was measured beside the plan, and teach the next plan; returns the line that says how far off it was."""
    plan = made.planned
    keep_plan(folder, made, {"step_time_s": step_s, "peak_bytes": peak_bytes})
    predicted = plan.memory.peak if plan.place.hardware.is_cpu else plan.memory.tensors
    run = Finished(
        name=name,
        device=plan.place.hardware.name,
        number_format=plan.number_format,
        flops=plan.seconds.flops,
        moved=plan.seconds.moved,
        rest_s=plan.seconds.rest,
        planned_s=plan.seconds.total,
        measured_s=step_s,
        planned_bytes=predicted,
        measured_bytes=peak_bytes,
    )
    note(run)
    return (
        f"plan and run: {predicted / GIB:.2f} GiB planned, {peak_bytes / GIB:.2f} measured ({run.memory_error:+.0%}); "
        f"{duration(plan.seconds.total)} per step planned, {duration(step_s)} measured ({run.time_error:+.0%}), {describe(plan)}"
    )


@contextmanager
def memory_explained(made: RunPlan | None, where: str) -> Iterator[None]:
    """Turn an allocation that failed into a RunFailed that says what was expected, and what to change."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        asked = " ".join(str(error).split())[:240]
        expected, do = (
            "a run that fits",
            "lower batch.micro_size (the loss curve stays), or see what fits: toolkit plan RECIPE",
        )
        if made is not None:
            expected = f"{made.planned.memory.peak / GIB:.1f} GiB per rank, as planned"
            do = made.remedies
        raise RunFailed(
            f"out of memory: {asked} (held at most: {device.peak_memory_gib():.1f} GiB)",
            expected=expected,
            do=f"{do}; then continue with --resume auto {where}: complete checkpoints are intact",
        ) from None
