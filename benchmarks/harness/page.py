"""A results page: what was measured, on what, as tables; printed and written as Markdown."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import track

from toolkit.recipe.location import path

Item = TypeVar("Item")

RESULTS = Path(__file__).parents[1] / "results"
PACKAGES = ("torch", "deepspeed", "transformers", "accelerate")


def parser(about: str | None, script: str) -> argparse.ArgumentParser:
    """A parser with the two flags that every benchmark has."""
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--tiny", action="store_true", help="only prove that the script runs; the numbers mean nothing")
    made.set_defaults(script=Path(script).name)
    page = RESULTS / f"{Path(script).stem}.md"
    made.add_argument("--page", type=path, default=page, help="where to write the results (not written with --tiny)")
    return made


def tracked(items: Sequence[Item], about: str) -> Iterable[Item]:
    """`items`, with a bar on standard error for those who wait."""
    return track(items, about, console=Console(stderr=True))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, padded so that it also reads well as plain text; all columns but the first flush right."""
    cells = [list(header), *[list(row) for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = [_line(row, widths) for row in cells]
    rule = [f"{'-' * widths[0]}", *[f"{'-' * (width - 1)}:" for width in widths[1:]]]
    return "\n".join([lines[0], _line(rule, widths), *lines[1:]])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        cells[0].ljust(widths[0]),
        *[cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)],
    ]
    return f"| {' | '.join(padded)} |"


def publish(options: argparse.Namespace, title: str, parts: Sequence[str]) -> None:
    """Print the page; write it to `options.page` unless this is a tiny run."""
    page = "\n\n".join([f"# {title}", *parts, conditions(options.script)]) + "\n"
    print(page, flush=True)
    if not options.tiny:
        options.page.parent.mkdir(parents=True, exist_ok=True)
        options.page.write_text(page, encoding="utf-8")


def conditions(script: str) -> str:
    """Where and with what the numbers were taken."""
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return (
        f"Measured on {datetime.date.today().isoformat()} by `python benchmarks/{script}` on {machine()}; "
        f"Python {platform.python_version()}, {versions}."
    )


def number_format() -> str:
    """What precision.dtype "auto" takes on this machine: emulated, a product in bf16 may take a hundred times as long."""
    from toolkit.engine import device

    return "bf16" if device.target(1, wanted="auto").bf16_is_native else "fp32"


def machine() -> str:
    """The GPUs where there are any, else the processor; with cores and memory."""
    import torch

    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    host = f"{_processor()}, {cores} cores, {memory:.0f} GiB"
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()} ({host})"
    return host


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in info.read_text().split("\n\n")[0].splitlines() if ":" in line)
    known = {name.strip(): value.strip() for name, value in fields.items()}
    name, flags = known.get("model name", platform.machine()), known.get("flags", "").split()
    features = [label for flag, label in (("avx512f", "AVX-512"), ("amx_bf16", "AMX")) if flag in flags]
    return " with ".join([name, " and ".join(features)] if features else [name])
