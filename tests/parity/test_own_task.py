"""A task from outside the package: the one of the README, as it stands there, from training to its export."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.distributed import run_distributed
from toolkit.errors import RecipeError
from toolkit.recipe import Batch, Checkpoint, Data, Evaluation, Model, Optimizer, Parallel, Precision, Recipe, Tracking
from toolkit.recipe.dotted import recipe_of
from toolkit.recipe.tasks import Task

ROOT = Path(__file__).parents[2]
ROWS = [
    {"title": f"What is {'very ' * (number % 5)}{number}?", "answer": "word " * (number % 7 + 1)}
    for number in range(37)
]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of answer_length.py, importable as a user's own module is."""
    [source] = re.findall(
        r"```python\n(from typing.*?class AnswerLengthTask.*?)```", (ROOT / "README.md").read_text(), re.DOTALL
    )
    assert len(source.splitlines()) < 60
    (tmp_path / "answer_length.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    Task.kinds.pop("answer_length", None)
    sys.modules.pop("answer_length", None)


def own_recipe(folder: Path, model: Path, **changes: Any) -> Recipe:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return Recipe(
        model=Model(path=str(model), dropout=0.0),
        data=Data(train=str(folder / "rows.jsonl"), evaluation_examples=7, packing=False, prefetch=0),
        task=Task.kind("answer_length:AnswerLength")(question_field="title"),
        batch=Batch(global_size=4, micro_size=2, sequence_length=32),
        optimizer=Optimizer(learning_rate=1e-3, implementation="torch"),
        precision=Precision(dtype="fp32"),
        tracking=Tracking(tensorboard=False),
        **{
            "parallel": Parallel(zero_stage=1),
            "checkpoint": Checkpoint(export_dtype="fp32", keep_best=True),
            "evaluation": Evaluation(every_steps=2, metric="mean_error"),
            "steps": 4,
        }
        | changes,
    )


def trained(rank: int, world_size: int, folder: str, model: str, stage: int) -> list[dict[str, Any]] | None:
    """The run's records, of rank 0."""
    from toolkit.train.run import RunOptions, train

    sys.path.insert(0, folder)
    place = Path(folder) / f"run-{world_size}-{stage}"
    recipe = own_recipe(Path(folder), Path(model), parallel=Parallel(zero_stage=stage))  # type: ignore[arg-type]
    train(recipe, RunOptions("own", place), keep_group=True)
    if rank:
        return None
    return [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]


def test_it_trains_is_evaluated_and_exported(module: Path, tiny_bert_dir: Path) -> None:
    alone = run_distributed(trained, 1, str(module), str(tiny_bert_dir), 1)[0]
    several = run_distributed(trained, 2, str(module), str(tiny_bert_dir), 3)[0]
    assert alone is not None and several is not None
    for key in ("loss", "grad_norm"):
        curves = [[record[key] for record in records if key in record] for records in (alone, several)]
        assert len(curves[0]) == 4 and curves[1] == pytest.approx(curves[0], rel=1e-5)
    held_out = [record["eval"] for record in alone if "eval" in record]
    assert held_out[-1]["loss"] < held_out[0]["loss"] and held_out[-1]["mean_error"] < held_out[0]["mean_error"]

    export = module / "run-2-3" / "export"
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(export), AutoTokenizer.from_pretrained(export)
    recipe = own_recipe(module, tiny_bert_dir)
    from toolkit.train.inputs import prepare_inputs
    from toolkit.train.progress import Display

    held_out_rows = prepare_inputs(recipe, 0, 1, Display(is_main=False)).held_out
    assert held_out_rows is not None
    with torch.no_grad():
        errors = [
            float(model(torch.tensor([example["input_ids"].tolist()])).logits) - int(example["labels"][0])
            for example in (held_out_rows[index] for index in range(len(held_out_rows)))
        ]
    assert sum(map(abs, errors)) / len(errors) == pytest.approx(held_out[-1]["mean_error"], rel=1e-4)
    assert tokenizer("x")["input_ids"]


def test_its_fields_are_flags_and_its_name_finds_it(module: Path, tiny_bert_dir: Path) -> None:
    from toolkit.cli.flags import parse

    recipe = own_recipe(module, tiny_bert_dir)
    words = ["--task.answer_field", "reply", "--task.question_field=q"]
    task = parse(recipe, words, output_dir=module, description="", prog="x.py").recipe.task
    assert (task.name, task.answer_field, task.question_field) == ("answer_length", "reply", "q")  # type: ignore[attr-defined]
    with pytest.raises(
        RecipeError,
        match=r"unknown flag --task.label_field for task.name='answer_length' \(image_classification, kto, sequence_cl",
    ):
        parse(recipe, ["--task.label_field", "x"], output_dir=module, description="", prog="x.py")
    plain = recipe.model_copy(
        update={"task": Task.kind("sequence_classification")(), "evaluation": Evaluation(), "checkpoint": Checkpoint()}
    )
    words = ["--task.name", "answer_length:AnswerLength"]
    assert parse(plain, words, output_dir=module, description="", prog="x.py").recipe.task.name == "answer_length"
    with pytest.raises(RecipeError, match=r"task\.name='nowhere:Task': No module named 'nowhere'"):
        Task.kind("nowhere:Task")
    with pytest.raises(RecipeError, match=r"task\.name=.builtins:type. is <class"):
        Task.kind("builtins:type")
    assert (
        recipe_of(
            {
                "model.path": "x",
                "data.train": "y",
                "data.packing": False,
                "batch.global_size": 1,
                "steps": 1,
                "task.name": "answer_length",
                "task.answer_field": "z",
            }
        ).task.answer_field
        == "z"
    )  # type: ignore[attr-defined]
