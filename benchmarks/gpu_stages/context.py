"""The longest context of a 1B and an 8B shape that trains, as one sequence, in four rungs.

A length counts when a whole optimizer step on it went through. It is doubled until memory ends, then the gap is
halved; a search that runs out of time or tries says so. Layers are checkpointed on every rung. The baseline is one
document, and makes the logits as the stock model does. The others never make them; where attention is computed by
document they are packed with documents of 16,384 tokens, which decides the time of a step and not its memory.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.page import table
from harness.stages import Record, Row

from gpu_stages.large import CHECKPOINTED, roomiest
from gpu_stages.setting import Setting, recipe_of
from gpu_stages.training import Running, running

TARGET = 500_000
SHAPES = ("1B", "8B")
TRIES = 14
DOCUMENT = 16_384
BY_DOCUMENT = ("varlen", "flash", "documents")
"""What is part of the names of attention that needs no mask to keep documents apart."""

CEILING = 1500
"""Longer sequences run out of memory in a rehearsal: in the middle of a step something is asked for that no machine has."""

PRECISION = 8
"""A search ends when the gap is at most this part of the length found."""

OFFLOADED = {**CHECKPOINTED, "model.activation_offload": True}
TILED = {**OFFLOADED, "model.mlp_tiles": 16}

LOGITS = "with logits"
RUNGS: dict[str, dict[str, Any]] = {
    LOGITS: CHECKPOINTED | {"model.attention": "sdpa"},
    "loss without logits": CHECKPOINTED,
    "+ layer inputs on the host": OFFLOADED,
    "+ tiled MLP": TILED,
}


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
    try_step: Callable[[int], float | None], first: int, *, least: int, tries: int, time_left: Callable[[], float]
) -> Found:
    """The longest context, at least `least`, for which `try_step` succeeds (seconds of a step; None: out of memory).

    Begins with `first`, and does not begin a try that is likely to outlast `time_left`.
    """
    best, best_s, failed, count, growth = 0, 0.0, 0, 0, 2.0
    while not failed or failed - best > max(best, least) // PRECISION:
        length = (best + failed) // 2 if failed else 2 * best if best else first
        if length < least:
            break
        if count == tries:
            return Found(best, best_s, count, "tries")
        if best and best_s * (length / best) ** growth > time_left():
            return Found(best, best_s, count, "time")
        count += 1
        took = try_step(length)
        if took is None:
            failed = length
            continue
        if best:
            # Between all of the step linear in the tokens, and all of it attention.
            growth = min(2.0, max(1.0, math.log(took / best_s) / math.log(length / best)))
        best, best_s = length, took
    return Found(best, best_s, count, "memory")


def rows(setting: Setting) -> list[Row]:
    """Four rungs for each shape."""
    found = []
    for shape in SHAPES:
        states, missing = roomiest(setting, shape)
        for name, rung in RUNGS.items():
            search = functools.partial(_search, setting, shape, rung | states, plain_logits=name == LOGITS)
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
    tries, least = (3, 512) if setting.is_tiny else (TRIES, 8192)
    known = setting.place(f"{shape} longest")
    # No rung takes more memory than the one before: it begins where that one ended.
    first = int(known.read_text()) if known.is_file() else least
    with _Steps(recipe, setting.place(shape), plain_logits, CEILING if setting.is_tiny else None) as steps:
        found = longest(steps.try_step, first, least=least, tries=tries, time_left=lambda: deadline - time.monotonic())
    assert found.length, f"not even {least:,} tokens fit"
    known.write_text(str(found.length))
    return {"tokens": found.length, "step_time_s": found.seconds, "tries": found.tries, "ended_by": found.ended_by}


class _Steps(contextlib.AbstractContextManager["_Steps"]):
    """Single optimizer steps of any length with one engine, which is made anew after it has run out of memory."""

    def __init__(self, recipe: Any, folder: Path, plain_logits: bool, ceiling: int | None) -> None:
        self.recipe, self.folder, self.plain_logits, self.ceiling = recipe, folder, plain_logits, ceiling
        self._open = contextlib.ExitStack()
        self._run: Running | None = None

    def __exit__(self, *_: Any) -> None:
        self._run = None
        self._open.close()

    def try_step(self, length: int) -> float | None:
        """Seconds of a step on `length` random tokens; None: out of memory."""
        from harness.memory import forget

        from toolkit.engine.out_of_memory import is_out_of_memory

        try:
            if self._run is None:
                opened = running(self.recipe, self.folder, plain_logits=self.plain_logits)
                self._run = self._open.enter_context(opened)
            if self.ceiling is not None and length > self.ceiling:
                self._run.engine.model.get_output_embeddings().register_forward_pre_hook(_exhaust)
            seconds = step_seconds(self._run, length)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self.__exit__()
            forget(error)
            seconds = None
        print(f"{length:,} tokens: {'out of memory' if seconds is None else f'{seconds:.2f} s'}", flush=True)
        return seconds


def _exhaust(*_: Any) -> None:
    import torch

    torch.empty(2**50)


def step_seconds(run: Running, length: int) -> float:
    """Seconds of one optimizer step on `length` random tokens."""
    from toolkit.engine import device

    batch = run.inputs.task.collate([documents(run, length)])
    began = time.perf_counter()
    run.engine.train_step([batch], [0])
    device.synchronize()
    return time.perf_counter() - began


def documents(run: Running, length: int) -> list[dict[str, Any]]:
    """`length` random tokens as examples: one, or several of DOCUMENT tokens where that spares time and no memory."""
    import numpy as np

    config = run.inputs.model_config
    tokens = np.random.default_rng(0).integers(4, config.vocab_size, length).astype(np.int32)
    # Of the model: what it computes with is decided when it is built.
    kind = str(run.engine.model.config._attn_implementation)
    size = DOCUMENT if any(name in kind for name in BY_DOCUMENT) else length
    pieces = [tokens[start : start + size] for start in range(0, length, size)]
    return [{"input_ids": piece, "labels": piece} for piece in pieces]
