"""metrics.jsonl: one JSON object per optimizer step, and one per evaluation; strict JSON whatever the numbers are."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit.checkpoint.durable import sync_folder
from toolkit.storage import storage_errors


class MetricsLog:
    """Appends records; each is on its way to the disk when `write` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record, see `strict`. Raises StorageError when the disk is full."""
        with storage_errors("writing metrics", self.path.parent):
            self._file.write(json.dumps(strict(record), allow_nan=False) + "\n")

    def close(self) -> None:
        """Flush to the disk."""
        with storage_errors("writing metrics", self.path.parent):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()


def strict(record: Mapping[str, Any]) -> dict[str, Any]:
    """`record` as JSON can say it: null for NaN and infinities, whose names are listed under "nonfinite".

    An overflowed fp16 step, for instance, has an infinite gradient norm.
    """
    nonfinite: list[str] = []

    def plain(value: Any, name: str) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            nonfinite.append(name)
            return None
        if isinstance(value, Mapping):
            return {key: plain(inner, f"{name}.{key}" if name else str(key)) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [plain(inner, f"{name}.{index}") for index, inner in enumerate(value)]
        return value

    values: dict[str, Any] = plain(record, "")
    return {**values, "nonfinite": nonfinite} if nonfinite else values


def cut_after(path: Path, step: int) -> None:
    """Drop the records that a run resumed at `step` writes again: of later steps, and at step 0 of all."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    kept = [line for line in lines if 0 <= _step(line) <= step and step > 0]
    temporary = path.with_name(f".{path.name}.writing")
    with storage_errors("writing metrics", path.parent):
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in kept)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)


def _step(line: str) -> int:
    """The step of a record; -1 for what is none, such as the torn last line of a killed run."""
    try:
        record = json.loads(line)
    except ValueError:
        return -1
    return int(record["step"]) if isinstance(record, dict) and isinstance(record.get("step"), int) else -1
