"""A recipe: all sections of one run, and the checks that need several of them.

Checks that need one section live with it; checks that need the world size, the device or DeepSpeed are rules in
`toolkit.ds_config`. This package imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from toolkit.errors import InputError, RecipeError, SeveralErrors, collect, joined
from toolkit.recipe.effect import check_effect, has_held_out
from toolkit.recipe.inputs import Batch, Data, Model
from toolkit.recipe.length import check_length
from toolkit.recipe.numbers import Positive
from toolkit.recipe.outputs import Checkpoint, Evaluation, Launch, Tracking
from toolkit.recipe.section import Section
from toolkit.recipe.tasks import CausalLM, Task
from toolkit.recipe.tuning import Full, LoRA, Tuning
from toolkit.recipe.update import Optimizer, Parallel, Precision, Schedule


def _by_the_plan(value: object) -> object:
    return {"auto": True} if value == "auto" else value


class Recipe(Section):
    """One run. Every field is a flag: --optimizer.learning_rate 1e-4."""

    model: Model = Model()
    data: Data
    task: SerializeAsAny[Annotated[Task, BeforeValidator(Task.made)]] = CausalLM()
    tuning: SerializeAsAny[Annotated[Tuning, BeforeValidator(Tuning.made)]] = Full()
    batch: Batch
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    precision: Precision = Precision()
    parallel: Annotated[Parallel, BeforeValidator(_by_the_plan)] = Parallel()
    checkpoint: Checkpoint = Checkpoint()
    evaluation: Evaluation = Evaluation()
    tracking: Tracking = Tracking()
    launch: Launch = Launch()
    steps: Positive | None = None
    """Length of the run in optimizer steps."""
    epochs: Annotated[float, Field(gt=0.0)] | None = None
    """Length of the run in passes over the data; give this or `steps`."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 42
    """Seed of initialisation, order, dropout and noise. Dropout and noise are drawn for each micro-batch: the same whatever the number of replicas and accumulation, but others with another batch.micro_size or another degree of parallelism inside a replica."""
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
        found = collect(partial(_check_evaluation, self))
        # What watches an evaluation that is missing has no effect either, nor room: once is enough.
        checks = (
            self.task.check_with,
            _check_attention,
            _check_cuts,
            _check_parallel,
            _check_adapters,
            *(() if found else (check_effect, _check_steps)),
        )
        found += collect(*(partial(check, self) for check in checks))
        if found:
            raise InconsistentRecipe(self, found)
        return self


class InconsistentRecipe(SeveralErrors):
    """Fields of `recipe` contradict each other, or the length of its run."""

    def __init__(self, recipe: Recipe, parts: Sequence[InputError]) -> None:
        super().__init__(**joined(parts), parts=parts)
        self.recipe = recipe


def _check_steps(recipe: Recipe) -> None:
    if recipe.steps is not None:
        # A length in epochs is known once the data is prepared, and checked then.
        check_length(recipe, recipe.steps)


def _check_evaluation(recipe: Recipe) -> None:
    watchers = {
        "schedule.type='reduce_on_plateau'": recipe.schedule.type == "reduce_on_plateau",
        "checkpoint.keep_best=True": recipe.checkpoint.keep_best,
        f"evaluation.early_stopping_patience={recipe.evaluation.early_stopping_patience}": (
            recipe.evaluation.early_stopping_patience > 0
        ),
    }
    for what, wanted in watchers.items():
        if wanted and not (has_held_out(recipe) and recipe.evaluation.every_steps):
            raise RecipeError(
                f"{what} with evaluation.every_steps={recipe.evaluation.every_steps} and "
                f"{'a' if has_held_out(recipe) else 'no'} held-out set",
                expected="an evaluation metric to watch during the run",
                do="set evaluation.every_steps, and data.evaluation or data.evaluation_examples",
            )
    if recipe.data.streaming and recipe.data.evaluation is None and recipe.data.evaluation_examples:
        raise RecipeError(
            f"data.evaluation_examples={recipe.data.evaluation_examples} with data.streaming=True",
            expected="a data.evaluation source: nothing can be split off a stream",
            do="set data.evaluation, and data.evaluation_examples=0",
        )
    dtype = "bf16" if recipe.precision.dtype == "fp8" else recipe.precision.dtype
    if recipe.precision.accumulation_dtype not in ("fp32", dtype):
        raise RecipeError(
            f"precision.accumulation_dtype={recipe.precision.accumulation_dtype!r} with "
            f"precision.dtype={recipe.precision.dtype!r}",
            expected="'fp32', or the same as precision.dtype",
            do="set precision.accumulation_dtype='fp32'",
        )


def _check_attention(recipe: Recipe) -> None:
    if recipe.model.attention.startswith("flash") and recipe.precision.dtype == "fp32":
        raise RecipeError(
            f"model.attention={recipe.model.attention!r} with precision.dtype='fp32'",
            expected="bf16 or fp16, the formats that flash attention computes in",
            do="set precision.dtype='bf16', or model.attention='auto'",
        )


def _check_adapters(recipe: Recipe) -> None:
    tuning, parallel = recipe.tuning, recipe.parallel
    if not isinstance(tuning, LoRA):
        return
    # peft takes the norm of the weight itself, past the layer that holds it (tuners/lora/dora.py, DoraLinearLayer.forward).
    divided = [
        f"parallel.{name}={getattr(parallel, name)}"
        for name, is_divided in (("zero_stage", parallel.zero_stage == 3), ("tensor", parallel.tensor > 1))
        if is_divided
    ]
    if tuning.use_dora and divided:
        raise RecipeError(
            f"tuning.use_dora=True with {divided[0]}",
            expected="whole weights on every rank: DoRA measures the rows of each",
            do="set parallel.zero_stage=2 and parallel.tensor=1, or tuning.use_dora=False",
        )
    if recipe.model.weights == "random" and recipe.checkpoint.export and not recipe.checkpoint.merge:
        raise RecipeError(
            "tuning.name='lora' with model.weights='random' and checkpoint.export=True",
            expected="a base model that others have too: an adapter is of no use beside weights that this run has drawn",
            do="set checkpoint.merge=True, or checkpoint.export=False, or take a checkpoint with model.path",
        )


def _check_cuts(recipe: Recipe) -> None:
    task, parallel = recipe.task, recipe.parallel
    for name in ("sequence", "pipeline", "tensor"):
        degree = getattr(parallel, name)
        if degree > 1 and name not in task.cuts:
            others = " or ".join(f"parallel.{other}" for other in sorted(task.cuts))
            raise RecipeError(
                f"parallel.{name}={degree} with task.name={task.name!r}",
                expected=f"{others}: this task cannot be cut otherwise" if others else "data parallelism and ZeRO",
                do=f"set parallel.{name}=1 (parallel.zero_stage=3 saves the most memory)",
            )


def _check_parallel(recipe: Recipe) -> None:
    parallel = recipe.parallel
    if parallel.tensor > 1 and recipe.optimizer.type == "muon":
        raise RecipeError(
            f"optimizer.type='muon' with parallel.tensor={parallel.tensor}",
            expected="whole matrices: Muon orthogonalises each, and a tensor-parallel rank holds a part",
            do="set parallel.tensor=1, or optimizer.type='adamw'",
        )
    if recipe.model.compile and parallel.offload_param == "nvme":
        # partitioned_param_swapper.py, swap_in: "Not enough buffers 5 for swapping 9".
        raise RecipeError(
            "model.compile=True with parallel.offload_param='nvme'",
            expected="parameters in memory: a compiled layer is gathered whole, and DeepSpeed has five buffers to read into",
            do="set parallel.offload_param='cpu', or model.compile=False",
        )
    if parallel.pipeline > 1 and parallel.overlap_comm:
        raise RecipeError(
            f"parallel.overlap_comm=True with parallel.pipeline={parallel.pipeline}",
            expected="False: DeepSpeed's pipeline reduces gradients itself, after its last micro-batch",
            do="set parallel.overlap_comm=False",
        )
