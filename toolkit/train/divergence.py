"""What to do about a run that diverged: what to change, and the checkpoint to go back to."""

from __future__ import annotations

import re
from pathlib import Path

from toolkit.checkpoint.manifest import complete_steps, folder_name, read_manifest
from toolkit.errors import RunFailed
from toolkit.train.run_folder import RunFolder

ADVICE_UNTRAINED = (
    "look at the data with --preview, and try the starting weights with precision.dtype='fp32', or download them again: "
    "nothing was trained yet"
)


def with_way_back(
    error: RunFailed,
    step: int,
    last_good: Path | None,
    folder: RunFolder,
    *,
    is_trained: bool,
    suspect_from: int | None = None,
) -> RunFailed:
    """Return `error`, met in step `step` of the run in `folder`, with the checkpoint to continue from.

    `is_trained` says whether any update was made: before the first, only data, starting weights and format can be wrong.
    Checkpoints of step `suspect_from` and later hold weights that gave no gradient in the step after: none of them is good.
    """
    what = error.what if re.search(r"step \d", error.what) else f"{error.what} at step {step}"
    do = error.do if is_trained or "fp16" in error.do else ADVICE_UNTRAINED
    back = _way_back(last_good, folder, suspect_from)
    return RunFailed(what, expected=error.expected, do=f"{do}; {back}")


def _way_back(last_good: Path | None, folder: RunFolder, suspect_from: int | None) -> str:
    if last_good is None:
        return f"{folder.path} has no checkpoint before it: start again in another --output_dir"
    step = read_manifest(last_good).step
    if suspect_from is None or step < suspect_from:
        where = "auto" if last_good.parent == folder.checkpoints else str(last_good)
        return (
            f"the last good checkpoint is step {step}, {last_good}: "
            f"continue from it with --resume {where} --output_dir {folder.path}"
        )
    sound = [found for found in complete_steps(folder.checkpoints) if found < suspect_from]
    if not sound:
        return (
            f"the weights gave no gradient any more from step {suspect_from} on, and {folder.path} has no checkpoint before it: "
            "start again in another --output_dir"
        )
    return (
        f"the last good checkpoint is step {sound[-1]}, since the weights of later ones gave no gradient: "
        f"continue from it with --resume {folder.checkpoints / folder_name(sound[-1])} and another --output_dir"
    )
