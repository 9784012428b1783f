"""How long it takes to know before launch: each command as a user types it, from its start to its end.

Plans are of Llama's geometries of 8 and 70 billion parameters, from a config.json alone, with every strategy that may be
worth it. Each command is run several times one after the other, and the median counts; what is read from disk has been
read before. Most of a plan's time are the imports of torch and transformers; models are traced on all cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness.page import parser, publish, table, tracked
from plan_published import LLAMA_8B, LLAMA_70B

ROOT = Path(__file__).parents[1]
TIMES = 3
TINY = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "vocab_size": 512,
}


def main(arguments: list[str]) -> None:
    """Measure and publish."""
    options = parser(__doc__, __file__).parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="plan_time_") as folder:
        asked = commands(Path(folder), options)
        rows = [
            [name, *seconds(command, 1 if options.tiny else TIMES)]
            for name, command in tracked(list(asked.items()), "commands")
        ]
    header = ["", "median s", "least", "most"]
    publish(options, "Time to know before launch", [str(__doc__).strip(), table(header, rows)])


def commands(folder: Path, options: argparse.Namespace) -> dict[str, list[str]]:
    """Name -> command line."""
    toolkit = str(Path(sys.executable).with_name("toolkit"))
    recipe = str(ROOT / "recipes" / "sft_llama8b_zero3.py")
    found = {
        "toolkit check FILE": [toolkit, "check", str(ROOT / "ds_configs" / "sft_smollm2_zero2.json")],
        "RECIPE --dry_run": [sys.executable, str(ROOT / "recipes" / "sft_smollm2_zero2.py"), "--dry_run"],
    }
    models = {"tiny": TINY} if options.tiny else {"8B": LLAMA_8B, "70B": LLAMA_70B}
    for name, geometry in models.items():
        model = folder / name
        model.mkdir()
        config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-5, **geometry}
        (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
        for devices in (8,) if options.tiny else (8, 512):
            asked = [toolkit, "plan", recipe, "--model.path", str(model), "--devices", str(devices), "--device", "H100"]
            found[f"toolkit plan, {name}, {devices} x H100"] = [*asked, "--batch.global_size", "512"]
    return found


def seconds(command: list[str], times: int) -> list[str]:
    """Median, least and most of `times` runs, after one that nobody counts."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    found = []
    for _ in range(times + 1):
        begin = time.perf_counter()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT)
        found.append(time.perf_counter() - begin)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{(done.stdout + done.stderr)[-3000:]}")
    counted = found[1:]
    return [f"{value:.1f}" for value in (statistics.median(counted), min(counted), max(counted))]


if __name__ == "__main__":
    main(sys.argv[1:])
