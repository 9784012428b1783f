"""DeepSpeedEngine (ZeRO 0-3, offload; with tensor or sequence parallelism) behind the protocol of `engine.protocol`."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import deepspeed
import torch
from torch import nn

from toolkit.engine import process
from toolkit.engine.base import DeepSpeedRun, Training, total_losses
from toolkit.engine.experts import gather_experts_whole
from toolkit.engine.groups import client_optimizer, parameter_groups
from toolkit.engine.lean import keep_once
from toolkit.engine.protocol import Batch, Found, Losses, StepResult
from toolkit.engine.seeds import part_seed
from toolkit.engine.sequence import SequenceAttention, whole_sequences
from toolkit.engine.tensor import gradient_norm
from toolkit.models.decoding import GenerationSettings, generate

Split = Callable[[Batch, int, int], Batch]
"""(batch, index, count) -> the part of each sequence that rank `index` of `count` computes."""


class Callee(nn.Module):
    """Runs a function on the model inside one forward call of DeepSpeed's engine.

    ZeRO-3 hangs its hooks on modules and resets its bookkeeping when the outermost one is called, so whatever touches
    the weights (loss, evaluation, generation) must go through here. Parameter names gain no prefix in checkpoints:
    they are taken from `model`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        result = function(self.model, *arguments)
        # ZeRO-3 looks for tensors inside whatever comes out, and chokes on a string or a number.
        return result if torch.is_tensor(result) else {"result": result}


class ZeroEngine(DeepSpeedRun):
    """Trains `model` by DeepSpeed's `config`. One instance per process; every method is collective."""

    def __init__(
        self,
        model: nn.Module,
        config: Mapping[str, Any],
        process: process.Process,
        training: Training,
        *,
        split: Split,
        attention: SequenceAttention | None = None,
    ) -> None:
        super().__init__(model, process, training)
        self.split, self.attention = split, attention
        if config["zero_optimization"]["stage"] == 3:
            gather_experts_whole(model)
        engine, *_ = deepspeed.initialize(
            model=Callee(model),
            optimizer=client_optimizer(config, training.optimizer),
            model_parameters=parameter_groups(model, training.optimizer),
            config=dict(config),
            mpu=self.grid,
            dist_init_required=False,
        )
        keep_once(engine.optimizer)
        self._adopt(engine, config)
        self._norm = 0.0
        # Only stage 0 in fp32 calls it. DeepSpeed's own takes the norm in fp32 (see engine/tensor.py, gradient_norm).
        engine.clip_fp32_gradients = self._clip

    def train_step(self, micro_batches: Sequence[Batch], seeds: Sequence[int]) -> StepResult:
        """One optimizer step over this rank's micro-batches. Loss is the mean over the targets of the global batch.

        `seeds[i]` seeds dropout and noise of micro-batch i. Raises RunFailed when the loss is not finite, before the
        weights are touched, and when fp16 overflows at the smallest loss scale.
        """
        self.engine.train()
        micro_batches = [self._mine(batch) for batch in micro_batches]
        targets = self._count(micro_batches)
        # ZeRO averages gradients over ranks: times their number, the sum over ranks of sums over targets is their mean.
        weight = self.mesh.gradient_ranks / max(1.0, targets)
        rate = self.schedule.learning_rate
        scale = self.loss_scale
        if self.training.survey is not None:
            self.training.survey.take(self._sums_of(micro_batches, self.training.survey.look))
        compared = self._compared(micro_batches, seeds)
        self._begin_step()
        for index, (batch, seed) in enumerate(zip(self._feed(micro_batches), seeds, strict=True)):
            torch.manual_seed(part_seed(seed, self.mesh, self.process.rank))
            loss = self.engine(self._loss, batch | compared[index], weight * (scale or 1.0))
            # Our weight already holds the accumulation; DeepSpeed must not divide again.
            self.engine.backward(loss * weight, scale_wrt_gas=False)
            if index < len(micro_batches) - 1:
                self.engine.step()
        mean, logged = self._step_means(targets, 1, self._replicas)
        norm = self._plain_norm()
        if norm is not None:
            self._check_finite("grad_norm", norm)
        self._guarded(self.engine.step)
        return self._finish_step(mean, norm, rate, targets, scale, logged)

    def _compared(self, micro_batches: Sequence[Batch], seeds: Sequence[int]) -> list[Batch]:
        """What the loss of each micro-batch needs of the others: seen without gradients, under the same dropout."""
        if self.training.comparison is None:
            return [{} for _ in micro_batches]
        found = []
        with torch.no_grad():
            for batch, seed in zip(self._feed(micro_batches), seeds, strict=True):
                torch.manual_seed(part_seed(seed, self.mesh, self.process.rank))
                found.append(self.engine(self.training.comparison.look, batch)["result"])
        return self.training.comparison.of_each(found)

    def _plain_norm(self) -> float | None:
        # fp32 at stage 0 is the one engine that clips without telling the norm. Gradients are already averaged here.
        if hasattr(self.engine.optimizer, "optimizer"):
            return None
        group = self.grid.tensor if self.mesh.tensor > 1 and self.grid is not None else None
        self._norm = gradient_norm(self.model, group)
        return self._norm

    def _clip(self) -> None:
        # As torch.nn.utils.clip_grad_norm_ does.
        factor = self.engine.gradient_clipping() / (self._norm + 1e-6)
        if factor < 1.0:
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)

    def _mine(self, batch: Batch) -> Batch:
        """What this rank computes of a micro-batch of its replica."""
        if self.attention is not None:
            batch = self.attention.with_positions(batch)
            batch = self.split(batch, self.mesh.coordinate(self.process.rank, "sequence"), self.mesh.sequence)
        return batch

    def evaluate(self, batches: Iterator[Batch], function: Callable[[nn.Module, Batch], Found]) -> Losses:
        """Sums over all ranks of what `function` returns for each batch, without gradients and dropout."""
        return self._sums_of(map(self._mine, batches), function)

    def _sums_of(self, batches: Iterable[Batch], function: Callable[[nn.Module, Batch], Found]) -> Losses:
        """As `evaluate`, of batches that are this rank's part already."""
        self.engine.eval()
        sums: dict[str, float] = {}
        with torch.no_grad():
            for batch in self._feed(batches):
                for key, value in self.engine(function, batch)["result"].items():
                    sums[key] = sums.get(key, 0.0) + float(value)
        self.engine.train()
        return total_losses(sums, self.mesh.tensor)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """`function(model, *arguments)` in evaluation mode, on every rank alike (generation, for instance)."""
        self.engine.eval()
        with torch.no_grad(), whole_sequences(self.attention), self._calling(self.model):
            result = self.engine(function, *arguments)["result"]
        self.engine.train()
        return result

    def _decode(self, model: nn.Module, batch: Batch, settings: GenerationSettings) -> list[list[int]]:
        # Ranks that gather weights from each other run as many forward passes. transformers cannot see that they do.
        in_step = self.engine.zero_optimization_stage() == 3 and self.process.world_size > 1
        return generate(model, batch, settings, in_step=in_step, agree=self._same_tokens)

    def close(self) -> None:
        """Free what DeepSpeed holds (hooks), and the disk: this rank's swap files, which no other run can use."""
        swappers = [getattr(self.engine.optimizer, "optimizer_swapper", None)]
        swappers += [getattr(parameter, "nvme_swapper", None) for parameter in self.model.parameters()]
        folders = {swapper.swap_folder for swapper in swappers if swapper is not None}
        super().close()
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
