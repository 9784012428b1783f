"""What rank 0 shows: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

AROUND_LINE = 40
"""Characters beside the numbers of a step: spinner, count of steps, the shortest bar, the time left."""
WIDE = 120
"""Characters of a terminal from which on the bar grows."""

PLAIN_LINES = 50
"""Without a terminal, a long run prints about this many step lines."""

SILENT_S = 30.0
"""Without a terminal, what counts beside the steps prints a line so often."""


class _Console(Console):
    """A console whose reader may leave: rich would end the program."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print("nobody reads the output any more; the run goes on", file=sys.stderr, flush=True)


class Display:
    """Prints for the main rank; silent on the others."""

    def __init__(self, *, is_main: bool, total_steps: int = 0, first_step: int = 0, unit: str = "token") -> None:
        self.console = _Console(quiet=not is_main, highlight=False, soft_wrap=True)
        self.total_steps, self._unit = total_steps, unit
        self._every = max(1, total_steps // PLAIN_LINES)
        self._began, self._first = time.monotonic(), first_step
        self._bar: Progress | None = None

    def say(self, text: str) -> None:
        """One line of text."""
        self.console.print(text, markup=False)

    @contextmanager
    def bar(self) -> Iterator[None]:
        """Show the progress bar inside this context, where there is a terminal."""
        if not self.console.is_terminal or self.console.quiet:
            yield
            return
        with self._new_bar() as self._bar:
            self._task = self._bar.add_task("step", total=self.total_steps, completed=self._first, line="")
            yield
        self._bar = None

    def _new_bar(self) -> Progress:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            MofNCompleteColumn(),
            BarColumn(bar_width=max(5, min(40, self.console.width - WIDE))),
            TextColumn("{task.fields[line]}"),
            TimeRemainingColumn(compact=True),
        )
        return Progress(*columns, console=self.console)

    @contextmanager
    def counting(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show, for a while, how many of `total` are done; the value is to be called with the number of those just done."""
        if not self.console.is_terminal or self.console.quiet:
            yield self._lines(what, total)
            return
        with contextlib.ExitStack() as stack:
            bar = self._bar or stack.enter_context(self._new_bar())
            task = bar.add_task(what, total=total, line="")
            stack.callback(bar.remove_task, task)
            yield lambda count: bar.advance(task, count)

    def _lines(self, what: str, total: int) -> Callable[[int], None]:
        done, said = 0, time.monotonic()

        def advance(count: int) -> None:
            nonlocal done, said
            done += count
            if time.monotonic() - said >= SILENT_S:
                said = time.monotonic()
                self.say(f"{what} {done:,} of {total:,}")

        return advance

    def step(self, record: Mapping[str, Any]) -> None:
        """Show one optimizer step."""
        line = step_line(record, self._unit)
        if self._bar is not None:
            fitting = step_line(record, self._unit, width=self.console.width - AROUND_LINE)
            self._bar.update(self._task, completed=record["step"], line=fitting)
        elif record["step"] % self._every == 0 or record["step"] in (1, self.total_steps):
            self.say(f"step {record['step']:>6}/{self.total_steps}  {line}  eta {self._eta(record['step'])}")

    def _eta(self, step: int) -> str:
        taken = max(1, step - self._first)
        left = (time.monotonic() - self._began) / taken * (self.total_steps - step)
        return time.strftime("%H:%M:%S", time.gmtime(left))


def step_line(record: Mapping[str, Any], unit: str = "token", width: int | None = None) -> str:
    """loss 3.4127  grad_norm 1.32  lr 2.0e-05  tokens/s 1,024  memory 3.1 GiB; in `width` characters without the last ones.

    `unit` is what the record's "tokens" counts.
    """
    tflops = record.get("tflops_per_device", 0.0)  # below 1, as on a CPU, it stays in metrics.jsonl
    parts = [
        "SKIPPED: gradients not finite" if record.get("skipped") else "",
        f"loss {record['loss']:.4f}",
        f"grad_norm {record['grad_norm']:.3g}" if record["grad_norm"] is not None else "",
        f"lr {record['learning_rate']:.2e}",
        f"{unit}s/s {record['tokens_per_second']:,.0f}",
        f"MFU {record['mfu']:.1%}" if "mfu" in record else "",
        f"TFLOPS {tflops:.1f}" if tflops >= 1.0 else "",
        f"memory {record['memory_gib']:.1f} GiB",
        f"scale {record['loss_scale']:g}" if record.get("loss_scale") is not None else "",
    ]
    parts = [part for part in parts if part]
    while width is not None and len(parts) > 1 and len("  ".join(parts)) > width:
        parts.pop()
    return "  ".join(parts)
