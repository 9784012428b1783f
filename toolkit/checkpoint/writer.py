"""Saving: each rank writes what it owns, then rank 0 makes the checkpoint current with one rename."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from toolkit.checkpoint.durable import disk_problem, sync_folder, write_json
from toolkit.checkpoint.manifest import MANIFEST, Manifest, Piece, RankFile, complete_steps, folder_name, remove
from toolkit.engine import process
from toolkit.engine.fragments import Fragment
from toolkit.engine.protocol import Engine


def save(engine: Engine, checkpoints: Path, step: int, run: dict[str, Any], rank: int, world_size: int) -> Path:
    """Write checkpoint `step` under `checkpoints`. Collective; a reader never sees it half-written.

    Raises StorageError on every rank when one of them cannot write; older checkpoints are untouched.
    """
    final = checkpoints / folder_name(step)
    temporary = checkpoints / f".writing-{folder_name(step)}"
    if rank == 0:
        shutil.rmtree(temporary, ignore_errors=True)
    process.barrier()
    shapes = engine.shapes()
    problem, mine = "", None
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        mine = write_fragments(temporary / f"rank-{rank:05d}.bin", engine.fragments())
    except OSError as error:
        problem = error.strerror or str(error)
    # Every rank must learn of a full disk, or the others would wait for this one for ever.
    reports = process.gather_objects((problem, mine))
    problem = next((text for text, _ in reports if text), "")
    if not problem and rank == 0:
        files = [file for _, file in reports]
        problem = _publish(temporary, final, Manifest(step, world_size, shapes, files, run))
    problem = process.gather_objects(problem)[0]
    if problem:
        if rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        raise disk_problem(f"saving checkpoint {step}", checkpoints, problem)
    return final


def _publish(temporary: Path, final: Path, manifest: Manifest) -> str:
    try:
        write_json(temporary / MANIFEST, manifest.to_json())
        temporary.rename(final)
        sync_folder(final.parent)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def write_fragments(path: Path, fragments: Iterable[Fragment]) -> RankFile:
    """Stream `fragments` to `path`, one tensor in memory at a time, hashing on the way; durable on return."""
    digest = hashlib.sha256()
    pieces: list[Piece] = []
    scalars: dict[str, dict[str, float]] = {}
    offset = 0
    with path.open("wb") as file:
        for fragment in fragments:
            scalars.setdefault(fragment.name, {}).update(fragment.scalars)
            cut: dict[str, Any] = {}
            if fragment.shard is not None:
                cut = {"dim": fragment.shard.dim, "spans": [list(span) for span in fragment.shard.spans]}
            for state, values in fragment.tensors.items():
                data = values.detach().to("cpu", torch.float32).contiguous().numpy().data.cast("B")
                file.write(data)
                digest.update(data)
                pieces.append(Piece(fragment.name, state, fragment.start, fragment.length, offset, **cut))
                offset += data.nbytes
        file.flush()
        os.fsync(file.fileno())
    return RankFile(path.name, offset, digest.hexdigest(), pieces, scalars)


def retain(checkpoints: Path, keep: int, best: int | None) -> None:
    """Delete all but the newest `keep` checkpoints and the one of step `best`."""
    steps = complete_steps(checkpoints)
    for step in steps[: max(0, len(steps) - keep)]:
        if step != best:
            remove(checkpoints, step)
