"""Folders of images or recordings as rows: the folder that holds a file is its class, or a table beside it says more.

As `imagefolder` and `audiofolder` of datasets read them: SPLIT/CLASS/NAME.jpg, CLASS/NAME.jpg, or files with metadata.csv
(.jsonl, .parquet) whose column file_name names each.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import datasets

from toolkit.data.reading.content import combined, tree_digest
from toolkit.data.reading.file_names import kind_of
from toolkit.data.reading.files import Read, read_files
from toolkit.data.reading.media_files import MediaFolder
from toolkit.errors import DataError, first_few, plural

FILE_NAME = "file_name"
LABEL = "label"


def read_media(folder: MediaFolder, *, streaming: bool, cache_dir: Path) -> Read:
    """The rows: a column called by the kind, file_name, and "label", the folder's name, or what the tables say.

    Raises DataError for a table that names no file, or a file that is not there.
    """
    remarks: list[str] = []
    told = dict(_told(folder, cache_dir))
    chosen = folder.files
    if told:
        chosen = tuple(path for path in folder.files if path in told)
        if left := len(folder.files) - len(chosen):
            remarks.append(f"{plural(left, 'file')} in {str(folder.root)!r} that no metadata table names left out")
    names = sorted({key for row in told.values() for key in row})
    columns: dict[str, list[Any]] = {
        folder.kind: [{"bytes": None, "path": str(path.absolute())} for path in chosen],
        FILE_NAME: [str(path.relative_to(folder.root)) for path in chosen],
    }
    inner = [_inner_folders(path, folder) for path in chosen]
    if LABEL not in names and all(inner):
        columns[LABEL] = [folders[-1] for folders in inner]
        remarks += _shared_names(set(inner), folder.root)
    columns |= {name: [told[path].get(name) for path in chosen] for name in names}
    feature = datasets.Image(decode=False) if folder.kind == "image" else datasets.Audio(decode=False)
    rows = datasets.Dataset.from_dict(columns)
    rows = rows.cast_column(folder.kind, feature)
    said = {str(path.relative_to(folder.root)): told[path] for path in chosen if path in told}
    content = combined("media", tree_digest(chosen, folder.root, cache_dir), repr(sorted(said.items())))
    return Read(rows.to_iterable_dataset() if streaming else rows, content, (), tuple(remarks))


def _inner_folders(path: Path, folder: MediaFolder) -> tuple[str, ...]:
    """The folders around `path`, without the root and that of a split. The last is its class."""
    return path.relative_to(folder.root).parts[1 if folder.has_splits else 0 : -1]


def _shared_names(folders: Collection[tuple[str, ...]], root: Path) -> list[str]:
    """A remark on `folders` of one name in several places, which are one class."""
    places: dict[str, list[str]] = {}
    for inner in sorted(folders):
        places.setdefault(inner[-1], []).append("/".join(inner))
    return [
        f"the folders {first_few(found, 4)} in {str(root)!r} are one class, {name!r}: "
        "a class is called by the folder that holds its files"
        for name, found in sorted(places.items())
        if len(found) > 1
    ]


def _told(folder: MediaFolder, cache_dir: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """(file, what a table says of it)."""
    chosen = set(folder.files)
    for table in folder.tables:
        rows = read_files([table], kind_of(table, "data"), streaming=False, cache_dir=cache_dir).rows
        for number, row in enumerate(rows, start=1):
            name = row.get(FILE_NAME)
            if not isinstance(name, str):
                raise DataError(
                    f"row {number:,} of {str(table)!r} has no {FILE_NAME}; its columns are {first_few(list(row))}",
                    expected=f"a column {FILE_NAME} with the path of a file, from the folder of the table on",
                    do="rename the column",
                )
            path = table.parent / name
            if path not in folder.everything:
                raise DataError(
                    f"row {number:,} of {str(table)!r} names {name!r}, which is not there",
                    expected=f"a file in {str(table.parent)!r}",
                    do="put it there, or remove the row",
                )
            if path in chosen:
                yield path, {key: value for key, value in row.items() if key != FILE_NAME}
