"""The toolkit's training loop around an engine and batches that a benchmark has chosen."""

from __future__ import annotations

import json
from typing import Any


def run_loop(
    recipe: Any, inputs: Any, engine: Any, config: Any, me: Any, folder: Any, display: Any, *, saves: bool = True
) -> list[dict[str, Any]]:
    """Train from the first step to the last; `config` is the engine's. Returns the records on rank 0.

    With `saves` as a run does, with all that it records; without, no checkpoint is written and no tracker told.
    """
    from toolkit.train.interrupts import Interrupt
    from toolkit.train.loop import Loop
    from toolkit.train.metrics import MetricsLog
    from toolkit.train.resume_fields import flatten
    from toolkit.train.trackers import Trackers
    from toolkit.train.utilization import prepare_utilization
    from toolkit.train.watch import watch_of

    class Unsaved(Loop):
        """Leaves out the one thing that takes longer than the steps of a short measurement."""

        def save(self, step: int) -> None:
            self.saved_step = step

    identity = {"facts": {"examples": None}}
    kind = Loop if saves else Unsaved
    loop = kind(recipe, inputs, engine, me, folder, display, Interrupt(), watch_of(recipe, inputs), identity)
    if me.is_main:
        loop.log = MetricsLog(folder.metrics)
        loop.utilization = prepare_utilization(recipe, inputs, config, me.world_size, display)
        if saves:
            loop.trackers = Trackers(recipe.tracking, folder.path, flatten(recipe))
    loop.run(0, None)
    if loop.log is None:
        return []
    loop.log.close()
    return [json.loads(line) for line in folder.metrics.read_text(encoding="utf-8").splitlines()]
