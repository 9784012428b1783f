"""What smaller master weights and optimizer states cost in loss.

A Llama is trained in bf16 with AdamW (betas 0.9 and 0.999) on random documents of made-up words by the toolkit's
engine in one process with ZeRO-2, gradients summed in fp32, once per format of the master weights and of the two
moments: from the same weights, on the same batches. Loss is the mean of the last tenth of the steps. "fp32, again"
changes nothing but the order of the micro-batches within a step, which rounding alone tells apart: a difference as
small as its own means nothing. "bytes" counts per parameter what the optimizer keeps, without gradients: master weights
and moments. A short run of a small model: bf16 masters lose the updates below half a last digit, of which a long run at
a small learning rate has more.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness.engine import built
from harness.page import parser, publish, table, tracked
from harness.problem import recipe_of, write_problem
from harness.ranks import is_rank, measure, report

MICRO_BATCHES = 4
AGAIN = "fp32, again"
FORMATS: dict[str, dict[str, Any]] = {
    "fp32": {},
    AGAIN: {},
    "fp32 masters, 8-bit states": {"state_dtype": "8bit"},
    "bf16 masters, bf16 states": {"master_dtype": "bf16", "state_dtype": "bf16"},
    "bf16 masters, 8-bit states": {"master_dtype": "bf16", "state_dtype": "8bit"},
}
"""Name -> the precision section, beside dtype."""


def main(arguments: list[str]) -> None:
    """Measure and publish."""
    made = parser(__doc__, __file__)
    made.add_argument("--name", choices=FORMATS, help=argparse.SUPPRESS)
    made.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = made.parse_args(arguments)
    if is_rank():
        report(measure_rank(options))
        return
    with tempfile.TemporaryDirectory(prefix="state_formats_") as folder:
        parameters = build_problem(options, Path(folder))
        found = {
            name: measure(__file__, [*arguments, "--name", name, "--folder", folder], 1)[0]
            for name in tracked(list(FORMATS), "formats")
        }
    full = found["fp32"]["loss"]
    rows = [
        [
            name,
            f"{run['loss']:.4f}",
            f"{run['loss'] - full:+.4f}",
            f"{run['loss'] / full - 1:+.2%}",
            f"{run['bytes']:.2f}",
        ]
        for name, run in found.items()
    ]
    size = sizes(options)
    about = (
        f"{parameters / 1e6:.1f} M parameters, {size['steps']} steps of {MICRO_BATCHES} sequences of {size['length']} "
        f"tokens; the loss begins at {found['fp32']['first']:.2f}."
    )
    header = ["", "loss", "against fp32", "relative", "bytes per parameter"]
    publish(options, "Smaller optimizer states", [str(__doc__).strip(), table(header, rows), about])


def sizes(options: argparse.Namespace) -> dict[str, Any]:
    """Of the model, its sequences and the run."""
    if options.tiny:
        return {"width": 64, "layers": 2, "vocabulary": 128, "length": 32, "steps": 10}
    return {"width": 128, "layers": 4, "vocabulary": 1024, "length": 64, "steps": 300}


def build_problem(options: argparse.Namespace, folder: Path) -> int:
    """Model, tokenizer and rows in `folder`; the model's number of parameters."""
    size = sizes(options)
    model = write_problem(
        folder,
        rows=MICRO_BATCHES * size["steps"],
        longest=size["length"],
        split=True,
        vocab_size=size["vocabulary"],
        hidden_size=size["width"],
        intermediate_size=3 * size["width"],
        num_hidden_layers=size["layers"],
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=size["length"],
        tie_word_embeddings=False,
    )
    return sum(parameter.numel() for parameter in model.parameters())


def measure_rank(options: argparse.Namespace) -> dict[str, float]:
    """First and last loss of one format, and the bytes that it keeps per parameter."""
    import math

    from harness.ranks import shared_folder

    from toolkit import Optimizer, Precision
    from toolkit.engine import process
    from toolkit.train.inputs import prepare_inputs
    from toolkit.train.progress import Display

    os.environ["TOOLKIT_CACHE"] = str(shared_folder() / "cache")
    size = sizes(options)
    plain = recipe_of(
        options.folder, {"zero_stage": 2}, global_size=MICRO_BATCHES, length=size["length"], steps=size["steps"]
    )
    recipe = plain.model_copy(
        update={
            "precision": Precision(dtype="bf16", **FORMATS[options.name]),
            "optimizer": Optimizer(learning_rate=1e-3, weight_decay=0.1, implementation="torch"),
        }
    )
    engine = built(recipe)
    batches = prepare_inputs(recipe, 0, 1, Display(is_main=False)).batches
    losses = []
    for batch in batches.iterate(0, size["steps"]):
        micro_batches = batch.micro_batches[::-1] if options.name == AGAIN else batch.micro_batches
        losses.append(engine.train_step(micro_batches, range(len(micro_batches))).loss)
    kept = kept_bytes(engine.engine.optimizer) / sum(math.prod(shape) for shape in engine.shapes().values())
    process.stop()
    last = losses[-max(1, len(losses) // 10) :]
    return {"first": losses[0], "loss": sum(last) / len(last), "bytes": kept}


def kept_bytes(outer: Any) -> int:
    """Of the masters and of every tensor in the states of ZeRO's optimizer `outer`."""
    total = 0
    for master in outer.single_partition_of_fp32_groups:
        tensors = [master]
        for value in outer.optimizer.state[master].values():
            # A quantised moment is not a tensor, but holds some.
            tensors += list(vars(value).values()) if hasattr(value, "codes") else [value]
        total += sum(tensor.nbytes for tensor in tensors if hasattr(tensor, "nbytes"))
    return total


if __name__ == "__main__":
    main(sys.argv[1:])
