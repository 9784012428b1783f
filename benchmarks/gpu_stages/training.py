"""One short training run of a stage: its speed, its share of the device's peak, its memory; or what its kernels are."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WARM_UP = 2
"""Steps not counted: allocators settle, kernels are compiled and tuned."""


@dataclass(frozen=True)
class Running:
    """An engine, and what it trains on."""

    recipe: Any
    inputs: Any
    engine: Any
    config: Any
    me: Any
    folder: Any
    display: Any

    def run_loop(self) -> list[dict[str, Any]]:
        """The toolkit's loop over the recipe's steps, without checkpoints; its records."""
        from harness.loop import run_loop

        parts = (self.recipe, self.inputs, self.engine, self.config, self.me, self.folder, self.display)
        return run_loop(*parts, saves=False)


@contextmanager
def running(recipe: Any, folder: Path, *, plain_logits: bool = False) -> Iterator[Running]:
    """The engine of `recipe` in this process, which is freed afterwards, as is `folder`.

    `plain_logits`: the loss is taken from the model's own logits, which the toolkit otherwise never makes.
    """
    from harness.engine import configured

    from toolkit.engine import process
    from toolkit.train.build import build_engine
    from toolkit.train.inputs import prepare_inputs
    from toolkit.train.progress import Display
    from toolkit.train.run_folder import RunFolder

    display = Display(is_main=True, total_steps=recipe.steps or 0)
    me = process.from_environment(recipe.parallel)
    inputs = prepare_inputs(recipe, 0, 1, display)
    config = configured(recipe, 1, inputs.model_config)
    start_process(config)
    shutil.rmtree(folder, ignore_errors=True)
    engine = build_engine(recipe, inputs, config, me, RunFolder(folder), display)
    if plain_logits:
        # The mark that toolkit.models.heads.token_loss looks at.
        engine.model.get_output_embeddings().returns_loss = False
    try:
        yield Running(recipe, inputs, engine, config, me, RunFolder(folder), display)
    finally:
        engine.close()
        shutil.rmtree(folder, ignore_errors=True)


def start_process(config: Mapping[str, Any]) -> None:
    """Bind the device and join a process group of one, with the threads that an optimizer on the host needs."""
    from toolkit.engine import process

    process.start(process.from_environment(), host_optimizer="offload_optimizer" in config["zero_optimization"])


def measure_training(recipe: Any, folder: Path) -> dict[str, Any]:
    """Train `recipe`; speed over the steps after WARM_UP, peak memory over all."""
    from harness.memory import reset_peak

    with running(recipe, folder) as run:
        reset_peak()  # that of loading says nothing about a step
        records = [record for record in run.run_loop() if "loss" in record]
    counted = records[WARM_UP:]
    seconds = sum(record["step_time_s"] for record in counted)
    found = {
        "steps": len(counted),
        "tokens_per_second": sum(record["tokens"] for record in counted) / seconds,
        "step_time_s": seconds / len(counted),
        "peak_gib": max(record["memory_gib"] for record in records),
        "first_loss": records[0]["loss"],
        "last_loss": records[-1]["loss"],
    }
    for name in ("tflops_per_device", "mfu"):
        values = [record[name] for record in counted if record.get(name) is not None]
        if values:
            found[name] = statistics.median(values)
    return found


def profile_training(recipe: Any, folder: Path, device: str) -> dict[str, Any]:
    """Train `recipe`; what the device did in the steps after WARM_UP."""
    from harness.profile import Profiled

    with running(recipe, folder) as run:
        profiled = Profiled(run.inputs.batches, WARM_UP, device)
        run.inputs.batches = profiled
        run.run_loop()
    return profiled.summary()
