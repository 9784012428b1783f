"""Sequence-to-sequence on every strategy: plain PyTorch's losses, gradients and held-out figures, transformers' own texts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from tests import tiny
from tests.distributed import run_distributed
from tests.parity.strategies import GLOBAL_SIZE, OPTIMIZER, micro_size, recipe
from tests.parity.topologies import numbers, rewind
from tests.parity.worker import evaluations, predictions, read_metrics, reference_curve, run_recipe
from toolkit.parity.report import deviation
from toolkit.parity.strategies import STRATEGIES, Strategy
from toolkit.recipe import Batch, Checkpoint, Data, Evaluation, Recipe, Seq2Seq

STEPS, HALF = 4, 2
LOSSES, NORMS = 1e-6, 2e-6
"""As in test_strategies."""

CLIPPED = 0.05

CHOSEN = {
    "zero0-1": Strategy(1, STRATEGIES["zero0"].fields),
    "tp2": STRATEGIES["tp2"],
    **{f"{name}-2": STRATEGIES[name] for name in ("zero1", "zero2", "zero3")},
}
HELD_OUT = 7
"""Not a multiple of any micro-batch: fillers are needed."""
TASKS = {
    "t5": Seq2Seq(target_length=24, source_prefix="name: ", scores=("chrf",), num_beams=2, max_new_tokens=6),
    "bart": Seq2Seq(target_length=24, label_smoothing=0.1),
    "bert2bert": Seq2Seq(target_length=10, scores=("rouge", "bleu"), max_new_tokens=6, sample_prompt="a file"),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Layers so strong that what is written depends on what was read."""
    folder = tmp_path_factory.mktemp("encoder_decoders")
    found = {}
    for kind in TASKS:
        tokenizer = tiny.wordpiece_tokenizer() if kind == "bert2bert" else tiny.byte_tokenizer()
        model = tiny.encoder_decoder(kind, tokenizer)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1 and kind != "bart" and "embed" not in name and "shared" not in name:
                    parameter.mul_(8.0)
        found[kind] = tiny.save(model, tokenizer, folder / kind)
    return found


def problem(kind: str, model: Path, folder: Path, strategy: str) -> Recipe:
    file = folder / "rows.jsonl"
    if not file.exists():
        tiny.write_lines(file, tiny.summaries())
    chosen = CHOSEN[strategy]
    export = {"export": True, "export_dtype": "fp32"} if strategy == "zero2-2" else {"export": False}
    size = micro_size(chosen, chosen.world_size, 2)
    return recipe(
        "seq2seq",
        model,
        file,
        task=TASKS[kind],
        data=Data(train=str(file), packing=False, prefetch=0, evaluation_examples=HELD_OUT, overlong="truncate"),
        batch=Batch(global_size=GLOBAL_SIZE, micro_size=size, sequence_length=64),
        evaluation=Evaluation(every_steps=HALF),
        optimizer=OPTIMIZER.model_copy(update={"max_grad_norm": CLIPPED}),
        parallel=chosen.parallel,
        checkpoint=Checkpoint(every_steps=HALF, **export),
        steps=STEPS,
    )


@pytest.mark.parametrize("kind", TASKS)
def test_one_curve_and_one_figure_on_every_topology(kind: str, models: dict[str, Path], tmp_path: Path) -> None:
    """Every step's loss and gradient norm, every evaluation; exact resume; the export writes what the run wrote."""
    runs = {strategy: problem(kind, models[kind], tmp_path, strategy) for strategy in CHOSEN if strategy != "tp2"}
    wanted = run_distributed(reference_curve, 1, runs["zero0-1"])[0]
    assert max(wanted.norms) > 1.1 * CLIPPED, "clipping must bite"
    for size in (1, 2):
        some = [
            (run, str(tmp_path / strategy), None)
            for strategy, run in runs.items()
            if CHOSEN[strategy].world_size == size
        ]
        run_distributed(run_recipe, size, some, timeout_s=300)
    one = evaluations(tmp_path / "zero0-1")
    for strategy in runs:
        records = read_metrics(tmp_path / strategy)
        assert deviation([record["loss"] for record in records], wanted.losses) < LOSSES, strategy
        assert deviation([record["grad_norm"] for record in records], wanted.norms) < NORMS, strategy
        found = evaluations(tmp_path / strategy)
        assert sorted(found) == [0, HALF, STEPS]
        for step, metrics in found.items():
            assert metrics == pytest.approx(one[step], rel=1e-5), (strategy, step)
            if TASKS[kind].scores:
                assert predictions(tmp_path / strategy, step) == predictions(tmp_path / "zero0-1", step)
    again = rewind(tmp_path / "zero2-2", tmp_path / "again", HALF)
    run_distributed(run_recipe, 2, [(runs["zero2-2"], str(again), "auto")])
    assert numbers(read_metrics(again)) == numbers(read_metrics(tmp_path / "zero2-2"))
    if TASKS[kind].scores:
        check_export(kind, tmp_path / "zero2-2")


@pytest.mark.parametrize("kind", TASKS)
def test_two_halves_of_every_layer_are_the_whole(kind: str, models: dict[str, Path], tmp_path: Path) -> None:
    """Tensor parallelism: losses, norms, held-out figures and generated texts are those of one rank."""
    runs = {strategy: problem(kind, models[kind], tmp_path, strategy) for strategy in ("zero0-1", "tp2")}
    for strategy, run in runs.items():
        run_distributed(run_recipe, CHOSEN[strategy].world_size, [(run, str(tmp_path / strategy), None)], timeout_s=300)
    found, wanted = (read_metrics(tmp_path / strategy) for strategy in ("tp2", "zero0-1"))
    for name, most in (("loss", LOSSES), ("grad_norm", NORMS)):
        assert deviation([record[name] for record in found], [record[name] for record in wanted]) < most
    for step, metrics in evaluations(tmp_path / "zero0-1").items():
        assert evaluations(tmp_path / "tp2")[step] == pytest.approx(metrics, rel=1e-5)


def check_export(kind: str, run: Path) -> None:
    """Loaded by transformers alone, it writes the predictions of the run's end, one text at a time."""
    model = AutoModelForSeq2SeqLM.from_pretrained(run / "export", dtype=torch.float32).eval()
    tokenizer, options = AutoTokenizer.from_pretrained(run / "export"), TASKS[kind]
    rows = {
        tokenizer.decode(tokenizer(row["target"])["input_ids"], skip_special_tokens=True): row["source"]
        for row in tiny.summaries()
    }
    records = predictions(run, STEPS)
    assert len(records) == HELD_OUT and len({record["prediction"] for record in records}) > 1
    for record in records:
        source = options.source_prefix + rows[record["reference"]]
        ids = tokenizer(source, return_tensors="pt", truncation=True, max_length=64)["input_ids"]
        written = model.generate(ids, max_new_tokens=options.max_new_tokens, num_beams=options.num_beams)[0]
        assert tokenizer.decode(written, skip_special_tokens=True).strip() == record["prediction"]
