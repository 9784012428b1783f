"""The data of a run, from the recipe's sources to batches in order."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from toolkit.data.batches import StoredBatches, StreamedBatches
from toolkit.data.example import Sequences
from toolkit.data.forms.recognised import first_recognised, recognised_lines
from toolkit.data.joined_store import AnyStore
from toolkit.data.reading.mixture import Mixture
from toolkit.engine.sequence import check_sequence_parallel
from toolkit.errors import ModelError, RecipeError
from toolkit.models.adapter_plan import AdapterPlan, plan_adapters
from toolkit.models.assets import resolve as resolve_model
from toolkit.models.attention_choice import choose_attention, model_class
from toolkit.models.config import check_overrides, load_config, overruled
from toolkit.models.files import check_weights
from toolkit.models.positions import check_sequence_length
from toolkit.models.router_balance import COEFFICIENTS, explain_balance, is_asked_for
from toolkit.models.stage_plan import stage_plan
from toolkit.recipe import Recipe
from toolkit.recipe.length import check_length
from toolkit.recipe.tuning import LoRA
from toolkit.tasks import task_class
from toolkit.tasks.base import Task
from toolkit.train.examples import Preparing
from toolkit.train.generation import decide_generation
from toolkit.train.progress import Display
from toolkit.train.rows import open_rows
from toolkit.train.unused import in_the_first_rows, unused_remark


@dataclass
class Inputs:
    """The data of a run, before any weight is loaded."""

    task: Task
    model_config: Any
    """All that the model relies on in training and after it; it goes into the export as it is."""
    generation: dict[str, Any] | None
    """Settings of generation for the export, None for a task that generates nothing."""
    data_content: str
    """Digest of the rows trained on, whatever file and cache they are read from."""
    batches: StoredBatches | StreamedBatches
    held_out: AnyStore | None
    held_out_sequences: Sequences
    total_steps: int
    adapters: AdapterPlan | None = None
    """What is trained in the place of the weights; None: the weights are."""

    @property
    def processor(self) -> Any:
        """What rows are read with: a tokenizer, or what else the task loads."""
        return self.task.processor


def load_task(recipe: Recipe) -> Task:
    """The task of the recipe, with what it reads rows with."""
    kind = task_class(recipe.task)
    if recipe.data.packing and not kind.can_pack:
        raise RecipeError(
            f"data.packing=True with task.name={recipe.task.name!r}",
            expected="False: every example of this task has a sequence of its own",
            do="set data.packing=False",
        )
    return kind(recipe.task, kind.load_processor(recipe.model))


def prepare_inputs(recipe: Recipe, rank: int, world_size: int, display: Display) -> Inputs:
    """Tokenise, pack and order the recipe's data. Needs no process group: ranks meet at a lock on the cache."""
    recipe.task.check_metric(recipe.evaluation.metric)
    task = load_task(recipe)
    source, held_out_source = open_rows(recipe, display.say, task.own_rows)
    fit(task, source, recipe)
    task.options.check_metric(recipe.evaluation.metric)  # some tasks know what they measure by their data alone
    held_out_name = "data.train" if recipe.data.evaluation is None else "data.evaluation"
    if held_out_source is not None:
        task.check(held_out_source.rows, held_out_source.row_name(held_out_name))
    for line in task.remarks(source.rows, source.row_name("data.train")):
        display.say(line)
    config = _model_config(recipe, task, display)
    if recipe.task.has_length:
        check_sequence_length(task.auto_class, config, recipe.batch.sequence_length)
    _check_parallel(recipe, config)
    check_vocabulary(task.vocabulary_size, config)
    adapters = _adapters(recipe, task, config, display)
    said = _check_balance(recipe, task, config)
    if said is not None:
        display.say(said)
    generation = decide_generation(recipe, task, config, source.rows, display.say)
    task.meet(config, recipe.batch)
    preparing = Preparing(recipe, task, display)
    held_out = None
    if held_out_source is not None:  # first: it is small, and what is wrong with it should not be found at the end
        preparing.try_first_rows(source, "data.train")
        held_out = preparing.examples(held_out_source, "data.evaluation", held_out_name)
        _say_lost(held_out.store, display)
    batches: StoredBatches | StreamedBatches
    if recipe.data.streaming:
        remark = unused_remark("data.train", *in_the_first_rows(source.rows, task.columns), first=True)
        if remark is not None:
            display.say(remark)
        for line in recognised_lines(first_recognised(source.rows, task.recognised), first=True):
            display.say(line)
        batches, total = preparing.streamed(source, rank, world_size), recipe.steps or 0
    else:
        trained = preparing.examples(source, "data.train")
        if held_out is not None:
            _say_shared(held_out.store, trained.store, display)
        _say_unused(trained.store, None if held_out is None else held_out.store, display)
        batches, total = preparing.ordered(trained, rank, world_size)
    check_length(recipe, total)
    return Inputs(
        task,
        config,
        generation,
        source.content,
        batches,
        held_out.store if held_out else None,
        held_out.sequences if held_out else [],
        total,
        adapters,
    )


def _adapters(recipe: Recipe, task: Task, config: Any, display: Display) -> AdapterPlan | None:
    tuning = recipe.tuning
    if not isinstance(tuning, LoRA):
        return None
    # A task that says what its head is like has one that a checkpoint may lack.
    trains_head = task.trains_head or bool(task.config_overrides()) or task.new_head
    source = None if recipe.model.is_new else resolve_model(str(recipe.model.path), weights=True)
    frozen_in = partial(task.frozen, beside_adapters=True)
    plan = plan_adapters(task.auto_class, config, tuning, trains_head=trains_head, source=source, frozen_in=frozen_in)
    display.say(plan.describe())
    return plan


def fit(task: Task, source: Mixture, recipe: Recipe) -> None:
    """Let `task` look at the training rows, and at what the checkpoint says about itself."""
    checkpoint = None
    if not recipe.model.is_new and not recipe.task.brings_model:
        plain = recipe.model.model_copy(update={"config": {}, "dropout": None})
        checkpoint = load_config(plain, vocabulary_size=task.vocabulary_size, overrides={})
    task.fit(source.rows, checkpoint, recipe.model.config, source.row_name("data.train"))


def _say_lost(held_out: AnyStore, display: Display) -> None:
    counts = held_out.counts
    if counts.left_out:
        display.say(
            f"note: {counts.left_out:,} of {held_out.num_rows:,} held-out rows take no part in any held-out figure: "
            f"{counts.describe()}"
        )


def _say_shared(held_out: AnyStore, trained: AnyStore, display: Display) -> None:
    if shared := int(np.isin(held_out.digests, trained.digests).sum()):
        display.say(
            f"note: {shared:,} of {len(held_out):,} held-out examples are trained as well, word for word: "
            "held-out figures are better than on text that is new to the model"
        )


def _say_unused(trained: AnyStore, held_out: AnyStore | None, display: Display) -> None:
    remarks = [unused_remark("data.train", trained.unused, trained.num_rows)]
    if held_out is not None:  # what both have is said once
        more = {name: count for name, count in held_out.unused.items() if name not in trained.unused}
        remarks.append(unused_remark("data.evaluation", more, held_out.num_rows))
    for remark in remarks:
        if remark is not None:
            display.say(remark)


def _model_config(recipe: Recipe, task: Task, display: Display) -> Any:
    """What the model is built from, its attention chosen; `_attn_implementation` is where everybody reads it."""
    own = task.own_config(recipe.model)
    if own is not None:
        return own
    model, overrides, vocabulary_size = recipe.model, task.config_overrides(), task.vocabulary_size
    config = load_config(model, vocabulary_size=vocabulary_size, overrides=overrides)
    config._attn_implementation = choose_attention(task.auto_class, config, model.attention)
    if (
        model.activation_checkpointing
        and not (network := model_class(task.auto_class, config)).supports_gradient_checkpointing
    ):
        raise ModelError(
            f"model.activation_checkpointing=True: {network.__name__} cannot compute its layers a second time",
            expected="False with this architecture",
            do="set model.activation_checkpointing=False; a smaller batch.micro_size saves memory, too",
        )
    if model.attention == "auto" and config._attn_implementation == "eager":
        display.say(f"attention: eager, the only implementation that transformers has for {config.model_type}")
    for line in overruled(config, model):
        display.say(line)
    if model.config:
        plain = model.model_copy(update={"config": {}})
        unchanged = load_config(plain, vocabulary_size=vocabulary_size, overrides=overrides)
        check_overrides(task.auto_class, model, config, unchanged)
    if not model.is_new:
        check_weights(resolve_model(str(model.path), weights=True))
    return config


def _check_parallel(recipe: Recipe, config: Any) -> None:
    """Raise where the architecture cannot be cut as the recipe asks; a tensor plan is made with the model."""
    parallel = recipe.parallel
    if parallel.pipeline > 1:
        stage_plan(config)
    if parallel.sequence > 1:
        check_sequence_parallel(config, parallel.sequence)


def _check_balance(recipe: Recipe, task: Task, config: Any) -> str | None:
    """What to say about the balancing of experts. Raises where it is asked for and cannot be had."""
    if recipe.task.name != "causal_lm":
        # transformers adds none to a classifier's loss either.
        return None
    said = explain_balance(task.auto_class, config)
    given = [name for name in COEFFICIENTS if name in recipe.model.config]
    if given and said is not None and not getattr(config.get_text_config(), "output_router_logits", False):
        raise RecipeError(
            f"model.config[{given[0]!r}]={recipe.model.config[given[0]]!r} with output_router_logits=False",
            expected="output_router_logits=True, without which the balancing loss is not trained",
            do="add output_router_logits=True to model.config",
        )
    others = {f"parallel.{name}": getattr(recipe.parallel, name) for name in ("pipeline", "tensor", "sequence")}
    others["model.mlp_tiles"] = recipe.model.mlp_tiles
    split = [f"{name}={value}" for name, value in others.items() if value > 1]
    if said is not None and is_asked_for(config) and split:
        raise RecipeError(
            f"output_router_logits=True in the model's config with {split[0]}",
            expected="whole layers and sequences on each rank: the balancing loss looks at all routers and tokens at once",
            do=f"set {split[0].partition('=')[0]}=1 (parallel.zero_stage=3 saves the most memory), or "
            "model.config={'output_router_logits': False}",
        )
    return said


def check_vocabulary(tokens: int | None, config: Any) -> None:
    """Raise ModelError for a tokenizer with more `tokens` than the model has embeddings; None: there is no tokenizer."""
    size = getattr(config.get_text_config(), "vocab_size", None)
    if isinstance(size, int) and tokens is not None and tokens > size:
        raise ModelError(
            f"the tokenizer has {tokens} tokens, the model {size} embeddings",
            expected="a tokenizer that fits the model",
            do="set model.tokenizer to the model's own, or model.config vocab_size when training from scratch",
        )
