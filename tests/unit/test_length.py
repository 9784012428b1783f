"""What a run has no room for is refused, in the recipe or, for a length in epochs, once the data is prepared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_effect import HELD_OUT, recipe
from toolkit.errors import RecipeError
from toolkit.recipe import Recipe
from toolkit.recipe.length import check_length
from toolkit.recipe.schedules import factor

WATCHED = {"evaluation.every_steps": 1, **HELD_OUT}
PLATEAU = {"schedule.type": "reduce_on_plateau", **WATCHED}

CASES: list[tuple[dict[str, Any], int, str, str]] = [
    ({"schedule.type": "cosine", "schedule.warmup_steps": 5}, 6, "schedule.warmup_steps=5", "--schedule.warmup_steps 4"),
    ({"schedule.type": "linear", "schedule.warmup_steps": 5}, 6, "schedule.warmup_steps=5", "--schedule.warmup_steps 4"),
    ({"schedule.type": "constant", "schedule.warmup_steps": 5}, 6, "schedule.warmup_steps=5", "--schedule.warmup_steps 4"),
    (
        {"schedule.type": "warmup_stable_decay", "schedule.warmup_steps": 2, "schedule.decay_steps": 4}, 6,
        "schedule.decay_steps=4", "--schedule.decay_steps 3",
    ),
    ({"schedule.type": "step", "schedule.step_size": 3, "schedule.warmup_steps": 2}, 6, "schedule.step_size=3", "--schedule.step_size 1"),
    ({"schedule.type": "multi_step", "schedule.milestones": (2, 5)}, 6, "schedule.milestones=(2, 5)", "--schedule.milestones 2"),
    ({"schedule.type": "one_cycle", "schedule.peak_fraction": 0.4}, 3, "schedule.peak_fraction=0.4", "--schedule.peak_fraction 0.75"),
    ({"checkpoint.every_steps": 7}, 7, "checkpoint.every_steps=7", "--checkpoint.every_steps 0"),
    ({"evaluation.every_steps": 7, **HELD_OUT}, 7, "evaluation.every_steps=7", "--evaluation.every_steps 0"),
    (
        {"evaluation.every_steps": 4, "checkpoint.keep_best": True, **HELD_OUT}, 5,
        "checkpoint.keep_best=True", "--evaluation.every_steps 3",
    ),
    ({"evaluation.early_stopping_patience": 3, **WATCHED}, 5, "evaluation.early_stopping_patience=3", "--evaluation.early_stopping_patience 0"),
    ({"evaluation.early_stopping_patience": 2, "evaluation.every_steps": 2, **HELD_OUT}, 7, "evaluation.early_stopping_patience=2", "--evaluation.every_steps 1"),
    ({"schedule.patience": 1, **PLATEAU}, 4, "schedule.patience=1", "--schedule.type constant"),
]  # fmt: skip
"""Fields, the shortest run with room for them, what a run of one step less answers, and the flag that cures it."""


@pytest.mark.parametrize(("fields", "shortest", "what", "flag"), CASES, ids=lambda value: str(value)[:40])
def test_one_step_less_is_too_short(fields: dict[str, Any], shortest: int, what: str, flag: str) -> None:
    recipe({**fields, "steps": shortest})
    with pytest.raises(RecipeError) as caught:
        recipe({**fields, "steps": shortest - 1})
    steps = f"{shortest - 1} steps"
    assert caught.value.what == f"{what} in a run of {steps}"
    assert caught.value.do == f"make the run longer, or pass {flag}"


@pytest.mark.parametrize(("fields", "shortest"), [case[:2] for case in CASES], ids=lambda value: str(value)[:40])
def test_the_flag_of_the_message_cures(fields: dict[str, Any], shortest: int) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe({**fields, "steps": shortest - 1})
    name, *values = caught.value.do.rpartition("--")[2].split()
    value: Any = tuple(values) if name == "schedule.milestones" else values[0]
    cured = {**fields, name: value}
    if name == "schedule.type":
        del cured["schedule.patience"]
    recipe({**cured, "steps": shortest - 1})


def test_all_at_once() -> None:
    fields = {"schedule.type": "cosine", "schedule.warmup_steps": 5, "checkpoint.every_steps": 10}
    with pytest.raises(RecipeError) as caught:
        recipe({**fields, "steps": 2})
    assert caught.value.what == "schedule.warmup_steps=5, checkpoint.every_steps=10 in a run of 2 steps"
    assert caught.value.do.endswith("pass --schedule.warmup_steps 1 --checkpoint.every_steps 0")


def test_only_the_last_step_sees_what_the_schedule_promises() -> None:
    """Against the curve itself: the peak, or the last drop, is the rate of the shortest run's last step alone."""
    kinds = ("cosine", "linear", "constant", "step", "multi_step")
    cases = [(fields, steps) for fields, steps, *_ in CASES if fields.get("schedule.type") in kinds]
    assert len(cases) == len(kinds)
    for fields, shortest in cases:
        schedule = recipe({**fields, "steps": shortest}).schedule
        *before, last = (factor(schedule, step, shortest) for step in range(shortest))
        assert last not in before, fields
        assert last == {"step": 0.1, "multi_step": 0.1**2}.get(schedule.type, 1.0)


def test_epochs_are_counted_once_the_data_is_there(
    tiny_llama_dir: Path, chat_file: Path, monkeypatch: Any, tmp_path: Path
) -> None:
    from toolkit.train.inputs import prepare_inputs
    from toolkit.train.progress import Display

    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path))
    values: dict[str, Any] = {
        "model": {"path": str(tiny_llama_dir)}, "data": {"train": str(chat_file), "max_examples": 40},
        "batch": {"global_size": 4, "sequence_length": 256}, "epochs": 1.0,
    }  # fmt: skip
    total = prepare_inputs(Recipe(**values), 0, 1, Display(is_main=False)).total_steps
    late = Recipe(**values, schedule={"type": "cosine", "warmup_steps": total})
    with pytest.raises(RecipeError, match=rf"schedule\.warmup_steps={total} in a run of {total} steps"):
        prepare_inputs(late, 0, 1, Display(is_main=False))
    check_length(late, total + 1)
