"""Which files of a folder of images or recordings are read: those of its split, and the tables about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.data.reading.file_names import MEDIA, is_metadata
from toolkit.data.reading.splits import group, is_split, unknown_split
from toolkit.errors import DataError


def is_media(files: Sequence[Path]) -> bool:
    """Whether `files`, those of a folder, are images or recordings, and not tables."""
    return any(path.suffix.lower() in MEDIA for path in files)


@dataclass(frozen=True)
class MediaFolder:
    """The files of one split of a folder."""

    root: Path
    kind: str
    """"image" or "audio": also the name of the column that holds the files."""
    files: tuple[Path, ...]
    tables: tuple[Path, ...]
    """metadata.csv, .jsonl or .parquet, each about the files below its own folder."""
    has_splits: bool
    """Whether the folders in `root` are splits, and those in them classes."""
    left_out: tuple[Path, ...]
    """Files that are in no split while others are."""
    everything: frozenset[Path]
    """All images or recordings in `root`, of whatever split."""


def media_folder(root: Path, files: Sequence[Path], split: str, field: str) -> MediaFolder:
    """What of `files`, all there are in `root`, belongs to `split`. Raises DataError for images beside recordings."""
    media = [path for path in files if path.suffix.lower() in MEDIA]
    kinds = sorted({MEDIA[path.suffix.lower()] for path in media})
    if len(kinds) > 1:
        raise DataError(
            f"{field}={str(root)!r} holds images and recordings",
            expected="files of one kind, or a table that names them",
            do=f"put them into folders of their own, and point {field} to one of these",
        )
    places = {path: path.relative_to(root).parts for path in files}
    top = {places[path][0] for path in media if len(places[path]) > 1}
    splits = {name for name in top if is_split(name)}
    direct = any(path.parent == root for path in media)
    # Two splits are no classes of these names, whatever lies beside them; one alone may be: trains among cars.
    has_splits = len({group(name.casefold()) for name in splits}) > 1 or (bool(top) and splits == top and not direct)
    left_out: list[Path] = []
    if has_splits:
        chosen = {name for name in splits if group(name.casefold()) == group(split)}
        if not chosen:
            raise unknown_split(split, sorted(splits), str(root), field)
        left_out = [path for path in media if places[path][0] not in splits]
        files = [path for path in files if places[path][0] in chosen or (path.parent == root and is_metadata(path))]
    found = tuple(path for path in files if path.suffix.lower() in MEDIA)
    tables = tuple(path for path in files if is_metadata(path))
    return MediaFolder(root, kinds[0], found, tables, has_splits, tuple(left_out), frozenset(media))
