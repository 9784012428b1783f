"""A held-out figure is one number: the same on any topology, with any micro-batch, and plain transformers' own."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed import run_distributed
from tests.parity.strategies import recipe
from tests.parity.worker import run_recipe
from toolkit.parity.strategies import STRATEGIES, Strategy
from toolkit.recipe import Batch, Data, Evaluation, Model, Parallel, Recipe

TOPOLOGIES = {
    "one rank": Strategy(1, {"zero_stage": 0}),
    **{name: STRATEGIES[name] for name in ("zero2", "zero3", "pp2", "tp2", "sp2_zero3")},
}
TASKS = {"causal_lm": tuple(TOPOLOGIES), "sequence_classification": ("one rank", "zero2", "zero3")}
MICRO_SIZES = (1, 2, 3)
MAX_SEQUENCES = 7
"""Not a multiple of any rank's micro-batch: each topology has its own fillers."""

Figures = dict[tuple[str, str, int], dict[str, float]]


def evaluate(rank: int, world_size: int, recipes: list[Recipe], folder: str) -> list[list[dict[str, float]]]:
    """Held-out metrics of each recipe's starting weights, for each of MICRO_SIZES, in this one process."""
    from toolkit.data.batches import evaluation_batches
    from toolkit.ds_config.render import render
    from toolkit.engine import device, process
    from toolkit.recipe.mesh import model_ranks
    from toolkit.train.build import build_engine
    from toolkit.train.inputs import prepare_inputs
    from toolkit.train.progress import Display
    from toolkit.train.run_folder import RunFolder

    found, display = [], Display(is_main=False)
    for index, run in enumerate(recipes):
        me = process.from_environment(run.parallel)
        config = render(run, device.target(world_size, wanted="cpu", model_ranks=model_ranks(run.parallel)))
        inputs = prepare_inputs(run, me.data_rank, me.mesh.data, display)
        process.start(me)
        place = RunFolder(Path(folder) / f"{world_size}-{index}")
        if me.is_main:
            place.path.mkdir()
        process.barrier()
        engine = build_engine(run, inputs, config, me, place, display)
        metrics = []
        for micro_size in MICRO_SIZES:
            batches = evaluation_batches(
                inputs.held_out,
                inputs.held_out_sequences,
                inputs.task.collate,
                me.data_rank,
                me.mesh.data,
                micro_size,
                run.evaluation.max_sequences,
            )
            tensors = (batch.tensors for batch in batches)
            metrics.append(inputs.task.metrics(engine.evaluate(tensors, inputs.task.evaluate)))
        engine.close()
        found.append(metrics)
    return found


@pytest.fixture(scope="module")
def recipes(tiny_llama_dir: Path, chat_file: Path, tiny_bert_dir: Path, classification_file: Path) -> dict[str, Recipe]:
    changes: dict[str, Any] = {
        "evaluation": Evaluation(max_sequences=MAX_SEQUENCES),
        "batch": Batch(global_size=4, micro_size=1, sequence_length=256),
        "steps": 4,
    }
    return {
        task: recipe(
            task,
            model,
            data,
            data=Data(train=str(data), evaluation_examples=60, packing=task == "causal_lm", prefetch=0),
            model=Model(path=str(model)),
            **changes,
        )
        for task, model, data in (
            ("causal_lm", tiny_llama_dir, chat_file),
            ("sequence_classification", tiny_bert_dir, classification_file),
        )
    }


@pytest.fixture(scope="module")
def figures(recipes: dict[str, Recipe], tmp_path_factory: pytest.TempPathFactory) -> Figures:
    """(task, topology, micro_size) -> metrics."""
    starts: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for task, names in TASKS.items():
        for name in names:
            starts[TOPOLOGIES[name].world_size].append((task, name))
    figures: Figures = {}
    for world_size, cases in starts.items():
        runs = [recipes[task].model_copy(update={"parallel": TOPOLOGIES[name].parallel}) for task, name in cases]
        folder = tmp_path_factory.mktemp("evaluation")
        found = run_distributed(evaluate, world_size, runs, str(folder))[0]
        for (task, name), metrics in zip(cases, found, strict=True):
            figures |= {(task, name, size): one for size, one in zip(MICRO_SIZES, metrics, strict=True)}
    return figures


@pytest.mark.parametrize("task", TASKS)
def test_one_figure_on_every_topology_and_micro_batch(task: str, figures: Figures) -> None:
    found = {key: metrics for key, metrics in figures.items() if key[0] == task}
    assert len(found) == len(TASKS[task]) * len(MICRO_SIZES)
    wanted = found[task, "one rank", 1]
    assert wanted["loss"] > 0.5
    for key, metrics in found.items():
        assert metrics == pytest.approx(wanted, rel=1e-6), key


def test_it_is_plain_transformers_loss_of_the_first_sequences(recipes: dict[str, Recipe], figures: Figures) -> None:
    from transformers import AutoModelForCausalLM

    from toolkit.train.inputs import prepare_inputs
    from toolkit.train.progress import Display

    run = recipes["causal_lm"]
    inputs = prepare_inputs(run, 0, 1, Display(is_main=False))
    assert inputs.held_out is not None and len(inputs.held_out_sequences) > MAX_SEQUENCES
    model = AutoModelForCausalLM.from_pretrained(str(run.model.path), dtype=torch.float64)
    total, count = 0.0, 0
    for index in (index for sequence in inputs.held_out_sequences[:MAX_SEQUENCES] for index in sequence):
        # Each document by itself: no packs, no padding.
        ids, labels = (torch.as_tensor(inputs.held_out[index][name]).long() for name in ("input_ids", "labels"))
        with torch.no_grad():
            logits = model(input_ids=ids.unsqueeze(0)).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits, labels[1:], reduction="sum"))
        count += int((labels[1:] != -100).sum())
    assert figures["causal_lm", "one rank", 1]["loss"] == pytest.approx(total / count, rel=1e-6)


def test_a_run_says_and_keeps_by_that_figure(recipes: dict[str, Recipe], figures: Figures, tmp_path: Path) -> None:
    """Two ranks, a ragged micro-batch, an accuracy that is to rise: the record of step 0, and the best of the later ones."""
    base = recipes["sequence_classification"]
    run = Recipe(
        **{
            **dict(base),
            "batch": Batch(global_size=6, micro_size=3, sequence_length=256),
            "parallel": Parallel(zero_stage=2),
            "evaluation": Evaluation(every_steps=1, max_sequences=MAX_SEQUENCES, metric="accuracy"),
            "checkpoint": base.checkpoint.model_copy(update={"keep_best": True}),
            "optimizer": base.optimizer.model_copy(update={"learning_rate": 0.02}),
            "steps": 6,
        }
    )
    run_distributed(run_recipe, 2, [(run, str(tmp_path / "run"), None)])
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    said = {record["step"]: record["eval"] for record in lines if "eval" in record}
    summed = figures["sequence_classification", "one rank", 1]
    assert {name: said[0][name] for name in summed} == pytest.approx(summed, rel=1e-6)
    accuracies = {step: metrics["accuracy"] for step, metrics in said.items() if step}
    assert len(set(accuracies.values())) > 1, "the direction must matter"
    best = next(step for step, accuracy in accuracies.items() if accuracy == max(accuracies.values()))
    watch = json.loads((sorted((tmp_path / "run" / "checkpoints").glob("step-*"))[-1] / "manifest.json").read_text())
    assert watch["run"]["watch"]["best_step"] == best
