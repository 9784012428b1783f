"""How weights change: optimizer, schedule, number formats, and how states are spread over ranks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from toolkit.errors import RecipeError
from toolkit.recipe.location import Location
from toolkit.recipe.numbers import Fraction, NonNegative, Positive, Rate
from toolkit.recipe.optimizers import OptimizerType, check_optimizer_fields
from toolkit.recipe.section import Section


class Optimizer(Section):
    """The update rule. A parameter that the chosen type does not have is refused."""

    type: OptimizerType = "adamw"
    """Update rule."""
    learning_rate: Annotated[float, Field(gt=0.0)] = 2e-5
    """Peak learning rate."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    """Weight decay for matrices; biases and norm weights are always kept out of it."""
    max_grad_norm: Annotated[float, Field(ge=0.0)] = 1.0
    """Clip the global gradient norm to this; 0: never."""
    ema_decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Keep an exponential moving average of the weights, of which each step leaves this share, and evaluate and export that: 0.9999 for long runs, less for short ones; it begins at less, (1 + t) / (10 + t) after t steps. 4 bytes more for each weight, shared among ranks as the masters are. 0: none."""
    betas: tuple[Rate, Rate] | None = None
    """adam, adamw (0.9, 0.999), lion (0.9, 0.99), muon's adam part: decay of the two moments."""
    eps: Annotated[float, Field(gt=0.0)] | None = None
    """adam, adamw, rmsprop, muon (1e-8), adagrad (1e-10): added to the denominator."""
    momentum: Rate | None = None
    """sgd_momentum (0.9), rmsprop (0), muon (0.95): momentum factor."""
    nesterov: bool | None = None
    """sgd_momentum (False): look-ahead momentum."""
    dampening: Rate | None = None
    """sgd_momentum (0): dampening of the momentum."""
    alpha: Rate | None = None
    """rmsprop (0.99): smoothing of the squared gradient."""
    centered: bool | None = None
    """rmsprop (False): normalise by the variance instead of the second moment."""
    lr_decay: Annotated[float, Field(ge=0.0)] | None = None
    """adagrad (0): learning-rate decay."""
    initial_accumulator_value: Annotated[float, Field(ge=0.0)] | None = None
    """adagrad (0): starting value of the squared sum."""
    adam_learning_rate: Annotated[float, Field(gt=0.0)] | None = None
    """muon (learning_rate): rate of the embeddings, head, norms and biases, which Adam updates."""
    implementation: Literal["auto", "torch", "deepspeed"] = "auto"
    """"torch" compiles nothing; "deepspeed" builds DeepSpeed's kernel at first use; "auto" takes DeepSpeed's CPU kernel for offload where a compiler is present, torch otherwise."""

    @model_validator(mode="after")
    def _fields_belong_to_the_type(self) -> Optimizer:
        check_optimizer_fields(self.type, {name: getattr(self, name) for name in self.model_fields_set})
        return self


ScheduleType = Literal[
    "constant",
    "linear",
    "cosine",
    "warmup_stable_decay",
    "polynomial",
    "exponential",
    "step",
    "multi_step",
    "inverse_sqrt",
    "one_cycle",
    "reduce_on_plateau",
]


class Schedule(Section):
    """The learning rate of optimizer step 0, 1, 2, ... as a multiple of optimizer.learning_rate."""

    type: ScheduleType = "linear"
    """Shape after the warm-up."""
    warmup_steps: NonNegative = 0
    """Optimizer steps of linear warm-up: step s runs at s / warmup_steps of the peak."""
    min_ratio: Fraction = 0.0
    """linear, cosine, warmup_stable_decay, polynomial, one_cycle, reduce_on_plateau: end value as a share of the peak."""
    decay_steps: Positive | None = None
    """warmup_stable_decay: optimizer steps of the final decay; None: a fifth of the run."""
    power: Annotated[float, Field(gt=0.0)] = 1.0
    """polynomial: exponent."""
    gamma: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    """exponential: factor per step; step, multi_step, reduce_on_plateau: factor per drop."""
    step_size: Positive | None = None
    """step: optimizer steps between two drops."""
    milestones: tuple[Positive, ...] = ()
    """multi_step: optimizer steps at which the rate drops, rising."""
    peak_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.3
    """one_cycle: share of the run spent rising to the peak."""
    start_ratio: Annotated[float, Field(gt=0.0, le=1.0)] = 0.04
    """one_cycle: first value as a share of the peak."""
    patience: NonNegative = 2
    """reduce_on_plateau: evaluations without improvement before a drop."""

    @model_validator(mode="after")
    def _is_complete(self) -> Schedule:
        if self.type == "step" and self.step_size is None:
            raise RecipeError(
                "schedule.step_size is missing for schedule.type='step'",
                expected="the number of optimizer steps between two drops",
                do="set schedule.step_size",
            )
        if self.type == "multi_step" and (not self.milestones or list(self.milestones) != sorted(set(self.milestones))):
            raise RecipeError(
                f"schedule.milestones={self.milestones} for schedule.type='multi_step'",
                expected="rising optimizer steps, at least one",
                do="set schedule.milestones, for instance (100, 200)",
            )
        if self.type in ("one_cycle", "reduce_on_plateau") and self.warmup_steps:
            raise RecipeError(
                f"schedule.warmup_steps={self.warmup_steps} with schedule.type={self.type!r}",
                expected="0: one_cycle has its own rise, reduce_on_plateau none",
                do="remove warmup_steps, or choose another schedule.type",
            )
        return self


class Precision(Section):
    """Number formats."""

    dtype: Literal["auto", "fp32", "bf16", "fp16", "fp8"] = "auto"
    """Parameters, activations, gradients. "auto": bf16 where the device computes in it, else fp32; the choice is printed. fp8: bf16 whose large linear layers multiply in fp8 (CUDA 8.9 and later; needs torchao)."""
    accumulation_dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Gradients summed over micro-batches. fp32 costs memory and keeps small gradients; otherwise equal to dtype (to bf16 with fp8)."""
    communication_dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """What ranks exchange gradients in (communication_data_type). "auto": on CUDA the 16 bits of dtype, which halves the traffic of fp32 and rounds each rank's part once; on a CPU as accumulation_dtype."""
    tf32: bool = False
    """fp32 on CUDA: multiply matrices on tensor cores, which read 10 of 23 bits of each number (several times as fast)."""
    master_dtype: Literal["fp32", "bf16"] = "fp32"
    """The weights that the optimizer updates, from which the 16-bit ones are rounded. bf16: they are the same numbers; saves 2 bytes per parameter, and an update below half a last digit (1/512 of the weight) is lost."""
    state_dtype: Literal["fp32", "bf16", "8bit"] = "fp32"
    """adam, adamw: the two moments. bf16 halves them and needs master_dtype bf16; 8bit (blocks of 256 numbers share a scale; needs torchao) takes a quarter of fp32, not with offload."""
    initial_scale_power: Annotated[int, Field(ge=0, le=32)] = 16
    """fp16: the loss scale starts at 2 to this power."""
    loss_scale_window: Positive = 1000
    """fp16: good steps before the loss scale doubles."""
    hysteresis: Positive = 2
    """fp16: overflows before the loss scale halves."""
    min_loss_scale: Annotated[float, Field(gt=0.0)] = 1.0
    """fp16: the run ends (exit 3) when steps still overflow at this scale."""


Placement = Literal["none", "cpu", "nvme"]


class Parallel(Section):
    """How states are spread over ranks. Data parallelism is what remains."""

    auto: bool = False
    """Take the strategy that the plan made at start finds fastest (`toolkit plan` shows it and why): ZeRO stage, offload, degrees, checkpointing and micro-batch; parallel="auto" in a recipe file says the same. The global batch and its loss curve stay."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """What each rank holds only its share of: 0 nothing, 1 optimizer states, 2 and gradients, 3 and parameters."""
    offload_optimizer: Placement = "none"
    """Where optimizer states live: "cpu" (stages 1-3) or "nvme" (stage 3)."""
    offload_param: Placement = "none"
    """Where parameters live between uses (stage 3): "cpu" or "nvme"."""
    offload_ratio: Fraction = 1.0
    """Stage 3 with offload_optimizer "cpu": share of the optimizer's states that live and are updated on the host; the rest stays on the device (DeepSpeed's Twin-Flow, adamw by its kernel)."""
    nvme_path: Location | None = None
    """Directory on a local NVMe disk, for "nvme"."""
    reduce_bucket_size: Positive | None = None
    """Gradient elements reduced at a time, and parameters fetched ahead at stage 3; smaller saves memory, larger saves latency. None: one layer of the model, between 1 and 50 million."""
    overlap_comm: bool | None = None
    """Reduce gradients while the backward pass runs (stages 1-3); at stage 3 also gather the next layers' parameters while one computes. None: True on CUDA, outside of pipelines."""
    param_persistence_threshold: NonNegative | None = None
    """Stage 3: parameters with fewer elements stay whole on every rank. None: the model's norm weights and biases do, up to 100,000 elements, its matrices do not."""
    pipeline: Positive = 1
    """Pipeline stages: each rank holds a share of the layers. ZeRO stages 0 and 1."""
    tensor: Positive = 1
    """Ranks that share each layer's matrices; they must divide the attention heads."""
    sequence: Positive = 1
    """Ranks that share each sequence (Ulysses), for long contexts; they must divide the attention heads."""

    @model_validator(mode="after")
    def _degrees_fit(self) -> Parallel:
        if self.pipeline > 1 and self.zero_stage > 1:
            raise RecipeError(
                f"parallel.pipeline={self.pipeline} with parallel.zero_stage={self.zero_stage}",
                expected="zero_stage 0 or 1: DeepSpeed's pipeline sums gradients over micro-batches itself, which stages 2 and 3 partition away",
                do="set parallel.zero_stage=1",
            )
        if self.sequence > 1 and (self.pipeline > 1 or self.tensor > 1):
            other = "pipeline" if self.pipeline > 1 else "tensor"
            raise RecipeError(
                f"parallel.sequence={self.sequence} with parallel.{other}={getattr(self, other)}",
                expected="sequence parallelism with data parallelism only, as in DeepSpeed's Ulysses",
                do=f"set parallel.{other}=1, or parallel.sequence=1",
            )
        return self

    @model_validator(mode="after")
    def _offload_fits_the_stage(self) -> Parallel:
        if self.offload_param != "none" and self.zero_stage != 3:
            raise RecipeError(
                f"parallel.offload_param={self.offload_param!r} with parallel.zero_stage={self.zero_stage}",
                expected="zero_stage 3: DeepSpeed ignores offload_param below it, in silence",
                do="set parallel.zero_stage=3, or parallel.offload_param='none'",
            )
        if self.offload_optimizer != "none" and self.zero_stage == 0:
            raise RecipeError(
                f"parallel.offload_optimizer={self.offload_optimizer!r} with parallel.zero_stage=0",
                expected="zero_stage 1, 2 or 3",
                do="set parallel.zero_stage=1 or higher, or parallel.offload_optimizer='none'",
            )
        if self.offload_optimizer == "nvme" and self.zero_stage != 3:
            raise RecipeError(
                f"parallel.offload_optimizer='nvme' with parallel.zero_stage={self.zero_stage}",
                expected="zero_stage 3: below it DeepSpeed treats 'nvme' as 'cpu', in silence",
                do="set parallel.zero_stage=3, or parallel.offload_optimizer='cpu'",
            )
        if "nvme" in (self.offload_optimizer, self.offload_param) and self.nvme_path is None:
            raise RecipeError(
                "parallel.nvme_path is missing for offload to 'nvme'",
                expected="a directory on a local NVMe disk",
                do="set parallel.nvme_path",
            )
        return self
