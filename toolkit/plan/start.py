"""Where a plan begins: the recipe's model, the devices it is planned for, and what finished runs have taught of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from toolkit.ds_config.render import resolved_dtype
from toolkit.errors import RecipeError
from toolkit.models.quiet import quiet
from toolkit.plan.calibration import finished_runs, fit, said
from toolkit.plan.choice import Chooser, changed, describe
from toolkit.plan.devices import any_processor, find_device, gpu_named, this_processor
from toolkit.plan.memory import GIB
from toolkit.plan.peaks import NumberFormat
from toolkit.plan.speed import Place, Rates, with_memory
from toolkit.plan.strategy import Planned, number_format, plan_strategy, target_of
from toolkit.plan.subject import Subject, subject_of
from toolkit.plan.trace import Untraceable
from toolkit.processor import memory_limit
from toolkit.recipe import Recipe
from toolkit.recipe.mesh import mesh_of

PER_HOST = 8
"""Devices of a host, where nobody says how many."""


def subject_or_refused(recipe: Recipe) -> Subject:
    """The recipe's model and task. Raises RecipeError, with the reason, where no plan can be made without the data."""
    try:
        return subject_of(recipe)
    except Untraceable as reason:
        raise refused(reason) from None


def refused(reason: Untraceable) -> RecipeError:
    """The error for what cannot be traced."""
    return RecipeError(
        f"this recipe cannot be planned: {reason}",
        expected="a model that runs on tensors without values, and a task whose batches are known without data",
        do="start it: a plan is then made of its first batch, and what was measured is kept beside it",
    )


def place_for(recipe: Recipe, options: Any) -> Place:
    """The devices that `options` of `toolkit plan` name, or that the recipe is meant for."""
    name = options.device or ("cpu" if recipe.launch.device != "cuda" else "h100")
    hardware = with_memory(find_device(name), options.device_memory_gib, options.link_gb_s, options.fabric_gb_s)
    world = options.devices or recipe.launch.world_size
    as_recipe = recipe.launch.devices if options.devices is None or recipe.launch.hosts > 1 else None
    per_host = min(world, options.devices_per_host or as_recipe or (world if hardware.is_cpu else PER_HOST))
    host = None if options.host_memory_gib is None else int(options.host_memory_gib * GIB)
    if hardware.is_cpu:
        hardware = hardware if host is None else replace(hardware, memory=host)
        return Place(hardware, per_host, cores_shared=per_host)
    return Place(hardware, per_host, host_memory=host)


def processor_place(ranks: int) -> Place:
    """This host's processor, shared by `ranks`."""
    return Place(this_processor(), ranks, cores_shared=ranks)


def gpu_place(name: str, memory: int, ranks: int) -> Place:
    """GPUs that torch calls `name`, of `memory` bytes, `ranks` on this host."""
    return Place(gpu_named(name, memory), ranks, host_memory=memory_limit())


def resolved(recipe: Recipe, world_size: int, devices_per_host: int) -> tuple[Recipe, str]:
    """`recipe` with what it leaves to the plan decided, the same on every rank; and what was decided, for the screen.

    Raises RecipeError where nothing fits.
    """
    place = _place_of_ranks(devices_per_host)
    with quiet():
        subject = subject_or_refused(recipe)
        try:
            if recipe.parallel.auto:
                plans = Chooser(subject, recipe, world_size, place).choose().fitting
            else:
                plans = _micro_sizes(subject, recipe, world_size, place)
        except Untraceable as reason:
            raise refused(reason) from None
    if not plans:
        raise RecipeError(
            f"{'parallel' if recipe.parallel.auto else 'batch.micro_size'}='auto': nothing fits on {world_size} x {place.hardware.name}",
            expected=f"a strategy that needs at most {place.hardware.memory / GIB:.1f} GiB",
            do="start it on more devices or larger ones; toolkit plan RECIPE --devices N --device NAME shows what fits",
        )
    best = plans[0]
    decided = changed(best.recipe, {"parallel.auto": False, "batch.auto_micro_size": False})
    return decided, f"plan: {describe(best)} ({best.memory.peak / GIB:.1f} GiB per rank)"


def _micro_sizes(subject: Subject, recipe: Recipe, world_size: int, place: Place) -> list[Planned]:
    """Plans of the micro-batches that fit, the largest first."""
    replicas = mesh_of(recipe.parallel, world_size).data
    subject.scales = True
    plans = []
    for size in range(1, recipe.batch.global_size // replicas + 1):
        if recipe.batch.global_size % (size * replicas) == 0:
            sized = changed(recipe, {"batch.micro_size": size})
            plans.append(plan_strategy(subject, sized, target_of(sized, world_size, place), place))
    return [plan for plan in reversed(plans) if plan.fits()]


def _place_of_ranks(devices_per_host: int) -> Place:
    """The devices under this run, as every rank sees them."""
    import torch

    if not torch.cuda.is_available():
        return Place(any_processor(), devices_per_host, cores_shared=devices_per_host)
    memory = torch.cuda.get_device_properties(0).total_memory
    return gpu_place(torch.cuda.get_device_name(), memory, devices_per_host)


def calibrated(recipe: Recipe, place: Place, world_size: int) -> tuple[Place, str]:
    """`place` with rates fitted to finished runs on it, and what to say of them."""
    target = target_of(recipe, world_size, place)
    shape = number_format(recipe, resolved_dtype(recipe, target))
    return fitted(place, shape)


def fitted(place: Place, shape: NumberFormat) -> tuple[Place, str]:
    """`place` with rates of products in `shape` and of other operations that finished runs on it had; what to say of them."""
    hardware, runs = place.hardware, finished_runs(place.hardware.name, shape)
    rates = fit(runs, hardware.flops(shape), hardware.bandwidth, default_rates(place))
    return replace(place, rates=rates), said(runs)


def default_rates(place: Place) -> Rates:
    """Before any run has finished: of a processor the rates are measured, and work between products reaches less."""
    return Rates(0.8, 0.5) if place.hardware.is_cpu else Rates()
