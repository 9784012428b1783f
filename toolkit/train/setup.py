"""Everything a run needs before its first step: data, model, engine."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import GenerationConfig, PreTrainedTokenizerBase

from toolkit.cache import cache_dir
from toolkit.checkpoint.durable import storage_errors
from toolkit.checkpoint.export import UNTRAINED
from toolkit.data.batches import StoredBatches, StreamedBatches
from toolkit.data.built import resolve as resolve_data
from toolkit.data.encoding import Encoder
from toolkit.data.example import Sequences
from toolkit.data.order import Order
from toolkit.data.packing import best_fit, efficiency, one_each
from toolkit.data.sources import open_source
from toolkit.data.store import Store, fingerprint, prepare
from toolkit.engine import process
from toolkit.engine.untrained import untrained_tensors
from toolkit.engine.zero import ZeroEngine
from toolkit.errors import DataError, ModelError
from toolkit.models.assets import resolve
from toolkit.models.isolation import check_isolation, leak
from toolkit.models.loading import (
    check_overrides,
    check_sequence_length,
    load_config,
    load_tokenizer,
    load_weights,
    materialise,
)
from toolkit.models.neftune import add_neftune
from toolkit.recipe import Recipe
from toolkit.tasks import task_class
from toolkit.tasks.protocol import Task
from toolkit.train.progress import Display
from toolkit.train.run_folder import RunFolder


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


def prepare_inputs(recipe: Recipe, rank: int, world_size: int, display: Display) -> Inputs:
    """Tokenise, pack and order the recipe's data. Needs no process group: ranks meet at a lock on the cache."""
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


def build_engine(
    recipe: Recipe, inputs: Inputs, config: Mapping[str, Any], me: process.Process, folder: RunFolder, display: Display
) -> ZeroEngine:
    """Load the weights and hand them to DeepSpeed. Collective."""
    task = inputs.task
    source = _starting_weights(recipe, inputs, me, folder, display)
    model, missing = load_weights(task.auto_class, source, inputs.model_config, config)
    if missing:
        raise ModelError(
            f"{source} has no weights for {', '.join(missing[:3])}"
            + (f" and {len(missing) - 3} more" if len(missing) > 3 else ""),
            expected=f"a checkpoint of the whole {type(model).__name__}",
            do="give a checkpoint with these weights, or train from scratch with model.weights='random'",
        )
    if recipe.model.activation_checkpointing:
        # Non-reentrant: reentrant checkpointing needs inputs that require gradients, which embeddings' do not.
        model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    if recipe.task.neftune_alpha:
        add_neftune(model, recipe.task.neftune_alpha)
    task.prepare(model)
    untrained = untrained_tensors(model)
    if me.is_main:
        _keep_model_files(inputs, recipe, folder, untrained)
    engine = ZeroEngine(
        model,
        config,
        process=me,
        optimizer=recipe.optimizer,
        schedule=recipe.schedule,
        total_steps=inputs.total_steps,
        loss=task.loss,
        count=task.count,
        higher_is_better=recipe.evaluation.higher_is_better,
    )
    if recipe.data.packing:
        check_isolation(engine.call(leak), type(model).__name__)
    return engine


def _starting_weights(recipe: Recipe, inputs: Inputs, me: process.Process, folder: RunFolder, display: Display) -> str:
    """The checkpoint directory every rank reads its weights from."""
    if recipe.model.weights == "pretrained" and not inputs.task.config_overrides():
        return resolve(str(recipe.model.path))
    # One per host: hosts may not share a file system, and the same seed gives the same weights on each.
    directory = folder.path / f".initial-{socket.gethostname()}"
    if me.local_rank == 0 and not (directory / "config.json").is_file():
        temporary = directory.with_name(f"{directory.name}.writing")
        shutil.rmtree(temporary, ignore_errors=True)
        with storage_errors("writing the starting weights", folder.path):
            fresh = materialise(inputs.task.auto_class, recipe.model, inputs.model_config, temporary, recipe.seed)
            temporary.rename(directory)
        if fresh:
            display.say(f"new weights: {', '.join(fresh)}")
    process.barrier()
    return str(directory)


def _keep_model_files(inputs: Inputs, recipe: Recipe, folder: RunFolder, untrained: dict[str, torch.Tensor]) -> None:
    source = resolve(recipe.model.path) if recipe.model.path else None
    with storage_errors("writing the model's files", folder.path):
        folder.model.mkdir(parents=True, exist_ok=True)
        inputs.model_config.save_pretrained(folder.model)
        inputs.tokenizer.save_pretrained(folder.model)
        if untrained:
            save_file(untrained, folder.model / UNTRAINED)
        if source and (Path(source) / "generation_config.json").is_file():
            GenerationConfig.from_pretrained(source).save_pretrained(folder.model)
