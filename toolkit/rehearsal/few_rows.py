"""The data of a rehearsal: some rows of the recipe's own sources, encoded as its run would; else rows of random words."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import datasets

from toolkit.cache import cache_dir
from toolkit.data.forms.recognised import recognised_lines
from toolkit.data.reading.mixture import Mixture, Part
from toolkit.data.reading.sizes import STREAMED_BYTES, num_bytes
from toolkit.data.reading.sources import Source, open_source
from toolkit.data.reading.weighted import weighted
from toolkit.data.sets.catalog import resolve
from toolkit.errors import DataError, SourceAbsent, plural
from toolkit.recipe import Data, Recipe
from toolkit.recipe.tasks.custom import OWN
from toolkit.rehearsal.made_up import write_made_up
from toolkit.tasks.base import Task
from toolkit.tasks.encoder import encoder_of
from toolkit.train.inputs import fit

MOST_ROWS, MOST_HELD_OUT = 256, 64
MOST_TOKENS = 500_000
"""Reading ends after so many tokens: long texts are told by fewer rows."""
LEAST_ROWS = 16
SHORT, LONG = 128, 1024
"""Tokens of a sequence: so many where it may be cut anyway, and the most where the recipe lets rows be cut."""
GRAIN = 16
"""Lengths are a multiple of it, so that ranks can share a sequence."""


@dataclass
class FewRows:
    """What the rehearsal trains on."""

    data: Data
    task: Any
    """The recipe's section for it."""
    sequence_length: int
    said: list[str] = field(default_factory=list)
    """What was read, in words."""
    stand_ins: list[str] = field(default_factory=list)
    """What is not the recipe's own, in words."""


def write_few_rows(recipe: Recipe, task: Task, folder: Path) -> FewRows:
    """Put some rows of the sources of `recipe` into `folder`, read and encoded as its run would do it.

    Where a source is not on this host, rows of random words stand in. Raises DataError for one that is here and cannot be used.
    """
    data = recipe.data
    if OWN in (data.train, data.evaluation):
        said = [f"the rows of {getattr(recipe.task, 'target', recipe.task.name)}"]
        return FewRows(data, recipe.task, recipe.batch.sequence_length, said)
    try:
        train = _mixture(data, "data.train", folder, MOST_ROWS)
    except SourceAbsent as error:
        return _made_up(recipe, folder, error)
    found = FewRows(data, recipe.task, recipe.batch.sequence_length)
    fit(task, train, recipe)
    sizes = _encoded(recipe, task, train, "data.train", found)
    held_out = _held_out(recipe, task, folder, found)
    if recipe.task.has_length:
        found.sequence_length = _length(recipe, [size for part in sizes for size in part if size])
    changes: dict[str, Any] = {"subset": None}
    changes["train"] = _kept(recipe, task, train, sizes, found.sequence_length, folder / "train")
    if held_out is not None:
        every = [[1] * len(part.source.rows) for part in held_out.parts]
        changes["evaluation"] = _kept(recipe, task, held_out, every, 1, folder / "held_out")
    elif data.evaluation is not None:
        changes |= {"evaluation": None, "evaluation_examples": 4, "evaluation_split": "test"}
    found.data = data.model_copy(update=changes)
    return found


def _made_up(recipe: Recipe, folder: Path, error: SourceAbsent) -> FewRows:
    data, task, length = write_made_up(recipe, folder, error)
    said = f"the rows: {_why(error)}, so random ones in this task's usual columns stand in"
    return FewRows(data, task, length, stand_ins=[said])


def _why(error: SourceAbsent) -> str:
    """What a reader needs of `error`: of a hub's name, that no cache has it; of what can be fetched, how."""
    if error.do.startswith("run "):
        return f"{error.what} ({error.do.removeprefix('run ')})"
    name, is_hub, _ = error.what.partition(" is no local file or directory")
    return f"{name} is in no cache" if is_hub else name.partition(", and neither")[0]


def _held_out(recipe: Recipe, task: Task, folder: Path, found: FewRows) -> Mixture | None:
    """Some rows of data.evaluation; None where it names nothing that is here."""
    if recipe.data.evaluation is None:
        return None
    try:
        mixture = _mixture(recipe.data, "data.evaluation", folder, MOST_HELD_OUT)
    except SourceAbsent as error:
        found.stand_ins.append(f"the held-out rows: {_why(error)}, so some of data.train are held out")
        return None
    task.check(mixture.rows, mixture.row_name("data.evaluation"))
    _encoded(recipe, task, mixture, "data.evaluation", found)
    return mixture


def _mixture(data: Data, name: str, folder: Path, count: int) -> Mixture:
    """The sources that the field `name` says, `count` rows of each."""
    text, split = (data.train, data.split) if name == "data.train" else (str(data.evaluation), data.evaluation_split)
    parts = [
        # A small share of few rows might be none.
        Part(part.location, max(1.0, min(2.0, part.weight)), _few(part.location, data, name, split, folder, count))
        for part in weighted(text, name)
    ]
    return Mixture(tuple(parts))


def _few(location: str, data: Data, name: str, split: str, folder: Path, count: int) -> Source:
    """`count` rows of a source, spread over it, the first ones of a large one. Raises SourceAbsent where there is none."""
    place = resolve(location)
    size = num_bytes(place)
    source = open_source(
        place,
        split=split,
        subset=data.subset,
        streaming=size is not None and size > STREAMED_BYTES,
        # Of hub data sets the cache is where they are; what is made here of files is of no use to any other run.
        cache_dir=(cache_dir() if size is None else folder / "cache") / "datasets",
        field=name,
        whole=False,
    )
    rows: Any = source.rows
    if not isinstance(rows, datasets.Dataset):
        first = list(islice(rows, count))
        return replace(source, rows=datasets.Dataset.from_list(first, features=rows.features))
    numbers = range(0, len(rows), max(1, len(rows) // count))[:count]
    return replace(source, rows=rows.select(numbers), place=numbers.__getitem__)


def _encoded(recipe: Recipe, task: Task, mixture: Mixture, name: str, found: FewRows) -> list[list[int]]:
    """Encode the rows as the run would, at its own length; of each row of each source the longest example, 0 for none.

    Rows after MOST_TOKENS are not looked at. Raises DataError with the name of a row that cannot be used.
    """
    sizes = []
    for part in mixture.parts:
        data = recipe.data
        encoder = encoder_of(
            task,
            part.source.rows,
            recipe.batch.sequence_length,
            data.overlong,
            name=name,
            row_name=mixture.part_row_name(part, name),
            folder=part.source.folder,
            unreadable=data.unreadable,
        )
        of_rows: list[int] = []
        for number, row in enumerate(part.source.rows, start=1):
            of_rows.append(max(map(task.size, encoder.examples(row, number)), default=0))
            if sum(of_rows) > MOST_TOKENS and number >= LEAST_ROWS:
                break
        encoder.check(len(of_rows))
        sizes.append(of_rows)
        forms = [line.strip() for line in recognised_lines(encoder.forms)] or [f"{plural(len(of_rows), 'row')} read"]
        counts = f" ({said})" if (said := encoder.counts.describe()) else ""
        found.said.append(f"{name} {part.location}: {'; '.join(forms)}{counts}")
    return sizes


def _length(recipe: Recipe, sizes: list[int]) -> int:
    """Tokens of the rehearsal's sequences: enough for some rows as they are."""
    whole, overlong = recipe.batch.sequence_length, recipe.data.overlong
    if overlong == "split":
        return min(whole, SHORT)
    enough = sorted(sizes)[min(len(sizes), LEAST_ROWS) - 1] if sizes else SHORT
    wanted = -(-max(SHORT, enough) // GRAIN) * GRAIN
    return min(whole, wanted if recipe.task.reads_media or overlong != "truncate" else min(LONG, wanted))


def _kept(recipe: Recipe, task: Task, mixture: Mixture, sizes: list[list[int]], length: int, folder: Path) -> str:
    """Write the rows of `mixture` that have an example, to `folder`; what the recipe's field says then."""
    locations = []
    for index, (part, of_rows) in enumerate(zip(mixture.parts, sizes, strict=True)):
        # A longer row would be an error here that it is not in the run.
        most = length if recipe.data.overlong == "error" else max(of_rows, default=0)
        kept = [number for number, size in enumerate(of_rows) if 0 < size <= most]
        rows: Any = part.source.rows
        if not kept:
            raise DataError(
                f"{part.location!r}: none of {plural(len(of_rows), 'row')} gives an example",
                expected="rows with something to learn",
                do="see what becomes of them with --preview 1",
            )
        place = folder / str(index)
        locations.append(f"{_written(task, part.source, rows.select(kept), place)}")
    weights = "" if mixture.is_plain else ":{}"
    return ",".join(place + weights.format(part.weight) for place, part in zip(locations, mixture.parts, strict=True))


def _written(task: Task, source: Source, rows: Any, folder: Path) -> str:
    """Write `rows` so that they are read as those of `source` are; where they lie then."""
    if rows.format["type"] == "custom":  # rows of JSON files, which are read as they are written
        file = folder / "rows.jsonl"
        _beside_files(task, source, folder)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(file)
    if not task.sourced or source.folder is None:
        rows.save_to_disk(str(folder))
        return str(folder)
    _beside_files(task, source, folder)
    file = folder / "rows.parquet"
    rows.to_parquet(str(file))
    return str(file)


def _beside_files(task: Task, source: Source, folder: Path) -> None:
    """Make `folder`; paths of images and recordings in its rows lead where they do in `source`."""
    folder.mkdir(parents=True)
    if task.sourced and source.folder is not None:
        for entry in source.folder.iterdir():
            if entry.name not in ("rows.jsonl", "rows.parquet"):
                (folder / entry.name).symlink_to(entry.absolute())
