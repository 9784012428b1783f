"""TensorBoard and accelerate's other trackers behind one `log`."""

from __future__ import annotations

import importlib.util
import math
import secrets
from collections.abc import Callable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from toolkit.errors import LaunchError
from toolkit.recipe import Tracking


def check(tracking: Tracking) -> None:
    """Raise LaunchError when the package of a tracker is missing. Imports none of them."""
    for name in (*(["tensorboard"] if tracking.tensorboard else []), *tracking.trackers):
        if importlib.util.find_spec(name) is None:
            raise _not_installed(name)


def _not_installed(name: str) -> LaunchError:
    field = "tracking.tensorboard=True" if name == "tensorboard" else f"tracking.trackers={name!r}"
    return LaunchError(
        f"{field}, but the package {name} is not installed",
        expected=f"the package of {name}",
        do=f"pip install {name.replace('_', '-')}, or take it out of the tracking section",
    )


class Trackers:
    """Sends numbers to every tracker of the recipe; rank 0 only.

    A run that continues at `first_step` shows each step once in TensorBoard, and goes on in the same W&B run.
    """

    def __init__(
        self,
        tracking: Tracking,
        folder: Path,
        config: Mapping[str, Any],
        first_step: int = 0,
        say: Callable[[str], None] = print,
    ) -> None:
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        # accelerate's logger refuses to speak before this exists; the process group is there, so it only reads it.
        PartialState()

        self._trackers: list[Any] = []
        names = (["tensorboard"] if tracking.tensorboard else []) + list(tracking.trackers)
        for name in names:
            # Only rank 0 comes here; accelerate's own check would make every call a question to its state.
            kind: Any = type(name, (LOGGER_TYPE_TO_CLASS[name],), {"main_process_only": False})
            options = {"logging_dir": str(folder)} if kind.requires_logging_directory else {}
            options |= _continued(name, folder, first_step, say)
            try:
                tracker = kind("tensorboard" if name == "tensorboard" else tracking.project, **options)
                tracker.start()
            except (ImportError, NameError):
                raise _not_installed(name) from None
            if name != "tensorboard":
                tracker.store_init_configuration(dict(config))
            self._trackers.append(tracker)

    def log(self, values: Mapping[str, Any], step: int, prefix: str = "train") -> None:
        """Send the numbers among `values` as PREFIX/NAME."""
        numbers = {key: float(value) for key, value in values.items() if _is_number(value) and key != "step"}
        found = {f"{prefix}/{key}": value for key, value in numbers.items() if math.isfinite(value)}
        if len(found) < len(numbers):
            # As in metrics.jsonl: not every tracker takes a NaN.
            found[f"{prefix}/nonfinite"] = float(len(numbers) - len(found))
        for tracker in self._trackers:
            tracker.log(found, step=step)

    def close(self) -> None:
        """Flush and end."""
        for tracker in self._trackers:
            tracker.finish()


def _continued(name: str, folder: Path, first_step: int, say: Callable[[str], None]) -> dict[str, Any]:
    """What tracker `name` must be told so that it goes on where a killed or finished run of `folder` has left off."""
    if name == "tensorboard":
        # What the run before wrote from here on is about to be written again. At the start there may be such, too: of
        # a run that was killed before its first checkpoint.
        return {"purge_step": first_step + 1 if first_step else 0}
    if name == "wandb":
        kept = folder / ".wandb"
        if not first_step or not kept.is_file():
            kept.write_text(secrets.token_hex(8), encoding="utf-8")
        return {"id": kept.read_text(encoding="utf-8"), "resume": "allow"}
    if first_step:
        say(f"{name}: the steps after {first_step} go to a new run there, since it cannot be told to continue one")
    return {}


def _is_number(value: Any) -> bool:
    return isinstance(value, Real)
