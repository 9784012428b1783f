"""Saving: each rank writes what it owns, then rank 0 makes the checkpoint current with one rename."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from toolkit.checkpoint.durable import VISIBLE_S, sync_folder, write_json
from toolkit.checkpoint.finite import is_sound, largest, training_dtype, unsound
from toolkit.checkpoint.manifest import MANIFEST, Manifest, Piece, RankFile, complete_steps, folder_name, remove
from toolkit.engine import process
from toolkit.engine.fragments import Fragment
from toolkit.engine.protocol import Engine
from toolkit.errors import CheckpointError, RunFailed, ToolkitError
from toolkit.storage import disk_problem


def save(engine: Engine, checkpoints: Path, step: int, run: dict[str, Any], rank: int, world_size: int) -> Path:
    """Write checkpoint `step` under `checkpoints`. Collective; a reader never sees it half-written.

    Raises on every rank, and leaves older checkpoints untouched: StorageError when one of them cannot write, RunFailed
    when a number is not finite, CheckpointError when `step` is there already or rank 0 does not see what another wrote.
    """
    final = checkpoints / folder_name(step)
    temporary = checkpoints / f".writing-{folder_name(step)}"
    problem: ToolkitError | None = None
    if rank == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        problem = _in_the_way(final)
    _raise_first(problem)
    shapes = engine.shapes()
    mine = None
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        mine = write_fragments(
            temporary / f"rank-{rank:05d}.bin", engine.fragments(), step=step, dtype=training_dtype(engine)
        )
    except OSError as error:
        problem = disk_problem(f"saving checkpoint {step}", checkpoints, error)
    except RunFailed as error:
        problem = error
    # Every rank must learn of a full disk, or the others would wait for this one for ever.
    reports = process.gather_objects((problem, mine, socket.gethostname()))
    problem = next((found for found, *_ in reports if found is not None), None)
    if problem is None and rank == 0:
        problem = _publish(temporary, final, reports, Manifest(step, world_size, shapes, [], run))
    try:
        _raise_first(problem)
    except ToolkitError:
        if rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    return final


def _raise_first(problem: ToolkitError | None) -> None:
    """Raise on every rank what the first of them has found. Collective."""
    for found in process.gather_objects(problem):
        if found is not None:
            raise found


def _in_the_way(final: Path) -> CheckpointError | None:
    """What is wrong when the folder that a checkpoint wants is there already: a rename would not replace it."""
    if not final.exists():
        return None
    whole = (final / MANIFEST).is_file()
    return CheckpointError(
        f"{final} is there already, " + ("with a whole checkpoint" if whole else f"without a {MANIFEST}"),
        expected="no such folder before its step is saved",
        do="move it away, then continue with --resume auto: the checkpoints before it are intact",
    )


def _publish(
    temporary: Path,
    final: Path,
    reports: list[tuple[ToolkitError | None, RankFile, str]],
    manifest: Manifest,
) -> ToolkitError | None:
    """Write the manifest of what the ranks report, once all of it is seen from here, and give the folder its name."""
    unseen = _unseen(temporary, [(file, host) for _, file, host in reports])
    if unseen:
        return unseen
    manifest.files.extend(file for _, file, _ in reports)
    try:
        write_json(temporary / MANIFEST, manifest.to_json())
        temporary.rename(final)
        sync_folder(final.parent)
    except OSError as error:
        blocked = _in_the_way(final)
        return blocked or disk_problem(f"saving checkpoint {manifest.step}", final.parent, error)
    return None


def _unseen(folder: Path, files: list[tuple[RankFile, str]], wait_s: float | None = None) -> CheckpointError | None:
    """What is wrong when a rank's file is not in `folder` as this rank sees it, with the size that was written."""
    deadline = time.monotonic() + (VISIBLE_S if wait_s is None else wait_s)
    for file, host in files:
        path = folder / file.name
        while not path.is_file() or path.stat().st_size != file.num_bytes:
            if time.monotonic() > deadline:
                there = f"has {path.stat().st_size} bytes" if path.is_file() else "is not there"
                return CheckpointError(
                    f"{path} {there} as {socket.gethostname()} sees it; {host} wrote {file.num_bytes} bytes",
                    expected="one folder for all hosts: a checkpoint is made of a file of each rank",
                    do="pass an --output_dir on a file system that all hosts share, and continue with --resume auto: "
                    "older checkpoints are intact",
                )
            time.sleep(0.2)
    return None


def write_fragments(
    path: Path, fragments: Iterable[Fragment], *, step: int, dtype: torch.dtype = torch.float32
) -> RankFile:
    """Stream `fragments` to `path`, one tensor in memory at a time, hashing on the way; durable on return.

    Raises RunFailed when a number is not finite, or a weight is not in `dtype`, in which the model is trained.
    """
    digest = hashlib.sha256()
    pieces: list[Piece] = []
    scalars: dict[str, dict[str, float]] = {}
    wrong: tuple[str, str, float] | None = None
    offset = 0
    with path.open("wb") as file:
        for fragment in fragments:
            scalars.setdefault(fragment.name, {}).update(fragment.scalars)
            cut: dict[str, Any] = {}
            if fragment.shard is not None:
                cut = {"dim": fragment.shard.dim, "spans": [list(span) for span in fragment.shard.spans]}
            for state, values in fragment.tensors.items():
                numbers = values.detach().to("cpu", torch.float32).contiguous()
                if wrong is None and not is_sound(numbers, state, dtype):
                    # To the end all the same: a fragment may be swapped in from disk, and must go back there.
                    wrong = (fragment.name, state, largest(numbers))
                data = numbers.numpy().data.cast("B")
                file.write(data)
                digest.update(data)
                pieces.append(Piece(fragment.name, state, fragment.start, fragment.length, offset, **cut))
                offset += data.nbytes
        file.flush()
        os.fsync(file.fileno())
    if wrong is not None:
        raise unsound(*wrong, step, dtype)
    return RankFile(path.name, offset, digest.hexdigest(), pieces, scalars)


def retain(checkpoints: Path, keep: int, best: int | None) -> None:
    """Delete all but the newest `keep` checkpoints and the one of step `best`."""
    steps = complete_steps(checkpoints)
    for step in steps[: max(0, len(steps) - keep)]:
        if step != best:
            remove(checkpoints, step)
