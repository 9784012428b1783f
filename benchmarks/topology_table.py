"""Checkpoints of every topology continued under every other: how far the losses and the exported models are apart.

A tiny Llama (tied embeddings, fp32) is trained on packed prompts and completions of very different lengths, with
weight decay, warm-up, decay and gradient clipping that bites, through the toolkit's own `train`: on one rank; with ZeRO-3;
with ZeRO-2 and its optimizer states offloaded; as a pipeline, with tensor and with sequence parallelism; and as two
mixtures on four ranks. Each saves a checkpoint half-way, and each of the pairs continues it with `--resume auto`.
With --adapters it is LoRA on all linear layers that is trained, with norms trained whole; what is compared is then merged.

Rows wrote the checkpoint, columns continued it. What is compared is always the writer's own run without
interruption: the diagonal shows a resumed run on the same topology, where 0 means bit for bit.
"""

from __future__ import annotations

import itertools
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for the tests' topologies and their server, which forks the ranks
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
# Ranks end without unwinding, which Python's resource tracker would remark on at the end.
os.environ["PYTHONWARNINGS"] = "ignore:resource_tracker:UserWarning"

from harness.page import parser, publish, table  # noqa: E402

TOLERANCE = 1e-5
TINY = ("zero0", "pp2")
Pairs = dict[tuple[str, str], float]
"""(writer, reader) -> a deviation."""


def main(arguments: list[str]) -> None:
    """Measure and publish."""
    from tests.parity.topologies import ADAPTERS, TOPOLOGIES, resumable, train_pairs

    made = parser(__doc__, __file__)
    made.add_argument("--adapters", action="store_true", help="train LoRA adapters instead of all weights")
    options = made.parse_args(arguments)
    changes = ADAPTERS if options.adapters else {}
    if options.adapters:
        options.script += " --adapters"
        if options.page == made.get_default("page"):
            options.page = options.page.with_stem(f"{options.page.stem}_adapters")
    steps, half = (4, 2) if options.tiny else (20, 10)
    topologies = {name: TOPOLOGIES[name] for name in (TINY if options.tiny else TOPOLOGIES)}
    pairs = list(itertools.product(topologies, topologies))
    with tempfile.TemporaryDirectory(prefix="topology_table_") as place:
        folder = Path(place)
        os.environ["TOOLKIT_CACHE"] = str(folder / "cache")
        model, data = build_problem(folder)
        recipes = {
            name: resumable(folder / "model", data, strategy, model=model, steps=steps, half=half, **changes)
            for name, strategy in topologies.items()
        }
        train_pairs(topologies, recipes, pairs, half, folder)
        names = [*topologies, *(f"{writer}--{reader}" for writer, reader in pairs)]
        export_all(names, folder, merge=options.adapters)
        losses = {pair: loss_deviation(folder, *pair, half) for pair in pairs}
        weights = {pair: export_difference(folder, *pair) for pair in pairs}
        scale = describe_scale(folder, next(iter(topologies)))
    ranks = {name: f"{name} ({strategy.world_size})" for name, strategy in topologies.items()}
    command = "--dtype fp32 --merge" if options.adapters else "--dtype fp32"
    parts = [
        str(__doc__).strip(),
        f"## Losses\n\nLargest relative deviation of the losses of steps {half + 1} to {steps}. In brackets: ranks.",
        _matrix(losses, ranks),
        f"{_summary(losses)} Tolerance: {TOLERANCE:.0e}.",
        f"## Exported models\n\nLargest absolute difference of any weight in what `toolkit export {command}` writes of step {steps}.",
        _matrix(weights, ranks),
        f"{_summary(weights)} {scale}",
    ]
    title = "Any topology continues any other's adapters" if options.adapters else "Any topology continues any other"
    publish(options, title, parts)


def build_problem(folder: Path) -> tuple[Any, Path]:
    """The model section of the recipes, and a file of 200 rows."""
    from harness.problem import write_problem

    from toolkit import Model

    write_problem(
        folder,
        rows=200,
        longest=128,
        split=False,
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
    )
    return Model(path=str(folder / "model"), tokenizer=str(folder / "tokenizer")), folder / "rows.jsonl"


def export_all(names: Sequence[str], folder: Path, *, merge: bool) -> None:
    """What `toolkit export` makes of the last checkpoint of each run, in folder/NAME/export."""
    from toolkit.checkpoint.export import export

    for name in names:
        export(folder / name, folder / name / "export", "fp32", merge=merge)


def loss_deviation(folder: Path, writer: str, reader: str, half: int) -> float:
    """Largest relative difference of the losses after step `half` from the writer's run without interruption."""
    from tests.parity.worker import read_metrics
    from toolkit.parity.report import deviation

    found, wanted = (
        [record["loss"] for record in read_metrics(folder / name)[half:]] for name in (f"{writer}--{reader}", writer)
    )
    return deviation(found, wanted)


def export_difference(folder: Path, writer: str, reader: str) -> float:
    """Largest absolute difference of any exported weight from that of the writer's run without interruption."""
    return _largest_difference(folder / f"{writer}--{reader}" / "export", folder / writer / "export")


def _largest_difference(one: Path, other: Path) -> float:
    from tests.parity.worker import export_weights

    found, wanted = export_weights(one), export_weights(other)
    if found.keys() != wanted.keys():
        return math.inf
    return max(float((found[name] - wanted[name]).abs().max()) for name in wanted)


def describe_scale(folder: Path, name: str) -> str:
    """What the numbers are to be measured against."""
    from tests.parity.worker import read_metrics

    losses = [record["loss"] for record in read_metrics(folder / name)]
    moved = _largest_difference(folder / name / "export", folder / "model")
    return (
        f"For scale: training brings the loss from {losses[0]:.3f} to {losses[-1]:.3f} and moves single weights by up to "
        f"{moved:.1e}; the last bit of a weight of 0.1 in fp32 is 7.5e-09."
    )


def _matrix(values: Pairs, names: dict[str, str]) -> str:
    rows = [[names[writer], *(f"{values[writer, reader]:.1e}" for reader in names)] for writer in names]
    return table(["written by", *names.values()], rows)


def _summary(values: Pairs) -> str:
    same = [value for (writer, reader), value in values.items() if writer == reader]
    others = [value for (writer, reader), value in values.items() if writer != reader]
    return (
        f"{len(values)} pairs; largest: **{max(others):.1e}** between two topologies, "
        f"**{max(same):.1e}** on the same one."
    )


if __name__ == "__main__":
    main(sys.argv[1:])
