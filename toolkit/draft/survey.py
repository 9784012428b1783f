"""What a model and a data file are like: looked at as training will see them, some rows only, no weight loaded."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet

from toolkit.cache import cache_dir
from toolkit.data.encoding import Encoder
from toolkit.data.example import Example, Row
from toolkit.data.reading.column_names import used_columns
from toolkit.data.reading.file_names import kind_of, plain_name
from toolkit.data.reading.mixture import Mixture, Part
from toolkit.data.reading.row_names import row_names
from toolkit.data.reading.sizes import STREAMED_BYTES, num_bytes
from toolkit.data.reading.sources import Source, open_source
from toolkit.data.reading.weighted import only_location
from toolkit.data.sets.catalog import resolve as resolve_data
from toolkit.errors import DataError
from toolkit.models.assets import ASSETS
from toolkit.models.assets import resolve as resolve_model
from toolkit.models.attention_choice import model_class
from toolkit.models.causality import rehearse_causal
from toolkit.models.config import load_config
from toolkit.models.files import check_weights, unreadable
from toolkit.models.output_layer import parameter_shapes
from toolkit.models.positions import usable_positions
from toolkit.models.weight_files import chosen
from toolkit.recipe import Data, Model, Recipe
from toolkit.tasks.base import Task
from toolkit.tasks.encoder import encoder_of
from toolkit.train.inputs import check_vocabulary, fit

MOST_ROWS = 1000
"""Rows that are measured, spread over the file; the first ones of a stream."""
MOST_TOKENS = 2_000_000
"""Measuring ends after so many tokens: long texts are told by fewer rows."""
LEAST_ROWS = 20
HELD_OUT_ROWS = 100
"""Rows of a held-out file that are tried."""

Progress = Callable[[int, int], None]
"""Called now and then with the rows measured so far and those to measure."""


@dataclass(frozen=True)
class Look:
    """Some rows of a source."""

    source: Source
    rows: list[tuple[int, Row]]
    """Number, 1 is the first, and row; in random order where they are spread over the file."""
    total: int | None
    """Rows of the whole source; None where nothing tells."""
    counted: bool
    """Whether `total` was counted; else it follows from the size."""

    @property
    def first(self) -> Row:
        """The earliest of the rows."""
        return min(self.rows, key=lambda numbered: numbered[0])[1]


def look_at(data: Data) -> Look:
    """Open data.train and read up to MOST_ROWS of its rows. Raises DataError as training would."""
    place = resolve_data(only_location(data.train, "data.train", "a recipe is drafted from its rows"))
    size = num_bytes(place)
    streaming = data.streaming or size is None or size > STREAMED_BYTES
    source = open_source(
        place,
        split=data.split,
        subset=data.subset,
        streaming=streaming,
        max_examples=data.max_examples,
        cache_dir=cache_dir() / "datasets",
        whole=False,
    )
    if isinstance(source.rows, datasets.Dataset):
        count = len(source.rows)
        # The first one first: what is wrong with all of them is said of that.
        numbers = [0, *random.Random(0).sample(range(1, count), min(count, MOST_ROWS) - 1)]
        return Look(source, [(number + 1, source.rows[number]) for number in numbers], count, True)
    rows = list(enumerate(islice(source.rows, MOST_ROWS), start=1))
    if len(rows) < MOST_ROWS:
        return Look(source, rows, len(rows), True)
    total, counted = _estimated(source, [row for _, row in rows])
    return Look(source, rows, min(total, data.max_examples) if total and data.max_examples else total, counted)


def _estimated(source: Source, rows: Sequence[Row]) -> tuple[int | None, bool]:
    """How many rows the files of `source` have, and whether they were counted."""
    if not source.files:
        return None, False
    if all(file.suffix.lower() == ".parquet" for file in source.files):
        return sum(pyarrow.parquet.ParquetFile(file).metadata.num_rows for file in source.files), True
    if any(plain_name(file) != file for file in source.files):  # compressed
        return None, False
    is_json = kind_of(source.files[0], "data.train") == "json"
    texts = [
        json.dumps(row, ensure_ascii=False, default=str) if is_json else ",".join(map(str, row.values()))
        for row in rows
    ]
    per_row = sum(len(text.encode()) + 1 for text in texts) / len(texts)
    return int(float(f"{sum(file.stat().st_size for file in source.files) / per_row:.2g}")), False


@dataclass(frozen=True)
class Measured:
    """The examples that training makes of some rows, before any is cut to a length."""

    num_rows: int
    examples: list[Example]
    empty: int
    """Rows that gave no example: without text, or without a token to learn."""
    unused: list[str]
    """Columns that hold something and are not read."""
    used: list[str]
    """Columns that hold something and are read."""
    task: Task

    @property
    def lengths(self) -> list[int]:
        """Tokens of each example."""
        return [self.task.size(example) for example in self.examples]


def fit_task(look: Look, task: Task, recipe: Recipe) -> None:
    """Let `task` look at the rows, as training does; of a stream, at the first ones."""
    source = look.source
    is_whole = isinstance(source.rows, datasets.Dataset)
    seen = source if is_whole else replace(source, rows=source.rows.take(MOST_ROWS))
    fit(task, Mixture((Part(recipe.data.train, 1.0, seen),)), recipe)


def measure(look: Look, task: Task, progress: Progress) -> Measured:
    """Encode the rows of `look` as training does. Raises DataError with the number of a row that cannot be used."""
    encoder = _encoder(task, look.source, "data.train")
    examples: list[Example] = []
    used: dict[str, None] = {}
    count, tokens = 0, 0
    for count, (number, row) in enumerate(look.rows, start=1):
        found = encoder.examples(row, number)
        examples += found
        used |= dict.fromkeys(used_columns(row, task.columns))
        tokens += sum(map(task.size, found))
        if count % 20 == 0:
            progress(count, len(look.rows))
        if tokens > MOST_TOKENS and count >= LEAST_ROWS:
            break
    encoder.check(count)
    return Measured(count, examples, encoder.counts.empty + encoder.counts.masked, [*encoder.unused], [*used], task)


def _encoder(task: Task, source: Source, field: str) -> Encoder:
    """What encodes the rows of `field`, whatever their length."""
    return encoder_of(task, source.rows, 2**31, "truncate", name=field, row_name=row_names(source, field))


def held_out_split(data: Data, look: Look) -> str | None:
    """The split of the folder data.train that holds other rows than the one that is trained; None where there is none."""
    place = resolve_data(data.train)
    if not Path(place).is_dir():
        return None
    for split in ("test", "validation"):
        try:
            found = open_source(
                place,
                split=split,
                streaming=True,
                cache_dir=cache_dir() / "datasets",
                field="data.evaluation",
                whole=False,
            )
        except DataError:
            continue
        if found.files and set(found.files).isdisjoint(look.source.files):
            return split
    return None


def check_held_out(data: Data, task: Task) -> None:
    """Open data.evaluation and encode its first rows with `task`, which has seen the training rows. Raises DataError."""
    assert data.evaluation is not None
    source = open_source(
        resolve_data(data.evaluation),
        split=data.evaluation_split,
        subset=data.subset,
        streaming=(num_bytes(resolve_data(data.evaluation)) or 0) > STREAMED_BYTES,
        cache_dir=cache_dir() / "datasets",
        field="data.evaluation",
        whole=False,
    )
    encoder = _encoder(task, source, "data.evaluation")
    count = 0
    for count, row in enumerate(islice(source.rows, HELD_OUT_ROWS), start=1):
        encoder.examples(row, count)
    encoder.check(count)


@dataclass(frozen=True)
class ModelFacts:
    """What a checkpoint's description says."""

    architecture: str
    """Name of transformers' class."""
    parameters: int
    positions: int | None
    """Tokens of its longest sequence; None: no limit."""
    tied: bool
    """Whether the output layer is the embedding."""
    has_chat_template: bool
    kind: Any
    """transformers' auto class."""
    config: Any

    @property
    def state_gib(self) -> float:
        """Memory of weights, gradients and Adam's states in mixed precision, over all ranks: 16 bytes a parameter."""
        return 16 * self.parameters / 2**30


def look_at_model(model: Model, task: Task) -> ModelFacts:
    """Read the configuration; weights are looked for where they are on this host, but not loaded.

    Raises ModelError for a model that cannot be trained on `task`.
    """
    # Another implementation of attention may be missing here; where the recipe is started it is looked for.
    plain = model.model_copy(update={"attention": "auto"})
    config = load_config(plain, vocabulary_size=task.vocabulary_size, overrides=task.config_overrides())
    check_vocabulary(task.vocabulary_size, config)
    network = model_class(task.auto_class, config)
    if model.path is not None and model.weights == "pretrained":
        _check_weights(model.path)
    if task.is_causal:
        rehearse_causal(task.auto_class, config)
    shapes = parameter_shapes(task.auto_class, config)
    return ModelFacts(
        architecture=network.__name__,
        parameters=sum(math.prod(shape) for shape in shapes.values()),
        positions=usable_positions(task.auto_class, config),
        tied=bool(getattr(config, "tie_word_embeddings", False)) and task.is_causal,
        has_chat_template=bool(task.tokenizer.chat_template),
        kind=task.auto_class,
        config=config,
    )


def _check_weights(path: str) -> None:
    if not Path(path).is_dir() and path not in ASSETS:
        return  # downloaded when they are needed
    source = resolve_model(path, weights=True)
    if chosen(Path(source)) is None:
        raise unreadable("model", "model.path", path, source, FileNotFoundError("no weights"))
    check_weights(source)


def histogram(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(tokens, examples of at most that many but more than the one before) for powers of two."""
    low, high = min(lengths), max(lengths)
    edge = 2 ** max(3, (low - 1).bit_length())
    before = 0
    while before < high:
        yield edge, sum(before < length <= edge for length in lengths)
        before, edge = edge, 2 * edge
