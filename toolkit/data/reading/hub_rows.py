"""A data set of the hub: its files, or its rows as datasets loads them; from a cache where the hub is out of reach."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import constants

from toolkit.data.reading.content import combined
from toolkit.data.reading.file_names import KINDS, plain_name
from toolkit.data.reading.files import Read
from toolkit.data.reading.undecoded import undecoded
from toolkit.errors import DataError, SourceAbsent, innermost, one_line
from toolkit.hub_reach import cure, why_out_of_reach

_GUESSING = ("csv", "json", "text")
"""Builders of datasets that guess types: a CSV cell NA becomes null, 007 becomes 7, a date in JSON a point in time."""
_NOT_READING = ("name", "version", "data_dir", "data_files", "description")
"""Fields of a builder's configuration that do not say how its files are read."""


@dataclass(frozen=True)
class Hub:
    """One split of the data set `location`, and where it is kept."""

    location: str
    split: str
    subset: str | None
    streaming: bool
    cache_dir: Path

    @property
    def caches(self) -> tuple[Path, Path]:
        """Of data sets that datasets prepared: ours, and its own in HF_HOME."""
        return self.cache_dir / "datasets", Path(datasets.config.HF_DATASETS_CACHE)

    @property
    def note(self) -> Path:
        """Names the files that were downloaded, for when the hub is out of reach."""
        return self.cache_dir / "hub" / combined(self.location, self.split, self.subset)


def open_hub(hub: Hub, field: str) -> Read | list[Path]:
    """The rows of `hub`, or the downloaded files that hold them, to be read as local ones are.

    Files where datasets would guess what they hold: CSV, JSON and text without a description of the columns. A hub that
    does not answer is noticed in seconds; then what was downloaded or prepared before is taken. Raises DataError, about
    the recipe's `field`, for what cannot be had and for a split or a subset that is not there.
    """
    problem = why_out_of_reach()
    with _errors(hub, field, problem):
        if problem is not None:
            with _offline():
                return _remembered(hub) or Read(*_identified(hub, _cached(hub)))
        builder = datasets.load_dataset_builder(hub.location, hub.subset, cache_dir=str(hub.caches[0]))
        guesses = _guesses(builder)
        if guesses and not hub.streaming and (files := _download(hub, builder)):
            return files
        if hub.streaming:
            rows = builder.as_streaming_dataset(split=hub.split)
        else:
            builder.download_and_prepare()
            rows = builder.as_dataset(split=hub.split)
        remark = (
            "datasets guesses the types of its columns (NA becomes null, 007 becomes 7); whole splits without data.streaming "
            "are read as they are written"
        )
        return Read(*_identified(hub, rows), remarks=(remark,) if guesses else ())


def _guesses(builder: Any) -> bool:
    """Whether the types of the columns follow from the values: nobody described them, nor how the files are to be read."""
    config = builder.config
    plain = type(config)()
    described = any(
        getattr(config, f.name) != getattr(plain, f.name) for f in fields(config) if f.name not in _NOT_READING
    )
    return type(builder).__module__.split(".")[-1] in _GUESSING and builder.info.features is None and not described


def _download(hub: Hub, builder: Any) -> list[Path]:
    """The files of the split, in the hub's cache; none where they are not what their names say."""
    urls = [str(url) for url in (builder.config.data_files or {}).get(hub.split, ())]
    if not urls or len({KINDS.get(plain_name(Path(url)).suffix.lower(), url) for url in urls}) > 1:
        return []
    loader = datasets.DownloadManager(
        download_config=datasets.DownloadConfig(cache_dir=str(hub.caches[0] / "downloads"))
    )
    files = [Path(file) for file in loader.download(urls)]
    if any(plain_name(file).suffix.lower() not in KINDS for file in files):
        return []
    hub.note.parent.mkdir(parents=True, exist_ok=True)
    hub.note.write_text(json.dumps([str(file) for file in files]))
    return files


def _remembered(hub: Hub) -> list[Path]:
    if hub.streaming or not hub.note.exists():
        return []
    files = [Path(file) for file in json.loads(hub.note.read_text())]
    return files if all(file.exists() for file in files) else []


def _cached(hub: Hub) -> Any:
    """The rows in the first of the caches that has them. Raises the last one's error where none has."""
    for cache in hub.caches[:-1]:
        with contextlib.suppress(OSError, datasets.exceptions.DatasetsError):
            return _load(hub, cache)
    return _load(hub, hub.caches[-1])


def _load(hub: Hub, cache: Path) -> Any:
    return datasets.load_dataset(
        hub.location, hub.subset, split=hub.split, streaming=hub.streaming, cache_dir=str(cache)
    )


def _identified(hub: Hub, rows: Any) -> tuple[Any, str]:
    """`rows` with their digest. Their own fingerprint follows from the hub's revision, the files and the split; a stream
    has only its name."""
    return undecoded(rows), combined(
        "hub", [hub.location, hub.subset, hub.split] if hub.streaming else rows._fingerprint
    )


@contextlib.contextmanager
def _errors(hub: Hub, field: str, problem: str | None) -> Iterator[None]:
    try:
        yield
    except (OSError, datasets.exceptions.DatasetsError) as error:
        begin = f"{field}={hub.location!r} is no local file or directory, and"
        if problem is not None:
            raise SourceAbsent(
                f"{begin} of the caches {' and '.join(map(str, hub.caches))} none has a data set of this name; the hub: {problem}",
                expected="an existing path, a name that `toolkit fetch` knows, or the name of a hub data set and a network",
                do=f"correct the name, or run `toolkit fetch NAME`; without a network, {cure()}",
            ) from None
        raise DataError(
            f"{begin} the hub did not give it: {one_line(innermost(error))}",
            expected="an existing path, a name that `toolkit fetch` knows, or the name of a hub data set",
            do="correct the name; for a private or gated data set log in with `hf auth login`",
        ) from None
    except ValueError as error:  # an unknown split or subset: the message lists those there are
        raise DataError(
            f"{field}={hub.location!r} with split {hub.split!r} and data.subset={hub.subset!r}: {one_line(innermost(error))}",
            expected="a split and a subset that the data set has",
            do="correct the split or data.subset",
        ) from None


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """As under HF_HUB_OFFLINE=1: the libraries do not try for themselves what is known to fail."""
    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
