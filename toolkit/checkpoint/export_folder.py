"""The folder of an export: what it says it is, and replacing it so that a kill leaves the old one or the new, whole."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from toolkit.checkpoint.durable import exchange, sync_files, sync_folder, write_json
from toolkit.checkpoint.manifest import MANIFEST, read_manifest

STAMP = "export.json"
CARD = "README.md"
"""The one file of an export that is written for people, who may write on in it."""


@dataclass(frozen=True)
class Stamp:
    """What an export is the export of."""

    step: int
    """Optimizer steps of its weights."""
    checkpoint: str
    """SHA-256 of the checkpoint's manifest, which holds the hashes of the checkpoint's files."""
    dtype: str
    """Number format of its weights."""
    best: bool = False
    """Whether it was taken as the run's best checkpoint, and not as the newest."""
    merged: bool = False
    """Whether adapters were added to the weights of their base model."""

    @classmethod
    def of(cls, checkpoint: Path, dtype: str, *, best: bool = False, merged: bool = False) -> Stamp:
        """The stamp of an export of the folder `checkpoint`. Raises CheckpointError for a damaged one."""
        step = read_manifest(checkpoint).step
        return cls(step, hashlib.sha256((checkpoint / MANIFEST).read_bytes()).hexdigest(), dtype, best, merged)


def beside(out: Path) -> Path:
    """Where the export that will be `out` is written: never mistaken for a model when it is cut short."""
    return out.with_name(f".{out.name}.writing")


def write_stamp(folder: Path, stamp: Stamp) -> None:
    """Say in `folder` what it is, and which files it is made of."""
    write_json(folder / STAMP, {**asdict(stamp), "files": _sizes(folder)})


def read_stamp(folder: Path) -> tuple[Stamp, dict[str, int]] | None:
    """What `folder` says it is, and the sizes of its files as they were written; None where it says nothing."""
    try:
        values: dict[str, Any] = json.loads((folder / STAMP).read_text(encoding="utf-8"))
        files = dict(values.pop("files"))
        return Stamp(**values), files
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def is_current(out: Path, wanted: Stamp) -> bool:
    """Whether `out` is the export `wanted`, with all its files. Its card may have been written on in."""
    found = read_stamp(out)
    if found is None or found[0] != wanted:
        return False
    sizes = _sizes(out)
    return all(sizes.get(name) == size for name, size in found[1].items() if name != CARD)


def put_in_place(written: Path, out: Path) -> Path | None:
    """Make the folder `written` the folder `out`, in the place of an older export.

    An `out` that holds anything but an export of ours as it was written is not dropped but moved aside: returns where to.
    """
    sync_files(written)
    aside = None
    if not out.exists():
        written.rename(out)
    elif _is_ours(out):
        if not exchange(written, out):
            # Not one operation here: a kill in between leaves both whole, and the next start writes `out` again.
            old = out.with_name(f".{out.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            out.rename(old)
            written.rename(out)
            written = old
        shutil.rmtree(written, ignore_errors=True)
    else:
        aside = _free_name(out)
        out.rename(aside)
        written.rename(out)
    sync_folder(out.parent)
    return aside


def _is_ours(out: Path) -> bool:
    """Whether all that `out` holds is what we have written there."""
    if not out.is_dir():
        return False
    sizes = _sizes(out)
    if not sizes:
        return True
    found = read_stamp(out)
    return found is not None and {name: size for name, size in sizes.items() if name != STAMP} == found[1]


def _free_name(out: Path) -> Path:
    """A name for an `out` that is moved aside: export-before-1, -2, ..."""
    number = 1
    while (path := out.with_name(f"{out.name}-before-{number}")).exists():
        number += 1
    return path


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file below `folder`, by its path there. Links and empty folders count as files of no known size."""
    sizes = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            sizes[path.relative_to(folder).as_posix()] = path.stat().st_size
        elif not path.is_dir() or path.is_symlink() or not any(path.iterdir()):
            sizes[path.relative_to(folder).as_posix()] = -1
    return sizes
