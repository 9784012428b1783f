"""What the name of a data file says: of which kind it is, and how it is compressed."""

from __future__ import annotations

import shlex
from pathlib import Path

from toolkit.errors import DataError

COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bzip2", ".xz": "xz", ".lz4": "lz4"}
"""Suffixes after the one that says the kind (rows.jsonl.gz), and how such a file is compressed."""
UNPACKING = {
    ".zip": "unzip {path} -d {folder}",
    ".tar": "mkdir {folder} && tar -xf {path} -C {folder}",
    ".tgz": "mkdir {folder} && tar -xf {path} -C {folder}",
    ".7z": "7z x {path} -o{folder}",
    ".rar": "unrar x {path} {folder}/",
}
"""Archives of several files, by suffix, and what unpacks them. They are not read."""

KINDS = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".txt": "text",
}
SUFFIXES = f"{', '.join(KINDS)}, all but .parquet also with {', '.join(COMPRESSED)} after it"


def plain_name(path: Path) -> Path:
    """`path` without the suffix that says how it is compressed: rows.jsonl for rows.jsonl.gz."""
    return path.with_suffix("") if path.suffix.lower() in COMPRESSED else path


def is_data_file(path: Path) -> bool:
    """Whether the name of `path` is that of a data file, of a kind that is read or not."""
    return plain_name(path).suffix.lower() in KINDS


def kind_of(path: Path, field: str) -> str:
    """How `path` is read, by its suffix. Raises DataError for one that is not read; `field` names the recipe's field."""
    suffix, plain = path.suffix.lower(), plain_name(path)
    kind = KINDS.get(plain.suffix.lower())
    if kind is not None and (kind != "parquet" or plain == path):
        return kind
    what, do = f"ends in {suffix or 'nothing'!r}, which is not read", "convert it, or rename it if it is one of these"
    if kind == "parquet":
        what, do = f"is a Parquet file that was compressed once more ({COMPRESSED[suffix]})", "decompress it"
    elif plain.suffix.lower() in UNPACKING:
        what = "is an archive of files"
        do = f"unpack it, then give the folder or a file in it: {unpacking(path)}"
    elif plain != path:
        what = f"ends in {suffix!r} without what it holds before it"
        do = f"name it after that, for instance {plain.name}.jsonl{suffix}"
    raise DataError(
        f"{field}={str(path)!r} {what}",
        expected=f"a file ending in one of {SUFFIXES}",
        do=do,
    )


def rewriting(path: Path, script: str, suffix: str) -> tuple[str, str]:
    """What comes before it for a compressed `path`, and the command that writes what is in `path` anew, through the Python `script`."""
    plain = plain_name(path)
    command = f"python -c {shlex.quote(script)} < {shlex.quote(str(plain))} > NEW{suffix}"
    return "" if plain == path else "decompress it, then ", command


def unpacking(path: Path, kind: str | None = None) -> str:
    """The command that unpacks the archive `path`, of `kind` or what its name says, into a folder of its name."""
    command = UNPACKING[kind or plain_name(path).suffix.lower()]
    return command.format(path=path, folder=plain_name(path).with_suffix(""))
