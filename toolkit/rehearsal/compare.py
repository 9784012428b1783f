"""Whether a resumed run is the unbroken one: by the records of a step, and by the checkpoint after it. Imports no torch."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.checkpoint.manifest import Manifest, folder_name, read_manifest
from toolkit.errors import RunFailed

TIMES = ("tokens_per_second", "step_time_s", "tflops_per_device", "memory_gib", "memory_reserved_gib", "mfu")
"""Fields of a record that no two runs share."""
ROUNDING = 1e-6
"""How far weights and states may be apart, relative to their norm, where a kernel rounds otherwise after a resume."""


def records(run: Path) -> dict[int, dict[str, Any]]:
    """The records of a run's steps, without times, by their number."""
    file = run / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    # The last line may be in writing.
    found = [json.loads(line) for line in lines if line.endswith("}")]
    return {
        record["step"]: {name: value for name, value in record.items() if name not in TIMES}
        for record in found
        if "loss" in record
    }


def compare(straight: Path, resumed: Path, step: int, *, may_round: bool) -> tuple[int, float]:
    """Files of weights and states after `step`, one of each rank, and how far apart they are: 0.0 where they are the same.

    Raises RunFailed where anything differs; `may_round` lets weights and states differ by ROUNDING.
    """
    one, other = records(straight).get(step, {}), records(resumed).get(step, {})
    apart = [
        f"{name} {other.get(name)!r}, not {one.get(name)!r}"
        for name in {**one, **other}
        if one.get(name) != other.get(name)
    ]
    folders = [run / "checkpoints" / folder_name(step) for run in (straight, resumed)]
    manifests = [read_manifest(folder) for folder in folders]
    same = _hashes(manifests[0]) == _hashes(manifests[1])
    distance = 0.0 if same else max(_distances(folders[0], folders[1], manifests[0]).values())
    if not (same or (may_round and distance <= ROUNDING)):
        apart.append(f"the weights and optimizer states after it, by {distance:.1e} of their norm")
    if apart:
        raise RunFailed(
            f"step {step} of the resumed run is not that of the unbroken one: {', '.join(apart)}",
            expected=f"the same within {ROUNDING:.0e}" if may_round else "the same to the last bit",
            do="look for what is random and not seeded (rows, a transform, a module of your own), or for state that a checkpoint does not hold",
        )
    return len(manifests[0].files), distance


def _hashes(manifest: Manifest) -> list[str]:
    return [file.sha256 for file in manifest.files]


def _distances(one: Path, other: Path, manifest: Manifest) -> dict[str, float]:
    """State (weights, each moment) -> norm of the difference relative to its norm."""
    difference: dict[str, float] = defaultdict(float)
    size: dict[str, float] = defaultdict(float)
    for file in manifest.files:
        left, right = (np.fromfile(folder / file.name, "<f4").astype(np.float64) for folder in (one, other))
        if left.shape != right.shape:
            return {"length": float("inf")}
        for piece in file.pieces:
            part = slice(piece.offset // 4, piece.offset // 4 + piece.length)
            difference[piece.state] += float(((left[part] - right[part]) ** 2).sum())
            size[piece.state] += float((left[part] ** 2).sum())
    return {state: (difference[state] / (size[state] or 1.0)) ** 0.5 for state in size}
