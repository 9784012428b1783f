"""A real checkpoint under four strategies: losses and exported weights against plain single-process PyTorch.

SmolLM2-135M-Instruct is fine-tuned in fp32 for a few steps on packed chats about Python, the loss on the answers only:
with ZeRO-2, as a pipeline, with tensor and with sequence parallelism. Its 9 attention heads and 3 key-value heads allow
a degree of 3 for the last two. The global batch is the same for all. The reference (toolkit/parity/reference.py: the
model's own full logits, torch's AdamW, no DeepSpeed and none of the toolkit's engine, loss or schedule) trains on the
same micro-batches from the same files. Every strategy reads the pretrained checkpoint as it came, runs through the toolkit's own `train`, and exports in fp32.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for the tests' runs of recipes
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
# Ranks end without unwinding, which Python's resource tracker would remark on at the end.
os.environ["PYTHONWARNINGS"] = "ignore:resource_tracker:UserWarning"

from harness.page import parser, publish, table, tracked  # noqa: E402

NAME = "smollm2-135m-instruct"
GLOBAL_SIZE, SEQUENCE_LENGTH = 4, 256
TOLERANCE = 1e-5
TIMEOUT_S = 3600.0
LEARNING_RATE = 2e-5
STRATEGIES: dict[str, tuple[int, dict[str, Any]]] = {
    "ZeRO-2": (2, {"zero_stage": 2}),
    "pipeline of 2 stages": (2, {"zero_stage": 1, "pipeline": 2}),
    "tensor parallelism of 3": (3, {"zero_stage": 1, "tensor": 3}),
    "sequence parallelism of 3": (3, {"zero_stage": 1, "sequence": 3}),
}
"""Name -> ranks and the recipe's parallel section."""

TINY = {"num_hidden_layers": 2, "hidden_size": 72, "intermediate_size": 96}


def main(arguments: list[str]) -> None:
    """Measure and publish."""
    made = parser(__doc__, __file__)
    made.add_argument("--steps", type=int, help="optimizer steps (default 5; 2 with --tiny)")
    options = made.parse_args(arguments)
    options.steps = options.steps or (2 if options.tiny else 5)
    with tempfile.TemporaryDirectory(prefix="real_weights_") as place:
        folder = Path(place)
        model = build_model(options, folder)
        reference = train_reference(build_recipe(options, model, {}), folder)
        rows = [
            compare(name, world_size, build_recipe(options, model, parallel), reference, folder)
            for name, (world_size, parallel) in tracked(list(STRATEGIES.items()), "strategies")
        ]
    header = ["", "ranks", "loss", "gradient norm", "weights, absolute", "weights, of what training changed"]
    setting = (
        f"Largest relative deviation of any step's loss and gradient norm (tolerance for the loss: {TOLERANCE:.0e}), "
        "largest absolute difference of any weight of the fp32 exports from the reference's final weights, and the norm "
        "of that difference relative to the norm of what training has changed. For scale: training has changed "
        f"single weights by up to {reference.largest_change:.1e}."
    )
    about = (
        f"{options.steps} steps of {GLOBAL_SIZE} sequences of {SEQUENCE_LENGTH} tokens, micro-batches of one, AdamW at "
        f"{LEARNING_RATE:.0e} with clipping at 1.0. Reference: losses {_series(reference.losses, 4)}; gradient norms {_series(reference.norms, 2)}."
    )
    parts = [str(__doc__).strip(), table(header, rows), setting, about]
    publish(options, "A real checkpoint under every kind of parallelism", parts)


def _series(values: Sequence[float], digits: int) -> str:
    return ", ".join(f"{value:.{digits}f}" for value in values)


def build_model(options: argparse.Namespace, folder: Path) -> Any:
    """The model section of the recipes: the pretrained checkpoint, or a small random one of as many heads with --tiny."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from toolkit import Model
    from toolkit.models.assets import resolve

    if not options.tiny:
        return Model(path=NAME)
    config = AutoConfig.from_pretrained(resolve(NAME), **TINY)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder / "model")
    return Model(path=str(folder / "model"), tokenizer=NAME)


def build_recipe(options: argparse.Namespace, model: Any, parallel: Mapping[str, Any]) -> Any:
    """One strategy; everything else is the same for all."""
    from toolkit import Batch, Checkpoint, Data, Optimizer, Parallel, Precision, Recipe, Schedule, Tracking

    return Recipe(
        model=model,
        data=Data(train="python-docstrings", max_examples=200 if options.tiny else None, prefetch=0),
        batch=Batch(global_size=GLOBAL_SIZE, micro_size=1, sequence_length=SEQUENCE_LENGTH),
        optimizer=Optimizer(learning_rate=LEARNING_RATE, weight_decay=0.01, implementation="torch"),
        schedule=Schedule(type="constant"),
        precision=Precision(dtype="fp32"),
        parallel=Parallel(**parallel),
        checkpoint=Checkpoint(export=True, export_dtype="fp32"),
        tracking=Tracking(tensorboard=False),
        steps=options.steps,
    )


@dataclass(frozen=True)
class Reference:
    """What plain PyTorch has made of the problem."""

    losses: list[float]
    norms: list[float]
    weights: Path
    """A file of the final weights by name."""
    start: Path
    """The directory of the weights that training began with."""
    largest_change: float
    """Of any weight from start to end, absolute."""
    change: float
    """L2 norm of the whole change."""


def train_reference(recipe: Any, folder: Path) -> Reference:
    """Train in one process."""
    import torch

    from tests.parity.worker import reference_curve
    from toolkit.models.assets import resolve
    from toolkit.train import ranks

    weights, start = folder / "reference.pt", Path(resolve(str(recipe.model.path)))
    (curve,) = ranks.run(reference_curve, 1, recipe, str(weights), timeout_s=TIMEOUT_S)
    largest, change = difference(start, torch.load(weights, mmap=True, weights_only=True))
    return Reference(curve.losses, curve.norms, weights, start, largest, change)


def compare(name: str, world_size: int, recipe: Any, reference: Reference, folder: Path) -> list[str]:
    """The row of one strategy."""
    import torch

    from tests.parity.worker import run_recipe
    from toolkit.parity.report import deviation
    from toolkit.train import ranks

    run = folder / "run"
    records = ranks.run(run_recipe, world_size, [(recipe, str(run), None)], timeout_s=TIMEOUT_S)[0][0]
    loss = deviation([record["loss"] for record in records], reference.losses)
    norm = deviation([record["grad_norm"] for record in records], reference.norms)
    largest, whole = difference(run / "export", torch.load(reference.weights, mmap=True, weights_only=True))
    shutil.rmtree(run)  # its checkpoint is three times as large as the model
    cells = (loss, norm, largest, whole / reference.change)
    return [name, str(world_size), *(f"{value:.1e}" for value in cells)]


def difference(found: Path, wanted: Mapping[str, Any]) -> tuple[float, float]:
    """Largest absolute difference and L2 norm of all differences between the weights in the directory `found` and `wanted`."""
    from safetensors import safe_open

    (file,) = found.glob("*.safetensors")
    largest = square = 0.0
    with safe_open(file, framework="pt") as stored:
        if set(stored.keys()) != set(wanted):
            return math.inf, math.inf
        for name, weight in wanted.items():
            apart = stored.get_tensor(name).float() - weight
            largest = max(largest, float(apart.abs().max()))
            square += float(apart.double().square().sum())
    return largest, math.sqrt(square)


if __name__ == "__main__":
    main(sys.argv[1:])
