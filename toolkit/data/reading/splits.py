"""Which files of a directory belong to a split, by the words in their names and in the folders that hold them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from toolkit.data.reading.file_names import plain_name
from toolkit.errors import DataError, did_you_mean

_SYNONYMS = (  # as in datasets.data_files
    ("train", "training"),
    ("validation", "valid", "dev", "val"),
    ("test", "testing", "eval", "evaluation"),
)
_WORDS = {word for names in _SYNONYMS for word in names}
_SEPARATORS = re.compile(r"[-._ 0-9]+")
_NUMBERED = ("of", "v")
"""What is left of a number at the end of a name: 00001-of-00002, v2."""


def files_of_split(files: Sequence[Path], directory: Path, split: str, field: str) -> tuple[list[Path], list[Path]]:
    """The `files` in `directory` that belong to `split`, and those that belong to none while others do.

    The word of a folder (dev/part-0) counts before that of the file in it. A word stands at the start or the end of a
    name (train-00000-of-00002, apples_test); in the middle it counts only where no name has one there, and only if such
    words say several splits. All files, and none left out, where no name says a split. Raises DataError for a split
    that no file has, and for a name with several.
    """
    inside = {path: path.relative_to(directory) for path in files}
    splits = {path: _split_of(inside[path], split, directory, field) for path in files}
    if not any(splits.values()):
        middle = {path: _split_of(inside[path], split, directory, field, anywhere=True) for path in files}
        if len({group(name) for name in middle.values() if name is not None}) > 1:
            splits = middle
    named = {name: path for path, name in splits.items() if name is not None}
    if not named:
        return list(files), []
    chosen = [path for path, name in splits.items() if name is not None and group(name) == group(split)]
    if not chosen:
        error = unknown_split(split, sorted(named), str(directory), field)
        word, path = next(iter(named.items()))
        raise DataError(
            f"{error.what}: the name of {str(inside[path])!r} says {word!r}",
            expected=error.expected,
            do=f"for files whose names say no split, give a pattern: {field}='{directory}/**/*{_suffixes(path)}'; else {error.do}",
        )
    return chosen, [path for path in files if splits[path] is None]


def group(split: str) -> str:
    """The name for all names of a split: train for training; any other name stands for itself."""
    return next((names[0] for names in _SYNONYMS if split in names), split)


def is_split(name: str) -> bool:
    """Whether `name` is one that splits usually have."""
    return name.casefold() in _WORDS


def unknown_split(split: str, known: Sequence[str], location: str, field: str) -> DataError:
    """The error for a split that a source does not have."""
    key = "data.split" if field == "data.train" else "data.evaluation_split"
    return DataError(
        f"{key}={split!r} is not a split of {field}={location!r}{did_you_mean(split, known)}",
        expected=f"one of: {', '.join(known)}",
        do=f"set {key} to one of them",
    )


def _suffixes(path: Path) -> str:
    """What stands after the name of `path` proper: .jsonl, or .jsonl.gz."""
    return path.name.removeprefix(plain_name(path).stem)


def _split_of(path: Path, wanted: str, directory: Path, field: str, *, anywhere: bool = False) -> str | None:
    """The split that `path` is named after, in the word that is there; None for any other name.

    A name that is `wanted` itself counts, whatever it is.
    """
    folders = [word for part in path.parts[:-1] for word in _words(part, wanted, anywhere)]
    words = folders or _words(plain_name(path).stem, wanted, anywhere)
    if len({group(word) for word in words}) > 1:
        raise DataError(
            f"{field}={str(directory)!r}: the name of {str(path)!r} says several splits, "
            f"{' and '.join(dict.fromkeys(words))}",
            expected="one split in the name of a file, or in those of the folders that hold it",
            do=f"name the files that are meant, by a pattern such as {field}='{directory}/*{_suffixes(path)}', or rename it",
        )
    return words[-1] if words else None


def _words(name: str, wanted: str, anywhere: bool) -> list[str]:
    """The names of splits in `name`; a `wanted` one that is no usual name stands at its start."""
    if wanted not in _WORDS and (name == wanted or name.startswith(tuple(f"{wanted}{mark}" for mark in "-_. "))):
        return [wanted]
    words = [word for word in _SEPARATORS.split(name.casefold()) if word]
    while len(words) > 1 and words[-1] in _NUMBERED:
        words.pop()
    return [word for word in (words if anywhere else dict.fromkeys([*words[:1], *words[-1:]])) if word in _WORDS]
