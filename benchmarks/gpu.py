"""What one GPU of any kind reaches, in one command: `python benchmarks/gpu.py --budget_s 480`.

Stages run one after the other, each within its share of the budget and all in one process until it dies, the cheapest
proof first: `smoke` (every lever against plain PyTorch on the device; killed, resumed, exported), `planned` (memory and
time as planned before the launch, and measured), `ragged` (against the Hugging Face Trainer), `ladder` (speed and share of
the device's peak, lever by lever), `large` (8B) and `context` (longest sequence). One that fails, runs out of memory or
out of time never stops the others. Results are written
after every row: JSON lines, and a Markdown page beside them; what the stages print goes to a log per stage. Where a device
is lent for minutes at a time, --resume goes on with what an earlier call had no time for.

A machine without a network needs the packages of pyproject.toml beside a CUDA build of torch, for instance as wheels
collected elsewhere for its Python version, and this repository; nothing is fetched: models have random weights, words
are made up. Try the command before on any CPU: `python benchmarks/gpu.py --tiny` runs every stage in a minute or two.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import importlib
import json
import os
import re
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness import stages as runner
from harness.page import RESULTS, table
from harness.stages import GREEN, Call, Record, Stage

from toolkit.errors import InputError, did_you_mean
from toolkit.recipe.location import path

MACHINE = Stage("machine", 20.0)
STAGES = (
    Stage("smoke", 80.0),
    Stage("planned", 150.0),
    Stage("ragged", 50.0),
    Stage("ladder", 130.0),
    Stage("large", 50.0),
    Stage("context", 100.0),
)
"""Their shares are about the seconds that they take on a fast card."""

KEPT = ("done", "out of memory")
"""What became of rows that --resume does not measure again."""

STAGES_PROCESS = "GPU_BENCHMARK_STAGES"
"""Environment variable by which this script knows that it is the stages' process, to be told what to measure."""


def main(arguments: list[str]) -> int:
    """Measure and publish; the exit code."""
    options = parse(arguments)
    if STAGES_PROCESS in os.environ:
        for call in runner.calls():
            be_stage(options, call)
        return 0
    # Whoever ends this process wants the stages' to end as well, and what was measured kept.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory(prefix="gpu_benchmark_") as folder:
            return measure(options, arguments, Path(folder))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    finally:
        signal.signal(signal.SIGTERM, before)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options, those that --tiny implies filled in."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--budget_s", type=float, default=480.0, help="seconds that all stages may take together")
    made.add_argument("--stages", default=",".join(stage.name for stage in STAGES), help="those to run, with commas")
    made.add_argument("--model_scale", choices=("tiny", "full"), default="full", help="tiny: the numbers mean nothing")
    made.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    made.add_argument("--output", type=path, help="JSON lines; beside them the page (.md) and a folder of logs")
    made.add_argument(
        "--resume", action="store_true", help="keep the rows that --output has already, measure the others"
    )
    made.add_argument("--tiny", action="store_true", help="the rehearsal: --model_scale tiny --device cpu")
    options = made.parse_args(arguments)
    if options.tiny:
        options.model_scale, options.device = "tiny", "cpu"
    return options


def chosen(names: str) -> list[Stage]:
    """The stages called `names`, in the order in which they run. Raises InputError for an unknown one."""
    known = {stage.name: stage for stage in STAGES}
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in known:
            raise InputError(
                f"--stages: unknown stage {name!r}{did_you_mean(name, known)}",
                expected=f"names out of {', '.join(known)}, with commas between them",
                do="correct --stages, or leave it out to run all of them",
            )
    return [stage for name, stage in known.items() if name in wanted]


def measure(options: argparse.Namespace, arguments: list[str], folder: Path) -> int:
    """Run the stages and write what they measure; the exit code: 0 unless something failed, 130 when interrupted."""
    results = Results(options, [], folder)
    wanted = chosen(options.stages)
    ends = time.monotonic() + options.budget_s
    command, environment = [sys.executable, "-u", __file__, *arguments], variables(options.device, folder)
    worker = runner.Worker(command, {**os.environ, **environment, STAGES_PROCESS: "1"})

    def run(stages: Sequence[Stage], limit_s: float) -> None:
        calling = functools.partial(begin, worker)
        runner.run_stages(stages, limit_s, calling, folder, results.logs, results.keep, results.known)

    try:
        run([MACHINE], min(options.budget_s, 120.0))
        if results.facts is None:
            raise no_device(options, results.records)
        results.settle_place()
        run(wanted, ends - time.monotonic())
    except KeyboardInterrupt:
        print("interrupted: what was measured until now is kept", file=sys.stderr)
        return 130
    finally:
        worker.close()
        if results.parts:
            results.write_page()
            print(results.page())
            print(f"written: {results.output}, {results.output.with_suffix('.md')}", file=sys.stderr)
    return 1 if results.faults() else 0


def no_device(options: argparse.Namespace, records: Sequence[Record]) -> InputError:
    """What to say where the first stage could not describe the device."""
    why = "; ".join(str(record.get("why", record["status"])) for record in records)
    return InputError(
        f"--device {options.device}: the device cannot be used: {why}",
        expected="torch with a device of that kind",
        do="check the driver and CUDA_VISIBLE_DEVICES, or rehearse with --tiny, which needs no GPU",
    )


def begin(worker: runner.Worker, call: Call) -> runner.Child:
    """Let the stages' process go on with `call`."""
    return worker.begin(call)


def variables(device: str, folder: Path) -> dict[str, str]:
    """Environment variables of a stage's process."""
    # One thread: for tiny tensors more of them only wait for each other.
    cpu = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"} if device == "cpu" else {}
    return {
        **cpu,
        "TOOLKIT_CACHE": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def be_stage(options: argparse.Namespace, call: Call) -> None:
    """Measure the rows of a stage."""
    from gpu_stages.setting import Setting

    import toolkit.train.run  # noqa: F401 - with all that takes long, before the time of any row begins

    module = importlib.import_module(f"gpu_stages.{call.stage}")
    runner.serve(module.rows(Setting(options.model_scale, options.device, call.folder)), call)


@dataclass
class Results:
    """The records so far, on disk as soon as they are known, and the page made of them."""

    options: argparse.Namespace
    records: list[Record]
    logs: Path
    """Where the stages' logs are written."""
    facts: Record | None = None
    """About the machine; None until its stage has said them."""
    output: Path = field(init=False)
    parts: list[Record] = field(default_factory=list)
    """When and on what rows were measured: this time, and with --resume the times before."""

    def keep(self, record: Record) -> None:
        """Add one record."""
        print(f"{record['stage']:8} {record['row']}: {record['status']} {shown(record)}", file=sys.stderr, flush=True)
        self.records.append(record)
        if record["stage"] == MACHINE.name:
            self.facts = record if record["status"] == "done" else None
            return
        self._append(record)
        self.write_page()

    def settle_place(self) -> None:
        """Once the device is known: where everything goes."""
        assert self.facts is not None
        name = re.sub(r"\W+", "_", str(self.facts["device"])).strip("_").lower()
        folder = self.logs if self.options.model_scale == "tiny" else RESULTS
        self.output = self.options.output or folder / f"gpu_{name}.jsonl"
        self.output.parent.mkdir(parents=True, exist_ok=True)
        about = {"command": self.command(), "date": datetime.date.today().isoformat(), **self.facts}
        before = self._measured_before(about)
        self.output.write_bytes(b"")
        for record in [*before, about]:
            (self.parts if "date" in record else self.records).append(record)
            self._append(record)
        self.logs = self.output.with_suffix("")
        self.logs.mkdir(exist_ok=True)

    def _measured_before(self, about: Record) -> list[Record]:
        """With --resume what the output has. Raises InputError where that is of another device than `about` is."""
        if not (self.options.resume and self.output.is_file()):
            return []
        found = [json.loads(line) for line in self.output.read_text(encoding="utf-8").splitlines()]
        for part in found:
            if "date" in part and part["device"] != about["device"]:
                raise InputError(
                    f"--resume: {self.output} was measured on {part['device']}, this is {about['device']}",
                    expected="the same kind of device for all rows of a page",
                    do="give another --output",
                )
        return [record for record in found if "date" in record or record["status"] in KEPT]

    def known(self, stage: str) -> list[str]:
        """Rows of `stage` that need not be measured."""
        return list(self.of(stage))

    def _append(self, record: Record) -> None:
        with self.output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def write_page(self) -> None:
        """Rewrite the page; whoever reads it meanwhile finds the one before."""
        page = self.output.with_suffix(".md")
        temporary = page.with_suffix(".md.writing")
        temporary.write_text(self.page(), encoding="utf-8")
        temporary.replace(page)

    def command(self) -> str:
        return shlex.join(["python", "benchmarks/gpu.py", *sys.argv[1:]])

    def faults(self) -> list[Record]:
        """What failed, hung or crashed."""
        return [record for record in self.records if record["status"] not in GREEN]

    def of(self, stage: str) -> dict[str, Record]:
        """Records of `stage` by row."""
        return {record["row"]: record for record in self.records if record["stage"] == stage}

    def page(self) -> str:
        """All of it as Markdown."""
        parts = ["# One GPU", self._conditions()]
        if self.options.model_scale == "full":
            parts += ["## Targets", self._targets()]
        for stage in STAGES:
            if found := self.of(stage.name):
                module = importlib.import_module(f"gpu_stages.{stage.name}")
                parts += [f"## {stage.name}", str(module.__doc__).strip(), module.part(found), *_reasons(found)]
        if self.faults():
            parts += ["## Failures", *map(_failure, self.faults())]
        return "\n\n".join(parts) + "\n"

    def _conditions(self) -> str:
        from gpu_stages import machine

        size = "" if self.options.model_scale == "full" else " A rehearsal with tiny models: the numbers mean nothing."
        lines = [f"Measured on {part['date']} by `{part['command']}` on {machine.line(part)}." for part in self.parts]
        return "\n\n".join(lines) + size

    def _targets(self) -> str:
        lines = []
        for target in targets():
            value = target.value(self.of(target.stage))
            verdict = "not measured" if value is None else "reached" if value >= target.least else "MISSED"
            lines.append([target.name, "-" if value is None else target.form.format(value), target.wanted, verdict])
        missed = "For each one missed the kernels of the ladder's last rung, below, say where the time goes."
        return f"{table(['', 'measured', 'target', ''], lines)}\n\n{missed}"


@dataclass(frozen=True)
class Target:
    """What a stage should reach on one H100."""

    name: str
    stage: str
    value: Callable[[dict[str, Record]], float | None]
    least: float
    form: str

    @property
    def wanted(self) -> str:
        return f">= {self.form.format(self.least)}"


def targets() -> list[Target]:
    """All of them."""
    from gpu_stages import context, ladder, large, planned, ragged

    return [
        Target("smoke: share of the rows that agree", "smoke", _share_green, 1.0, "{:.0%}"),
        Target(
            "planned peaks: 100% less their median error", "planned", planned.accuracy, 1.0 - planned.ACCURACY, "{:.1%}"
        ),
        Target("ragged chats, times the Trainer's tokens/s", "ragged", ragged.speedup, ragged.TARGET, "{:.2f}"),
        *(
            Target(
                f"MFU, {shape}", "ladder", lambda found, shape=shape: ladder.mfu(found, shape), ladder.TARGET, "{:.0%}"
            )
            for shape in ladder.SIZES
        ),
        Target("8B trains on this device (1: yes)", "large", large.trains, 1, "{:d}"),
        Target("context of a 1B shape, tokens", "context", context.reached, context.TARGET, "{:,}"),
    ]


def _share_green(found: dict[str, Record]) -> float | None:
    tried = [record["status"] for record in found.values() if record["status"] not in ("left out", "no time")]
    return tried.count("done") / len(tried) if tried else None


def shown(record: Record) -> str:
    """The numbers of a record on one line."""
    values = {key: value for key, value in record.items() if isinstance(value, int | float) and value is not None}
    return "  ".join([*(f"{key} {value:.4g}" for key, value in values.items()), str(record.get("why", ""))]).strip()


def _reasons(found: dict[str, Record]) -> list[str]:
    """Why rows were left out, or had no memory; faults have a section of their own."""
    reasons = [
        f"- {row}: {record['why']}" for row, record in found.items() if record["status"] in GREEN and record.get("why")
    ]
    return ["\n".join(reasons)] if reasons else []


def _failure(record: Record) -> str:
    why = record.get("why", record["status"])
    return f"### {record['stage']}, {record['row']}\n\n{why}\n\n```\n{record.get('log', '')}\n```"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
