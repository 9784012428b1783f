"""What the name of a data file says: of which kind it is, and how it is compressed."""

from __future__ import annotations

import re
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
MEDIA = {
    **dict.fromkeys((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"), "image"),
    **dict.fromkeys((".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff"), "audio"),
}
"""Files of one image or recording, by suffix: rows where they fill a folder, else named by the rows of others."""
METADATA = "metadata"
"""Name, without its suffix, of the table that says more about the files of a folder."""
_IDX = re.compile(r"(?P<split>.+?)[-_.](?P<part>images|labels)[-_.]idx[134][-_.]ubyte")
SUFFIXES = f"{', '.join(KINDS)}, all but .parquet also with {', '.join(COMPRESSED)} after it"


def plain_name(path: Path) -> Path:
    """`path` without the suffix that says how it is compressed: rows.jsonl for rows.jsonl.gz."""
    return path.with_suffix("") if path.suffix.lower() in COMPRESSED else path


def is_data_file(path: Path) -> bool:
    """Whether the name of `path` is that of a data file, of a kind that is read or not."""
    return plain_name(path).suffix.lower() in KINDS or idx_part(path) == "images"


def is_metadata(path: Path) -> bool:
    """Whether `path` is a table about the files beside it."""
    return plain_name(path).stem == METADATA and plain_name(path).suffix.lower() in KINDS


def idx_part(path: Path) -> str | None:
    """What a file of the IDX format (train-images-idx3-ubyte.gz) holds by its name, "images" or "labels"; None: it is none."""
    found = _IDX.fullmatch(path.with_suffix("").name if path.suffix.lower() == ".gz" else path.name)
    return None if found is None else found["part"]


def idx_labels(path: Path) -> Path:
    """The file of labels that belongs to the IDX file of images `path`."""
    return path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1").replace("idx4", "idx1"))


def kind_of(path: Path, field: str) -> str:
    """How `path` is read, by its suffix. Raises DataError for one that is not read; `field` names the recipe's field."""
    suffix, plain = path.suffix.lower(), plain_name(path)
    if idx_part(path) == "images":
        return "idx"
    kind = KINDS.get(plain.suffix.lower())
    if kind is not None and (kind != "parquet" or plain == path):
        return kind
    what, do = f"ends in {suffix or 'nothing'!r}, which is not read", "convert it, or rename it if it is one of these"
    if kind == "parquet":
        what, do = f"is a Parquet file that was compressed once more ({COMPRESSED[suffix]})", "decompress it"
    elif suffix in MEDIA:
        what = f"is one {MEDIA[suffix]} file"
        do = "give the folder of such files, whose sub-folders are their classes, or a table that names them"
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
