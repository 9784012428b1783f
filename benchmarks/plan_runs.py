"""Whole runs: what the plan of a recipe says of resident memory and of a step's time, against what the run measures.

Each recipe is started as a user starts it, for a few steps, on this machine's processor. Memory is the largest resident
set of a rank from its start to the last step; the plan is the one that the run makes before it loads weights. Time is
the median step after the first two. The first two recipes calibrate: their measured times are noted as every run notes
them, and the plans of all others use rates fitted to these two alone.

The two that calibrate, and some constants of `toolkit/plan/speed.py` (passes over gradients, memory that is made anew, waits
where ranks are more than cores), were chosen after earlier rounds of the first fourteen recipes on such a machine. KTO, ORPO
and the reward model came later: no constant was set from them, though KTO and DPO showed that passes of theirs were not
counted. What collectives take is from benchmarks/collectives.py.

With --rounds everything is run several times, and the fastest of a recipe's runs counts: others may use this machine too.
How much its slowest run differs is then the last column: what no plan can be nearer to than. A machine that was slow while
the two ran makes all others look too slow; so the last line tells what any other two would have given.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

from harness.page import parser, publish, table, tracked

RECIPES = Path(__file__).parents[1] / "recipes"

RUNS: dict[str, tuple[str, int, tuple[str, ...]]] = {
    "ZeRO-2": ("sft_smollm2_zero2", 2, ()),
    "one rank, fp32": ("sft_smollm2_zero0", 1, ()),
    "ZeRO-3, checkpointing": ("sft_smollm2_zero3", 2, ()),
    "ZeRO-1": ("sft_smollm2_zero2", 2, ("--parallel.zero_stage", "1")),
    "ZeRO-2, 512 tokens": ("sft_smollm2_zero2", 2, ("--batch.sequence_length", "512")),
    "ZeRO-2, micro-batch 1": ("sft_smollm2_zero2", 2, ("--batch.micro_size", "1")),
    "ZeRO-2, optimizer offloaded": ("sft_smollm2_zero2_offload", 2, ()),
    "ZeRO-3": ("sft_smollm2_zero3", 2, ("--model.no_activation_checkpointing",)),
    "ZeRO-3, all offloaded": ("sft_smollm2_zero3_offload", 2, ()),
    "2 pipeline stages": ("sft_smollm2_pp2", 2, ()),
    "3 tensor ranks": ("sft_smollm2_tp3", 3, ()),
    "3 sequence ranks": ("sft_smollm2_sp3", 3, ()),
    "LoRA": ("lora_smollm2_zero2", 2, ()),
    "DPO": ("dpo_smollm2_zero2", 2, ()),
    "KTO": ("kto_smollm2_zero2", 2, ()),
    "ORPO": ("orpo_smollm2_zero1", 2, ()),
    "reward model, ZeRO-3": ("reward_smollm2_zero3", 2, ()),
}
"""Name -> recipe, ranks, flags."""

TINY = [
    "--batch.global_size",
    "2",
    "--batch.micro_size",
    "1",
    "--batch.sequence_length",
    "64",
    "--data.max_examples",
    "40",
]
SHORT = [
    "--precision.dtype",
    "auto",
    "--batch.sequence_length",
    "256",
    "--evaluation.max_sequences",
    "4",
]
"""So that a run takes a minute or two."""

CALIBRATE = 2
NEAR = 0.2
"""Relative error of a step time that is asked for."""
STEPS = 6
measured_s = itemgetter("measured_s")


def main(arguments: list[str]) -> None:
    """Measure and publish."""
    made = parser(__doc__, __file__)
    made.add_argument("--runs", help="names of runs with semicolons between them (default: all)")
    made.add_argument("--rounds", type=int, default=1, help="times that each of them is run (default: 1)")
    options = made.parse_args(arguments)
    names = ["one rank, fp32"] if options.tiny else list(RUNS)
    if options.runs is not None:
        names = [name for name in names if name in options.runs.split(";")]
    for found in measured(names, options):
        report(found, options)


def report(found: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> None:
    """Publish the page of `found`, plan.json of each recipe's runs."""
    rows, memories, times = [], [], []
    for index, (name, plans) in enumerate(found.items()):
        plan, seconds = plans[-1], sorted(one["measured"]["step_time_s"] for one in plans)
        peak, planned = plan["measured"]["peak_bytes"], plan["step_seconds"]["total"]
        memory, time = plan["memory"]["peak_bytes"] / peak - 1.0, planned / seconds[0] - 1.0
        memories.append(abs(memory))
        times += [] if index < CALIBRATE else [abs(time)]
        gib = [f"{value / 2**30:.2f}" for value in (plan["memory"]["peak_bytes"], peak)]
        said = "calibrates" if index < CALIBRATE else f"{time:+.0%}"
        rows.append([name, str(RUNS[name][1]), *gib, f"{memory:+.1%}", f"{planned:.2f}", f"{seconds[0]:.2f}", said])
        if options.rounds > 1:
            rows[-1].append(f"{seconds[-1] / seconds[0] - 1.0:+.0%}" if len(plans) > 1 else "")
    header = ["", "ranks", "GiB planned", "measured", "error", "s per step planned", "measured", "error"]
    header += ["slowest run"] if options.rounds > 1 else []
    lines = [f"Memory: median error {statistics.median(memories):.1%}, worst {max(memories):.1%}."]
    if times:
        near = sum(error <= NEAR for error in times)
        lines.append(
            f"Time: median error {statistics.median(times):.0%}, worst {max(times):.0%}; {near} of {len(times)} within 20%."
        )
    if len(found) > CALIBRATE + 1:
        lines.append(by_any_two([min((one["finished"] for one in plans), key=measured_s) for plans in found.values()]))
    publish(options, "Planned and measured runs", [str(__doc__).strip(), table(header, rows), " ".join(lines)])


def by_any_two(lines: list[dict[str, Any]]) -> str:
    """How many of the other recipes would be near, had any other two calibrated; `lines` are those of the ledger."""
    from toolkit.plan.calibration import Finished, fit
    from toolkit.plan.start import default_rates, processor_place

    place = processor_place(1)
    runs = [Finished(**line) for line in lines]
    flops, bandwidth = place.hardware.flops(runs[0].number_format), place.hardware.bandwidth
    counts, worst = [], []
    for pair in itertools.combinations(runs, CALIBRATE):
        rates = fit(pair, flops, bandwidth, default_rates(place))
        errors = [abs(run.seconds(rates, flops, bandwidth) / run.measured_s - 1.0) for run in runs if run not in pair]
        counts.append(sum(error <= NEAR for error in errors))
        worst.append(max(errors))
    others = len(runs) - CALIBRATE
    return (
        f"Had any other two calibrated: {statistics.median(counts):.0f} of {others} within 20% for the median pair, "
        f"{min(counts)} for the unluckiest of {len(counts)}; the worst error {statistics.median(worst):.0%} for the median pair."
    )


def measured(names: list[str], options: argparse.Namespace) -> Iterator[dict[str, list[dict[str, Any]]]]:
    """plan.json of each recipe's runs, after every round: a round takes half an hour, and something may end it."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    calibrated: dict[str, dict[str, Any]] = {}
    rounds = [(number, name) for number in range(options.rounds) for name in names]
    with tempfile.TemporaryDirectory(prefix="plan_runs_") as folder:
        cache = linked_cache(Path(folder))
        ledger = cache / "finished_runs.jsonl"
        for number, name in tracked(rounds, "runs"):
            ledger.write_text("".join(json.dumps(line) + "\n" for line in calibrated.values()))
            plan = one_run(name, Path(folder) / f"{number}-{names.index(name)}", cache, options)
            line = json.loads(ledger.read_text().splitlines()[-1])
            found[name].append({**plan, "finished": line})
            if names.index(name) < CALIBRATE:
                calibrated[name] = min(calibrated.get(name, line), line, key=measured_s)
            if name == names[-1]:
                yield found


def linked_cache(folder: Path) -> Path:
    """A cache with what is fetched in the user's, and no finished run."""
    from toolkit.cache import cache_dir

    cache = folder / "cache"
    cache.mkdir()
    for entry in cache_dir().iterdir():
        if entry.name != "finished_runs.jsonl":
            (cache / entry.name).symlink_to(entry)
    return cache


def one_run(name: str, folder: Path, cache: Path, options: argparse.Namespace) -> dict[str, Any]:
    """plan.json of the run."""
    recipe, ranks, flags = RUNS[name]
    steps = [
        "--epochs",
        "None",
        "--steps",
        str(STEPS),
        "--schedule.warmup_steps",
        "0",
        "--checkpoint.no_export",
        *SHORT,
    ]
    command = [str(Path(sys.executable).with_name("deepspeed")), "-q", "--num_gpus", str(ranks)]
    command += [str(RECIPES / f"{recipe}.py"), "--output_dir", str(folder), *steps, *flags]
    command += [] if name.startswith("reward") else ["--task.sample_prompt", "None"]
    command += TINY if options.tiny else []
    environment = {**os.environ, "TOOLKIT_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    plan = folder / "plan.json"
    if done.returncode or not plan.is_file():
        raise SystemExit(f"{name}: {' '.join(command)}\n{(done.stdout + done.stderr)[-3000:]}")
    found: dict[str, Any] = json.loads(plan.read_text(encoding="utf-8"))
    shutil.rmtree(folder)  # several GB of checkpoints
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
