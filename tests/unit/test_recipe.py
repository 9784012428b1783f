"""Recipes: what they refuse, in which words, and that reading one costs no torch."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import Any, get_args

import pytest

from toolkit.errors import RecipeError
from toolkit.recipe import (
    DPO,
    KTO,
    Batch,
    CausalLM,
    Checkpoint,
    Data,
    Evaluation,
    Launch,
    Model,
    Optimizer,
    Parallel,
    Precision,
    Recipe,
    RewardModel,
    Schedule,
    SentenceEmbedding,
    Seq2Seq,
    SequenceClassification,
    Task,
    Tracking,
)
from toolkit.recipe.dotted import CHOICES
from toolkit.recipe.meanings import meanings
from toolkit.recipe.optimizers import COMMON_FIELDS, DEFAULTS, OptimizerType, optimizer_parameters
from toolkit.recipe.section import Section

HELP = "correct the recipe or the flag; `--help` lists every field with its type and meaning"


def recipe(**changes: Any) -> Recipe:
    fields: dict[str, Any] = {
        "model": Model(path="somewhere"),
        "data": Data(train="chats.jsonl"),
        "batch": Batch(global_size=8),
        "steps": 10,
    }
    return Recipe(**(fields | changes))


def refusal(section: type[Section], **fields: Any) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        section(**fields)
    return caught.value


@pytest.mark.parametrize(
    ("section", "fields", "what", "expected"),
    [
        (Batch, {"global_size": 1, "micro": 1}, "unknown field batch.micro (did you mean 'micro_size'?)", "one of global_size, micro_size, auto_micro_size, sequence_length"),
        (Batch, {"global_size": 1, "zzz": 1}, "unknown field batch.zzz", "one of global_size, micro_size, auto_micro_size, sequence_length"),
        (Optimizer, {"lerning_rate": 1e-4}, "unknown field optimizer.lerning_rate (did you mean 'learning_rate'?)", None),
        (Batch, {}, "batch.global_size is missing", "a value for batch.global_size"),
        (Batch, {"global_size": "many"}, "batch.global_size='many'", "input should be a valid integer, unable to parse string as an integer"),
        (Batch, {"global_size": 2.5}, "batch.global_size=2.5", "input should be a valid integer, got a number with a fractional part"),
        (Batch, {"global_size": True}, "batch.global_size=True", "an integer greater than 0"),
        (Optimizer, {"learning_rate": True}, "optimizer.learning_rate=True", "a number greater than 0"),
        (Optimizer, {"betas": (True, 0.9)}, "optimizer.betas=(True, 0.9)", "2 values, each a number at least 0 and less than 1, or None"),
        (Parallel, {"zero_stage": True}, "parallel.zero_stage=True", "one of 0, 1, 2, 3"),
        (Data, {"train": "d", "max_examples": False}, "data.max_examples=False", "an integer greater than 0, or None"),
        (Batch, {"global_size": 0, "micro_size": -1}, "batch.global_size=0; batch.micro_size=-1", "input should be greater than 0"),
        (Data, {"train": 3}, "data.train=3", "input should be a valid string"),
        (Model, {"path": "x", "dropout": 1.0}, "model.dropout=1.0", "input should be less than 1"),
        (Optimizer, {"learning_rate": float("nan")}, "optimizer.learning_rate=nan", "input should be a finite number"),
        (Optimizer, {"learning_rate": float("inf")}, "optimizer.learning_rate=inf", "input should be a finite number"),
        (Optimizer, {"learning_rate": -1e-4}, "optimizer.learning_rate=-0.0001", "input should be greater than 0"),
        (Optimizer, {"type": "adamw8"}, "optimizer.type='adamw8'", "input should be 'sgd', 'sgd_momentum', 'adagrad', 'rmsprop', 'adam', 'adamw', 'lion' or 'muon'"),
        (Optimizer, {"betas": (0.9, 1.0)}, "optimizer.betas.1=1.0", "input should be less than 1"),
        (Schedule, {"milestones": (1, -2)}, "schedule.milestones.1=-2", "input should be greater than 0"),
        (Schedule, {"min_ratio": 1.5}, "schedule.min_ratio=1.5", "input should be less than or equal to 1"),
        (Parallel, {"zero_stage": 4}, "parallel.zero_stage=4", "input should be 0, 1, 2 or 3"),
        (Tracking, {"trackers": ("wand",)}, "tracking.trackers.0='wand'", "input should be 'wandb', 'mlflow', 'comet_ml', 'aim', 'clearml', 'dvclive', 'swanlab' or 'trackio'"),
    ],
)  # fmt: skip
def test_a_field_of_its_own(section: type[Section], fields: dict[str, Any], what: str, expected: str | None) -> None:
    error = refusal(section, **fields)
    assert error.what == what
    assert error.do == HELP
    assert expected is None or error.expected == expected


def test_a_whole_recipe_names_fields_with_their_section() -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(batch={"global_size": 0})
    assert caught.value.what == "batch.global_size=0"
    with pytest.raises(RecipeError) as caught:
        recipe(shedule={})
    assert caught.value.what == "unknown field shedule (did you mean 'schedule'?)"
    with pytest.raises(RecipeError) as caught:
        recipe(seed=-1)
    assert caught.value.what == "seed=-1"


@pytest.mark.parametrize(
    ("section", "fields", "message"),
    [
        (Model, {"path": "x", "architecture": "llama"}, (
            "model.path='x' and model.architecture='llama'",
            "exactly one of the two",
            "give model.path for a checkpoint, or model.architecture with model.config to build from scratch",
        )),
        (Model, {"architecture": "llama", "tokenizer": "t"}, (
            "model.architecture='llama' with weights='pretrained'",
            'weights="random", since no checkpoint provides them',
            'set model.weights="random"',
        )),
        (Schedule, {"type": "step"}, (
            "schedule.step_size is missing for schedule.type='step'",
            "the number of optimizer steps between two drops",
            "set schedule.step_size",
        )),
        (Schedule, {"type": "multi_step"}, (
            "schedule.milestones=() for schedule.type='multi_step'",
            "rising optimizer steps, at least one",
            "set schedule.milestones, for instance (100, 200)",
        )),
        (Schedule, {"type": "multi_step", "milestones": (5, 5)}, (
            "schedule.milestones=(5, 5) for schedule.type='multi_step'",
            "rising optimizer steps, at least one",
            "set schedule.milestones, for instance (100, 200)",
        )),
        (Schedule, {"type": "one_cycle", "warmup_steps": 3}, (
            "schedule.warmup_steps=3 with schedule.type='one_cycle'",
            "0: one_cycle has its own rise, reduce_on_plateau none",
            "remove warmup_steps, or choose another schedule.type",
        )),
        (Schedule, {"type": "reduce_on_plateau", "warmup_steps": 3}, (
            "schedule.warmup_steps=3 with schedule.type='reduce_on_plateau'",
            "0: one_cycle has its own rise, reduce_on_plateau none",
            "remove warmup_steps, or choose another schedule.type",
        )),
        (Parallel, {"offload_param": "cpu"}, (
            "parallel.offload_param='cpu' with parallel.zero_stage=2",
            "zero_stage 3: DeepSpeed ignores offload_param below it, in silence",
            "set parallel.zero_stage=3, or parallel.offload_param='none'",
        )),
        (Parallel, {"zero_stage": 0, "offload_optimizer": "cpu"}, (
            "parallel.offload_optimizer='cpu' with parallel.zero_stage=0",
            "zero_stage 1, 2 or 3",
            "set parallel.zero_stage=1 or higher, or parallel.offload_optimizer='none'",
        )),
        (Parallel, {"zero_stage": 2, "offload_optimizer": "nvme", "nvme_path": "/fast"}, (
            "parallel.offload_optimizer='nvme' with parallel.zero_stage=2",
            "zero_stage 3: below it DeepSpeed treats 'nvme' as 'cpu', in silence",
            "set parallel.zero_stage=3, or parallel.offload_optimizer='cpu'",
        )),
        (Parallel, {"zero_stage": 3, "offload_param": "nvme"}, (
            "parallel.nvme_path is missing for offload to 'nvme'",
            "a directory on a local NVMe disk",
            "set parallel.nvme_path",
        )),
    ],
)  # fmt: skip
def test_fields_of_one_section_that_contradict(
    section: type[Section], fields: dict[str, Any], message: tuple[str, str, str]
) -> None:
    error = refusal(section, **fields)
    assert (error.what, error.expected, error.do) == message


WATCH = ("an evaluation metric to watch during the run", "set evaluation.every_steps, and data.evaluation or data.evaluation_examples")  # fmt: skip
HELD_OUT = Data(train="chats.jsonl", evaluation_examples=16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": None}, (
            "steps=None and epochs=None",
            "exactly one of the two",
            "set steps, or epochs; to override the other on the command line pass e.g. --epochs None",
        )),
        ({"epochs": 2.0}, (
            "steps=10 and epochs=2.0",
            "exactly one of the two",
            "set steps, or epochs; to override the other on the command line pass e.g. --epochs None",
        )),
        ({"data": Data(train="d", streaming=True), "steps": None, "epochs": 1.0}, (
            "data.streaming=True with epochs=1.0",
            "steps: a stream has no known length",
            "set steps (and --epochs None)",
        )),
        ({"schedule": Schedule(type="reduce_on_plateau")}, (
            "schedule.type='reduce_on_plateau' with evaluation.every_steps=0 and no held-out set", *WATCH,
        )),
        ({"checkpoint": Checkpoint(keep_best=True), "data": HELD_OUT}, (
            "checkpoint.keep_best=True with evaluation.every_steps=0 and a held-out set", *WATCH,
        )),
        ({"evaluation": Evaluation(every_steps=5, early_stopping_patience=2)}, (
            "evaluation.early_stopping_patience=2 with evaluation.every_steps=5 and no held-out set", *WATCH,
        )),
        ({"data": Data(train="d", streaming=True, evaluation_examples=4)}, (
            "data.evaluation_examples=4 with data.streaming=True",
            "a data.evaluation source: nothing can be split off a stream",
            "set data.evaluation, and data.evaluation_examples=0",
        )),
        ({"precision": Precision(dtype="fp16", accumulation_dtype="bf16")}, (
            "precision.accumulation_dtype='bf16' with precision.dtype='fp16'",
            "'fp32', or the same as precision.dtype",
            "set precision.accumulation_dtype='fp32'",
        )),
    ],
)  # fmt: skip
def test_sections_that_contradict(changes: dict[str, Any], message: tuple[str, str, str]) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(**changes)
    assert (caught.value.what, caught.value.expected, caught.value.do) == message


def test_consistent_recipes_are_accepted() -> None:
    recipe(steps=None, epochs=1.5)
    recipe(data=Data(train="d", streaming=True, evaluation="e"))
    recipe(data=HELD_OUT, evaluation=Evaluation(every_steps=5), checkpoint=Checkpoint(keep_best=True))
    recipe(data=HELD_OUT, evaluation=Evaluation(every_steps=2), schedule=Schedule(type="reduce_on_plateau"))
    recipe(precision=Precision(dtype="bf16", accumulation_dtype="bf16"))
    recipe(model=Model(architecture="llama", weights="random", tokenizer="t"))
    recipe(parallel=Parallel(zero_stage=3, offload_param="nvme", offload_optimizer="nvme", nvme_path="/fast"))
    assert recipe(launch=Launch(devices=4, hosts=3)).launch.world_size == 12


def test_true_and_false_stay_where_they_belong() -> None:
    assert Model(path="m", config={"tie_word_embeddings": False}).config == {"tie_word_embeddings": False}
    assert Optimizer(type="sgd_momentum", nesterov=True).nesterov is True
    assert Data(train="d", packing=False).packing is False


def test_strings_from_the_command_line_are_numbers() -> None:
    assert Batch(global_size="16") == Batch(global_size=16)


@pytest.mark.parametrize("section", [recipe(), recipe().batch, recipe().optimizer])
def test_nothing_can_be_changed_afterwards(section: Section) -> None:
    name = next(iter(type(section).model_fields))
    value = getattr(section, name)
    with pytest.raises(RecipeError) as caught:
        setattr(section, name, value)
    prefix = "" if isinstance(section, Recipe) else f"{type(section).__name__.lower()}."
    assert caught.value.what == f"{prefix}{name} cannot be set to {value!r}: a recipe does not change"
    assert caught.value.expected == "the value where the recipe is made"
    assert caught.value.do == "write it there, or give it on the command line"


OPTIONAL = [name for name in Optimizer.model_fields if name not in COMMON_FIELDS]
EXAMPLES: dict[str, Any] = {
    "betas": (0.8, 0.9),
    "eps": 1e-6,
    "momentum": 0.5,
    "nesterov": True,
    "dampening": 0.1,
    "alpha": 0.9,
    "centered": True,
    "lr_decay": 0.1,
    "initial_accumulator_value": 0.1,
    "adam_learning_rate": 1e-3,
}


@pytest.mark.parametrize("kind", get_args(OptimizerType))
@pytest.mark.parametrize("name", OPTIONAL)
def test_optimizer_parameters_belong_to_a_type(kind: str, name: str) -> None:
    value = EXAMPLES[name]
    if name in DEFAULTS[kind]:
        assert optimizer_parameters(kind, {name: value}) == DEFAULTS[kind] | {name: value}
        assert getattr(Optimizer(type=kind, **{name: value}), name) == value
        return
    error = refusal(Optimizer, type=kind, **{name: value})
    owners = [other for other in get_args(OptimizerType) if name in DEFAULTS[other]]
    assert error.what == f"optimizer.{name}={value!r} with optimizer.type={kind!r}"
    own = ", ".join(DEFAULTS[kind]) or "no parameter of its own"
    assert error.expected.startswith(f"{kind} has {own}; {name} belongs to {', '.join(owners)}")
    assert owners, "a parameter that no optimizer has"
    assert error.do == (
        f"remove optimizer.{name} (on the command line: --optimizer.{name} None), or change optimizer.type"
    )
    assert getattr(Optimizer(type=kind, **{name: None}), name) is None


@pytest.mark.parametrize(
    ("kind", "torch_name"),
    [("adam", "Adam"), ("adamw", "AdamW"), ("adagrad", "Adagrad"), ("rmsprop", "RMSprop"), ("sgd_momentum", "SGD")],
)
def test_optimizer_defaults_are_torchs(kind: str, torch_name: str) -> None:
    import torch

    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(getattr(torch.optim, torch_name)).parameters.items()
    }
    for name, value in DEFAULTS[kind].items():
        if (kind, name) != ("sgd_momentum", "momentum"):  # torch's 0 would make it plain SGD
            assert defaults[name] == value, name


def test_every_field_has_a_meaning() -> None:
    sections = [field.annotation for field in Recipe.model_fields.values()]
    kinds = [kind for choice in CHOICES.values() for kind in choice.kinds.values()]
    missing = [
        f"{section.__name__}.{name}"
        for section in [Recipe, *sections, *kinds]
        if isinstance(section, type) and issubclass(section, Section)
        for name, field in section.model_fields.items()
        if not meanings(section).get(name) and not (section is Recipe and name == section_of(field.annotation))
    ]
    assert missing == []


def test_a_kind_whose_source_is_not_there_has_no_meanings() -> None:
    """Typed at a prompt, for instance: its own fields are flags without a text, those that it inherits keep theirs."""
    names: dict[str, Any] = {"__name__": "typed", "Base": SequenceClassification}
    exec("class Typed(Base):\n    name: str = 'typed'\n    depth: int = 3\n    'How deep.'", names)
    try:
        assert "depth" not in meanings(names["Typed"])
        assert meanings(names["Typed"])["label_field"] == meanings(SequenceClassification)["label_field"]
    finally:
        del Task.kinds["typed"]


def section_of(annotation: Any) -> str:
    return annotation.__name__.lower() if isinstance(annotation, type) else ""


def test_reading_a_recipe_imports_no_torch() -> None:
    program = (
        "import sys, toolkit\n"
        "toolkit.Recipe(model=toolkit.Model(path='m'), data=toolkit.Data(train='d'),"
        " batch=toolkit.Batch(global_size=1), steps=1)\n"
        "import toolkit.recipe.schedules, toolkit.ds_config\n"
        "heavy = {'torch', 'transformers', 'datasets', 'accelerate', 'deepspeed', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {sorted(heavy)}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "task",
    [SequenceClassification(), Seq2Seq(), SentenceEmbedding(), DPO(), KTO(), RewardModel()],
    ids=lambda task: task.name,
)
def test_only_some_tasks_train_parts_of_an_example(task: Task) -> None:
    """What is learned of a whole one is refused before any data is read."""
    with pytest.raises(RecipeError) as caught:
        recipe(task=task, data=Data(train="rows.jsonl", overlong="split"))
    assert caught.value.what == f"data.overlong='split' with task.name={task.name!r}"
    recipe(task=CausalLM(), data=Data(train="rows.jsonl", overlong="split"))
