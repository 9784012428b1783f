"""The data of a run, from the recipe's sources to batches in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from toolkit.cache import cache_dir
from toolkit.data.batches import StoredBatches, StreamedBatches
from toolkit.data.built import resolve as resolve_data
from toolkit.data.encoding import Encoder
from toolkit.data.example import Sequences
from toolkit.data.order import Order
from toolkit.data.packing import best_fit, efficiency, one_each
from toolkit.data.sources import open_source
from toolkit.data.store import Store, fingerprint, prepare
from toolkit.engine.sequence import check_sequence_parallel
from toolkit.errors import DataError, ModelError, RecipeError
from toolkit.models.loading import check_overrides, check_sequence_length, load_config, load_tokenizer
from toolkit.recipe import Recipe
from toolkit.tasks import task_class
from toolkit.tasks.protocol import Task
from toolkit.train.progress import Display


@dataclass
class Inputs:
    """The data of a run, before any weight is loaded."""

    tokenizer: PreTrainedTokenizerBase
    task: Task
    model_config: Any
    batches: StoredBatches | StreamedBatches
    held_out: Store | None
    held_out_sequences: Sequences
    total_steps: int


def open_training_rows(recipe: Recipe) -> tuple[PreTrainedTokenizerBase, Task, Any]:
    """The tokenizer, the task and the raw rows of data.train."""
    tokenizer = load_tokenizer(recipe.model)
    task = task_class(recipe.task.name)(recipe.task, recipe.data, tokenizer)
    data = recipe.data
    rows = open_source(
        resolve_data(data.train),
        split=data.split,
        subset=data.subset,
        streaming=data.streaming,
        max_examples=data.max_examples,
        cache_dir=cache_dir() / "datasets",
    )
    return tokenizer, task, rows


def prepare_inputs(recipe: Recipe, rank: int, world_size: int, display: Display) -> Inputs:
    """Tokenise, pack and order the recipe's data. Needs no process group: ranks meet at a lock on the cache."""
    tokenizer, task, rows = open_training_rows(recipe)
    data = recipe.data
    held_out_rows = None
    if data.evaluation is not None:
        held_out_rows = open_source(
            resolve_data(data.evaluation),
            split=data.evaluation_split,
            cache_dir=cache_dir() / "datasets",
            field="data.evaluation",
        )
    elif data.evaluation_examples:
        rows, held_out_rows = _split(rows, data.evaluation_examples, recipe.seed)
    task.fit(rows)
    config = load_config(recipe.model, vocabulary_size=len(tokenizer), overrides=task.config_overrides())
    plain = recipe.model.model_copy(update={"config": {}})
    unchanged = load_config(plain, vocabulary_size=len(tokenizer), overrides=task.config_overrides())
    check_overrides(task.auto_class, recipe.model, config, unchanged)
    check_sequence_length(config, recipe.batch.sequence_length)
    _check_parallel(recipe, task, config)
    _check_vocabulary(tokenizer, config)
    batches: StoredBatches | StreamedBatches
    if data.streaming:
        batches, total = _streamed(recipe, rows, task, rank, world_size), recipe.steps or 0
    else:
        store = _store(recipe, rows, task, tokenizer, "data.train", display)
        batches, total = _stored(recipe, store, task, rank, world_size, display)
    held_out = (
        _store(recipe, held_out_rows, task, tokenizer, "data.evaluation", display)
        if held_out_rows is not None
        else None
    )
    sequences = _sequences(recipe, held_out) if held_out else []
    return Inputs(tokenizer, task, config, batches, held_out, sequences, total)


def _check_parallel(recipe: Recipe, task: Task, config: Any) -> None:
    parallel = recipe.parallel
    for name in ("sequence", "pipeline", "tensor"):
        degree = getattr(parallel, name)
        if degree > 1 and task.split is None:
            raise RecipeError(
                f"parallel.{name}={degree} with task.name={recipe.task.name!r}",
                expected="causal language modelling; other tasks train with data parallelism and ZeRO",
                do=f"set parallel.{name}=1 (parallel.zero_stage=3 saves the most memory)",
            )
    if parallel.sequence > 1:
        check_sequence_parallel(config, recipe.model.attention, parallel.sequence)


def _split(rows: Any, held_out: int, seed: int) -> tuple[Any, Any]:
    if held_out >= len(rows):
        raise DataError(
            f"data.evaluation_examples={held_out} of {len(rows)} rows",
            expected="fewer than there are rows",
            do="lower data.evaluation_examples",
        )
    parts = rows.train_test_split(test_size=held_out, seed=seed)
    return parts["train"], parts["test"]


def _check_vocabulary(tokenizer: PreTrainedTokenizerBase, config: Any) -> None:
    size = getattr(config, "vocab_size", None)
    if isinstance(size, int) and len(tokenizer) > size:
        raise ModelError(
            f"the tokenizer has {len(tokenizer)} tokens, the model {size} embeddings",
            expected="a tokenizer that fits the model",
            do="set model.tokenizer to the model's own, or model.config vocab_size when training from scratch",
        )


def _store(
    recipe: Recipe, rows: Any, task: Task, tokenizer: PreTrainedTokenizerBase, name: str, display: Display
) -> Store:
    capacity, overlong = recipe.batch.sequence_length, recipe.data.overlong
    identity = fingerprint(rows, tokenizer, capacity=capacity, overlong=overlong, **task.describe())
    display.say(f"preparing {name}: {len(rows):,} rows")
    store = prepare(
        rows,
        task.encode,
        capacity=capacity,
        overlong=overlong,
        cache_dir=cache_dir() / "tokens",
        fingerprint=identity,
        name=name,
    )
    counts = store.counts.describe()
    display.say(
        f"  {len(store):,} examples, {store.num_tokens:,} tokens, {store.num_trained_tokens:,} with loss"
        + (f" ({counts})" if counts else "")
    )
    return store


def _sequences(recipe: Recipe, store: Store) -> Sequences:
    return best_fit(store.lengths, recipe.batch.sequence_length) if recipe.data.packing else one_each(len(store))


def _stored(
    recipe: Recipe, store: Store, task: Task, rank: int, world_size: int, display: Display
) -> tuple[StoredBatches, int]:
    sequences = _sequences(recipe, store)
    order = Order(len(sequences), recipe.batch.global_size, recipe.seed, recipe.data.shuffle)
    total = recipe.steps if recipe.steps is not None else order.steps_for(recipe.epochs or 1.0)
    if recipe.data.packing:
        full = efficiency(store.lengths, sequences, recipe.batch.sequence_length)
        display.say(
            f"  packed into {len(sequences):,} sequences of {recipe.batch.sequence_length} tokens, {full:.1%} full"
        )
    display.say(f"  {total:,} steps = {order.epoch(total):.2f} epochs")
    batches = StoredBatches(store, sequences, order, task.collate, rank, world_size, recipe.batch.micro_size)
    return batches, total


def _streamed(recipe: Recipe, rows: Any, task: Task, rank: int, world_size: int) -> StreamedBatches:
    return StreamedBatches(
        rows=rows,
        encoder=Encoder(task.encode, recipe.batch.sequence_length, recipe.data.overlong),
        packing=recipe.data.packing,
        shuffle=recipe.data.shuffle,
        seed=recipe.seed,
        global_size=recipe.batch.global_size,
        collate=task.collate,
        rank=rank,
        world_size=world_size,
        micro_size=recipe.batch.micro_size,
    )
