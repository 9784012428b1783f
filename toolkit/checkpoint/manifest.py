"""What a checkpoint folder holds, and finding the ones that are whole.

checkpoints/step-00000010/
    manifest.json       sizes, hashes, shapes, where each piece lies, and the state of the run
    rank-00000.bin      fp32 pieces of weights and optimizer states, one after the other, little-endian
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from toolkit.checkpoint.durable import sync_folder
from toolkit.errors import CheckpointError

FORMAT = 2
MANIFEST = "manifest.json"
STEP_FOLDER = re.compile(r"step-(\d{8})")
READ_BYTES = 1 << 22


@dataclass(frozen=True)
class Piece:
    """Elements [start, start + length) of one state of one flattened parameter, at byte `offset` of a file.

    Where tensor parallelism cut the parameter, they are elements of the cut: `spans`, (start, length) pairs along
    dimension `dim` (see models/shards.py). Without spans it is whole.
    """

    name: str
    state: str
    start: int
    length: int
    offset: int
    dim: int = 0
    spans: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True)
class RankFile:
    """One rank's file."""

    name: str
    num_bytes: int
    sha256: str
    pieces: list[Piece]
    scalars: dict[str, dict[str, float]]
    """Parameter name -> states that are one number."""


@dataclass(frozen=True)
class Manifest:
    """Everything about a checkpoint but the numbers themselves."""

    step: int
    """Optimizer steps taken."""
    world_size: int
    shapes: dict[str, list[int]]
    files: list[RankFile]
    run: dict[str, Any] = field(default_factory=dict)
    """State of the run, each with what it belongs to: schedule, loss scaler, data position, best evaluation; and what the
    run was: its recipe, the facts behind it, and what was changed on the way."""
    format: int = FORMAT

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def folder_name(step: int) -> str:
    """step-00000010"""
    return f"step-{step:08d}"


def complete_steps(checkpoints: Path) -> list[int]:
    """Steps of the complete checkpoints under `checkpoints`, rising. A folder gets its name when it is complete."""
    if not checkpoints.is_dir():
        return []
    found = (STEP_FOLDER.fullmatch(path.name) for path in checkpoints.iterdir() if (path / MANIFEST).is_file())
    return sorted(int(match[1]) for match in found if match)


def remove_leftovers(checkpoints: Path) -> None:
    """Delete what interrupted writes and deletions left behind."""
    if checkpoints.is_dir():
        for path in checkpoints.iterdir():
            if path.name.startswith("."):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def remove(checkpoints: Path, step: int) -> None:
    """Delete a checkpoint; interrupted, it is a leftover and never a half-deleted checkpoint."""
    doomed = checkpoints / f".deleting-{folder_name(step)}"
    (checkpoints / folder_name(step)).rename(doomed)
    sync_folder(checkpoints)
    shutil.rmtree(doomed, ignore_errors=True)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of `folder`, after checking that every file is there with its size. Raises CheckpointError."""
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError(
            f"{folder} is no checkpoint: it has no {MANIFEST}" if folder.exists() else f"{folder} does not exist",
            expected="a folder such as RUN/checkpoints/step-00000100",
            do="give the run folder or one of its checkpoints",
        )
    try:
        manifest = _parse(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, f"is not readable ({type(error).__name__})") from None
    for file in manifest.files:
        part = folder / file.name
        size = part.stat().st_size if part.is_file() else None
        if size != file.num_bytes:
            raise _damaged(part, "is missing" if size is None else f"has {size} bytes instead of {file.num_bytes}")
    return manifest


def _parse(values: dict[str, Any]) -> Manifest:
    if values["format"] != FORMAT:
        raise CheckpointError(
            f"checkpoint format {values['format']}",
            expected=f"format {FORMAT}",
            do="read it with the version of the toolkit that wrote it, and export it there",
        )
    files = [RankFile(**{**file, "pieces": [Piece(**piece) for piece in file["pieces"]]}) for file in values["files"]]
    return Manifest(**{**values, "files": files})


def verify_hashes(folder: Path, files: list[RankFile]) -> None:
    """Raise CheckpointError when one of `files` does not hold what was written."""
    for file in files:
        digest = hashlib.sha256()
        with (folder / file.name).open("rb") as stream:
            while block := stream.read(READ_BYTES):
                digest.update(block)
        if digest.hexdigest() != file.sha256:
            raise _damaged(folder / file.name, "does not match its sha256")


def _damaged(path: Path, problem: str) -> CheckpointError:
    return CheckpointError(
        f"{path} {problem}",
        expected="the file as it was written",
        do=f"delete {path.parent} and continue from the checkpoint before it with --resume auto",
    )
