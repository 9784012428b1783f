"""Memory of a rank under each way of dividing a model, against one process.

A Llama is trained in fp32 with AdamW on random tokens, with the same global batch, by the toolkit's engine: in one
process without ZeRO, and on two ranks with each ZeRO stage, as a pipeline, with tensor and with sequence parallelism.
GiB is the peak of the rank that needs most, from before the weights are loaded until two steps are done, above what the
process held before. In one process a parameter takes 16 bytes: weight, gradient and two moments; on a CPU the pages of
the weights' file count as well while it is read, another 4. ZeRO's buckets and what ZeRO-3 keeps gathered follow the size
of the model's layers.
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
from harness.tokens import random_steps

GLOBAL_SIZE = 4
STEPS = 2
"""The moments are there after the first one."""
STRATEGIES: dict[str, tuple[int, dict[str, Any]]] = {
    "one process": (1, {"zero_stage": 0}),
    "ZeRO-1": (2, {"zero_stage": 1}),
    "ZeRO-2": (2, {"zero_stage": 2}),
    "ZeRO-3": (2, {"zero_stage": 3}),
    "2 pipeline stages": (2, {"zero_stage": 1, "pipeline": 2}),
    "2 tensor ranks": (2, {"zero_stage": 1, "tensor": 2}),
    "2 sequence ranks, ZeRO-3": (2, {"zero_stage": 3, "sequence": 2}),
}
"""Name -> ranks and the recipe's parallel section."""


def main(arguments: list[str]) -> None:
    """Measure and publish."""
    made = parser(__doc__, __file__)
    made.add_argument("--strategy", choices=STRATEGIES, help=argparse.SUPPRESS)
    made.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = made.parse_args(arguments)
    if is_rank():
        report(measure_rank(options))
        return
    with tempfile.TemporaryDirectory(prefix="parallel_memory_") as folder:
        parameters = build_problem(options, Path(folder))
        found = {
            name: max(measure(__file__, [*arguments, "--strategy", name, "--folder", folder], ranks))
            for name, (ranks, _) in tracked(list(STRATEGIES.items()), "strategies")
        }
    alone = found["one process"]
    rows = [
        [name, str(STRATEGIES[name][0]), f"{gib:.2f}", f"**{gib / alone:.0%}**", f"{gib * 2**30 / parameters:.1f}"]
        for name, gib in found.items()
    ]
    header = ["", "ranks", "GiB of a rank", "of one process", "bytes per parameter of the model"]
    about = f"{parameters / 1e6:.0f} M parameters, {GLOBAL_SIZE} sequences of {sizes(options)['length']} tokens per step, micro-batches of one."
    publish(options, "Memory of a rank", [str(__doc__).strip(), table(header, rows), about])


def sizes(options: argparse.Namespace) -> dict[str, int]:
    """Of the model and its sequences."""
    if options.tiny:
        return {"width": 64, "layers": 2, "vocabulary": 128, "length": 32}
    return {"width": 1024, "layers": 16, "vocabulary": 8192, "length": 64}


def build_problem(options: argparse.Namespace, folder: Path) -> int:
    """Model, tokenizer and the rows that a recipe must name, in `folder`; the model's number of parameters."""
    size = sizes(options)
    model = write_problem(
        folder,
        rows=20,
        longest=32,
        split=True,
        vocab_size=size["vocabulary"],
        hidden_size=size["width"],
        intermediate_size=3 * size["width"],
        num_hidden_layers=size["layers"],
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=128,
        tie_word_embeddings=False,
    )
    return sum(parameter.numel() for parameter in model.parameters())


def measure_rank(options: argparse.Namespace) -> float:
    """Peak of one rank, GiB."""
    # What is imported is not the model's memory.
    import torch._dynamo  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401
    from harness.memory import peak_gib_of

    import toolkit.train.run  # noqa: F401

    os.environ["TOOLKIT_CACHE"] = str(options.folder / "cache")
    return peak_gib_of(lambda: _train(options))


def _train(options: argparse.Namespace) -> None:
    from toolkit.engine import process

    size, parallel = sizes(options), STRATEGIES[options.strategy][1]
    recipe = recipe_of(options.folder, parallel, global_size=GLOBAL_SIZE, length=size["length"], steps=STEPS)
    engine = built(recipe)
    me = engine.process
    for batches in random_steps(STEPS, GLOBAL_SIZE, size["length"], size["vocabulary"]):
        share = batches[me.data_rank :: me.mesh.data]
        engine.train_step(share, range(len(share)))
    process.stop()


if __name__ == "__main__":
    main(sys.argv[1:])
