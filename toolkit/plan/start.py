"""Where a plan begins: the recipe's model, the devices it is planned for, and what finished runs have taught of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from toolkit.errors import RecipeError
from toolkit.plan.calibration import finished_runs, fit, said
from toolkit.plan.devices import find_device, this_processor
from toolkit.plan.speed import Place, Rates, with_memory
from toolkit.plan.strategy import number_format, target_of
from toolkit.plan.subject import Subject, subject_of
from toolkit.plan.trace import Untraceable
from toolkit.recipe import Recipe


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
    per_host = world if hardware.is_cpu else options.devices_per_host
    return Place(hardware, per_host, cores_shared=world if hardware.is_cpu else 1)


def processor_place(ranks: int) -> Place:
    """This host's processor, shared by `ranks`."""
    return Place(this_processor(), ranks, cores_shared=ranks)


def calibrated(recipe: Recipe, place: Place, world_size: int) -> tuple[Place, str]:
    """`place` with rates fitted to finished runs on it, and what to say of them."""
    from toolkit.ds_config.render import render

    target = target_of(recipe, world_size, place)
    shape = number_format(recipe, render(recipe, target))
    runs = finished_runs(place.hardware.name, shape)
    return replace(place, rates=fit(runs, default_rates(place))), said(runs)


def default_rates(place: Place) -> Rates:
    """Before any run has finished: of a processor the rates are measured, and work between products reaches less."""
    return Rates(0.8, 0.5) if place.hardware.is_cpu else Rates()
