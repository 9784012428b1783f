"""metrics.jsonl: one JSON object per optimizer step, and one per evaluation."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit.checkpoint.durable import storage_errors


class MetricsLog:
    """Appends records; each is on its way to the disk when `write` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record. Raises StorageError when the disk is full."""
        with storage_errors("writing metrics", self.path.parent):
            self._file.write(json.dumps({key: _plain(value) for key, value in record.items()}) + "\n")

    def close(self) -> None:
        """Flush to the disk."""
        with storage_errors("writing metrics", self.path.parent):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()


def _plain(value: Any) -> Any:
    # JSON has no inf; an overflowed fp16 step has an infinite gradient norm.
    return None if isinstance(value, float) and not math.isfinite(value) else value


def cut_after(path: Path, step: int) -> None:
    """Drop the records that a run which begins at `step` writes again: those of later steps, and of step 0 from step 0 on."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # the last line of a killed run
        if 0 < step >= record.get("step", 0):
            kept.append(line)
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    temporary.replace(path)
