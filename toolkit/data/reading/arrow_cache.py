"""Rows of files, kept as Arrow in the cache of datasets by their content.

A builder opens no file in its own module: datasets replaces `open` and `Path` there by ones that read some names as URLs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow
from datasets.builder import Key
from datasets.table import table_cast

from toolkit.data.reading.tables import tables
from toolkit.errors import DataError

_FORMAT = 3  # part of every cache entry: raise it when this package reads a file differently


def no_rows(location: str, field: str = "the recipe") -> DataError:
    """The error for a source without a single row; `field` is what names it."""
    return DataError(
        f"{location!r} has no rows",
        expected="at least one row",
        do=f"check how the file was written, or point {field} to another one",
    )


def cached_rows(
    names: Sequence[str], kind: str, features: datasets.Features, content: str, cache_dir: Path
) -> datasets.Dataset:
    """The rows of the files `names`, memory-mapped from `cache_dir`, where they are written unless `content` is there.

    Processes may ask at once: one writes. Raises datasets' DatasetGenerationError around what went wrong in reading.
    """
    builder = _Files(
        cache_dir=str(cache_dir), names=tuple(names), kind=kind, features=features, content=content, reading=_FORMAT
    )
    builder.download_and_prepare()
    return builder.as_dataset(split="train")


@dataclass
class _Config(datasets.BuilderConfig):  # type: ignore[misc]  # datasets has no types
    """All of it is part of the cache's key."""

    names: tuple[str, ...] = ()
    kind: str = ""
    features: datasets.Features | None = None
    content: str = ""
    reading: int = 0


class _Files(datasets.ArrowBasedBuilder):  # type: ignore[misc]
    BUILDER_CONFIG_CLASS = _Config

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=self.config.features)

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        return [datasets.SplitGenerator(name="train", gen_kwargs={"config": self.config})]

    def _generate_tables(self, config: _Config) -> Iterator[tuple[Key, pyarrow.Table]]:
        assert config.features is not None
        any_rows = False
        for number, name in enumerate(config.names):
            for piece, table in enumerate(tables(name, config.kind, list(config.features))):
                any_rows = any_rows or len(table) > 0
                yield Key(number, piece), table_cast(table, config.features.arrow_schema)
        if not any_rows:
            raise no_rows(config.names[0])
