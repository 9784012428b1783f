"""The tasks of encoders: losses, gradients and metrics of plain transformers on texts one by one, whatever the strategy;
exact resume; an export that transformers' own pipelines read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.distributed import run_distributed
from tests.parity.strategies import GLOBAL_SIZE, OPTIMIZER, micro_size, recipe
from tests.parity.text_tasks import CASES, LENGTH, fits
from tests.parity.topologies import numbers, rewind
from tests.parity.worker import evaluations, read_metrics, reference_curve, run_recipe
from tests.tiny import write_lines
from toolkit.parity.report import deviation
from toolkit.parity.strategies import STRATEGIES, Strategy
from toolkit.recipe import Batch, Checkpoint, Data, Evaluation, LoRA, Recipe
from toolkit.train.ranks import RankFailed

STEPS, HALF, HELD_OUT = 4, 2, 24
LOSSES, NORMS = 1e-6, 2e-6
"""As in test_strategies."""

STARTS = {
    "zero0-1": Strategy(1, STRATEGIES["zero0"].fields),
    **{f"{name}-2": STRATEGIES[name] for name in ("zero1", "zero2", "zero3", "pp2", "tp2", "sp2")},
}
EVERYWHERE = ("masked_lm-packed", "one_class-pairs", "entities", "answers")
"""Cases of every start, and of a resumed one: one of each task. The others are trained on one rank, and on two at stage 3."""


def problem(name: str, model: Path, folder: Path, start: str, **changes: Any) -> Recipe:
    """The recipe of a case, with ragged micro-batches."""
    case, strategy = CASES[name], STARTS[start]
    rows, files = case.rows(), {part: folder / f"{part}.jsonl" for part in ("train", "test")}
    write_lines(files["train"], rows[:-HELD_OUT])
    write_lines(files["test"], rows[-HELD_OUT:])
    data = {"train": str(files["train"]), "evaluation": str(files["test"]), "evaluation_split": "test"}
    values = {
        "task": case.task,
        "data": Data(**{**data, "packing": False, "prefetch": 0, **case.data}),
        "batch": Batch(
            global_size=GLOBAL_SIZE, micro_size=micro_size(strategy, strategy.world_size, 2), sequence_length=LENGTH
        ),
        "evaluation": Evaluation(every_steps=HALF),
        "parallel": strategy.parallel,
        "checkpoint": Checkpoint(
            every_steps=HALF, **({"export_dtype": "fp32"} if start == "zero0-1" else {"export": False})
        ),
        "steps": STEPS,
    }
    return recipe(case.task.name, model, files["train"], **{**values, **changes})


@pytest.mark.parametrize("name", CASES)
def test_one_curve_and_one_figure_on_every_topology(name: str, tiny_bert_dir: Path, tmp_path: Path) -> None:
    starts = tuple(STARTS) if name in EVERYWHERE else ("zero0-1", "zero3-2")
    if "sequence" not in CASES[name].task.cuts:
        starts = tuple(start for start in starts if start != "sp2-2")
    runs = {start: problem(name, tiny_bert_dir, tmp_path, start) for start in starts}
    one = tmp_path / "zero0-1"
    for size in (1, 2):
        some = [(run, str(tmp_path / start), None) for start, run in runs.items() if STARTS[start].world_size == size]
        run_distributed(run_recipe, size, some, timeout_s=300)
    if "zero2-2" in starts:
        again = rewind(tmp_path / "zero2-2", tmp_path / "again", HALF)
        run_distributed(run_recipe, 2, [(runs["zero2-2"], str(again), "auto")])
        assert numbers(read_metrics(again)) == numbers(read_metrics(tmp_path / "zero2-2"))

    wanted = run_distributed(reference_curve, 1, runs["zero0-1"])[0]
    assert max(wanted.norms) > 1.1 * OPTIMIZER.max_grad_norm, "clipping must bite"
    for start in starts:
        records = read_metrics(tmp_path / start)
        assert deviation([record["loss"] for record in records], wanted.losses) < LOSSES, start
        assert deviation([record["grad_norm"] for record in records], wanted.norms) < NORMS, start
        found = evaluations(tmp_path / start)
        assert sorted(found) == [0, HALF, STEPS]
        for step, metrics in found.items():
            # So short a run says nearly the same number of all texts: its correlations magnify rounding.
            compared = {"loss": metrics["loss"]} if name == "number" else metrics
            wanted_there = {metric: evaluations(one)[step][metric] for metric in compared}
            assert compared == pytest.approx(wanted_there, rel=1e-5, abs=1e-6), (start, step)

    from toolkit.train.inputs import prepare_inputs
    from toolkit.train.progress import Display

    inputs = prepare_inputs(runs["zero0-1"], 0, 1, Display(is_main=False))
    last = evaluations(one)[STEPS]
    assert set(last) == set(inputs.task.options.metrics)
    rows = CASES[name].rows()[-HELD_OUT:]
    rows = fits(inputs, rows) if CASES[name].data.get("overlong") == "drop" else rows
    figures = CASES[name].plain(one / "export", inputs, rows)
    assert figures == pytest.approx({metric: last[metric] for metric in figures}, rel=1e-5), name


def test_adapters_train_a_new_head_or_are_refused(tiny_bert_dir: Path, tmp_path: Path) -> None:
    """The checkpoint has neither head: the one of answers is trained whole, the one of words would stay as it was drawn."""
    from safetensors.torch import load_file

    asked = problem("answers", tiny_bert_dir, tmp_path, "zero0-1", tuning=LoRA(rank=2))
    run_distributed(run_recipe, 1, [(asked, str(tmp_path / "asked"), None)])
    saved = load_file(tmp_path / "asked" / "export" / "adapter_model.safetensors")
    assert any(name.endswith("qa_outputs.weight") for name in saved) and any("lora_A" in name for name in saved)
    masked = problem("masked_lm", tiny_bert_dir, tmp_path, "zero0-1", tuning=LoRA(rank=2))
    with pytest.raises(RankFailed, match=r"the checkpoint has no cls\.predictions\S*, which has to"):
        run_distributed(run_recipe, 1, [(masked, str(tmp_path / "masked"), None)])
