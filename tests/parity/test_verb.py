"""`toolkit parity`: agreement is exit 0; whatever is not the reference's curve is exit 3, with a row that says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.processor import require_number_format
from toolkit.cli import verbs
from toolkit.parity import walk
from toolkit.recipe import Recipe
from toolkit.train import ranks

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "pretrain_llama10m_zero1.py"

MUON = '''"""Muon from scratch."""

from toolkit import Batch, Data, Model, Optimizer, Recipe

recipe = Recipe(
    model=Model(architecture="llama", weights="random", tokenizer="none"),
    data=Data(train="none"),
    batch=Batch(global_size=8),
    optimizer=Optimizer(type="muon", learning_rate=1e-3, max_grad_norm=0.0),
    steps=10,
)
'''


def compare(capsys: pytest.CaptureFixture[str], *arguments: str, recipe: Path = RECIPE) -> tuple[int, dict[str, Any]]:
    """Exit code and JSON report of `toolkit parity`, four steps."""
    code = verbs.main(["parity", str(recipe), "--steps", "4", "--json", *arguments])
    return code, json.loads(capsys.readouterr().out)


def test_strategies_of_a_recipe_agree(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 0 and a table with a number in every cell."""
    assert verbs.main(["parity", str(RECIPE), "--steps", "4", "--strategies", "zero1,zero3"]) == 0
    printed = capsys.readouterr().out
    assert (
        "scaled down to a LlamaForCausalLM of" in printed
        and "(tolerance: loss 2e-06, grad norm 5e-06, weights 1e-05)" in printed
    )
    for name in ("zero1", "zero3"):
        cells = next(line for line in printed.splitlines() if f" {name} " in line).strip("│").split("│")
        assert cells[1].strip() == "2" and all(0 < float(cell) < 1e-5 for cell in cells[2:5])


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_16_bits_are_compared_with_16_bits(dtype: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Near the reference, within 1e-3 of each other; and not fp32 by mistake."""
    require_number_format(dtype)
    code, found = compare(capsys, "--dtype", dtype, "--strategies", "zero0,zero2")
    assert code == 0 and found["tolerance"]["loss"] <= 1e-3
    assert 0 <= found["spread"] <= 1e-3
    assert all(row["loss"] > 1e-7 for row in found["rows"])


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_halved_learning_rate_is_found_out(
    dtype: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within four steps, of which the first two warm up; the strategy trains, the reference does not know."""
    plain = ranks.run

    def halved(function: Any, world_size: int, recipe: Recipe, *args: Any, **options: Any) -> Any:
        if function == walk.TRAIN:
            rate = recipe.optimizer.learning_rate / 2
            recipe = recipe.model_copy(
                update={"optimizer": recipe.optimizer.model_copy(update={"learning_rate": rate})}
            )
        return plain(function, world_size, recipe, *args, **options)

    monkeypatch.setattr(ranks, "run", halved)
    code, found = compare(capsys, "--dtype", dtype, "--strategies", "zero1")
    (row,) = found["rows"]
    assert code == 3 and row["verdict"] == "deviates", row


def test_classification_is_compared_too(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_bert_dir: Path
) -> None:
    """Padded texts, an attention mask, label smoothing, a new head."""
    file = tmp_path / "classify.py"
    text = (ROOT / "recipes" / "classify_minilm_zero1.py").read_text()
    file.write_text(text.replace('"minilm-l6"', repr(str(tiny_bert_dir))))
    code, found = compare(capsys, "--strategies", "zero2", recipe=file)
    assert code == 0 and found["architecture"] == "BertForSequenceClassification"


@pytest.mark.parametrize("task", ["causal_lm", "sequence_classification"])
def test_adapters_are_compared_with_those_of_peft(
    task: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_bert_dir: Path
) -> None:
    """Rank-stabilised ones of a language model; of a classifier beside its new head, which is trained whole."""
    file = tmp_path / "tuned.py"
    if task == "causal_lm":
        text, strategies = RECIPE.read_text(), "zero2,zero3,pp2,tp2"
        text = text.replace(
            "recipe = Recipe(",
            "recipe = Recipe(\n    tuning=LoRA(use_rslora=True), checkpoint=Checkpoint(export=False),",
        )
    else:
        text, strategies = (ROOT / "recipes" / "classify_minilm_zero1.py").read_text(), "zero1,zero3"
        text = text.replace('"minilm-l6"', repr(str(tiny_bert_dir))).replace(
            "recipe = Recipe(", "recipe = Recipe(\n    tuning=LoRA(),"
        )
    file.write_text(
        text.replace("from toolkit import ", "from toolkit.recipe import Checkpoint, LoRA\nfrom toolkit import ")
    )
    code, found = compare(capsys, "--strategies", strategies, recipe=file)
    assert [row["verdict"] for row in found["rows"]] == ["ok"] * len(strategies.split(",")), found
    assert code == 0
    assert all(row["weights"] > 0 for row in found["rows"])


def test_a_model_that_draws_noise_is_found_out(capsys: pytest.CaptureFixture[str]) -> None:
    """PhiMoE's router multiplies its input by random numbers in training: no two runs have one curve."""
    code = verbs.main(["parity", str(RECIPE), "--steps", "4", "--architecture", "phimoe", "--strategies", "zero1"])
    captured = capsys.readouterr()
    assert code == 3
    assert "OUT OF TOLERANCE" in captured.out
    assert "zero1: not the curve of plain PyTorch" in captured.err


# Longcat has experts without weights, which ranks call as often as their tokens ask for it.
@pytest.mark.parametrize("architecture", ["qwen2_moe", "longcat_flash"])
def test_experts_under_zero3(architecture: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Ranks that route differently train on the reference's curve; the export holds the routers' fixed corrections."""
    code, found = compare(capsys, "--architecture", architecture, "--strategies", "zero2,zero3")
    assert [row["verdict"] for row in found["rows"]] == ["ok", "ok"], found
    assert code == 0


def test_a_strategy_that_does_not_fit_says_why(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Muon has no stage 0; the others are compared with torch.optim.Muon, without gradient norms."""
    file = tmp_path / "muon.py"
    file.write_text(MUON)
    code, found = compare(capsys, "--strategies", "zero0,zero2", recipe=file)
    refused, trained = found["rows"]
    assert refused["verdict"] == "refused" and refused["loss"] is None
    assert refused["message"] == "optimizer.type='muon' with parallel.zero_stage=0"
    assert trained["verdict"] == "ok" and trained["grad_norm"] is None
    assert found["tolerance"]["loss"] == 1e-3 and code == 0


def test_a_strategy_that_hangs_is_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    """It is killed after --timeout_s, and the next one runs."""
    code, found = compare(capsys, "--strategies", "zero0,zero1", "--timeout_s", "0.1")
    assert code == 3
    assert [row["verdict"] for row in found["rows"]] == ["failed", "failed"]
    assert found["rows"][1]["message"] == "not done after 0.1 s: rank 0, 1"
    assert "rank 0 printed" in found["rows"][1]["detail"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--strategies", "zero4"], "unknown strategy 'zero4' (did you mean 'zero3'?)"),
        (["--steps", "2"], "'2' is less than 3"),
        (["--architecture", "lama"], "model.architecture='lama' (did you mean 'llama'?)"),
        (["--architecture", "mamba"], "MambaConfig cannot be scaled down"),
    ],
)
def test_bad_input_is_a_message(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2."""
    assert verbs.main(["parity", str(RECIPE), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_checkpoint_that_is_not_here_has_a_stand_in(capsys: pytest.CaptureFixture[str]) -> None:
    """Its configuration cannot be read without a network; the message says what can be done."""
    gated = ROOT / "recipes" / "sft_llama8b_zero3.py"
    assert verbs.main(["parity", str(gated), "--strategies", "zero1"]) == 2
    assert "--architecture llama" in capsys.readouterr().err
    code, found = compare(capsys, "--strategies", "zero1", "--architecture", "llama", recipe=gated)
    assert code == 0 and found["rows"][0]["verdict"] == "ok"


TEXT_TASK = '''"""A task of encoders."""

from toolkit import *

recipe = Recipe(
    model=Model(architecture="bert", weights="random", tokenizer="none"),
    data=Data(train="none", packing={packing}),
    task={name}({fields}),
    batch=Batch(global_size=8),
    optimizer=Optimizer(learning_rate=1e-3),
    steps=10,
)
'''


@pytest.mark.parametrize(
    ("name", "fields", "packing"),
    [
        ("MaskedLM", "whole_word=True", True),
        ("SequenceClassification", 'label_fields=("a", "b")', False),
        ("SequenceClassification", 'problem_type="regression"', False),
        ("TokenClassification", 'scheme="tags", label_smoothing=0.1', False),
        ("QuestionAnswering", "", False),
        ("SentenceEmbedding", 'negative_field="other"', False),
        ("SentenceEmbedding", 'objective="cosent", score_field="grade"', False),
    ],
)
def test_it_speaks_the_tasks_of_encoders(
    name: str, fields: str, packing: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "recipe.py"
    file.write_text(TEXT_TASK.format(name=name, fields=fields, packing=packing))
    code, found = compare(capsys, "--strategies", "zero2", recipe=file)
    assert code == 0, found
    (row,) = found["rows"]
    assert row["verdict"] == "ok" and 0 <= row["loss"] < 2e-6


@pytest.mark.parametrize("kind", ["t5", "bart", "bert2bert"])
def test_it_speaks_encoders_with_decoders(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One by its architecture, one of a model's own config and one of two models' configs."""
    tokenizer = tiny.byte_tokenizer()
    model = tiny.save(tiny.encoder_decoder(kind, tokenizer), tokenizer, tmp_path / kind)
    file, fields = tmp_path / "recipe.py", 'source_prefix="w5 w6 ", label_smoothing=0.1, scores=("bleu",)'
    text = TEXT_TASK.format(name="Seq2Seq", fields=fields, packing=False)
    file.write_text(text.replace('architecture="bert", weights="random", tokenizer="none"', f"path={str(model)!r}"))
    more = ["--architecture", "t5"] if kind == "t5" else []
    code, found = compare(capsys, "--strategies", "zero3", *more, recipe=file)
    assert code == 0, found
    (row,) = found["rows"]
    assert row["verdict"] == "ok" and 0 <= row["loss"] < 2e-6
