"""One strategy, planned: memory, time and disk of a recipe on so many devices of a kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from toolkit.ds_config.render import render, weights_dtype
from toolkit.ds_config.target import Target
from toolkit.models.dtypes import dtype_of
from toolkit.plan.activations import Activations
from toolkit.plan.inventory import Inventory
from toolkit.plan.memory import Disk, Flight, Memory, count_disk, put_together
from toolkit.plan.peaks import NumberFormat
from toolkit.plan.speed import (
    Place,
    Seconds,
    micro_batch_seconds,
    one_forward_one_backward,
    step_seconds,
    with_gradients,
)
from toolkit.plan.states import SIZES, Keeper, States, count_states
from toolkit.plan.subject import Subject, way_of, with_micro
from toolkit.plan.trace import Traced, Way
from toolkit.plan.work import Work
from toolkit.processor import multiplies_bf16
from toolkit.recipe import Recipe
from toolkit.recipe.mesh import Mesh, mesh_of, model_ranks

MARGIN = 0.05
"""Of the memory of a device, what a plan leaves free: batches differ, and so do allocators."""


def has_room(fullness: float) -> bool:
    """Whether a memory of which `fullness` is needed leaves the margin free."""
    return fullness <= 1 - MARGIN


@dataclass(frozen=True)
class Planned:
    """What a recipe needs on some devices."""

    recipe: Recipe
    config: Mapping[str, Any]
    """The DeepSpeed configuration."""
    mesh: Mesh
    place: Place
    memory: Memory
    """Of the rank that needs most."""
    seconds: Seconds
    disk: Disk
    trained: int
    """Numbers of the whole model that are trained."""
    total: int
    tokens_per_step: int
    model_flops: float
    """Of a step, forward and backward, over all devices; what is recomputed is not counted."""

    @property
    def limit(self) -> int:
        """Bytes of a device that may be used; on a CPU the rank's share of the host."""
        hardware = self.place.hardware
        return hardware.memory // (self.ranks_of_host if hardware.is_cpu else 1)

    @property
    def ranks_of_host(self) -> int:
        """Ranks on one host."""
        return min(self.mesh.world_size, self.place.devices_per_host)

    @property
    def host_bytes(self) -> int:
        """Host memory that the ranks of one host need together."""
        ranks = self.ranks_of_host
        return (self.memory.peak if self.place.hardware.is_cpu else self.memory.host_peak) * ranks

    @property
    def host_fullness(self) -> float:
        """What the ranks of a host need together, as a share of its memory; 0 where that is not known."""
        return self.host_bytes / self.place.host_memory if self.place.host_memory else 0.0

    @property
    def fullness(self) -> float:
        """The largest share of a memory, of a device's or a host's, that is needed."""
        return max(self.memory.peak / self.limit, self.host_fullness)

    def fits(self) -> bool:
        """Whether there is room, with a margin, on the devices and on the host."""
        return has_room(self.fullness)

    @property
    def tokens_per_second(self) -> float:
        """Of all devices."""
        return self.tokens_per_step / self.seconds.total

    @property
    def tflops_per_device(self) -> float:
        """Of the model."""
        return self.model_flops / self.seconds.total / self.mesh.world_size / 1e12

    @property
    def number_format(self) -> NumberFormat:
        """What matrices are multiplied in."""
        return number_format(self.recipe, weights_dtype(self.config))

    @property
    def mfu(self) -> float | None:
        """Share of a device's listed rate in this format; None where no rate is listed."""
        peak = self.place.hardware.peak
        listed = None if peak is None else peak.tflops(self.number_format)
        return None if listed is None else self.tflops_per_device / listed


def plan_strategy(subject: Subject, recipe: Recipe, target: Target, place: Place) -> Planned:
    """Plan `recipe` on `target`, whose devices are those of `place`.

    Raises RecipeError and ModelError for what cannot run so, Untraceable where the model does not run without values.
    """
    mesh = mesh_of(recipe.parallel, target.world_size)
    config = render(recipe, target, subject.size)
    accumulation = int(config["gradient_accumulation_steps"])
    parts = [_part(subject, recipe, config, mesh, stage, target, place) for stage in _stages(mesh)]
    fullest = max(parts, key=lambda part: part.memory.peak)
    stages = [part.micro_batch_s for part in parts for _ in range(part.count)]
    # The backward pass takes twice as long as the forward pass, and that once more where it is computed again.
    whole_s = one_forward_one_backward(stages, accumulation, 1 / 4 if recipe.model.activation_checkpointing else 1 / 3)
    seconds = [part.seconds(waits_s=max(0.0, whole_s - accumulation * part.micro_batch_s)) for part in parts]
    whole = subject.inventory(Mesh())
    tokens = recipe.batch.global_size * (recipe.batch.sequence_length if recipe.task.has_length else 1)
    tokens = round(tokens * subject.filled)
    work = accumulation * mesh.data * _model_flops(subject, recipe, config, target)
    checkpoint = recipe.checkpoint
    disk = count_disk(
        whole.trained,
        fullest.moments,
        keep=checkpoint.keep,
        keeps_best=checkpoint.keep_best,
        export_dtype=checkpoint.export_dtype if checkpoint.export else None,
        exports=whole.trained if subject.adapters is not None and not checkpoint.merge else whole.total,
    )
    return Planned(
        recipe,
        config,
        mesh,
        place,
        fullest.memory,
        max(seconds, key=lambda one: one.total),
        disk,
        whole.trained,
        whole.total,
        tokens,
        work,
    )


def traces_of(subject: Subject, recipe: Recipe, target: Target) -> list[tuple[Recipe, Mesh, Way]]:
    """What `plan_strategy` asks `subject` to trace. Raises RecipeError for what cannot run so."""
    mesh = mesh_of(recipe.parallel, target.world_size)
    dtype = dtype_of(render(recipe, target, subject.size))
    ends = {stage == mesh.pipeline - 1 for stage in _stages(mesh)}
    ways = [way_of(recipe, subject.config, dtype, target.device, has_head=is_last) for is_last in sorted(ends)]
    once, _ = _nothing_twice(subject, recipe, ways[-1])
    return [*((recipe, mesh, way) for way in ways), once]


def _stages(mesh: Mesh) -> list[int]:
    """The pipeline stages that differ: first, one of those between, and last."""
    return sorted({0, mesh.pipeline // 2, mesh.pipeline - 1})


@dataclass(frozen=True)
class _Part:
    """One stage."""

    memory: Memory
    moments: float
    """Bytes of optimizer states, averages among them, for each number that is trained."""
    micro_batch_s: float
    """Seconds of one micro-batch."""
    seconds: Callable[..., Seconds]
    """`step_seconds` without what the other stages take."""
    count: int
    """Stages like this one."""


def _part(
    subject: Subject, recipe: Recipe, config: Mapping[str, Any], mesh: Mesh, stage: int, target: Target, place: Place
) -> _Part:
    inventory = subject.inventory(mesh, stage)
    averages = bool(recipe.optimizer.ema_decay)
    states = count_states(inventory, config, mesh.gradient_ranks, target.device, averages=averages)
    is_last = stage == mesh.pipeline - 1
    way = way_of(recipe, subject.config, dtype_of(config), target.device, has_head=is_last)
    traced = subject.trace(recipe, mesh, way)
    activations = traced.whole if mesh.pipeline == 1 else _of_stage(subject, mesh, stage, traced)
    work, pair_share = _work(subject, activations, target)
    work = with_gradients(work, inventory, config, place.hardware)
    accumulation = int(config["gradient_accumulation_steps"])
    in_flight = min(accumulation, mesh.pipeline - stage)
    flight = Flight(accumulation, in_flight)
    is_cpu = target.device == "cpu"
    memory = put_together(
        states,
        activations,
        flight,
        inventory.trained,
        is_cpu=is_cpu,
        ranks=mesh.world_size,
        flattened_on_host=_flattened_on_host(inventory, config, states, place),
    )
    layers = sum(map(len, traced.depths.kinds.values())) // mesh.pipeline or 1
    shape = number_format(recipe, weights_dtype(config))
    seconds = partial(
        step_seconds,
        work,
        inventory,
        states,
        config,
        mesh,
        place,
        shape,
        accumulation=accumulation,
        hidden_bytes=hidden_bytes(subject, recipe, config),
        layers=layers,
        recomputes=recipe.model.activation_checkpointing,
        pair_share=pair_share,
        kept_on_host=activations.host,
    )
    places = (states.steady.device, states.steady.host, states.steady.nvme)
    saved = sum(place.get(name, 0) for place in places for name in ("optimizer states", "average weights"))
    share = states_share(inventory, config, mesh)
    moments = saved / share if share else 0.0
    alike = mesh.pipeline - 2 if 0 < stage < mesh.pipeline - 1 else 1
    return _Part(memory, moments, sum(micro_batch_seconds(work, place, shape, pair_share)), seconds, alike)


def _work(subject: Subject, activations: Activations, target: Target) -> tuple[Work, float]:
    """Of a micro-batch as the data is, and the share of its attention that documents ask for."""
    work = activations.work.plus(activations.work, subject.filled - 1.0)
    # On a CPU each document is computed, and traced, by itself.
    return work, 1.0 if target.device == "cpu" else subject.pair_share


def _model_flops(subject: Subject, recipe: Recipe, config: Mapping[str, Any], target: Target) -> float:
    """Of the whole model in one micro-batch, nothing computed twice."""
    way = way_of(recipe, subject.config, dtype_of(config), target.device, has_head=True)
    once, times = _nothing_twice(subject, recipe, way)
    work, pair_share = _work(subject, subject.trace(*once).whole, target)
    return times * work.products(pair_share)


def _nothing_twice(subject: Subject, recipe: Recipe, way: Way) -> tuple[tuple[Recipe, Mesh, Way], int]:
    """What to trace so that nothing is computed twice, and how often a micro-batch has it."""
    once = replace(way, checkpointing=False, offload=False, tiles=1)
    if once == way or subject.batch is not None:
        return (recipe, Mesh(), once), 1
    # One sequence tells what several ask for, and other strategies have asked for it already.
    return (with_micro(recipe, 1), Mesh(), once), recipe.batch.micro_size


def _flattened_on_host(inventory: Inventory, config: Mapping[str, Any], states: States, place: Place) -> int:
    """Bytes of the parameter group that ZeRO-1 and 2 flatten on the host, where the device has no room for it twice.

    stage_1_and_2.py, __init__. ZeRO-3 never holds whole weights, and a checkpoint is written piece by piece.
    """
    if place.hardware.is_cpu or states.keeper is not Keeper.SHARED:
        return 0
    weight = SIZES[weights_dtype(config)]
    group = max((sum(parameter.numel for parameter in group) for group in inventory.groups()), default=0)
    return 0 if weight * (inventory.total + group) <= place.hardware.memory else weight * group


def states_share(inventory: Inventory, config: Mapping[str, Any], mesh: Mesh) -> float:
    """Trained numbers whose optimizer states one rank has."""
    return inventory.trained / (mesh.gradient_ranks if config["zero_optimization"]["stage"] else 1)


def _of_stage(subject: Subject, mesh: Mesh, stage: int, traced: Traced) -> Activations:
    """Activations of the layers that pipeline stage `stage` has."""
    stack, first, after = subject.layers_of(mesh, stage)
    return traced.within(lambda layer: layer[0] != stack or first <= int(layer[1]) < after)


def hidden_bytes(subject: Subject, recipe: Recipe, config: Mapping[str, Any]) -> float:
    """What a layer hands to the next one of a micro-batch, whole sequences."""
    text = subject.config.get_text_config()
    width = getattr(text, "hidden_size", None) or getattr(text, "d_model", 0) or 0
    size = SIZES[weights_dtype(config)]
    length = recipe.batch.sequence_length if recipe.task.has_length else 1
    return float(recipe.batch.micro_size * length * width * size)


def number_format(recipe: Recipe, dtype: str) -> NumberFormat:
    """What a run whose parameters are kept in `dtype` multiplies matrices in."""
    if recipe.precision.dtype == "fp8":
        return "fp8"
    if dtype == "fp32":
        return "tf32" if recipe.precision.tf32 else "fp32"
    return "bf16" if dtype == "bf16" else "fp16"


def target_of(recipe: Recipe, world_size: int, place: Place) -> Target:
    """The target of `recipe` on devices of `place`."""
    is_cpu = place.hardware.is_cpu
    peak = place.hardware.peak
    return Target(
        world_size,
        "cpu" if is_cpu else "cuda",
        bf16=is_cpu or peak is None or peak.bf16 is not None,
        fp8=peak is not None and peak.fp8 is not None,
        bf16_is_native=multiplies_bf16() if is_cpu else peak is None or peak.bf16 is not None,
        model_ranks=model_ranks(recipe.parallel),
    )
