"""TensorBoard and accelerate's other trackers behind one `log`."""

from __future__ import annotations

import importlib.util
import numbers
from collections.abc import Mapping
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
    """Sends numbers to every tracker of the recipe; rank 0 only."""

    def __init__(self, tracking: Tracking, folder: Path, config: Mapping[str, Any]) -> None:
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
        found = {
            f"{prefix}/{key}": float(value) for key, value in values.items() if _is_number(value) and key != "step"
        }
        for tracker in self._trackers:
            tracker.log(found, step=step)

    def close(self) -> None:
        """Flush and end."""
        for tracker in self._trackers:
            tracker.finish()


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real)
