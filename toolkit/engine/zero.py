"""DeepSpeedEngine (ZeRO 0-3, offload) behind the protocol of `engine.protocol`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import deepspeed
import torch
from torch import nn

from toolkit.engine import device, process
from toolkit.engine import fragments as states
from toolkit.engine.experts import gather_experts_whole
from toolkit.engine.groups import inner_optimizer, parameter_groups, regroup_adagrad
from toolkit.engine.protocol import Batch, Losses, StepResult
from toolkit.engine.schedule import EngineSchedule
from toolkit.errors import RunFailed
from toolkit.recipe import Optimizer, Schedule

LossFunction = Callable[[nn.Module, Batch, float], torch.Tensor]
"""(model, batch, gradient scale) -> SUM of the losses of the batch's targets, a 0-dim fp32 tensor."""


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


class ZeroEngine:
    """Trains `model` by DeepSpeed's `config`. One instance per process; every method is collective."""

    def __init__(
        self,
        model: nn.Module,
        config: Mapping[str, Any],
        *,
        process: process.Process,
        optimizer: Optimizer,
        schedule: Schedule,
        total_steps: int,
        loss: LossFunction,
        count: Callable[[Batch], int],
        higher_is_better: bool = False,
    ) -> None:
        self.process, self.loss, self.count = process, loss, count
        if config["zero_optimization"]["stage"] == 3:
            gather_experts_whole(model)
        self._callee = Callee(model)
        self.engine, *_ = deepspeed.initialize(
            model=self._callee,
            model_parameters=parameter_groups(model, optimizer),
            config=dict(config),
            dist_init_required=False,
        )
        regroup_adagrad(self.engine)
        self._norm_is_true = optimizer.type != "muon"
        block = self.engine.lr_scheduler if "scheduler" in config else None
        self.schedule = EngineSchedule(schedule, total_steps, inner_optimizer(self.engine), block, higher_is_better)
        self.engine.lr_scheduler = self.schedule
        self._is_fp16 = "fp16" in config
        self._skipped_in_a_row = 0

    @property
    def model(self) -> nn.Module:
        """The Hugging Face model."""
        return self._callee.model

    @property
    def loss_scale(self) -> float | None:
        """fp16's loss scale; None in other formats."""
        return float(self.engine.optimizer.loss_scale) if self._is_fp16 else None

    def train_step(self, micro_batches: Sequence[Batch], seeds: Sequence[int]) -> StepResult:
        """One optimizer step over this rank's micro-batches. Loss is the mean over the targets of the global batch.

        `seeds[i]` seeds dropout and noise of micro-batch i. Raises RunFailed when the loss is not finite, before the
        weights are touched, and when fp16 overflows at the smallest loss scale.
        """
        self.engine.train()
        targets = process.sum_over_ranks([sum(self.count(batch) for batch in micro_batches)])[0]
        # ZeRO averages gradients over ranks: times world size, the sum over ranks of sums over targets is their mean.
        weight = self.process.world_size / max(1.0, targets)
        rate = self.schedule.learning_rate
        scale = self.loss_scale
        total = torch.zeros((), dtype=torch.float64, device=device.current())
        for index, (batch, seed) in enumerate(zip(micro_batches, seeds, strict=True)):
            torch.manual_seed(seed)
            loss = self.engine(self.loss, _to_device(batch), weight * (scale or 1.0))
            total += loss.detach().double()
            # Our weight already holds the accumulation; DeepSpeed must not divide again.
            self.engine.backward(loss * weight, scale_wrt_gas=False)
            if index < len(micro_batches) - 1:
                self.engine.step()
        mean = process.sum_over_ranks([float(total)])[0] / max(1.0, targets)
        self._check_finite("loss", mean)
        norm = self._plain_norm()
        if norm is not None:
            self._check_finite("grad_norm", norm)
        self._step()
        if norm is None and self._norm_is_true:
            norm = float(self.engine.get_global_grad_norm())
        skipped = not self.engine.was_step_applied()
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if skipped else 0
        if self._skipped_in_a_row == MOST_SKIPPED:
            self._check_finite("grad_norm", math.inf)
        return StepResult(
            loss=mean, grad_norm=norm, learning_rate=rate, targets=int(targets), loss_scale=scale, skipped=skipped
        )

    def _check_finite(self, name: str, value: float) -> None:
        # fp16 answers an overflow with a smaller loss scale; _step tells when that has an end.
        if not math.isfinite(value) and not self._is_fp16:
            raise RunFailed(
                f"{name}={value} at this step",
                expected=f"a finite {name.replace('_', ' ')}",
                do="lower optimizer.learning_rate, lengthen schedule.warmup_steps, set optimizer.max_grad_norm=1.0, "
                "or look at the data with --preview; continue from the last checkpoint with --resume auto",
            )

    def _plain_norm(self) -> float | None:
        # fp32 at stage 0 is the one engine that clips without telling the norm. Gradients are already averaged here.
        if hasattr(self.engine.optimizer, "optimizer"):
            return None
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))

    def _step(self) -> None:
        try:
            self.engine.step()
        except Exception as error:
            # DeepSpeed raises a bare Exception (runtime/fp16/loss_scaler.py).
            if "loss scale already at minimum" not in str(error):
                raise
            raise RunFailed(
                f"the fp16 loss scale fell to precision.min_loss_scale and gradients still overflow (last scale {self.loss_scale:g})",
                expected="gradients that fit into fp16",
                do="set precision.dtype='bf16' (weights trained in bf16 often overflow in fp16), lower optimizer.learning_rate, "
                "or set precision.dtype='fp32'",
            ) from None

    def evaluate(self, batches: Iterator[Batch], function: Callable[[nn.Module, Batch], Losses]) -> Losses:
        """Sums over all ranks of what `function` returns for each batch, without gradients and dropout."""
        self.engine.eval()
        sums: dict[str, float] = {}
        with torch.no_grad():
            for batch in batches:
                for key, value in self.engine(function, _to_device(batch))["result"].items():
                    sums[key] = sums.get(key, 0.0) + float(value)
        keys = sorted(set().union(*process.gather_objects(sorted(sums))))
        totals = process.sum_over_ranks([sums.get(key, 0.0) for key in keys])
        self.engine.train()
        return dict(zip(keys, totals, strict=True))

    def observe(self, metric: float) -> None:
        """Tell the schedule an evaluation's metric (reduce_on_plateau listens)."""
        self.schedule.observe(metric)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """`function(model, *arguments)` in evaluation mode, on every rank alike (generation, for instance)."""
        self.engine.eval()
        with torch.no_grad():
            result = self.engine(function, *arguments)["result"]
        self.engine.train()
        return result

    def fragments(self) -> Iterator[states.Fragment]:
        """The fp32 weights and optimizer states that this rank writes to a checkpoint."""
        rank, world = self.process.rank, self.process.world_size
        for fragment in states.fragments(self._named):
            mine = states.owned(fragment, self.engine, rank, world)
            if mine is not None:
                yield mine

    def restore(self, read: states.Read, read_scalars: states.ReadScalars) -> None:
        """Take weights and optimizer states from a checkpoint of any topology."""
        states.restore(self._named, read, read_scalars)

    @property
    def _named(self) -> Any:
        return _Named(self.engine, self.model)

    def shapes(self) -> dict[str, list[int]]:
        """Whole shape of every trainable parameter, by Hugging Face name."""
        return states.parameter_shapes(self.model)

    def state(self) -> dict[str, Any]:
        """JSON-able state beside the tensors: schedule and loss scaler, equal on every rank."""
        state: dict[str, Any] = {"schedule": self.schedule.state_dict()}
        if self._is_fp16:
            scaler = self.engine.optimizer.loss_scaler
            state["loss_scaler"] = {name: getattr(scaler, name) for name in SCALER_STATE}
        return state

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `state()`; a loss scale is taken over only where this run has one."""
        self.schedule.load_state_dict(state["schedule"])
        if self._is_fp16:
            scaler = self.engine.optimizer.loss_scaler
            for name, value in state.get("loss_scaler", {}).items():
                setattr(scaler, name, value)

    def close(self) -> None:
        """Free what DeepSpeed holds (hooks, swap files)."""
        self.engine.destroy()


MOST_SKIPPED = 5
"""Steps in a row that DeepSpeed may leave out, in fp32 and bf16, because a gradient was not finite."""

SCALER_STATE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class _Named:
    """An engine whose `module` is the Hugging Face model, so that parameter names carry no prefix."""

    def __init__(self, engine: Any, model: nn.Module) -> None:
        self.optimizer, self.module = engine.optimizer, model


def _to_device(batch: Batch) -> Batch:
    return {key: value.to(device.current(), non_blocking=True) for key, value in batch.items()}
