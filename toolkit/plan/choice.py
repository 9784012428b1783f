"""Which strategy to take: many are planned, those that fit are ranked by their predicted time.

What changes no number of the run comes first (ZeRO stage, micro-batch, checkpointing, offload, degrees of parallelism);
formats that round weights and states more are tried only where nothing else fits. Plain data parallelism is planned
always; tensor, pipeline and sequence parallelism where it does not fit, where replicas would be more than the global
batch has sequences, or where several hosts make its communication dear.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from toolkit.ds_config.target import Target
from toolkit.errors import InputError
from toolkit.plan.speed import Place
from toolkit.plan.strategy import Planned, plan_strategy, target_of, traces_of
from toolkit.plan.subject import Subject
from toolkit.plan.trace import Untraceable, Way
from toolkit.recipe import Recipe
from toolkit.recipe.dotted import flat, recipe_of
from toolkit.recipe.effect import EffectError
from toolkit.recipe.mesh import Mesh
from toolkit.recipe.recipe import InconsistentRecipe

LARGEST_MICRO = 64
"""Sequences in a micro-batch beyond which nothing is gained."""

DEGREES = (2, 4, 8, 16)
"""Of tensor, pipeline and sequence parallelism."""

ALIKE = 0.02
"""Relative difference of two times below which a forecast does not tell them apart."""

Changes = Mapping[str, Any]
"""Dotted recipe field -> value."""


@dataclass
class Choice:
    """What was planned."""

    fitting: list[Planned]
    """The fastest first."""
    others: list[Planned]
    """What does not fit; what needs least first."""
    refused: dict[str, str] = field(default_factory=dict)
    """Kind of strategy -> why the model or the recipe does not allow it."""

    @property
    def best(self) -> Planned | None:
        """The fastest that fits."""
        return self.fitting[0] if self.fitting else None


class Chooser:
    """Plans strategies of one recipe on one kind of device."""

    def __init__(self, subject: Subject, recipe: Recipe, world_size: int, place: Place) -> None:
        self.subject, self.recipe, self.world_size, self.place = subject, recipe, world_size, place
        self.planned: dict[str, Planned] = {}
        self.refused: dict[str, str] = {}
        self.possible: set[str] = set()
        self.untraceable: Untraceable | None = None

    def as_it_is(self) -> Planned:
        """The recipe's own strategy. Raises RecipeError and ModelError where it cannot run so, Untraceable as `choose`."""
        asked = traces_of(self.subject, self.recipe, self._target_of(self.recipe))
        self.subject.scales = True
        across = self._across_hosts() if self._is_spread else ()
        self.subject.foresee([*asked, *self._traces([*self._plain(), *across])])
        self.subject.scales = False
        return self._plan_of(self.recipe)

    def choose(self) -> Choice:
        """Plan what may be worth it, in waves: a later one only where those before leave a reason for it.

        Raises Untraceable where the model does not run without values.
        """
        self._plan(self._plain())
        if self._fitting():
            self._plan(self._across_hosts() if self._is_spread else ())
        else:
            self._plan(self._offloaded())
            # Where offloading makes room, cutting the model may be faster still; where it does not, cutting may make room.
            self._plan(self._divided(("pipeline",) if self._fitting() else ("tensor", "pipeline", "sequence")))
        if not self._fitting():
            self._plan(self._rounded())
        if self.untraceable is not None and not self.planned:
            raise self.untraceable
        fitting, unfit = self._exactly(self._fitting())
        others = sorted(
            [*unfit, *(plan for plan in self.planned.values() if not plan.fits())], key=lambda plan: plan.fullness
        )
        refused = {kind: why for kind, why in self.refused.items() if kind not in self.possible}
        return Choice(fitting, others, refused)

    def _exactly(self, fitting: list[Planned]) -> tuple[list[Planned], list[Planned]]:
        """`fitting` with its first one traced as it is, not from smaller micro-batches; and those that do not fit after all."""
        self.subject.scales = False
        unfit: list[Planned] = []
        for index, plan in enumerate(fitting):
            exact = self._plan_of(plan.recipe)
            if exact.fits():
                return [exact, *fitting[index + 1 :]], unfit
            unfit.append(exact)
        return [], unfit

    @property
    def _is_spread(self) -> bool:
        return self.world_size > self.place.devices_per_host

    def _fitting(self) -> list[Planned]:
        found = [plan for plan in self.planned.values() if plan.fits()]
        return sorted(found, key=lambda plan: (round(plan.seconds.total, 3), plan.memory.peak))

    def _plan(self, wave: Iterable[Changes]) -> None:
        self.subject.scales = True
        every = list(wave)
        self.subject.foresee(self._traces(every))
        for changes in every:
            self._one(changes)

    def _traces(self, wave: Iterable[Changes]) -> Iterator[tuple[Recipe, Mesh, Way]]:
        """What planning each of `wave` will ask for; what cannot be planned, planning it says why."""
        for changes in wave:
            with suppress(InputError):
                recipe = changed(self.recipe, {**NEUTRAL, **changes})
                for found, mesh, way in traces_of(self.subject, recipe, self._target_of(recipe)):
                    yield from ((sized, mesh, way) for sized in self.subject.sized(found))

    def _one(self, changes: Changes) -> None:
        try:
            plan = self._plan_of(changed(self.recipe, {**NEUTRAL, **changes}))
        except InputError as error:
            self.refused.setdefault(_kind(changes), error.what)
        except Untraceable as error:
            self.untraceable = error
            self.refused.setdefault(_kind(changes), str(error))
        else:
            self.possible.add(_kind(changes))
            # Two ways to say the same: one rank has nobody to share states with.
            same = (plan.config, plan.mesh, plan.recipe.model.model_dump(), plan.recipe.precision.model_dump())
            self.planned.setdefault(repr(same), plan)

    def _plan_of(self, recipe: Recipe) -> Planned:
        return plan_strategy(self.subject, recipe, self._target_of(recipe), self.place)

    def _target_of(self, recipe: Recipe) -> Target:
        return target_of(recipe, self.world_size, self.place)

    # Waves

    def _micro_sizes(self, replicas: int) -> list[int]:
        per_replica, left = divmod(self.recipe.batch.global_size, replicas)
        if left:
            return []
        return [size for size in _powers(LARGEST_MICRO) if per_replica % size == 0]

    def _plain(self) -> Iterator[Changes]:
        for stage, checkpointing, micro in product(
            self._stages(), self._checkpointing(), self._micro_sizes(self.world_size)
        ):
            yield _changes(stage, checkpointing, micro)

    def _stages(self) -> Sequence[int]:
        return (1, 2, 3) if self.world_size > 1 else (0, 2)

    def _checkpointing(self) -> Sequence[bool]:
        return (False, True) if self._can_checkpoint else (False,)

    @property
    def _can_checkpoint(self) -> bool:
        return bool(getattr(self.subject.whole.skeleton, "supports_gradient_checkpointing", False))

    def _offloaded(self) -> Iterator[Changes]:
        if self.place.hardware.is_cpu:
            return
        for stage, micro in product((2, 3), self._micro_sizes(self.world_size)):
            yield {**_changes(stage, self._can_checkpoint, micro), "parallel.offload_optimizer": "cpu"}
        places = ("cpu",) if self.recipe.parallel.nvme_path is None else ("cpu", "nvme")
        for place, micro in product(places, self._micro_sizes(self.world_size)):
            yield {**_changes(3, self._can_checkpoint, micro), **all_on(place)}
        for offload in ({}, {"parallel.offload_optimizer": "cpu"}):
            if self._can_checkpoint and self._micro_sizes(self.world_size):
                long = {"model.activation_offload": True, "model.mlp_tiles": 8}
                yield {**_changes(3, True, 1), **long, **offload}

    def _divided(self, axes: Sequence[str]) -> Iterator[Changes]:
        """The model cut along one of `axes`, and across hosts."""
        for name, degree in product((axis for axis in axes if axis in self.recipe.task.cuts), DEGREES):
            if self.world_size % degree or (name != "pipeline" and degree > self.place.devices_per_host):
                continue
            stages = (1,) if name == "pipeline" else (1, 3)
            for stage, micro in product(stages, self._micro_sizes(self.world_size // degree)):
                yield {**_changes(stage, self._can_checkpoint, micro), f"parallel.{name}": degree}
        yield from self._across_hosts()

    def _across_hosts(self) -> Iterator[Changes]:
        """Matrices divided within a host, whose links are fast, and layers or states among hosts."""
        cuts, inside = self.recipe.task.cuts, min(8, self.place.devices_per_host)
        if "tensor" not in cuts or inside == 1 or self.world_size % inside:
            return
        for stage, micro in product((1, 3), self._micro_sizes(self.world_size // inside)):
            yield {**_changes(stage, self._can_checkpoint, micro), "parallel.tensor": inside}
        for degree in DEGREES if "pipeline" in cuts else ():
            if self.world_size % (inside * degree) == 0:
                for micro in self._micro_sizes(self.world_size // (inside * degree)):
                    both = {"parallel.tensor": inside, "parallel.pipeline": degree}
                    yield {**_changes(1, self._can_checkpoint, micro), **both}

    def _rounded(self) -> Iterator[Changes]:
        """Weights and states in bf16: 6 bytes of states instead of 12."""
        formats = {"precision.master_dtype": "bf16", "precision.state_dtype": "bf16"}
        for stage, micro in product((2, 3), self._micro_sizes(self.world_size)):
            yield {**_changes(stage, self._can_checkpoint, micro), **formats}
        if not self.place.hardware.is_cpu:
            for micro in self._micro_sizes(self.world_size):
                yield {**_changes(3, self._can_checkpoint, micro), **formats, **all_on("cpu")}


NEUTRAL: Changes = {
    "parallel.tensor": 1,
    "parallel.pipeline": 1,
    "parallel.sequence": 1,
    "parallel.offload_optimizer": "none",
    "parallel.offload_param": "none",
    "parallel.offload_ratio": 1.0,
    "parallel.reduce_bucket_size": None,
    "parallel.overlap_comm": None,
    "parallel.param_persistence_threshold": None,
    "model.mlp_tiles": 1,
    "model.activation_offload": False,
}
"""What a strategy leaves as it is by default."""


def _changes(stage: int, checkpointing: bool, micro: int) -> dict[str, Any]:
    return {
        "parallel.zero_stage": stage,
        "model.activation_checkpointing": checkpointing,
        "batch.micro_size": micro,
    }


def all_on(place: str) -> dict[str, Any]:
    """Parameters and optimizer offloaded to `place`."""
    return dict.fromkeys(("parallel.offload_optimizer", "parallel.offload_param"), place)


def changed(recipe: Recipe, changes: Changes) -> Recipe:
    """`recipe` with `changes`; what it says besides and cannot act beside them goes back to its default.

    Raises RecipeError where they cannot be.
    """
    values = {**flat(recipe), **changes}
    try:
        return recipe_of(values)
    except InconsistentRecipe as error:
        parts = [part for part in error.parts if isinstance(part, EffectError)]
        idle = {field.name for part in parts for field in part.idle} - changes.keys()
        return recipe_of({name: value for name, value in values.items() if name not in idle})


def as_flags(changes: Changes) -> str:
    """How the command line says `changes`."""

    def flag(name: str, value: Any) -> str:
        if isinstance(value, bool):
            section, _, field = name.rpartition(".")
            return f"--{name}" if value else f"--{section}.no_{field}"
        return f"--{name} {value}"

    return " ".join(flag(name, value) for name, value in changes.items())


def changes_of(before: Recipe, after: Recipe) -> dict[str, Any]:
    """Fields in which `after` differs from `before`, and those that every strategy sets."""
    old, new = flat(before), flat(after)
    named = {"parallel.zero_stage", "model.activation_checkpointing", "batch.micro_size"}
    return {name: value for name, value in new.items() if name in old and (old[name] != value or name in named)}


def _powers(most: int) -> list[int]:
    return [1 << power for power in range(most.bit_length()) if 1 << power <= most]


def _kind(changes: Changes) -> str:
    for name in ("tensor", "pipeline", "sequence"):
        if changes.get(f"parallel.{name}", 1) > 1:
            return f"{name} parallelism"
    if changes.get("parallel.offload_optimizer", "none") != "none":
        return "offload"
    if "precision.state_dtype" in changes:
        return "states in bf16"
    return f"ZeRO stage {changes['parallel.zero_stage']}"


def describe(plan: Planned) -> str:
    """Such as "ZeRO-3, micro-batch 2, checkpointing, optimizer on the host"."""
    recipe, parallel = plan.recipe, plan.recipe.parallel
    words = [f"ZeRO-{parallel.zero_stage}" if plan.mesh.gradient_ranks > 1 or parallel.zero_stage else "one copy"]
    words += [
        f"{getattr(parallel, name)} {word}"
        for name, word in (("tensor", "tensor ranks"), ("pipeline", "stages"), ("sequence", "sequence ranks"))
        if getattr(parallel, name) > 1
    ]
    words.append(f"micro-batch {recipe.batch.micro_size}")
    words += ["checkpointing"] if recipe.model.activation_checkpointing else []
    words += ["layer inputs on the host"] if recipe.model.activation_offload else []
    words += [f"MLPs in {recipe.model.mlp_tiles} tiles"] if recipe.model.mlp_tiles > 1 else []
    if parallel.offload_param != "none":
        words.append(f"parameters and optimizer on {_place(parallel.offload_param)}")
    elif parallel.offload_optimizer != "none":
        words.append(f"optimizer on {_place(parallel.offload_optimizer)}")
    if recipe.precision.state_dtype != "fp32":
        words.append(f"{recipe.precision.state_dtype} states")
    return ", ".join(words)


def _place(offload: str) -> str:
    return "the host" if offload == "cpu" else "NVMe"


def strategy_of(plan: Planned) -> tuple[Any, ...]:
    """What tells strategies apart beside their micro-batch."""
    recipe, parallel = plan.recipe, plan.recipe.parallel
    return (
        parallel.zero_stage,
        parallel.tensor,
        parallel.pipeline,
        parallel.sequence,
        parallel.offload_optimizer,
        parallel.offload_param,
        recipe.model.activation_checkpointing,
        recipe.model.activation_offload,
        recipe.precision.state_dtype,
    )


def runner_up(choice: Choice) -> Planned | None:
    """The fastest that fits and is another strategy than the best one."""
    if choice.best is None:
        return None
    return next((plan for plan in choice.fitting[1:] if strategy_of(plan) != strategy_of(choice.best)), None)


def why_slower(best: Planned, other: Planned) -> str:
    """What `other` spends its longer step on."""
    names = ("compute", "communication", "optimizer", "offload", "bubble")
    more = {name: getattr(other.seconds, name) - getattr(best.seconds, name) for name in names}
    name = max(more, key=lambda part: more[part])
    words = {"compute": "computation", "bubble": "waiting of pipeline stages", "offload": "traffic with the host"}
    if other.seconds.total - best.seconds.total < ALIKE * best.seconds.total:
        return "as fast, and needs more memory" if other.memory.peak > best.memory.peak else "as fast"
    return f"{more[name]:.2f} s more of {words.get(name, name)} per step"


def faster_unfit(choice: Choice) -> Planned | None:
    """The fastest that does not fit, where it would beat the best one that does."""
    if not choice.others:
        return None
    fastest = min(choice.others, key=lambda plan: plan.seconds.total)
    return fastest if choice.best is None or fastest.seconds.total < choice.best.seconds.total else None
