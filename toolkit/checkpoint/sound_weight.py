"""A whole weight of a checkpoint, for an export: finite, and in a format it fits into."""

from __future__ import annotations

import torch

from toolkit.checkpoint.finite import is_sound, largest, short_name
from toolkit.checkpoint.manifest import complete_steps, folder_name
from toolkit.checkpoint.reader import CheckpointReader
from toolkit.engine.fragments import WEIGHT
from toolkit.errors import RunFailed


def sound_weight(reader: CheckpointReader, name: str, dtype: torch.dtype) -> torch.Tensor:
    """The whole weight `name`, its average where the run kept one. Raises RunFailed when it is not finite, or would not be in
    `dtype`."""
    values = reader.weight(name, averaged=True)
    if not is_sound(values, WEIGHT, torch.float32):
        raise RunFailed(
            f"{name} of {reader.folder} is not finite: the run had diverged when it was saved",
            expected="finite weights in an export",
            do=_older(reader),
        )
    check_fits(reader, name, values, dtype)
    return values


def check_fits(reader: CheckpointReader, name: str, values: torch.Tensor, dtype: torch.dtype) -> None:
    """Raise RunFailed when `values` of the weight `name`, finite in fp32, are not in `dtype`."""
    if not is_sound(values, WEIGHT, dtype):
        raise RunFailed(
            f"{name} of {reader.folder} does not fit into {short_name(dtype)}: its largest number is {largest(values):.4g}",
            expected=f"weights up to {torch.finfo(dtype).max:.6g}",
            do="export it in bf16 or fp32 (checkpoint.export_dtype, or --dtype of `toolkit export`)",
        )


def _older(reader: CheckpointReader) -> str:
    """Advice on which checkpoint to take instead: the newest before it whose weights are finite."""
    checkpoints = reader.folder.parent
    for step in reversed([step for step in complete_steps(checkpoints) if step < reader.manifest.step]):
        older = CheckpointReader(checkpoints / folder_name(step))
        if all(is_sound(older.weight(name), WEIGHT, torch.float32) for name in older.manifest.shapes):
            return f"take the last good one, step {step}: {older.folder}"
    return "train again with a lower optimizer.learning_rate: no checkpoint before it is finite"
