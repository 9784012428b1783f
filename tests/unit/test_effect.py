"""Fields that cannot act are refused, whatever the field; and every field says when it acts."""

from __future__ import annotations

from typing import Any

import pytest

from tests.launch.shrink import RECIPES
from toolkit.cli.flag_errors import OPTIONS
from toolkit.cli.flags import flag_names, parse
from toolkit.errors import RecipeError
from toolkit.recipe import Recipe
from toolkit.recipe.effect import acting, check_effect, default
from toolkit.recipe.load import load_recipe

BASE: dict[str, Any] = {
    "model": {"path": "somewhere"},
    "data": {"train": "rows.jsonl"},
    "batch": {"global_size": 8},
    "steps": 100,
}
HELD_OUT = {"data.evaluation": "held_out.jsonl"}
STAGE_3 = {"parallel.zero_stage": 3}
STAGE_0 = {"parallel.zero_stage": 0, "precision.dtype": "fp32"}
IMAGES = {"task.name": "image_classification", "data.packing": False}
CLASSES = {"task.name": "sequence_classification", "data.packing": False}

CASES: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "model.activation_offload": (True, {"model.activation_checkpointing": True}, {}),
    "data.evaluation_examples": (4, {}, HELD_OUT),
    "data.group_by_length": (True, {"data.packing": False}, {"data.shuffle": False, "data.packing": False}),
    "data.evaluation_split": ("validation", HELD_OUT, {"data.evaluation_examples": 4}),
    "data.unreadable": ("skip", IMAGES, {}),
    "batch.sequence_length": (64, {}, IMAGES),
    "task.sample_tokens": (7, {"task.sample_prompt": "Hello?"}, {}),
    "optimizer.betas": ((0.8, 0.9), {}, {"optimizer.type": "sgd"}),
    "optimizer.eps": (1e-6, {}, {"optimizer.type": "lion"}),
    "optimizer.momentum": (0.5, {"optimizer.type": "rmsprop"}, {}),
    "optimizer.nesterov": (True, {"optimizer.type": "sgd_momentum"}, {}),
    "optimizer.dampening": (0.1, {"optimizer.type": "sgd_momentum"}, {}),
    "optimizer.alpha": (0.9, {"optimizer.type": "rmsprop"}, {}),
    "optimizer.centered": (True, {"optimizer.type": "rmsprop"}, {}),
    "optimizer.lr_decay": (0.1, {"optimizer.type": "adagrad"}, {}),
    "optimizer.initial_accumulator_value": (0.1, {"optimizer.type": "adagrad"}, {}),
    "optimizer.adam_learning_rate": (1e-3, {"optimizer.type": "muon"}, {}),
    "schedule.warmup_steps": (3, {"schedule.type": "constant"}, {"schedule.type": "one_cycle"}),
    "schedule.min_ratio": (0.3, {"schedule.type": "cosine"}, {"schedule.type": "constant"}),
    "schedule.decay_steps": (9, {"schedule.type": "warmup_stable_decay"}, {"schedule.type": "linear"}),
    "schedule.power": (2.0, {"schedule.type": "polynomial"}, {"schedule.type": "constant"}),
    "schedule.gamma": (0.5, {"schedule.type": "exponential"}, {"schedule.type": "constant"}),
    "schedule.step_size": (4, {"schedule.type": "step"}, {"schedule.type": "constant"}),
    "schedule.milestones": ((3, 9), {"schedule.type": "multi_step"}, {"schedule.type": "constant"}),
    "schedule.peak_fraction": (0.4, {"schedule.type": "one_cycle"}, {"schedule.type": "cosine"}),
    "schedule.start_ratio": (0.4, {"schedule.type": "one_cycle"}, {"schedule.type": "cosine"}),
    "schedule.patience": (
        9, {"schedule.type": "reduce_on_plateau", "evaluation.every_steps": 1, **HELD_OUT}, {"schedule.type": "constant"},
    ),
    "precision.tf32": (True, {"precision.dtype": "fp32"}, {"precision.dtype": "bf16"}),
    "precision.master_dtype": ("bf16", {"precision.dtype": "bf16"}, {"precision.dtype": "fp16"}),
    "precision.state_dtype": ("8bit", {}, {"optimizer.type": "lion"}),
    "precision.initial_scale_power": (8, {"precision.dtype": "fp16"}, {"precision.dtype": "auto"}),
    "precision.loss_scale_window": (8, {"precision.dtype": "fp16"}, {"precision.dtype": "bf16"}),
    "precision.hysteresis": (1, {"precision.dtype": "fp16"}, {"precision.dtype": "fp32"}),
    "precision.min_loss_scale": (8.0, {"precision.dtype": "fp16"}, {}),
    "parallel.offload_optimizer": ("cpu", {}, {"parallel.zero_stage": 0}),
    "parallel.offload_ratio": (
        0.5, {"parallel.offload_optimizer": "cpu", **STAGE_3}, {"parallel.offload_optimizer": "cpu", "parallel.zero_stage": 2},
    ),
    "parallel.offload_param": ("cpu", STAGE_3, {}),
    "parallel.nvme_path": ("/fast", {"parallel.offload_param": "nvme", **STAGE_3}, STAGE_3),
    "parallel.reduce_bucket_size": (1000, {"parallel.zero_stage": 0}, STAGE_0),
    "parallel.overlap_comm": (True, {"parallel.zero_stage": 0, "precision.dtype": "bf16"}, STAGE_0),
    "parallel.param_persistence_threshold": (10, STAGE_3, {}),
    "checkpoint.keep_best": (True, {"evaluation.every_steps": 5, **HELD_OUT}, {}),
    "checkpoint.export_dtype": ("fp32", {}, {"checkpoint.export": False}),
    "checkpoint.merge": (True, {"tuning.name": "lora"}, {}),
    "evaluation.every_steps": (5, HELD_OUT, {}),
    "evaluation.max_sequences": (5, {"data.evaluation_examples": 9}, {}),
    "evaluation.early_stopping_patience": (2, {"evaluation.every_steps": 5, **HELD_OUT}, {}),
    "evaluation.metric": (
        "perplexity", {"evaluation.every_steps": 5, "checkpoint.keep_best": True, **HELD_OUT}, HELD_OUT,
    ),
    "tracking.project": ("mine", {"tracking.trackers": ("wandb",)}, {}),
}  # fmt: skip
"""Field -> a value, what makes it act, and under what it cannot."""


def recipe(fields: dict[str, Any]) -> Recipe:
    values = {name: dict(value) if isinstance(value, dict) else value for name, value in BASE.items()}
    for name, value in fields.items():
        section, _, last = name.rpartition(".")
        if section:
            values.setdefault(section, {})[last] = value
        else:
            values[last] = value
    return Recipe(**values)


def test_every_field_says_when_it_acts() -> None:
    found = acting(recipe({}))
    assert sorted(found) == sorted(name for name in flag_names(recipe({})) if name not in OPTIONS)
    assert sorted(CASES) == sorted(name for name, acts in found.items() if acts is not None)


@pytest.mark.parametrize("name", CASES)
def test_a_field_acts_or_is_refused(name: str) -> None:
    value, acting, idle = CASES[name]
    recipe({**acting, name: value})
    with pytest.raises(RecipeError) as caught:
        recipe({**idle, name: value})
    written = ", ".join(f"{key}={acting[key]!r}" for key in acting)
    assert name in caught.value.what and repr(value) in caught.value.what, (caught.value.what, written)
    # Written out at its default it promises nothing, and may stay where it is.
    recipe({**idle, name: default(recipe({}), name)})


def test_a_field_of_another_task_acts_or_is_refused() -> None:
    asked = {"task.name": "question_answering", "data.packing": False, "task.null_threshold": 0.5}
    recipe({**asked, "task.unanswerable": True})
    with pytest.raises(RecipeError, match=r"task\.null_threshold=0\.5 has no effect with task\.unanswerable=False"):
        recipe(asked)


def test_the_message_names_every_field_and_the_flags_that_cure_it() -> None:
    with pytest.raises(RecipeError) as caught:
        recipe({"schedule.type": "constant", "schedule.gamma": 0.5, "schedule.milestones": (9, 3)})
    assert caught.value.what == (
        "schedule.gamma=0.5 has no effect with schedule.type='constant'; "
        "schedule.milestones=(9, 3) has no effect with schedule.type='constant'"
    )
    assert caught.value.expected == (
        "schedule.gamma acts with schedule.type 'exponential' or 'step' or 'multi_step' or 'reduce_on_plateau' only; "
        "schedule.milestones acts with schedule.type 'multi_step' only"
    )
    assert caught.value.do == (
        "remove schedule.gamma, schedule.milestones from the recipe "
        "(on the command line: --schedule.gamma 0.1 --schedule.milestones)"
    )


def _parsed(base: Recipe, flags: str, tmp_path: Any) -> Recipe:
    return parse(base, flags.split(), output_dir=tmp_path, description="", prog="x.py").recipe


def test_a_flag_that_idles_a_field_of_the_recipe_is_cured_by_the_flags_of_the_message(tmp_path: Any) -> None:
    base = recipe({
        "precision.dtype": "fp32", "parallel.reduce_bucket_size": 1000, "schedule.type": "multi_step",
        "schedule.milestones": (20, 40),
    })  # fmt: skip
    for flags in ("--parallel.zero_stage 0", "--schedule.type constant"):
        with pytest.raises(RecipeError) as caught:
            _parsed(base, flags, tmp_path)
        cure = caught.value.do.rpartition("(on the command line: ")[2].rstrip(")")
        check_effect(_parsed(base, f"{flags} {cure}", tmp_path))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_everything_that_a_shipped_recipe_says_has_an_effect(path: Any) -> None:
    check_effect(load_recipe(path))


@pytest.mark.parametrize(
    "words",
    [
        ["--model.config", '{"hidden_size": 32, "rope": {"type": "linear"}, "tied": false}'],
        ['--model.config={"hidden_size": 32, "rope": {"type": "linear"}, "tied": false}'],
        ["--model.config", "hidden_size", "32", "rope", '{"type": "linear"}', "tied", "False"],
    ],
)
def test_an_object_is_given_as_json_or_as_pairs(words: list[str], tmp_path: Any) -> None:
    found = parse(Recipe(**BASE), words, output_dir=tmp_path, description="", prog="x.py")
    assert found.recipe.model.config == {"hidden_size": 32, "rope": '{"type": "linear"}', "tied": False}
