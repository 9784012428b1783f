"""Open what `data.train` and `data.evaluation` name: local files, saved data sets, hub names."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import datasets

from toolkit.data.json_rows import check_json, empty_source
from toolkit.data.storage import CLOSED, FULL
from toolkit.errors import DataError, StorageError, did_you_mean

Rows: TypeAlias = datasets.Dataset | datasets.IterableDataset

_LOADERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}
_SUFFIXES = ", ".join(_LOADERS)
_SPLIT_NAMES = ("train", "test", "validation", "valid", "dev", "eval")


def open_source(
    location: str,
    *,
    split: str,
    cache_dir: Path,
    subset: str | None = None,
    streaming: bool = False,
    max_examples: int | None = None,
    field: str = "data.train",
) -> Rows:
    """The rows of `location`: an IterableDataset when `streaming`, else a Dataset; the first `max_examples` of them.

    `split` selects files by name in a directory (train.jsonl, test-00000-of-00002.parquet), a part of a saved data
    set or of a hub data set; a single file or a pattern is one split whatever its name. `field` is the recipe field,
    for messages. Raises DataError for everything that cannot be opened or has no rows.
    """
    with _quiet(), _access(location, field):
        rows = _open(location, split, subset, streaming, field, cache_dir)
        if max_examples is not None:
            limited = rows.take(max_examples) if streaming else rows.select(range(min(max_examples, len(rows))))
            rows = limited
        if next(iter(rows), None) is None:
            raise empty_source(location, field)
    return rows


def _open(location: str, split: str, subset: str | None, streaming: bool, field: str, cache_dir: Path) -> Any:
    path = Path(location).expanduser()
    if path.is_dir():
        if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
            return _open_saved(path, split, streaming, field)
        return _open_files(_files_of_split(path, split, field), location, streaming, field, cache_dir)
    if path.exists():
        return _open_files([path], location, streaming, field, cache_dir)
    if any(mark in location for mark in "*?["):
        return _open_files(_matches(path, location, field), location, streaming, field, cache_dir)
    if _looks_local(location):
        raise _missing(path, location, field)
    return _open_hub(location, split, subset, streaming, field, cache_dir)


def _matches(pattern: Path, location: str, field: str) -> list[Path]:
    root = Path(pattern.anchor or ".")
    files = sorted(path for path in root.glob(str(pattern.relative_to(pattern.anchor))) if path.is_file())
    if not files:
        raise DataError(
            f"{field}={location!r} matches no file",
            expected="a pattern that matches at least one file",
            do=f"list what it matches with: ls {location}",
        )
    return files


def _looks_local(location: str) -> bool:
    # A hub name is "name" or "owner/name" and has no suffix that we would read.
    return location.startswith((".", "/", "~")) or location.count("/") > 1 or Path(location).suffix.lower() in _LOADERS


def _missing(path: Path, location: str, field: str) -> DataError:
    parent = path.parent
    if not parent.is_dir():
        return DataError(
            f"{field}={location!r} does not exist, and neither does the directory {str(parent)!r}",
            expected="an existing file or directory",
            do="correct the path; relative paths start at the current directory",
        )
    beside = sorted(entry.name for entry in parent.iterdir() if not entry.name.startswith("."))
    return DataError(
        f"{field}={location!r} does not exist{did_you_mean(path.name, beside)}",
        expected=f"an existing file or directory; beside it are: {_some(beside)}",
        do="correct the path; relative paths start at the current directory",
    )


def _files_of_split(directory: Path, split: str, field: str) -> list[Path]:
    """The data files of `directory` that belong to `split`; all of them when none is named after a split."""
    files = sorted(
        path
        for path in directory.rglob("*")
        if path.suffix.lower() in _LOADERS and not any(p.startswith(".") for p in path.relative_to(directory).parts)
    )
    if not files:
        raise DataError(
            f"{field}={str(directory)!r} holds no data file",
            expected=f"files ending in {_SUFFIXES}, or what `save_to_disk` of datasets writes",
            do=f"point {field} to the directory with the files",
        )
    named = [(path, _split_of(path.stem, split)) for path in files]
    known = sorted({name for _, name in named if name is not None})
    if not known:
        return files
    chosen = [path for path, name in named if name == split]
    if not chosen:
        raise _unknown_split(split, known, str(directory), field)
    return chosen


def _split_of(stem: str, wanted: str) -> str | None:
    """The split that a file is named after: train, train-00000-of-00002, test_1; None for any other name."""
    for name in dict.fromkeys((wanted, *_SPLIT_NAMES)):
        if stem == name or stem.startswith((f"{name}-", f"{name}_", f"{name}.")):
            return name
    return None


def _unknown_split(split: str, known: Sequence[str], location: str, field: str) -> DataError:
    key = "data.split" if field == "data.train" else "data.evaluation_split"
    return DataError(
        f"{key}={split!r} is not a split of {field}={location!r}{did_you_mean(split, known)}",
        expected=f"one of: {', '.join(known)}",
        do=f"set {key} to one of them",
    )


def _open_files(files: list[Path], location: str, streaming: bool, field: str, cache_dir: Path) -> Any:
    kinds = {_kind(path, field) for path in files}
    if len(kinds) > 1:
        raise DataError(
            f"{field}={location!r} mixes kinds of files: {_some([path.name for path in files])}",
            expected="files of one kind",
            do=f"select them with a pattern, for instance {field}='{Path(location) / '*.jsonl'}'",
        )
    kind = kinds.pop()
    for path in files:
        with path.open("rb") as file:  # unreadable: found before anything is cached
            if not file.read(1):
                raise empty_source(str(path), field)
        if kind == "json":
            check_json(path, field=field, cache_dir=cache_dir)
    names = [str(path.resolve()) for path in files]
    try:
        return datasets.load_dataset(
            kind, data_files={"train": names}, split="train", streaming=streaming, cache_dir=str(cache_dir / "datasets")
        )
    except (datasets.exceptions.DatasetsError, ValueError, StopIteration) as error:
        if "corresponds to no data" in str(error):  # a table with a header only
            raise empty_source(location, field) from None
        raise DataError(
            f"{field}={location!r} cannot be read as {kind}: {_reason(error)}",
            expected=f"what its name says, a well-formed {kind} file with the same columns in every row",
            do="repair the file, or write it anew from its source",
        ) from None


def _kind(path: Path, field: str) -> str:
    suffix = path.suffix.lower()
    if suffix in _LOADERS:
        return _LOADERS[suffix]
    hint = "decompress it first" if suffix in (".gz", ".zst", ".bz2", ".xz", ".zip") else "convert it"
    raise DataError(
        f"{field}={str(path)!r} ends in {suffix or 'nothing'!r}, which is not read",
        expected=f"a file ending in one of {_SUFFIXES}",
        do=f"{hint}, or rename it if it is one of these",
    )


def _open_saved(path: Path, split: str, streaming: bool, field: str) -> Any:
    try:
        saved = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{field}={str(path)!r} looks like a data set written by `save_to_disk`, but: {_reason(error)}",
            expected="all files that `save_to_disk` wrote",
            do="write it again, or copy the whole directory",
        ) from None
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            raise _unknown_split(split, sorted(saved), str(path), field)
        saved = saved[split]
    return saved.to_iterable_dataset() if streaming else saved


def _open_hub(location: str, split: str, subset: str | None, streaming: bool, field: str, cache_dir: Path) -> Any:
    try:
        return datasets.load_dataset(
            location, subset, split=split, streaming=streaming, cache_dir=str(cache_dir / "datasets")
        )
    except (OSError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{field}={location!r} is no local file or directory, and the hub did not give it: {_reason(error)}",
            expected="an existing path, a name that `toolkit fetch` knows, or the name of a hub data set and a network",
            do="correct the name; without a network, download the data set elsewhere and give its path",
        ) from None
    except ValueError as error:  # an unknown split or subset: the message lists those there are
        raise DataError(
            f"{field}={location!r} with split {split!r} and data.subset={subset!r}: {_reason(error)}",
            expected="a split and a subset that the data set has",
            do="correct the split or data.subset",
        ) from None


def _reason(error: BaseException) -> str:
    """The innermost cause in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:300] or type(error).__name__


def _some(names: Sequence[str], limit: int = 8) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "") or "nothing"


@contextlib.contextmanager
def _access(location: str, field: str) -> Iterator[None]:
    try:
        yield
    except (DataError, OSError) as error:
        cause = error if isinstance(error, OSError) else error.__context__
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        number = cause.errno if isinstance(cause, OSError) else None
        if number in FULL:
            raise StorageError(
                f"no space left while reading {field}={location!r} into the cache",
                expected="room for another copy of the data",
                do="free some space, or set TOOLKIT_CACHE to a directory on a larger disk",
            ) from None
        if isinstance(error, OSError) and number in CLOSED:
            raise DataError(
                f"{field}={location!r}: {error.filename or location}: {error.strerror}",
                expected="files this user may read, and a cache directory it may write to",
                do="change the permissions, or set TOOLKIT_CACHE if it is the cache",
            ) from None
        raise


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars and log lines of datasets: every rank opens the source, and errors are raised."""
    level, bars = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if not bars:
            datasets.enable_progress_bars()
