"""The longest context of a 1B and an 8B shape that trains, as one sequence of one document, in four rungs.

A length counts when a whole optimizer step on it went through. It is doubled until memory ends, then the gap is
halved; a search that runs out of time or tries says so. Layers are checkpointed on every rung. The baseline makes the
logits, as the stock model does; the others never do.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from harness.page import table
from harness.stages import Record, Row

from gpu_stages.large import host_fields, lacking_memory, state_fields
from gpu_stages.setting import Setting, recipe_of
from gpu_stages.training import Running, running

TARGET = 500_000
SHAPES = ("1B", "8B")
TRIES = 14
PRECISION = 8
"""A search ends when the gap is at most this part of the length found."""

CHECKPOINTED = {"model.activation_checkpointing": True}
OFFLOADED = {**CHECKPOINTED, "model.activation_offload": True}
TILED = {**OFFLOADED, "model.mlp_tiles": 16}

RUNGS: dict[str, dict[str, Any]] = {
    "with logits": CHECKPOINTED,
    "loss without logits": CHECKPOINTED,
    "+ layer inputs on the host": OFFLOADED,
    "+ tiled MLP": TILED,
}
LOGITS = "with logits"


@dataclass(frozen=True)
class Found:
    """What a search came to."""

    length: int
    """The longest that trains; 0: none did."""
    seconds: float
    """Of its step."""
    tries: int
    ended_by: str
    """"memory", or "time" or "tries" where a longer one may train as well."""


def longest(
    try_step: Callable[[int], float | None], first: int, *, tries: int, time_left: Callable[[], float]
) -> Found:
    """The longest context for which `try_step` (seconds of a step; None: out of memory) succeeds, from `first` on.

    A try that is likely to outlast `time_left` is not begun: twice the length may take four times as long.
    """
    best, best_s, failed, count = 0, 0.0, 0, 0
    while not failed or failed - best > best // PRECISION:
        length = 2 * best if best and not failed else (best + failed) // 2 if failed else first
        if failed and length < first:
            break
        if count == tries:
            return Found(best, best_s, count, "tries")
        if best and best_s * (length / best) ** 2 > time_left():
            return Found(best, best_s, count, "time")
        count += 1
        took = try_step(length)
        if took is None:
            failed = length
        else:
            best, best_s = length, took
    return Found(best, best_s, count, "memory")


def rows(setting: Setting) -> list[Row]:
    """Four rungs for each shape."""
    found = []
    for shape in SHAPES:
        for name, rung in RUNGS.items():
            fields = rung | state_fields()
            if lacking_memory(setting, shape, fields):
                fields |= host_fields()
            missing = lacking_memory(setting, shape, fields)
            search = functools.partial(_search, setting, shape, fields, plain_logits=name == LOGITS)
            found.append(Row(f"{shape} {name}", search, missing))
    return found


def reached(records: Mapping[str, Record]) -> int | None:
    """The longest context of the first shape."""
    lengths = [
        record["tokens"] for name, record in records.items() if name.startswith(SHAPES[0]) and "tokens" in record
    ]
    return max(lengths, default=None)


def part(records: Mapping[str, Record]) -> str:
    """The page's table."""
    lines = []
    for name, record in records.items():
        if "tokens" not in record:
            lines.append([name, record.get("why", record["status"])[:60], "", "", ""])
            continue
        more = "" if record["ended_by"] == "memory" else "at least "
        seconds = f"{record['step_time_s']:.2f}"
        lines.append([name, f"{more}{record['tokens']:,}", seconds, str(record["tries"]), record["ended_by"]])
    return table(["", "tokens", "s per step", "tries", "ended by"], lines)


def _search(setting: Setting, shape: str, fields: Mapping[str, Any], limit_s: float, *, plain_logits: bool) -> Record:
    deadline = time.monotonic() + limit_s * 0.9
    recipe = recipe_of(setting, shape, fields, global_size=1, micro_size=1, steps=TRIES)
    tries, first = (4, 256) if setting.is_tiny else (TRIES, 8192)
    with _Steps(recipe, setting.place(shape), plain_logits) as steps:
        found = longest(steps.try_step, first, tries=tries, time_left=lambda: deadline - time.monotonic())
    assert found.length, f"not even {first:,} tokens fit"
    return {"tokens": found.length, "step_time_s": found.seconds, "tries": found.tries, "ended_by": found.ended_by}


class _Steps(contextlib.AbstractContextManager["_Steps"]):
    """Single optimizer steps of any length with one engine, which is made anew after it has run out of memory."""

    def __init__(self, recipe: Any, folder: Any, plain_logits: bool) -> None:
        self.recipe, self.folder, self.plain_logits = recipe, folder, plain_logits
        self._open = contextlib.ExitStack()
        self._run: Running | None = None

    def __exit__(self, *_: Any) -> None:
        self._run = None
        self._open.close()

    def try_step(self, length: int) -> float | None:
        """Seconds of a step on `length` random tokens; None: out of memory."""
        from harness.memory import forget, is_out_of_memory

        try:
            if self._run is None:
                self._run = self._open.enter_context(running(self.recipe, self.folder, plain_logits=self.plain_logits))
            seconds = step_seconds(self._run, length)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self.__exit__()
            forget(error)
            seconds = None
        print(f"{length:,} tokens: {'out of memory' if seconds is None else f'{seconds:.2f} s'}", flush=True)
        return seconds


def step_seconds(run: Running, length: int) -> float:
    """Seconds of one optimizer step on one document of `length` random tokens."""
    import numpy as np

    from toolkit.engine import device

    source = np.random.default_rng(0)
    tokens = source.integers(4, run.inputs.model_config.vocab_size, length).astype(np.int32)
    batch = run.inputs.task.collate([[{"input_ids": tokens, "labels": tokens}]])
    began = time.perf_counter()
    run.engine.train_step([batch], [0])
    device.synchronize()
    return time.perf_counter() - began
