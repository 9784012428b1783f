"""The first starts of a newcomer: a shorter run, a smaller batch, another trainer's names; all that is wrong at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolkit.cli import run
from toolkit.cli.flags import flag_names
from toolkit.recipe import LoRA, Recipe
from toolkit.recipe.load import load_recipe
from toolkit.recipe.synonyms import OTHER, SAME, answer

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "recipes").glob("*.py"))


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shown:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.argv", ["x.py"])
    return Shown(capsys)


class Shown:
    """A dry run by its flags."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def accepted(self, recipe: Recipe, flags: str) -> tuple[list[str], list[str]]:
        """(what was said before it, the resolved fields) of a dry run with `flags`."""
        code = run.main(recipe, [*flags.split(), "--dry_run"])
        said = self.capsys.readouterr()
        assert (code, said.err) == (0, ""), said.err
        notes, _, fields = said.out.partition("# x: ")
        return notes.splitlines(), fields.splitlines()

    def refused(self, recipe: Recipe, flags: str) -> list[str]:
        """The first line of each message that refuses `flags`."""
        assert run.main(recipe, [*flags.split(), "--dry_run"]) == 2
        return [line for line in self.capsys.readouterr().err.splitlines() if line.startswith("error: ")]


QUICK = load_recipe(ROOT / "recipes" / "sft_smollm2_zero2.py")
CLASSES = load_recipe(ROOT / "recipes" / "classify_minilm_zero1.py")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_two_steps_of_every_shipped_recipe_start(path: Path, shown: Shown) -> None:
    _, fields = shown.accepted(load_recipe(path), "--steps 2")
    assert "steps = 2" in fields and "epochs = None" in fields


def test_a_shorter_run_takes_along_what_the_file_fitted_to_its_own(shown: Shown) -> None:
    notes, fields = shown.accepted(QUICK, "--steps 2")
    assert notes == [
        "length: --steps 2 leaves no room for the recipe's schedule.warmup_steps=3, checkpoint.every_steps=10; "
        "taken instead: --schedule.warmup_steps 0 --checkpoint.every_steps 0"
    ]
    assert {"schedule.warmup_steps = 0", "checkpoint.every_steps = 0", "steps = 2"} <= set(fields)
    notes, fields = shown.accepted(CLASSES, "--steps=5")
    assert notes == [
        "length: --steps 5 leaves no room for the recipe's schedule.warmup_steps=5, checkpoint.every_steps=20, "
        "evaluation.every_steps=20; taken instead: --schedule.warmup_steps 0 "
        "--checkpoint.every_steps 0 --evaluation.every_steps 1"
    ]
    assert {"evaluation.every_steps = 1", "evaluation.early_stopping_patience = 2"} <= set(fields)
    # What fits stays, and a run that is long enough says nothing.
    notes, fields = shown.accepted(QUICK, "--steps 10")
    assert notes == [] and {"schedule.warmup_steps = 3", "checkpoint.every_steps = 10"} <= set(fields)


def test_what_watches_too_few_evaluations_is_off(shown: Shown) -> None:
    notes, fields = shown.accepted(CLASSES, "--steps 1")
    assert notes[0].endswith("--evaluation.every_steps 1 --evaluation.early_stopping_patience 0")
    assert notes[1:] == [
        "length: --steps 1 leaves no room for the recipe's checkpoint.keep_best=True; taken instead: --checkpoint.keep_best False",
        "length: --steps 1 leaves no room for the recipe's evaluation.metric=accuracy; taken instead: --evaluation.metric loss",
    ]
    assert {"checkpoint.keep_best = False", "evaluation.early_stopping_patience = 0"} <= set(fields)


def test_the_curve_keeps_its_shape(shown: Shown) -> None:
    stable = load_recipe(ROOT / "recipes" / "pretrain_llama1b_zero2.py")
    _, fields = shown.accepted(stable, "--steps 100")
    assert {"schedule.warmup_steps = 5", "schedule.decay_steps = 20"} <= set(fields)
    half = QUICK.model_copy(update={"schedule": QUICK.schedule.model_copy(update={"warmup_steps": 10})})
    _, fields = shown.accepted(half, "--steps 8")
    assert "schedule.warmup_steps = 4" in fields


@pytest.mark.parametrize(
    ("flags", "errors"),
    [
        # What the command line itself says is never changed ...
        ("--steps 2 --schedule.warmup_steps 5", ["schedule.warmup_steps=5 in a run of 2 steps"]),
        ("--steps 2 --checkpoint.every_steps 9", ["checkpoint.every_steps=9 in a run of 2 steps"]),
        # ... nor what decides how the rate falls, and a file that does not fit its own length is refused as before.
        ("--steps 2 --schedule.type step --schedule.step_size 9", ["schedule.step_size=9 in a run of 2 steps"]),
        ("--schedule.warmup_steps 20", ["schedule.warmup_steps=20 in a run of 20 steps"]),
    ],
)
def test_strict_where_it_would_train_something_else(flags: str, errors: list[str], shown: Shown) -> None:
    assert shown.refused(QUICK, flags) == [f"error: {error}" for error in errors]


def test_a_length_in_the_other_unit_takes_the_place_of_the_files(shown: Shown) -> None:
    notes, fields = shown.accepted(QUICK, "--epochs 1")
    assert notes == ["length: --epochs 1 takes the place of the recipe's steps=20"]
    assert {"steps = None", "epochs = 1.0"} <= set(fields)
    assert shown.refused(QUICK, "--epochs 1 --steps 3") == ["error: steps=3 and epochs=1.0"]
    assert shown.refused(QUICK, "--steps None") == ["error: steps=None and epochs=None"]


def test_a_smaller_batch_takes_a_smaller_micro_batch(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    notes, fields = shown.accepted(QUICK, "--batch.global_size 2")
    assert notes == ["batch: --batch.global_size 2 takes batch.micro_size=1 instead of the recipe's 2"]
    assert "batch.micro_size = 1" in fields and '  "train_micro_batch_size_per_gpu": 1,' in fields
    notes, fields = shown.accepted(CLASSES, "--batch.global_size 24")
    assert notes == ["batch: --batch.global_size 24 takes batch.micro_size=12 instead of the recipe's 16"]
    # One rank: two sequences fit as they are.
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert shown.accepted(QUICK, "--batch.global_size 2")[0] == []
    monkeypatch.setenv("WORLD_SIZE", "2")
    wrong = "error: batch.global_size={} is not a multiple of batch.micro_size x world size = 2 x 2 = 4"
    assert shown.refused(QUICK, "--batch.global_size 3") == [wrong.format(3)]
    assert shown.refused(QUICK, "--batch.global_size 2 --batch.micro_size 2") == [wrong.format(2)]


def test_ones_own_file_and_the_held_out_set_of_the_recipe(shown: Shown) -> None:
    notes, _ = shown.accepted(QUICK, "--data.train my.jsonl")
    assert notes == [
        "data: the recipe's data.evaluation=python-docstrings is still what is held out; instead, some of --data.train: "
        "--data.evaluation None --data.evaluation_examples N"
    ]
    assert shown.accepted(QUICK, "--data.train a.jsonl --data.evaluation None --data.evaluation_examples 8")[0] == []
    assert shown.accepted(QUICK, "--data.train a.jsonl --data.evaluation b.jsonl")[0] == []


def test_all_that_is_wrong_is_told_at_once(shown: Shown) -> None:
    batch = "error: batch.global_size=3 is not a multiple of batch.micro_size x world size = 2 x 2 = 4"
    # The task and the length; the world is looked at once there is a recipe.
    flags = "--steps 2 --schedule.warmup_steps 5 --batch.global_size 3 --task.name chat"
    warmup, task = "error: schedule.warmup_steps=5 in a run of 2 steps", "error: task.name='chat'"
    assert shown.refused(QUICK, flags) == [task, warmup]
    assert shown.refused(QUICK, flags.replace(" --task.name chat", "")) == [warmup, batch]
    # Fields of several sections, and of one.
    flags = "--steps 0 --optimizer.type sgd --optimizer.betas 0.9 0.9 --schedule.type step --seed -1"
    assert shown.refused(QUICK, flags) == [
        "error: steps=0; seed=-1",
        "error: optimizer.betas=(0.9, 0.9) with optimizer.type='sgd'",
        "error: schedule.step_size is missing for schedule.type='step'",
    ]
    # What cannot be read as a value, and an unknown name.
    assert shown.refused(QUICK, "--batch.micro_size many --optimizer.learning_rate fast") == [
        "error: --batch.micro_size many",
        "error: --optimizer.learning_rate fast",
    ]
    assert shown.refused(QUICK, "--lr 1 --batch.micro_sise 2") == [
        "error: unknown flag --lr: here it is --optimizer.learning_rate",
        "error: unknown flag --batch.micro_sise (did you mean --batch.micro_size?)",
    ]


def test_one_fault_is_told_once(shown: Shown) -> None:
    # A patience without a held-out set has no effect either, and no evaluations before the last step.
    flags = "--data.evaluation None --evaluation.max_sequences None --evaluation.early_stopping_patience 2 --evaluation.every_steps 5"
    assert shown.refused(QUICK, flags) == [
        "error: evaluation.early_stopping_patience=2 with evaluation.every_steps=5 and no held-out set"
    ]


@pytest.mark.parametrize(
    ("flag", "ours", "do"),
    [
        ("--optimizer.lr 1e-4", "--optimizer.learning_rate", "pass --optimizer.learning_rate 1e-4"),
        ("--lr=1e-4", "--optimizer.learning_rate", "pass --optimizer.learning_rate 1e-4"),
        ("--bs 4", "--batch.micro_size", "pass --batch.micro_size 4"),
        ("--batch_size 4", "--batch.micro_size", "pass --batch.micro_size 4"),
        ("--per-device-train-batch-size 4", "--batch.micro_size", "pass --batch.micro_size 4"),
        ("--gradient_accumulation_steps 4", "--batch.global_size", "pass --batch.global_size; see --help for every field"),
        ("--max_seq_length 4", "--batch.sequence_length", "pass --batch.sequence_length 4"),
        ("--cutoff_len 4", "--batch.sequence_length", "pass --batch.sequence_length 4"),
        ("--max_length 4", "--batch.sequence_length", "pass --batch.sequence_length 4"),
        ("--num_train_epochs 3", "--epochs", "pass --epochs; see --help for every field"),
        ("--model_name_or_path m", "--model.path", "pass --model.path m"),
        ("--dataset d", "--data.train", "pass --data.train d"),
        ("--warmup_ratio 0.1", "--schedule.warmup_steps", "pass --schedule.warmup_steps; see --help for every field"),
        ("--bf16 True", "--precision.dtype", "pass --precision.dtype; see --help for every field"),
        ("--fp16", "--precision.dtype", "pass --precision.dtype; see --help for every field"),
        ("--zero_optimization.stage 3", "--parallel.zero_stage", "pass --parallel.zero_stage 3"),
        ("--optimizer.betas2 1", "--optimizer.betas", "see --help for every field"),
        ("--optimizer.warmup_steps 1", "--schedule.warmup_steps", "see --help for every field"),
        ("--lora_r 8", "--tuning.rank", "pass --tuning.rank 8"),
        ("--lora-target-modules q_proj", "--tuning.target_modules", "pass --tuning.target_modules q_proj"),
        ("--use_peft True", "--tuning.name", "pass --tuning.name; see --help for every field"),
        ("--lora_bias none", "--tuning.name", "pass --tuning.name; see --help for every field"),
    ],
)  # fmt: skip
def test_the_names_of_other_trainers_are_answered(
    flag: str, ours: str, do: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["x.py"])
    assert run.main(QUICK, [*flag.split(), "--dry_run"]) == 2
    said = capsys.readouterr().err
    assert f"here it is {ours}\n" in said or f"(did you mean {ours}?)\n" in said
    assert said.endswith(f"\n  do this:  {do}\n")


def test_what_is_not_offered_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("--load_in_4bit", "--quantization-bit", "--qlora"):
        assert run.main(QUICK, [flag, "8"]) == 2
        said = capsys.readouterr().err
        assert "quantised ones are not offered yet" in said
        assert f"do this:  leave out {flag.replace('-', '_').replace('__', '--')}\n" in said


def test_the_table_names_fields_that_there_are() -> None:
    known = flag_names(QUICK) + flag_names(QUICK.model_copy(update={"tuning": LoRA()}))
    assert [ours for ours in [*SAME, *(ours for ours, _ in OTHER.values())] if ours and ours not in known] == []
    names = [name for words in [*SAME.values(), *OTHER] for name in words.split()]
    assert sorted(names) == sorted(set(names)) and len(names) > 150
    assert all(answer(name) is not None for name in names)


def test_the_same_in_a_recipe_file(capsys: pytest.CaptureFixture[str]) -> None:
    from toolkit.errors import RecipeError
    from toolkit.recipe import Batch, Optimizer

    with pytest.raises(RecipeError) as caught:
        Optimizer(lr=1e-4)  # type: ignore[call-arg]
    assert caught.value.what == "unknown field optimizer.lr (here it is optimizer.learning_rate)"
    with pytest.raises(RecipeError) as caught:
        Batch(global_size=4, gradient_accumulation_steps=2)  # type: ignore[call-arg]
    assert caught.value.what == "unknown field batch.gradient_accumulation_steps (here it is batch.global_size)"
    assert caught.value.expected.startswith("the sequences of one step, over all ranks")
