"""What to change in a recipe that does not fit: the least that makes it fit, for the message of a run that is refused."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

from toolkit.ds_config.target import Target
from toolkit.errors import InputError
from toolkit.plan.choice import Changes, all_on, changed
from toolkit.plan.speed import Place
from toolkit.plan.strategy import Planned, plan_strategy
from toolkit.plan.subject import Subject
from toolkit.plan.trace import Untraceable
from toolkit.recipe import Recipe


def cheapest_changes(
    subject: Subject, recipe: Recipe, target: Target, place: Place, *, most: int = 3
) -> list[tuple[Changes, Planned]]:
    """Changes to `recipe`, which does not fit on `target`, that make it fit: those that keep its loss curve first, and of
    these the fastest per token.

    Single ones, then pairs of such as are not enough alone. Empty where none of them is enough.
    """
    single = list(_remedies(recipe, target))
    found: list[tuple[Changes, Planned]] = []
    subject.scales = True

    def try_out(change: Changes) -> bool:
        try:
            plan = plan_strategy(subject, changed(recipe, change), target, place)
        except (InputError, Untraceable):
            return False
        if plan.fits():
            found.append((change, plan))
        return plan.fits()

    def has_enough(change: Changes) -> bool:
        """Whether less of the same kind is enough."""
        return any(other.keys() <= change.keys() for other, _ in found)

    left = [change for change in single if not has_enough(change) and not try_out(change)]
    for one, two in combinations(left, 2):
        if len(found) >= most:
            break
        both = {**one, **two}
        if not one.keys() & two and not has_enough(both):
            try_out(both)
    return sorted(found, key=lambda item: (changes_curve(item[0]), -item[1].tokens_per_second))[:most]


def changes_curve(changes: Changes) -> bool:
    """Whether a run with `changes` has another loss curve: other examples in a step, or states that are rounded."""
    return bool(changes.keys() & {"batch.sequence_length", "precision.master_dtype", "precision.state_dtype"})


def _remedies(recipe: Recipe, target: Target) -> Iterator[dict[str, Any]]:
    batch, parallel, model = recipe.batch, recipe.parallel, recipe.model
    micro = batch.micro_size
    while micro > 1:
        micro = max(size for size in range(1, micro) if batch.global_size % size == 0 and micro % size == 0)
        yield {"batch.micro_size": micro}
    if not model.activation_checkpointing:
        yield {"model.activation_checkpointing": True}
    if target.world_size > 1 and parallel.pipeline == 1:
        for stage in range(parallel.zero_stage + 1, 4):
            yield {"parallel.zero_stage": stage}
    if target.device != "cpu":
        if parallel.offload_optimizer == "none" and parallel.pipeline == 1:
            yield {"parallel.zero_stage": max(2, parallel.zero_stage), "parallel.offload_optimizer": "cpu"}
        if parallel.offload_param == "none" and parallel.pipeline == 1:
            yield {"parallel.zero_stage": 3, **all_on("cpu")}
        if not model.activation_offload:
            yield {"model.activation_checkpointing": True, "model.activation_offload": True}
    if model.mlp_tiles == 1 and recipe.task.has_length and batch.sequence_length >= 8192:
        yield {"model.mlp_tiles": 8}
    if recipe.precision.state_dtype == "fp32" and recipe.precision.dtype in ("bf16", "auto"):
        formats = {"precision.master_dtype": "bf16", "precision.state_dtype": "bf16"}
        yield {**formats, "parallel.zero_stage": max(2, parallel.zero_stage)}
    if recipe.task.has_length and batch.sequence_length >= 1024:
        yield {"batch.sequence_length": batch.sequence_length // 2}
