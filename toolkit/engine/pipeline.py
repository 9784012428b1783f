"""PipelineEngine (stages of a stock model, ZeRO 0-1) behind the protocol of `engine.protocol`.

Every rank knows the micro-batches of its replica, so only hidden states travel between stages: positions, masks, targets
and seeds are taken from the rank's own copy, in the order in which the schedule runs its forward passes. What of a
micro-batch the model is called with is for the task to say (`Training.inputs`); the last stage's loss sees all of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.pipe import LayerSpec, PipelineModule
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology
from torch import nn

from toolkit.engine import device, process
from toolkit.engine import fragments as states
from toolkit.engine.base import DeepSpeedRun, Training, total_losses
from toolkit.engine.groups import client_optimizer, parameter_groups
from toolkit.engine.known_shapes import KnownShapes
from toolkit.engine.lean import keep_once
from toolkit.engine.protocol import Batch, Found, Losses, StepResult
from toolkit.engine.relay import relayed
from toolkit.engine.seeds import part_seed
from toolkit.engine.staged_model import StagedModel
from toolkit.errors import ModelError
from toolkit.library_messages import prints_held
from toolkit.models.attention import tell_documents
from toolkit.models.decoding import GenerationSettings, generate
from toolkit.models.stages import base_states, tied_parameters

EVALUATED_AT_ONCE = 32
"""Micro-batches of one evaluation schedule: they bound how many are held in memory."""

LastStage = Callable[[nn.Module, Batch], torch.Tensor]
"""What the last stage makes of a micro-batch: a 0-dim tensor."""


class Stage(nn.Module):
    """One stage as a layer of DeepSpeed's pipeline: hidden states in, hidden states out; the last one gives the loss."""

    def __init__(self, model: nn.Module, is_first: bool, is_last: bool, inputs: Callable[[Batch], Batch]) -> None:
        super().__init__()
        self.model, self.is_first, self.is_last, self.inputs = model, is_first, is_last, inputs
        self._queue: Iterator[tuple[Batch, int | None]] = iter(())
        self._finish: LastStage | None = None

    def load(self, micro_batches: Sequence[Batch], seeds: Sequence[int | None], finish: LastStage) -> None:
        """Set what the next forward passes run on."""
        self._queue, self._finish = iter(list(zip(micro_batches, seeds, strict=True))), finish

    def forward(self, received: torch.Tensor) -> torch.Tensor:
        """received: the model's main input on the first stage (tokens [B, T]), hidden states [B, T, D] on the others."""
        batch, seed = next(self._queue)
        if seed is not None:
            torch.manual_seed(seed)
        if not self.is_first:
            batch = {**batch, "inputs_embeds": received}
        if self.is_last and self._finish is not None:
            return self._finish(self.model, batch)
        told = tell_documents(self.model, self.inputs(batch))
        hidden: torch.Tensor = base_states(self.model, told)
        return hidden


class _Pipeline(PipelineModule):  # type: ignore[misc]
    """DeepSpeed's pipeline of one layer per stage, of which this rank has one."""

    def __init__(self, stage: Stage, topology: Any, tied: list[tuple[nn.Parameter, dist.ProcessGroup]]) -> None:
        self.tied = tied
        # Only this rank's entry of the list is ever built.
        layers = [LayerSpec(_the, stage)] * topology.get_dim("pipe")
        super().__init__(layers, topology=topology, partition_method="uniform", dynamic_shape=True)

    def get_tied_weights_and_groups(self) -> list[tuple[Any, dist.ProcessGroup]]:
        """What DeepSpeed sums between the stages that share a weight, before it reduces over replicas."""
        return [(_Tied(parameter), group) for parameter, group in self.tied]


class _the(nn.Module):
    """LayerSpec calls a class; this one gives back the module that exists already."""

    def __new__(cls, module: nn.Module) -> nn.Module:  # type: ignore[misc]
        return module


class _Tied:
    """A parameter whose gradient DeepSpeed finds also where fp16 with fp32 accumulation keeps it."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self._parameter = parameter

    @property
    def grad(self) -> torch.Tensor | None:
        accumulated: torch.Tensor | None = getattr(self._parameter, "grad_accum", None)
        return self._parameter.grad if accumulated is None else accumulated

    @property
    def _hp_grad(self) -> torch.Tensor | None:
        gradient: torch.Tensor | None = self._parameter._hp_grad  # type: ignore[attr-defined]
        return gradient


class PipelineEngine(DeepSpeedRun):
    """Trains a stage of a model by DeepSpeed's `config`. One instance per process; every method is collective."""

    def __init__(
        self, model: nn.Module, config: Mapping[str, Any], process: process.Process, training: Training
    ) -> None:
        super().__init__(model, process, training)
        assert self.grid is not None, "a pipeline has more than one rank"
        self.index = self.mesh.coordinate(process.rank, "pipeline")
        is_last = self.index == self.mesh.pipeline - 1
        self.stage = Stage(model, self.index == 0, is_last, training.inputs)
        self.copies = set(tied_parameters(model)) if is_last else set()
        with prints_held("deepspeed"):
            pipeline = _Pipeline(self.stage, self._topology(), self._tied(model))
        for name, parameter in model.named_parameters():
            # Counted once in the gradient norm: DeepSpeed passes over those it takes for copies.
            parameter.ds_pipe_replicated = name in self.copies  # type: ignore[attr-defined]
        groups = parameter_groups(model, training.optimizer)
        _check_alike(len(groups))
        engine, *_ = deepspeed.initialize(
            model=pipeline,
            optimizer=client_optimizer(config, training.optimizer),
            model_parameters=groups,
            config=dict(config),
            dist_init_required=False,
        )
        keep_once(engine.optimizer)
        self._adopt(engine, config)
        self._hidden = KnownShapes(engine)
        self._shapes = self._gather_shapes()
        self.staged = StagedModel(self.stage, self.mesh, process.rank, self.grid.pipeline)

    def _topology(self) -> Any:
        mesh = self.mesh
        return PipeModelDataParallelTopology(num_pp=mesh.pipeline, num_mp=mesh.tensor, num_dp=mesh.data)

    def _tied(self, model: nn.Module) -> list[tuple[nn.Parameter, dist.ProcessGroup]]:
        """Parameters that first and last stage both hold, with the group of the two."""
        assert self.grid is not None
        group = self.grid.ends
        if group is None:
            return []
        tied = [model.get_parameter(name) for name in tied_parameters(model)]
        return [(parameter, group) for parameter in tied if parameter.requires_grad]

    def _gather_shapes(self) -> dict[str, list[int]]:
        shapes: dict[str, list[int]] = {}
        for found in process.gather_objects(states.parameter_shapes(self.model)):
            shapes |= found
        return shapes

    def train_step(self, micro_batches: Sequence[Batch], seeds: Sequence[int]) -> StepResult:
        """One optimizer step over this replica's micro-batches. Loss is the mean over the targets of the global batch.

        `seeds[i]` seeds dropout and noise of micro-batch i. Raises RunFailed when the loss is not finite, which is
        known only after the update has changed the weights, and when fp16 overflows at the smallest loss scale.
        """
        targets = self._count(micro_batches)
        batches = list(self._feed(micro_batches))
        # DeepSpeed averages over replicas and divides by the number of micro-batches.
        weight = self.mesh.data / max(1.0, targets)
        rate, scale = self.schedule.learning_rate, self.loss_scale
        self._begin_step()

        def finish(model: nn.Module, batch: Batch) -> torch.Tensor:
            return self._loss(model, batch, weight * (scale or 1.0)) * (weight * len(batches))

        self._hidden.expect([batch[self.main].shape for batch in batches])
        self.stage.load(batches, [part_seed(seed, self.mesh, self.process.rank) for seed in seeds], finish)
        self._guarded(lambda: self.engine.train_batch(self._pulled(batches)))
        mean, logged = self._step_means(targets, self.mesh.tensor, None)
        return self._finish_step(mean, None, rate, targets, scale, logged)

    @property
    def main(self) -> str:
        """Name of the input in whose place later stages have hidden states."""
        name: str = self.model.main_input_name  # type: ignore[assignment]
        return name

    def _pulled(self, batches: Sequence[Batch]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """What the first and the last stage pull for DeepSpeed's sake: the stages have the batches already."""
        return ((batch[self.main], batch[self.main]) for batch in batches)

    def evaluate(self, batches: Iterator[Batch], function: Callable[[nn.Module, Batch], Found]) -> Losses:
        """Sums over all ranks of what `function` returns for each batch, without gradients and dropout."""
        sums: dict[str, float] = {}

        def finish(model: nn.Module, batch: Batch) -> torch.Tensor:
            for key, value in function(model, batch).items():
                sums[key] = sums.get(key, 0.0) + float(value) / self.mesh.tensor
            return torch.zeros((), device=device.current())

        while some := list(self._feed(itertools.islice(batches, EVALUATED_AT_ONCE))):
            self._hidden.expect([batch[self.main].shape for batch in some])
            self.stage.load(some, [None] * len(some), finish)
            self.engine.eval_batch(
                self._pulled(some), reduce_output=None, bcast_loss=False, num_micro_batches=len(some)
            )
        return total_losses(sums)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """`function(model, *arguments)` in evaluation mode on every rank alike; the model runs through all stages."""
        self.engine.module.eval()
        with torch.no_grad(), self._calling(self.staged):
            result = function(self.staged, *arguments)
        self.engine.module.train()
        return result

    def _decode(self, model: nn.Module, batch: Batch, settings: GenerationSettings) -> list[list[int]]:
        assert self.grid is not None, "a pipeline has more than one rank"
        with relayed(self.stage.model, self.grid.pipeline) as use_cache:
            return generate(self.stage.model, batch, settings, agree=self._same_tokens, use_cache=use_cache)

    def shapes(self) -> dict[str, list[int]]:
        """Whole shape of every trainable parameter of all stages, by Hugging Face name."""
        return self._shapes

    def _is_copy(self, fragment: states.Fragment) -> bool:
        return fragment.name in self.copies or super()._is_copy(fragment)


def _check_alike(num_groups: int) -> None:
    """Raise ModelError where stages have different kinds of parameters to train. Collective."""
    if len(set(process.gather_objects(num_groups))) > 1:
        # stage_1_and_2.py, scaled_global_norm: a collective over the stages for each group, which some would wait in.
        raise ModelError(
            "some pipeline stages train vectors (norm weights, biases) beside matrices, others do not",
            expected="stages that all do, or none of them",
            do="leave modules with vectors out of tuning.modules_to_save, or set parallel.pipeline=1",
        )
