"""What to do about a run that diverged: what to change, and the checkpoint to go back to."""

from __future__ import annotations

import re
from pathlib import Path

from toolkit.checkpoint.manifest import read_manifest
from toolkit.errors import RunFailed

ADVICE_UNTRAINED = (
    "look at the data with --preview, and try the starting weights with precision.dtype='fp32': nothing was trained yet"
)


def with_way_back(error: RunFailed, step: int, last_good: Path | None, folder: Path, *, is_trained: bool) -> RunFailed:
    """Return `error`, met in step `step` of the run in `folder`, with the checkpoint to continue from.

    `is_trained` says whether any update was made: before the first, only data, starting weights and format can be wrong.
    """
    what = error.what if re.search(r"step \d", error.what) else f"{error.what} at step {step}"
    do = error.do if is_trained or "fp16" in error.do else ADVICE_UNTRAINED
    if last_good is None:
        back = f"{folder} has no checkpoint before it: start again in another --output_dir"
    else:
        where = "auto" if last_good.parent == folder / "checkpoints" else str(last_good)
        back = (
            f"the last good checkpoint is step {read_manifest(last_good).step}, {last_good}: "
            f"continue from it with --resume {where} --output_dir {folder}"
        )
    return RunFailed(what, expected=error.expected, do=f"{do}; {back}")
