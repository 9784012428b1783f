"""Which files of a directory belong to a split, by the words in their names and in the folders that hold them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from toolkit.errors import DataError, did_you_mean

_SYNONYMS = (  # as in datasets.data_files
    ("train", "training"),
    ("validation", "valid", "dev", "val"),
    ("test", "testing", "eval", "evaluation"),
)
_SEPARATORS = re.compile(r"[-._ 0-9]+")


def files_of_split(files: Sequence[Path], directory: Path, split: str, field: str) -> tuple[list[Path], list[Path]]:
    """The `files` in `directory` that belong to `split`, and those that belong to none while others do.

    All of them, and none left out, where no name says a split. Raises DataError for a split that no file has, and for
    a file whose name and folder say different ones.
    """
    splits = {path: _split_of(path.relative_to(directory), split, str(directory), field) for path in files}
    known = sorted({name for name in splits.values() if name is not None})
    if not known:
        return list(files), []
    chosen = [path for path in files if splits[path] == split]
    if not chosen:
        synonyms: tuple[str, ...] = next((names for names in _SYNONYMS if split in names), ())
        chosen = [path for path in files if splits[path] in synonyms]
    if not chosen:
        raise unknown_split(split, known, str(directory), field)
    return chosen, [path for path in files if splits[path] is None]


def unknown_split(split: str, known: Sequence[str], location: str, field: str) -> DataError:
    """The error for a split that a source does not have."""
    key = "data.split" if field == "data.train" else "data.evaluation_split"
    return DataError(
        f"{key}={split!r} is not a split of {field}={location!r}{did_you_mean(split, known)}",
        expected=f"one of: {', '.join(known)}",
        do=f"set {key} to one of them",
    )


def _split_of(path: Path, wanted: str, directory: str, field: str) -> str | None:
    """The split that `path` is named after: train-00000-of-00002, apples_test, dev/part-0; None for any other name.

    A name that is `wanted` itself counts, whatever it is.
    """
    words = [word for part in (*path.parts[:-1], path.stem) for word in _words(part, wanted)]
    groups = {next((names[0] for names in _SYNONYMS if word in names), word) for word in words}
    if len(groups) > 1:
        raise DataError(
            f"{field}={directory!r}: the name of {str(path)!r} says several splits, {' and '.join(dict.fromkeys(words))}",
            expected="one split in the names of a file and of the folders that hold it",
            do=f"rename it, or name the files that are meant: a file, or a pattern such as {field}='{directory}/*.jsonl'",
        )
    return words[-1] if words else None


def _words(name: str, wanted: str) -> list[str]:
    """The names of splits in `name`; a `wanted` one that is no usual name stands at its start."""
    splits = {word for names in _SYNONYMS for word in names}
    if wanted not in splits and (name == wanted or name.startswith(tuple(f"{wanted}{mark}" for mark in "-_. "))):
        return [wanted]
    return [word for word in _SEPARATORS.split(name.casefold()) if word in splits]
