"""What a run is: one frozen, typed section per subject. Data, not logic.

Checks that need one field or one section live here; checks that need the world size, the device or DeepSpeed are
rules in `toolkit.ds_config`. This package imports no torch.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from toolkit.errors import RecipeError
from toolkit.recipe.optimizers import OptimizerType, check_optimizer_fields
from toolkit.recipe.section import Section

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Rate = Annotated[float, Field(ge=0.0, lt=1.0)]
Scalar = int | float | bool | str


class Model(Section):
    """Which network, where its weights come from, and how it is run."""

    path: str | None = None
    """Checkpoint: a Hugging Face directory, a name that `toolkit fetch` knows, or a hub name. None: `architecture` says what to build."""
    architecture: str | None = None
    """Hugging Face model_type built from `config` when there is no `path`, e.g. "llama"."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """"pretrained" reads the weights at `path`; "random" builds the same architecture from scratch with the run's seed."""
    config: dict[str, Scalar] = Field(default_factory=dict)
    """Fields of the model's own config to override, e.g. {"num_hidden_layers": 4}. With pretrained weights only fields that change no weight's shape."""
    tokenizer: str | None = None
    """Where the tokenizer is; None: the same place as `path`."""
    dropout: Rate | None = None
    """Set every dropout probability of the architecture to this; None leaves the checkpoint's own."""
    attention: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"] = "sdpa"
    """Attention implementation of transformers."""
    activation_checkpointing: bool = False
    """Recompute each layer in the backward pass instead of keeping its activations."""

    @model_validator(mode="after")
    def _has_a_source(self) -> Model:
        if (self.path is None) == (self.architecture is None):
            raise RecipeError(
                f"model.path={self.path!r} and model.architecture={self.architecture!r}",
                expected="exactly one of the two",
                do="give model.path for a checkpoint, or model.architecture with model.config to build from scratch",
            )
        if self.architecture is not None and (self.weights != "random" or self.tokenizer is None):
            raise RecipeError(
                f"model.architecture={self.architecture!r} with weights={self.weights!r}, tokenizer={self.tokenizer!r}",
                expected='weights="random" and a tokenizer, since no checkpoint provides them',
                do='set model.weights="random" and model.tokenizer',
            )
        return self


class Data(Section):
    """Where examples come from and how they become batches."""

    train: str
    """A .jsonl/.json/.csv/.parquet/.txt file, a directory written by `save_to_disk`, a name that `toolkit fetch` knows, or a hub name."""
    evaluation: str | None = None
    """Held-out examples, same kinds of source. None: `evaluation_examples` are split off `train`."""
    evaluation_examples: NonNegative = 0
    """Examples split off `train` (by seed) when `evaluation` is None; 0: no evaluation."""
    split: str = "train"
    """Split to read where a source has several."""
    evaluation_split: str = "test"
    """Split to read from `evaluation` where it has several."""
    subset: str | None = None
    """Configuration name of a hub data set."""
    max_examples: Positive | None = None
    """Use only the first N examples of `train`, before shuffling."""
    streaming: bool = False
    """Read `train` as a stream: nothing is prepared in advance, the length of the run must be given in steps."""
    shuffle: bool = True
    """Reorder examples (by seed and epoch; never by world size)."""
    packing: bool = True
    """Fill each sequence with several examples; attention and positions stay inside each example. Tasks that cannot pack ignore nothing: they refuse."""
    overlong: Literal["error", "truncate", "drop", "split"] = "truncate"
    """What to do with an example longer than batch.sequence_length; "split" cuts it into several (plain text only)."""
    messages_field: str = "messages"
    """Column with a list of {"role", "content"} messages."""
    prompt_field: str = "prompt"
    """Column with the prompt of a prompt/completion pair."""
    completion_field: str = "completion"
    """Column with the completion of a prompt/completion pair."""
    text_field: str = "text"
    """Column with plain text."""
    label_field: str = "label"
    """Column with the class of a classification example (an integer or a name)."""
    prefetch: NonNegative = 4
    """Micro-batches built ahead of time by a background thread; 0: build them in the training thread."""


class Task(Section):
    """What is learned from the examples. `name` selects a file of toolkit/tasks/."""

    name: str = "causal_lm"
    """The task: causal_lm or sequence_classification."""
    train_on: Literal["assistant", "all"] = "assistant"
    """Tokens that carry loss: the assistant's (the completion's), or all of them."""
    label_smoothing: Rate = 0.0
    """Share of the target's probability spread evenly over all classes (Szegedy et al. 2016, arXiv 1512.00567)."""
    neftune_alpha: Annotated[float, Field(ge=0.0)] = 0.0
    """Uniform noise added to the embeddings in training, scaled by alpha / sqrt(tokens x width) (NEFTune, arXiv 2310.05914); 0: none."""
    sample_prompt: str | None = None
    """A prompt answered before and after training, to look at."""
    sample_tokens: Positive = 48
    """Longest answer to `sample_prompt`, in tokens."""


class Batch(Section):
    """The batch arithmetic. Accumulation follows from it and from the world size."""

    global_size: Positive
    """Sequences per optimizer step, over all ranks."""
    micro_size: Positive = 1
    """Sequences per rank in one forward and backward pass."""
    sequence_length: Positive = 512
    """Tokens per sequence."""


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
    """Number formats. Master weights and optimizer states are always fp32."""

    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Parameters, activations, gradients. "auto": bf16 where the device computes in it, else fp32; the choice is printed."""
    accumulation_dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Gradients summed over micro-batches. fp32 costs memory and keeps small gradients; otherwise equal to dtype."""
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

    zero_stage: Literal[0, 1, 2, 3] = 2
    """What each rank holds only its share of: 0 nothing, 1 optimizer states, 2 and gradients, 3 and parameters."""
    offload_optimizer: Placement = "none"
    """Where optimizer states live: "cpu" (stages 1-3) or "nvme" (stage 3)."""
    offload_param: Placement = "none"
    """Where parameters live between uses (stage 3): "cpu" or "nvme"."""
    nvme_path: str | None = None
    """Directory on a local NVMe disk, for "nvme"."""
    reduce_bucket_size: Positive = 50_000_000
    """Gradient elements reduced at a time; smaller saves memory, larger saves latency."""
    overlap_comm: bool = False
    """Reduce gradients while the backward pass runs (stages 1-3)."""
    param_persistence_threshold: NonNegative = 100_000
    """Stage 3: parameters with fewer elements stay whole on every rank."""

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


class Checkpoint(Section):
    """What is kept on disk while training."""

    every_steps: NonNegative = 0
    """Optimizer steps between checkpoints; 0: only the last step."""
    keep: Positive = 2
    """Newest checkpoints kept; the best one (checkpoint.keep_best) is kept on top of them."""
    keep_best: bool = False
    """Keep the checkpoint of the best evaluation; needs one at every evaluation."""
    export: bool = True
    """Write a Hugging Face directory at the end (of the best checkpoint with keep_best, else of the last)."""
    export_dtype: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Number format of the export."""


class Evaluation(Section):
    """Held-out loss and metrics."""

    every_steps: NonNegative = 0
    """Optimizer steps between evaluations; 0: only before the first and after the last step."""
    max_batches: Positive | None = None
    """Evaluate at most this many micro-batches per rank; None: all."""
    metric: str = "loss"
    """Record that best checkpoint, early stopping and reduce_on_plateau watch: loss, or a metric of the task."""
    higher_is_better: bool = False
    """Direction of `metric`."""
    early_stopping_patience: NonNegative = 0
    """Stop after this many evaluations without improvement; 0: never."""


class Tracking(Section):
    """Where metrics go besides metrics.jsonl."""

    tensorboard: bool = True
    """Write TensorBoard event files under OUTPUT_DIR/tensorboard."""
    trackers: tuple[Literal["wandb", "mlflow", "comet_ml", "aim", "clearml", "dvclive", "swanlab", "trackio"], ...] = ()
    """Further trackers, through accelerate's tracker classes; the package must be installed."""
    project: str = "toolkit"
    """Project name given to those trackers."""


class Launch(Section):
    """The machines this recipe is meant for: what rendered files, plans and dry runs assume. A launcher's own numbers win."""

    devices: Positive = 2
    """Processes per host."""
    hosts: Positive = 1
    """Hosts."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Kind of device; anything but "auto" refuses to start where it is missing."""

    @property
    def world_size(self) -> int:
        """Processes over all hosts."""
        return self.devices * self.hosts


class Recipe(Section):
    """One run. Every field is a flag: --optimizer.learning_rate 1e-4."""

    model: Model
    data: Data
    task: Task = Task()
    batch: Batch
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    precision: Precision = Precision()
    parallel: Parallel = Parallel()
    checkpoint: Checkpoint = Checkpoint()
    evaluation: Evaluation = Evaluation()
    tracking: Tracking = Tracking()
    launch: Launch = Launch()
    steps: Positive | None = None
    """Length of the run in optimizer steps."""
    epochs: Annotated[float, Field(gt=0.0)] | None = None
    """Length of the run in passes over the data; give this or `steps`."""
    seed: NonNegative = 42
    """Seed of initialisation, order and dropout."""
    note: str = ""
    """What this recipe is for, in one line."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Recipe:
        if (self.steps is None) == (self.epochs is None):
            raise RecipeError(
                f"steps={self.steps} and epochs={self.epochs}",
                expected="exactly one of the two",
                do="set steps, or epochs; to override the other on the command line pass e.g. --epochs None",
            )
        if self.data.streaming and self.steps is None:
            raise RecipeError(
                f"data.streaming=True with epochs={self.epochs}",
                expected="steps: a stream has no known length",
                do="set steps (and --epochs None)",
            )
        _check_evaluation(self)
        return self


def _check_evaluation(recipe: Recipe) -> None:
    has_held_out = recipe.data.evaluation is not None or recipe.data.evaluation_examples > 0
    watchers = {
        "schedule.type='reduce_on_plateau'": recipe.schedule.type == "reduce_on_plateau",
        "checkpoint.keep_best=True": recipe.checkpoint.keep_best,
        f"evaluation.early_stopping_patience={recipe.evaluation.early_stopping_patience}": (
            recipe.evaluation.early_stopping_patience > 0
        ),
    }
    for what, wanted in watchers.items():
        if wanted and not (has_held_out and recipe.evaluation.every_steps):
            raise RecipeError(
                f"{what} with evaluation.every_steps={recipe.evaluation.every_steps} and "
                f"{'a' if has_held_out else 'no'} held-out set",
                expected="an evaluation metric to watch during the run",
                do="set evaluation.every_steps, and data.evaluation or data.evaluation_examples",
            )
    if recipe.data.streaming and recipe.data.evaluation is None and recipe.data.evaluation_examples:
        raise RecipeError(
            f"data.evaluation_examples={recipe.data.evaluation_examples} with data.streaming=True",
            expected="a data.evaluation source: nothing can be split off a stream",
            do="set data.evaluation, and data.evaluation_examples=0",
        )
    if recipe.precision.accumulation_dtype != "fp32" and recipe.precision.accumulation_dtype != recipe.precision.dtype:
        raise RecipeError(
            f"precision.accumulation_dtype={recipe.precision.accumulation_dtype!r} with "
            f"precision.dtype={recipe.precision.dtype!r}",
            expected="'fp32', or the same as precision.dtype",
            do="set precision.accumulation_dtype='fp32'",
        )
