"""What the ZeRO engine and the pipeline engine share: the step's books, the schedule, the state that is saved."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from toolkit.engine import device, process
from toolkit.engine import fragments as states
from toolkit.engine.advice import ADVICE
from toolkit.engine.average import WeightAverage
from toolkit.engine.batch_norm import Mode as BatchNormMode
from toolkit.engine.batch_norm import batch_norm_statistics
from toolkit.engine.comparison import Comparison
from toolkit.engine.feed import Feed, on_device
from toolkit.engine.grid import Grid, release
from toolkit.engine.groups import inner_optimizer, regroup_adagrad, share_hyperparameters
from toolkit.engine.norm import NormReader
from toolkit.engine.own_buffers import OwnBuffers
from toolkit.engine.protocol import Batch, Found, Losses, StepResult
from toolkit.engine.relay import SameTokens
from toolkit.engine.schedule import EngineSchedule
from toolkit.engine.stopwatch import OPTIMIZER, Stopwatch
from toolkit.errors import RunFailed
from toolkit.models.decoding import GenerationSettings
from toolkit.recipe import Optimizer, Schedule
from toolkit.tasks.base import Loss

LossFunction = Callable[[nn.Module, Batch, float], Loss]
"""(model, batch, gradient scale) -> what the batch's targets give."""

MOST_SKIPPED = 5
"""Steps in a row that DeepSpeed may leave out, in fp32 and bf16, because a gradient was not finite."""

SCALER_STATE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


@dataclass(frozen=True)
class Survey:
    """A pass over a step's micro-batches, without gradients, before any of them is trained."""

    look: Callable[[nn.Module, Batch], Found]
    """Sums over a micro-batch."""
    take: Callable[[Losses], None]
    """Is told the sums over the global batch."""


@dataclass(frozen=True)
class Training:
    """What an engine is to do with a model, whichever engine it is."""

    optimizer: Optimizer
    schedule: Schedule
    total_steps: int
    loss: LossFunction
    count: Callable[[Batch], int]
    """Targets of a batch that lies on the CPU."""
    inputs: Callable[[Batch], Batch]
    """What of a batch the model is called with."""
    higher_is_better: bool = False
    """Of the metric that a schedule may listen to."""
    logged: tuple[str, ...] = ()
    """Names of the further sums that `loss` gives."""
    adds_loss: bool = False
    """Whether `loss` may add something that is trained besides the losses of the targets."""
    comparison: Comparison | None = None
    """What `loss` finds in its batch besides, where an example's loss depends on the others of the global batch."""
    survey: Survey | None = None
    """What `loss` needs to know of the whole global batch; None: nothing."""
    batch_norm: BatchNormMode = "micro_batch"
    """How batch norms compute, where the model has any."""
    moves_buffers: bool = False
    """Whether the model may itself change its other buffers."""


@dataclass(frozen=True)
class _Logged:
    """Means over the targets of a step, besides their loss."""

    added: float | None
    means: Mapping[str, float]


class DeepSpeedRun:
    """A DeepSpeed engine in training. One instance per process; every method is collective."""

    engine: Any
    """DeepSpeedEngine or its subclass PipelineEngine."""

    def __init__(self, model: nn.Module, process: process.Process, training: Training) -> None:
        self._model, self.process, self.training = model, process, training
        self.mesh = process.mesh
        self.grid = None if self.mesh.is_plain else Grid(self.mesh, process.rank)
        self._norm_is_true = training.optimizer.type != "muon"
        self._skipped_in_a_row = 0
        self._feed = Feed()
        self._whole: nn.Module | None = None
        self.statistics = batch_norm_statistics(model, training.batch_norm)
        """Of the model's batch norms; None where it has none."""
        self.own_buffers = OwnBuffers(model) if training.moves_buffers else None
        self._average: WeightAverage | None = None
        self._sums: list[torch.Tensor] = []
        """Of the step so far, over this rank's micro-batches: losses of the targets, what was added, training.logged."""

    def _adopt(self, engine: Any, config: Mapping[str, Any]) -> None:
        """Take over the engine that DeepSpeed has made."""
        self.engine = engine
        regroup_adagrad(engine)
        share_hyperparameters(engine)
        block = engine.lr_scheduler if "scheduler" in config else None
        training, optimizer = self.training, inner_optimizer(engine)
        self.schedule = EngineSchedule(
            training.schedule, training.total_steps, optimizer, block, training.higher_is_better
        )
        engine.lr_scheduler = self.schedule
        self._norm_reader = NormReader(engine, optimizer)
        self._is_fp16 = "fp16" in config
        self._initial_scale_power = config["fp16"]["initial_scale_power"] if self._is_fp16 else None
        if self.statistics is not None:
            self.statistics.keep_exact()
        if training.optimizer.ema_decay:
            self._average = WeightAverage(self._named, training.optimizer.ema_decay, lambda: self._moving)

    @property
    def _moving(self) -> dict[str, torch.Tensor]:
        """Buffers that training changes, by name."""
        found = {} if self.statistics is None else dict(self.statistics.tensors())
        return found if self.own_buffers is None else found | dict(self.own_buffers.tensors())

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Compute with the averages of the weights for a while, where the run keeps any. Collective."""
        with nullcontext() if self._average is None else self._average.in_use():
            yield

    def time(self, stopwatch: Stopwatch) -> None:
        """Book the optimizer's part of every step (clipping, update, learning rate) on `stopwatch` from now on."""
        # Both engines of DeepSpeed end a step in this method.
        self.engine._take_model_step = stopwatch.timed(OPTIMIZER, self.engine._take_model_step)

    @property
    def model(self) -> nn.Module:
        """The Hugging Face model, or this rank's stage of it."""
        return self._model

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """`function(model, *arguments)` without gradients and dropout, on every rank alike."""
        raise NotImplementedError

    def _decode(self, model: nn.Module, batch: Batch, settings: GenerationSettings) -> list[list[int]]:
        """Generate with `model`, inside a call."""
        raise NotImplementedError

    def generate(self, batch: Batch, settings: GenerationSettings) -> list[list[int]]:
        """Answers to the rows of `batch`: see `toolkit.models.decoding.Generate`. May be used inside `call`, too.

        Every rank must take part, with as many batches as the others; ranks of one replica with the same rows.
        """
        batch = on_device(batch)
        if self._whole is not None:
            return self._decode(self._whole, batch, settings)
        found: list[list[int]] = self.call(self._decode, batch, settings)
        return found

    @contextmanager
    def _calling(self, model: nn.Module) -> Iterator[None]:
        """Remember, for a while, that a call is in progress, and what it sees as the model."""
        self._whole = model
        try:
            yield
        finally:
            self._whole = None

    @property
    def _same_tokens(self) -> SameTokens | None:
        """Makes ranks that compute the same rows choose the same tokens; None where each rank computes alone."""
        if self.grid is None or self.mesh.tensor * self.mesh.pipeline == 1:
            return None
        return SameTokens(self.grid.model, self.mesh.tensor)

    @property
    def _replicas(self) -> dist.ProcessGroup | None:
        """The group of the ranks that compute different examples; None for all."""
        return self.grid.replicas if self.grid is not None else None

    @property
    def loss_scale(self) -> float | None:
        """fp16's loss scale; None in other formats."""
        return float(self.engine.optimizer.loss_scale) if self._is_fp16 else None

    def _begin_step(self) -> None:
        self._sums = [torch.zeros((), dtype=torch.float64, device=device.current()) for _ in range(self._num_sums)]

    @property
    def _num_sums(self) -> int:
        return 2 + len(self.training.logged)

    def _loss(self, model: nn.Module, batch: Batch, gradient_scale: float) -> torch.Tensor:
        """What the gradient of a micro-batch is taken of; its sums are booked."""
        loss = self.training.loss(model, batch, gradient_scale)
        values = (loss.total, loss.added, *(loss.sums[name] for name in self.training.logged))
        for total, value in zip(self._sums, values, strict=True):
            total += value.detach().double() if torch.is_tensor(value) else value
        return loss.trained

    def _step_means(self, targets: float, copies: int, group: dist.ProcessGroup | None) -> tuple[float, _Logged]:
        """Loss of a target in the global batch, and the other means; `copies` ranks of `group` compute the same."""
        sums = self._read([value / copies for value in self._sums], group)
        loss, added, *others = (value / max(1.0, targets) for value in sums)
        self._check_finite("loss", loss)
        return loss, _Logged(
            added if self.training.adds_loss else None, dict(zip(self.training.logged, others, strict=True))
        )

    def _count(self, batches: Sequence[Batch]) -> float:
        """Targets of the global batch, of which `batches`, on the CPU, are this rank's part."""
        counted = sum(self.training.count(batch) for batch in batches)
        copies = self.mesh.tensor * self.mesh.pipeline
        return process.sum_over_ranks([counted])[0] / copies

    def _read(self, values: Sequence[torch.Tensor | float], group: dist.ProcessGroup | None) -> list[float]:
        """Sums of 0-dim `values` over the ranks of `group` (None: all). The one place of a step that waits for the loss."""
        place = device.current()
        packed = torch.stack(
            [
                value.double() if torch.is_tensor(value) else torch.full((), value, dtype=torch.float64, device=place)
                for value in values
            ]
        )
        if process.num_ranks() > 1:
            dist.all_reduce(packed, group=group)
        found: list[float] = packed.tolist()
        return found

    def _finish_step(
        self, loss: float, norm: float | None, rate: float, targets: float, scale: float | None, logged: _Logged
    ) -> StepResult:
        """Book the step that the engine has just taken; `norm` where it was known before."""
        if norm is None and self._norm_is_true:
            norm = self._norm_reader.read()
        is_applied = self.engine.was_step_applied()
        if self.statistics is not None:
            self.statistics.settle(self._replicas, is_applied=is_applied)
        if self.own_buffers is not None:
            self.own_buffers.settle(self._replicas)
        if self._average is not None and is_applied:
            self._average.update()
        self._skipped_in_a_row = 0 if is_applied else self._skipped_in_a_row + 1
        if self._skipped_in_a_row == MOST_SKIPPED:
            self._check_finite("grad_norm", math.inf)
        return StepResult(
            loss=loss,
            grad_norm=norm,
            learning_rate=rate,
            targets=int(targets),
            loss_scale=scale,
            skipped_in_a_row=self._skipped_in_a_row,
            aux_loss=logged.added,
            means=logged.means,
        )

    def _check_finite(self, name: str, value: float) -> None:
        # fp16 answers an overflow with a smaller loss scale; _guarded tells when that has an end.
        if not math.isfinite(value) and not self._is_fp16:
            raise RunFailed(
                f"{name}={value}",
                expected=f"a finite {name.replace('_', ' ')}",
                do=ADVICE,
            )

    def _guarded(self, step: Callable[[], Any]) -> Any:
        """`step()`, with DeepSpeed's exception for a loss scale at its end made a RunFailed."""
        try:
            return step()
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

    def observe(self, metric: float) -> None:
        """Tell the schedule an evaluation's metric (reduce_on_plateau listens)."""
        self.schedule.observe(metric)

    def forget_observed(self) -> None:
        """Let the schedule forget the metrics so far: what is evaluated from now on is something else."""
        self.schedule.forget_observed()

    def fragments(self) -> Iterator[states.Fragment]:
        """The fp32 weights and optimizer states that this rank writes to a checkpoint."""
        rank, ranks = self.mesh.gradient_rank(self.process.rank), self.mesh.gradient_ranks
        for fragment in states.fragments(self._named, self._averages):
            mine = states.owned(fragment, self.engine, rank, ranks)
            if mine is not None and not self._is_copy(mine):
                yield mine
        for name, values in self._moving.items() if self.process.is_main else ():
            parts = {states.BUFFER: values.detach().float().view(-1)}
            if self._average is not None:
                parts[states.AVERAGE] = self._average.beside[name].view(-1)
            yield states.Fragment(name, 0, values.numel(), parts, {})

    @property
    def _averages(self) -> list[torch.Tensor]:
        return [] if self._average is None else self._average.masters

    def _is_copy(self, fragment: states.Fragment) -> bool:
        """Whether another rank writes the same."""
        return self.mesh.coordinate(self.process.rank, "tensor") > 0 and fragment.shard is None

    def restore(self, read: states.Read, read_scalars: states.ReadScalars) -> None:
        """Take weights and optimizer states from a checkpoint of any topology."""
        states.restore(self._named, read, read_scalars, self._averages)
        for name, values in self._moving.items():
            stored = read(name, states.BUFFER, 0, values.numel(), None)
            if stored is None:
                continue
            values.copy_(stored.view(values.shape))
            if self._average is not None:
                average = read(name, states.AVERAGE, 0, values.numel(), None)
                self._average.beside[name].copy_((stored if average is None else average).view(values.shape))

    @property
    def _named(self) -> Any:
        return _Named(self.engine, self.model)

    def shapes(self) -> dict[str, list[int]]:
        """Whole shape of every trainable parameter, by Hugging Face name."""
        moving = {name: list(values.shape) for name, values in self._moving.items()}
        return states.parameter_shapes(self.model) | moving

    def state(self) -> dict[str, Any]:
        """JSON-able state beside the tensors: schedule and loss scaler, equal on every rank."""
        state: dict[str, Any] = {"schedule": self.schedule.state_dict()}
        if self._average is not None:
            state["average_updates"] = self._average.updates
        if self._is_fp16:
            scaler = self.engine.optimizer.loss_scaler
            state["loss_scaler"] = {name: getattr(scaler, name) for name in SCALER_STATE}
            state["initial_scale_power"] = self._initial_scale_power
            state["hysteresis"] = scaler.delayed_shift
        return state

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `state()`; a loss scale is taken over only where this run has one that began at the same value."""
        self.schedule.load_state_dict(state["schedule"])
        if self._average is not None:
            self._average.updates = state.get("average_updates", 0)
        if self._is_fp16 and state.get("initial_scale_power") == self._initial_scale_power:
            restore_scaler(self.engine.optimizer.loss_scaler, state)

    def close(self) -> None:
        """Free what DeepSpeed holds (hooks)."""
        self.engine.destroy()
        release()


def restore_scaler(scaler: Any, state: Mapping[str, Any]) -> None:
    """Continue with the loss scale of `state`, by the settings that `scaler` (DeepSpeed's DynamicLossScaler) has now."""
    hysteresis = scaler.cur_hysteresis
    for name, value in state.get("loss_scaler", {}).items():
        setattr(scaler, name, value)
    if state.get("hysteresis", scaler.delayed_shift) != scaler.delayed_shift:
        # What is left of it counts down from the setting, which is another one now.
        scaler.cur_hysteresis = hysteresis
    scaler.cur_scale = max(scaler.cur_scale, scaler.min_scale)


class _Named:
    """An engine whose `module` is the Hugging Face model, so that parameter names carry no prefix."""

    def __init__(self, engine: Any, model: nn.Module) -> None:
        self.optimizer, self.module = engine.optimizer, model


def total_losses(sums: Losses, copies: int = 1) -> Losses:
    """`sums` added over all ranks, `copies` of which have the same. Ranks without a batch, or without targets, lack some names."""
    names = sorted(set().union(*process.gather_objects(sorted(sums))))
    totals = process.sum_over_ranks([sums.get(name, 0.0) / copies for name in names])
    return dict(zip(names, totals, strict=True))
