"""Data files that hold another kind of rows than their name says: told by their beginning, as compression is."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
from pathlib import Path
from typing import Literal, TypeAlias

from toolkit.data.reading.file_names import KINDS, plain_name
from toolkit.data.reading.text_files import open_lines
from toolkit.errors import DataError

Found: TypeAlias = Literal[".jsonl", ".json", ".csv", ".tsv", ".parquet"]

_WORDS: dict[Found, str] = {
    ".jsonl": "JSON, one object per line",
    ".json": "JSON",
    ".csv": "a table with commas between its columns",
    ".tsv": "a table with tabs between its columns",
    ".parquet": "a Parquet file",
}
_PARQUET = b"PAR1"
_LONGEST_LINE = 10_000
"""Characters of a line that are looked at for the columns of a table."""


def check_kind(path: Path, kind: str) -> None:
    """Raise DataError for a file that by its content is of another kind than `kind`, that of its name.

    Plain text may be anything: of a .txt file only what is no text is refused.
    """
    found = _found(path, kind)
    if found is None or KINDS[found] == kind or (kind == "text" and found != ".parquet"):
        return
    raise DataError(
        f"{str(path)!r} is {_WORDS[found]}, by its content",
        expected="what its name says",
        do=f"rename it: {renamed(path, found)}",
    )


def json_in_text(path: Path) -> bool:
    """Whether the text file `path` begins with lines each of which is a JSON object."""
    lines = _first_lines(path)
    return bool(lines) and all(map(_is_object, lines))


def renamed(path: Path, suffix: str) -> str:
    """The name of `path` with `suffix` for its kind, and what says how it is compressed after it."""
    plain = plain_name(path)
    return plain.with_suffix(suffix).name + path.name.removeprefix(plain.name)


def _found(path: Path, kind: str) -> Found | None:
    """What `path` is by its content; None where that is what its `kind` says, or not known."""
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(_PARQUET):
        return ".parquet"
    if kind == "text" or (kind == "parquet" and start.lstrip()[:1] not in (b"{", b"[")):
        return None
    lines = _first_lines(path)
    return _json(lines) if kind != "json" else _table(lines)


def _first_lines(path: Path) -> list[str]:
    with open_lines(path) as file:
        return list(itertools.islice((line.strip("\r\n ") for line in file if line.strip()), 2))


def _json(lines: list[str]) -> Found | None:
    """JSON by its first `lines`: an object in the first of them, or the beginning of a list or an object over several."""
    first = lines[0] if lines else ""
    if _is_object(first):
        return ".jsonl"
    begins = first == "{" or (first.startswith("[") and first[1:].lstrip()[:1] in ("", "{"))
    return ".json" if begins else None


def _is_object(line: str) -> bool:
    try:
        return line.startswith("{") and isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _table(lines: list[str]) -> Found | None:
    """A table by its header and its first row: as many fields in both, and neither of them JSON."""
    if len(lines) < 2 or any(line.startswith(("{", "[")) for line in lines):
        return None
    kinds: tuple[tuple[Found, str], ...] = ((".tsv", "\t"), (".csv", ","))
    for found, mark in kinds:
        with contextlib.suppress(csv.Error):
            header, row = (next(csv.reader([line[:_LONGEST_LINE]], delimiter=mark)) for line in lines)
            if len(header) == len(row) > 1:
                return found
    return None
