"""What is planned: a recipe's model and task as far as they are known without data, weights or devices; traced once per way."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch.distributed as dist
from torch import nn

from toolkit.ds_config.model_size import ModelSize
from toolkit.ds_config.target import Device
from toolkit.engine.part import Part
from toolkit.errors import ToolkitError
from toolkit.heavy_imports import heavy_imports
from toolkit.models.adapter_plan import AdapterPlan, plan_adapters
from toolkit.models.attention_choice import choose_attention
from toolkit.models.config import load_config
from toolkit.models.kernels import are_taken
from toolkit.models.model_size import model_size
from toolkit.models.stages import build_skeleton
from toolkit.plan.inventory import Inventory, take_inventory
from toolkit.plan.side_by_side import side_by_side
from toolkit.plan.stand_in import stand_in_batch, task_without_data
from toolkit.plan.trace import Traced, Untraceable, Way, trace_activations
from toolkit.plan.whole import Whole
from toolkit.recipe import Recipe
from toolkit.recipe.mesh import Mesh
from toolkit.recipe.tuning import LoRA
from toolkit.tasks.base import Batch, Task


class _Key(NamedTuple):
    """What a trace depends on, beside the subject."""

    mesh: Mesh
    """Of the ranks that share a micro-batch."""
    way: Way
    micro_size: int
    sequence_length: int


@dataclass
class Subject:
    """A model and a task, whatever the strategy."""

    task: Task
    config: Any
    """Of the model, with its attention chosen."""
    adapters: AdapterPlan | None
    size: ModelSize
    batch: Batch | None = None
    """A real micro-batch; None: stand-ins are made."""
    batch_sizes: tuple[int, int] = (0, 0)
    """Its rows, and the sequence length of its recipe."""
    pair_share: float = 1.0
    """Pairs of tokens of one document, as a share of all pairs of tokens of one sequence."""
    filled: float = 1.0
    """Of the tokens of a whole micro-batch, those that it has on average, padding included."""
    target_share: float = 1.0
    """Of all tokens, those with loss."""
    scales: bool = False
    """Whether large micro-batches of stand-ins are reckoned from those of one and two sequences."""
    cores: int = 1
    """On which models are traced, in processes forked off this one."""
    _traces: dict[_Key, Traced] = field(default_factory=dict)
    _inventories: dict[Any, Inventory] = field(default_factory=dict)

    @cached_property
    def whole(self) -> Whole:
        """The whole model without weights."""
        return Whole(build_skeleton(self.task.auto_class, self.config))

    def trace(self, recipe: Recipe, mesh: Mesh, way: Way) -> Traced:
        """Activations of a micro-batch of `recipe` on a rank of `mesh`, of any number of layers.

        Raises Untraceable, and ModelError where the model cannot be divided so.
        """
        micro = recipe.batch.micro_size
        found = [self._one_trace(sized, mesh, way) for sized in self.sized(recipe)]
        return found[0] if len(found) == 1 else found[0].towards(found[1], micro - 1.0)

    def foresee(self, asked: Iterable[tuple[Recipe, Mesh, Way]]) -> None:
        """Trace side by side what `trace` will be asked for, of `sized` recipes; what fails is left to it."""
        if self.cores < 2:
            return
        missing: dict[_Key, Callable[[], Traced | None]] = {}
        for recipe, mesh, way in asked:
            key = self._key(recipe, mesh, way)
            if key not in self._traces and key not in missing:
                missing[key] = partial(self._traced_or_none, recipe, mesh, way)
        if len(missing) < 2:
            return
        if any(key.mesh.world_size > 1 for key in missing):
            _pretended_ranks()  # imported here, not in every fork
        self.whole.depths  # noqa: B018 - the same
        found = side_by_side(list(missing.values()), self.cores)
        self._traces.update((key, traced) for key, traced in zip(missing, found, strict=True) if traced is not None)

    def sized(self, recipe: Recipe) -> list[Recipe]:
        """`recipe`, or the two that its large micro-batch is reckoned from."""
        if self.scales and self.batch is None and recipe.batch.micro_size > 2:
            return [with_micro(recipe, size) for size in (1, 2)]
        return [recipe]

    def _key(self, recipe: Recipe, mesh: Mesh, way: Way) -> _Key:
        return _Key(_sharing(mesh), way, recipe.batch.micro_size, recipe.batch.sequence_length)

    def _one_trace(self, recipe: Recipe, mesh: Mesh, way: Way) -> Traced:
        key = self._key(recipe, mesh, way)
        if key not in self._traces:
            self._traces[key] = self._traced(recipe, mesh, way, self.cores)
        return self._traces[key]

    def _traced_or_none(self, recipe: Recipe, mesh: Mesh, way: Way) -> Traced | None:
        try:
            return self._traced(recipe, mesh, way, cores=1)
        except (ToolkitError, Untraceable):
            return None

    def _traced(self, recipe: Recipe, mesh: Mesh, way: Way, cores: int) -> Traced:
        batch = self._stand_in(recipe, mesh) if self.batch is None else self._real_batch(recipe)
        part = Part(self.task.auto_class, self.config, self.adapters, _sharing(mesh), 0)
        if part.mesh.world_size == 1:
            return trace_activations(part, self.task, batch, way, self.whole, cores)
        if dist.is_initialized():
            raise Untraceable("a plan of several ranks is made before they meet")
        with _pretended_ranks()(part.mesh.world_size):
            return trace_activations(part, self.task, batch, way, self.whole)

    def take_batch(self, batch: Batch, recipe: Recipe) -> None:
        """Plan with `batch`, the first micro-batch of `recipe`, and no longer with stand-ins."""
        self.batch, self.batch_sizes = batch, (recipe.batch.micro_size, recipe.batch.sequence_length)

    def _stand_in(self, recipe: Recipe, mesh: Mesh) -> Batch:
        """A micro-batch whose sequences the ranks of `mesh` can share. Raises Untraceable where only the data can tell."""
        sizes = recipe.batch
        return stand_in_batch(
            self.task,
            self.config,
            sizes.micro_size,
            -(-sizes.sequence_length // mesh.sequence) * mesh.sequence,
            packing=recipe.data.packing,
            keeps_base=recipe.tuning.keeps_base,
            target_share=self.target_share,
        )

    def _real_batch(self, recipe: Recipe) -> Batch:
        """`batch`, or its first rows. Raises Untraceable where such a batch cannot be made of it."""
        assert self.batch is not None
        micro, length = recipe.batch.micro_size, recipe.batch.sequence_length
        rows, its_length = self.batch_sizes
        if (micro, length) == (rows, its_length):
            return self.batch
        if micro > rows or length != its_length or any(len(value) != rows for value in self.batch.values()):
            raise Untraceable(f"only the data can tell what a micro-batch of {micro} is like")
        return {name: value[:micro] for name, value in self.batch.items()}

    @cached_property
    def prepared(self) -> nn.Module:
        """The skeleton with what the task leaves untrained frozen."""
        model = build_skeleton(self.task.auto_class, self.config)
        copy.copy(self.task).prepare(model)
        return model

    def inventory(self, mesh: Mesh, stage: int = 0) -> Inventory:
        """The parameters of a rank of pipeline stage `stage`. Raises ModelError where the model cannot be divided so."""
        key = (mesh.tensor, mesh.pipeline, stage)
        if key not in self._inventories:
            self._inventories[key] = take_inventory(self.whole, self.prepared, mesh, stage, adapters=self.adapters)
        return self._inventories[key]

    def layers_of(self, mesh: Mesh, stage: int) -> tuple[str, int, int]:
        """The stack, first layer and layer after the last of a pipeline stage."""
        cuts = self.whole.cuts(mesh)
        return cuts.outside.layers, *cuts.layers[stage]


def subject_of(recipe: Recipe) -> Subject:
    """What `recipe` trains, from its config alone. Raises Untraceable, and ModelError for a model that cannot be built."""
    task = task_without_data(recipe)
    config = task.own_config(recipe.model)
    if config is None:
        config = load_config(recipe.model, vocabulary_size=None, overrides=task.config_overrides())
        config._attn_implementation = choose_attention(
            task.auto_class, config, _without_kernels(recipe.model.attention)
        )
    try:
        task.meet(config, recipe.batch)
    except ToolkitError:
        raise
    except (AttributeError, TypeError) as error:
        raise Untraceable(f"task.name={recipe.task.name!r} needs its data and tokenizer") from error
    adapters = None
    if isinstance(recipe.tuning, LoRA):
        trains_head = task.trains_head or bool(task.config_overrides()) or task.new_head
        frozen_in = partial(task.frozen, beside_adapters=True)
        adapters = plan_adapters(task.auto_class, config, recipe.tuning, trains_head=trains_head, frozen_in=frozen_in)
    return Subject(task, config, adapters, model_size(task.auto_class, config, recipe.model.config, adapters))


def _sharing(mesh: Mesh) -> Mesh:
    """The ranks of `mesh` that share a micro-batch."""
    return Mesh(1, 1, mesh.sequence, mesh.tensor)


def _pretended_ranks() -> Callable[[int], Any]:
    """`pretended_ranks`, which imports DeepSpeed: that takes seconds."""
    with heavy_imports():
        from toolkit.engine.pretended import pretended_ranks
    return pretended_ranks


def with_micro(recipe: Recipe, size: int) -> Recipe:
    """`recipe` with `size` sequences in a micro-batch."""
    return recipe.model_copy(update={"batch": recipe.batch.model_copy(update={"micro_size": size})})


def _without_kernels(attention: str) -> Any:
    """transformers asks for the package of a flash implementation; its memory is that of the one which stands for it."""
    return "auto" if attention.startswith("flash") else attention


def way_of(recipe: Recipe, config: Any, dtype: Any, device: Device, *, has_head: bool) -> Way:
    """How `recipe` computes a micro-batch of a model of `config` on a `device` of a kind."""
    return Way(
        dtype,
        device,
        checkpointing=recipe.model.activation_checkpointing,
        offload=recipe.model.activation_offload and device != "cpu",
        tiles=recipe.model.mlp_tiles,
        attention=recipe.model.attention,
        packing=recipe.data.packing,
        neftune_alpha=getattr(recipe.task, "neftune_alpha", 0.0),
        fused=are_taken(recipe, config, device),
        has_head=has_head,
    )
