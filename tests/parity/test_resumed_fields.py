"""Every recipe field that may change when a run is resumed does what it says in the very next steps.

Runs of four steps; each field is changed after step 2 of a copy and compared with the run that went straight on.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.distributed import run_distributed
from tests.parity.topologies import rewind
from tests.processor import computes_in, require_number_format
from tests.tiny import write_lines
from toolkit.checkpoint.manifest import complete_steps, folder_name, read_manifest
from toolkit.checkpoint.reader import CheckpointReader
from toolkit.ds_config.render import render
from toolkit.engine import device
from toolkit.errors import ToolkitError
from toolkit.models.model_size import model_size
from toolkit.recipe import CausalLM, Full, Recipe
from toolkit.recipe.schedules import factor
from toolkit.train.resume_fields import ROLES, Role, flatten, role_of

HALF, STEPS = 2, 4
PEAK, STILL = 1e-2, 1e-12
DECAY, BETAS, EPS = 0.125, (0.9, 0.999), 1e-3
WORDS = ("left", "right", "above", "below", "inside", "outside", "before", "after")

COMMON: dict[str, Any] = {
    "model.path": "{model}", "model.dropout": 0.125, "data.train": "{tmp}/chats.jsonl", "data.evaluation_examples": 8,
    "batch.global_size": 4, "batch.sequence_length": 32, "precision.dtype": "fp32", "parallel.zero_stage": 0,
    "optimizer.learning_rate": PEAK, "optimizer.weight_decay": DECAY, "optimizer.max_grad_norm": 0.0,
    "evaluation.every_steps": 1, "checkpoint.every_steps": 1, "checkpoint.keep": 9, "checkpoint.export": False,
    "tracking.tensorboard": False, "steps": STEPS,
}  # fmt: skip
ADAMW = {"optimizer.eps": EPS}
FP16 = {"precision.dtype": "fp16", "parallel.zero_stage": 1, "precision.initial_scale_power": 8}
RUNS: dict[str, dict[str, Any]] = {
    "plain": ADAMW,
    "undropped": ADAMW | {"model.dropout": 0.0},
    "still": ADAMW | {"optimizer.learning_rate": STILL, "schedule.type": "reduce_on_plateau", "schedule.gamma": 0.5,
                      "schedule.patience": 0},
    "full": ADAMW | {"checkpoint.export": True, "tracking.trackers": ("trackio",), "task.sample_prompt": "what is left?",
                     "task.sample_tokens": 3},
    "bf16": ADAMW | {"precision.dtype": "bf16", "parallel.zero_stage": 1},
    "fp16": FP16,
    "overflows": FP16 | {"precision.initial_scale_power": 32, "precision.hysteresis": 1},
    "rmsprop": {"optimizer.type": "rmsprop", "optimizer.learning_rate": 1e-3},
    "sgd_momentum": {"optimizer.type": "sgd_momentum"},
    "adagrad": {"optimizer.type": "adagrad"},
    "muon": {"optimizer.type": "muon", "parallel.zero_stage": 1},
}  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """One start and what it left."""

    recipe: Recipe
    folder: Path
    code: int
    said: str
    built: dict[str, Any]
    """Of the engine: see `look`."""

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]

    def of(self, name: str) -> list[Any]:
        """Values of the steps' record `name` after the half."""
        return [record[name] for record in self.lines if "loss" in record and record["step"] > HALF]

    @property
    def evaluations(self) -> dict[int, dict[str, float]]:
        return {record["step"]: record["eval"] for record in self.lines if "eval" in record and record["step"] > HALF}

    @property
    def kept(self) -> list[int]:
        return complete_steps(self.folder / "checkpoints")

    def run(self, step: int) -> dict[str, Any]:
        return read_manifest(self.folder / "checkpoints" / folder_name(step)).run

    def state(self, step: int, name: str = "fp32") -> dict[str, torch.Tensor]:
        """Every parameter's `name` in the checkpoint of `step`."""
        reader = CheckpointReader(self.folder / "checkpoints" / folder_name(step))
        found = {}
        for key, shape in reader.manifest.shapes.items():
            values = reader.read(key, name, 0, math.prod(shape))
            assert values is not None
            found[key] = values.reshape(shape)
        return found

    def weights(self, step: int = HALF + 1) -> torch.Tensor:
        return torch.cat([value.flatten() for value in self.state(step).values()])


Effect = Callable[[Seen, Seen, str], None]
"""(the run that went straight on, the one that was resumed with changes, the field): raises where it is not as said."""


def loss(straight: Seen, resumed: Seen, name: str) -> None:
    """Already the next step's loss is another, and what it leaves."""
    assert resumed.of("loss")[0] != pytest.approx(straight.of("loss")[0], rel=1e-5)
    assert moved(straight, resumed) > 1e-5


def weights(straight: Seen, resumed: Seen, name: str) -> None:
    """The next step's loss is the same, what it leaves is not."""
    assert resumed.of("loss")[0] == pytest.approx(straight.of("loss")[0], rel=1e-6)
    assert moved(straight, resumed) > 1e-5


def moved(one: Seen, two: Seen, step: int = HALF + 1) -> float:
    """Largest difference of a weight after `step`, as a share of a step of the peak rate."""
    return float((one.weights(step) - two.weights(step)).abs().max()) / PEAK


def curve(recipe: Recipe, steps: int) -> list[float]:
    return [recipe.optimizer.learning_rate * factor(recipe.schedule, step, steps) for step in range(HALF, steps)]


def rates(straight: Seen, resumed: Seen, name: str) -> None:
    """The rates are those of the new recipe's curve, at the same places; with the old value they would be others."""
    recipe = resumed.recipe
    steps = recipe.steps or resumed.lines[-1]["step"]
    found = resumed.of("learning_rate")
    assert found == pytest.approx(curve(recipe, steps), rel=1e-6, abs=1e-12)
    if name in ("steps", "epochs"):
        assert steps != STEPS and found[:2] != pytest.approx(straight.of("learning_rate"), rel=1e-3)
    elif name != "schedule.milestones":  # which a schedule of their kind cannot be without
        assert found != pytest.approx(curve(without(resumed.recipe, name, straight.recipe), steps), rel=1e-3)
    assert resumed.of("loss")[1] != straight.of("loss")[1], "the rate is one that is used"


def without(recipe: Recipe, name: str, old: Recipe) -> Recipe:
    """`recipe` with the value that `name` has in `old`."""
    section, _, last = name.rpartition(".")
    part = getattr(recipe, section).model_copy(update={last: getattr(getattr(old, section), last)})
    return recipe.model_copy(update={section: part})


def as_adamw(straight: Seen, resumed: Seen, name: str) -> None:
    """What torch's own AdamW makes of the straight run's gradient, from the half's states, with the new settings.

    And with any one of them as it was, it makes something else.
    """
    assert resumed.of("loss")[0] == straight.of("loss")[0]
    for seen in (straight, resumed):
        assert distance(seen.state(HALF + 1), one_step(straight, seen.recipe)) < 1e-6
    old = one_step(straight, without(resumed.recipe, name, straight.recipe))
    assert distance(resumed.state(HALF + 1), old) > 1e-5


def distance(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    return max(float((one[name].double() - two[name].double()).abs().max()) for name in one)


def one_step(straight: Seen, recipe: Recipe) -> dict[str, torch.Tensor]:
    """The weights after the next step, in float64."""
    start, first, second, after = (
        {key: value.double() for key, value in straight.state(step, name).items()}
        for step, name in ((HALF, "fp32"), (HALF, "exp_avg"), (HALF, "exp_avg_sq"), (HALF + 1, "exp_avg"))
    )
    gradients = {key: (after[key] - BETAS[0] * first[key]) / (1 - BETAS[0]) for key in start}
    norm = math.sqrt(sum(float(value.square().sum()) for value in gradients.values()))
    assert norm == pytest.approx(straight.of("grad_norm")[0], rel=1e-5)
    limit = recipe.optimizer.max_grad_norm
    share = min(1.0, limit / (norm + 1e-6)) if limit else 1.0
    found = {}
    for key, value in start.items():
        parameter = torch.nn.Parameter(value.clone())
        own = {name: getattr(recipe.optimizer, name) for name in ("betas", "eps")}
        own = {"betas": BETAS, **{name: given for name, given in own.items() if given is not None}}
        rate = recipe.optimizer.learning_rate * factor(recipe.schedule, HALF, STEPS)
        decay = recipe.optimizer.weight_decay if value.dim() > 1 else 0.0
        optimizer = torch.optim.AdamW([parameter], lr=rate, weight_decay=decay, **own)
        optimizer.state[parameter] = {
            "step": torch.tensor(float(HALF)), "exp_avg": first[key].clone(), "exp_avg_sq": second[key].clone()
        }  # fmt: skip
        parameter.grad = gradients[key] * share
        optimizer.step()
        found[key] = parameter.detach()
    return found


def same(straight: Seen, resumed: Seen) -> None:
    """The same numbers."""
    for name in ("loss", "grad_norm", "learning_rate"):
        assert resumed.of(name) == pytest.approx(straight.of(name), rel=1e-6, abs=0), name
    for step in (HALF + 1, STEPS):
        one, two = straight.weights(step), resumed.weights(step)
        assert float((one - two).norm() / one.norm()) < 1e-6


def bits(straight: Seen, resumed: Seen, name: str = "") -> None:
    """The same numbers to the last bit."""
    for key in ("loss", "grad_norm"):
        assert resumed.of(key) == straight.of(key)
    assert torch.equal(straight.weights(STEPS), resumed.weights(STEPS))


def rendered(straight: Seen, resumed: Seen, name: str) -> None:
    """The same numbers, and DeepSpeed was told otherwise: with the old value its configuration would be another."""
    same(straight, resumed)
    assert resumed.built["config"] == config_of(resumed.recipe)
    assert resumed.built["config"] != config_of(without(resumed.recipe, name, straight.recipe))


def config_of(recipe: Recipe) -> str:
    target = device.target(1, wanted="cpu", model_ranks=1)
    size = model_size(AutoModelForCausalLM, AutoConfig.from_pretrained(str(recipe.model.path)), {})
    return json.dumps(render(recipe, target, size), sort_keys=True)


def placed(what: str) -> Effect:
    """The same numbers, computed by another engine: `what` of `Seen.built` differs."""

    def check(straight: Seen, resumed: Seen, name: str) -> None:
        same(straight, resumed)
        assert straight.built[what] != resumed.built[what]

    return check


def measured(measure: Callable[[Seen], Any], before: Any, now: Any) -> Effect:
    """`measure` tells `before` of the straight run and `now` of the resumed one; the numbers are the same."""

    def check(straight: Seen, resumed: Seen, name: str) -> None:
        assert (measure(straight), measure(resumed)) == (before, now)

    return check


def other_evaluations(straight: Seen, resumed: Seen, name: str) -> None:
    bits(straight, resumed)
    assert resumed.evaluations[3]["loss"] != pytest.approx(straight.evaluations[3]["loss"], rel=1e-4)


def watched(seen: Seen) -> tuple[str, int]:
    """The metric, and the step of the best so far."""
    watch = seen.run(STEPS)["watch"]
    return watch["owner"]["metric"], watch["best_step"]


def samples(seen: Seen) -> list[tuple[str, int]]:
    """(prompt, length of the answer in tokens) of what was generated at the end."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(seen.recipe.model.path)
    found = [line["sample"] for line in seen.lines if "sample" in line and line["step"] == STEPS]
    return [(sample["prompt"], len(tokenizer(sample["answer"])["input_ids"])) for sample in found]


def other_prompt(straight: Seen, resumed: Seen, name: str) -> None:
    bits(straight, resumed)
    assert [prompt for prompt, _ in samples(straight)] == ["what is left?"]
    assert [prompt for prompt, _ in samples(resumed)] == [resumed.recipe.task.sample_prompt]


def more_tokens(straight: Seen, resumed: Seen, name: str) -> None:
    most = straight.recipe.task.sample_tokens
    assert samples(straight)[0][1] <= most < samples(resumed)[0][1] <= resumed.recipe.task.sample_tokens


def exported(seen: Seen) -> str | None:
    from safetensors.torch import load_file

    file = seen.folder / "export" / "model.safetensors"
    return str(next(iter(load_file(file).values())).dtype) if file.exists() else None


def events(seen: Seen) -> int:
    """TensorBoard's files."""
    return len(list(seen.folder.rglob("events.out.tfevents.*")))


def projects(seen: Seen) -> list[list[Any]]:
    """[project, step] of what the tracker got after the half in its newest run."""
    file = seen.folder / "trackio.json"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def goes_to(project: str | None) -> Effect:
    def check(straight: Seen, resumed: Seen, name: str) -> None:
        bits(straight, resumed)
        assert projects(resumed)[-2:] == [[project, STEPS], [project, STEPS]]
        assert [project, STEPS] not in projects(straight)

    return check


@dataclass(frozen=True)
class Case:
    """Fields changed after step 2 of one of RUNS, and what must come of each."""

    run: str
    effects: dict[str, tuple[Any, Effect]]
    """Field -> (new value, what it does): one or, where each can be told from the others, several."""
    also: dict[str, Any] = field(default_factory=dict)
    """What must change with it."""
    ranks: int = 1

    def changed(self) -> dict[str, Any]:
        return RUNS[self.run] | self.also | {name: now for name, (now, _) in self.effects.items()}


scales = partial(measured, lambda seen: seen.of("loss_scale"))
kept = partial(measured, lambda seen: seen.kept)
CASES = [
    Case("plain", {"model.dropout": (0.5, loss)}),
    Case("plain", {"task.label_smoothing": (0.25, loss)}),
    Case("plain", {"task.neftune_alpha": (8.0, loss)}),
    Case("plain", {
        "optimizer.learning_rate": (2 * PEAK, as_adamw), "optimizer.weight_decay": (0.5, as_adamw),
        "optimizer.max_grad_norm": (0.125, as_adamw), "optimizer.betas": ((0.5, 0.75), as_adamw),
        "optimizer.eps": (0.25, as_adamw)}),
    Case("plain", {"optimizer.ema_decay": (0.5, other_evaluations)}),
    Case("sgd_momentum", {"optimizer.nesterov": (True, weights)}),
    Case("sgd_momentum", {"optimizer.dampening": (0.5, weights)}),
    Case("rmsprop", {"optimizer.alpha": (0.5, weights)}),
    Case("adagrad", {"optimizer.lr_decay": (0.5, weights)}),
    Case("muon", {"optimizer.adam_learning_rate": (0.5, weights)}),
    Case("plain", {"schedule.type": ("cosine", rates), "schedule.warmup_steps": (1, rates),
                   "schedule.min_ratio": (0.25, rates), "optimizer.learning_rate": (2 * PEAK, rates), "steps": (6, rates)}),
    Case("plain", {"schedule.decay_steps": (3, rates)}, {"schedule.type": "warmup_stable_decay"}),
    Case("plain", {"schedule.power": (2.0, rates)}, {"schedule.type": "polynomial"}),
    Case("plain", {"schedule.gamma": (0.25, rates), "schedule.step_size": (2, rates)}, {"schedule.type": "step"}),
    Case("plain", {"schedule.milestones": ((1, 3), rates)}, {"schedule.type": "multi_step"}),
    Case("plain", {"schedule.peak_fraction": (0.875, rates), "schedule.start_ratio": (0.5, rates)}, {"schedule.type": "one_cycle"}),
    Case("plain", {"epochs": (2.0, rates)}, {"steps": None}),
    Case("plain", {"precision.dtype": ("bf16", loss)}),
    Case("bf16", {"precision.accumulation_dtype": ("bf16", weights)}),
    Case("bf16", {"precision.communication_dtype": ("bf16", weights)}, ranks=2),
    Case("bf16", {"precision.master_dtype": ("bf16", weights), "precision.state_dtype": ("bf16", weights)}, {"precision.accumulation_dtype": "bf16"}),
    Case("fp16", {"precision.initial_scale_power": (10, scales([2**8] * 2, [2**10] * 2))}),
    Case("fp16", {"precision.loss_scale_window": (1, scales([2**8] * 2, [2**8, 2**9]))}),
    Case("overflows", {"precision.hysteresis": (3, scales([2**30, 2**29], [2**30, 2**30]))}),
    Case("overflows", {"precision.min_loss_scale": (2.0**31, scales([2**30, 2**29], [2**31, 2**31]))}, {"precision.hysteresis": 4}),
    Case("plain", {
        "checkpoint.every_steps": (2, kept([1, 2, 3, 4], [1, 2, 4])), "checkpoint.export": (True, measured(exported, None, "torch.bfloat16")),
        "evaluation.max_sequences": (1, other_evaluations), "tracking.tensorboard": (True, measured(events, 0, 1)),
        "tracking.trackers": (("trackio",), goes_to("toolkit"))}),
    Case("full", {
        "checkpoint.keep": (1, kept([1, 2, 3, 4], [4])), "checkpoint.export_dtype": ("fp32", measured(exported, "torch.bfloat16", "torch.float32")),
        "evaluation.every_steps": (2, measured(lambda seen: list(seen.evaluations), [3, 4], [4])),
        "task.sample_prompt": ("left?", other_prompt), "task.sample_tokens": (9, more_tokens), "tracking.project": ("other", goes_to("other"))}),
    Case("still", {
        "checkpoint.keep_best": (True, kept([1, 2, 3, 4], [1, 4])), "schedule.patience": (1, measured(
            lambda seen: seen.run(4)["engine"]["schedule"]["next_rates"][0] / STILL, pytest.approx(0.125), pytest.approx(0.25)))},
        {"checkpoint.keep": 1}),
    Case("still", {"evaluation.metric": ("perplexity", measured(watched, ("loss", 1), ("perplexity", HALF + 1)))},
         {"checkpoint.keep_best": True}),
    Case("still", {"evaluation.early_stopping_patience": (2, kept([1, 2, 3, 4], [1, 2, 3]))}),
    # Said, and the same numbers: what differs is how or where they are computed.
    Case("undropped", {"model.attention": ("eager", placed("attention")), "model.mlp_tiles": (2, placed("forwards")),
                       "batch.micro_size": (2, rendered)}),
    Case("plain", {
        "model.activation_checkpointing": (True, placed("checkpointing")), "parallel.zero_stage": (2, rendered),
        "parallel.offload_optimizer": ("cpu", rendered), "parallel.reduce_bucket_size": (1000, rendered),
        "parallel.overlap_comm": (True, rendered)}, {"optimizer.implementation": "torch"}),
    Case("plain", {
        "parallel.zero_stage": (3, rendered), "parallel.offload_param": ("cpu", rendered),
        "parallel.param_persistence_threshold": (10, rendered)}),
    Case("undropped", {"parallel.pipeline": (2, placed("mesh"))}, ranks=2),
    Case("undropped", {"parallel.tensor": (2, placed("mesh"))}, ranks=2),
    Case("undropped", {"parallel.sequence": (2, placed("mesh"))}, ranks=2),
    # Not even said: they change nothing about the model or what is kept of it.
    Case("plain", {"data.prefetch": (0, bits), "data.workers": (0, bits), "launch.device": ("cpu", bits), "launch.timeout_s": (900, bits),
                   "launch.host_timeout_s": (60, bits), "launch.memory_check": ("off", bits), "note": ("another", bits)}),
]  # fmt: skip
CHANGED = [(case, name) for case in CASES for name in case.effects]

NOTHING_TO_SEE: dict[str, str] = {
    "model.kernels": "fused kernels are for CUDA; a CPU refuses them",
    "model.compile": "compiling takes a CPU half a minute: test_compile holds the curve",
    "model.activation_offload": "moves activations between a GPU and its host; on a CPU they are on the host",
    "optimizer.implementation": "names the kernel of the same update; the kernels are held to torch's in test_optimizers",
    "precision.tf32": "how CUDA multiplies fp32 matrices; a CPU refuses it",
    "parallel.offload_ratio": "moves states between a GPU and its host: test_offload_ratio plays both on a CPU",
    "parallel.nvme_path": "names the disk that offloaded states lie on; the swap files end with the run",
    "parallel.auto": "decided before a rank begins, and recorded as what was decided",
    "batch.auto_micro_size": "decided before a rank begins, and recorded as what was decided",
    "launch.devices": "read where ranks are started and files rendered, never by a rank",
    "launch.hosts": "read where ranks are started and files rendered, never by a rank",
}
"""Fields with nothing to observe in a run on a CPU, and why."""


def test_every_field_that_may_change_is_observed_or_excused() -> None:
    """Made from the table of roles: a new field without an entry fails here."""
    # The runs here are of one task and all its weights; those of other tasks resume in the tests of each.
    kinds = {"task": CausalLM, "tuning": Full}
    names = {*ROLES, *(f"{section}.{field}" for section, kind in kinds.items() for field in kind.model_fields)}
    names -= {"checkpoint.merge"}  # acts with adapters only: test_lora.py
    names -= {"model.batch_norm"}  # acts where there are batch norms: test_images.py
    may_change = {name for name in names if role_of(name) in (Role.SETTING, Role.PLACEMENT, Role.SURROUNDING)}
    observed = {name for _, name in CHANGED}
    assert observed | NOTHING_TO_SEE.keys() == may_change
    assert not observed & NOTHING_TO_SEE.keys()
    for name in NOTHING_TO_SEE:
        assert role_of(name) in (Role.PLACEMENT, Role.SURROUNDING), "a setting must show"


TRACKIO = '''
"""Stands for the service: keeps what it is sent in $TRACKIO_FILE."""
import json, os
config = {}
class Run:
    def __init__(self, project):
        self.project = project
    def log(self, values, step=None):
        with open(os.environ["TRACKIO_FILE"], "a") as file:
            file.write(json.dumps([self.project, step]) + "\\n")
    def finish(self):
        pass
def init(project):
    return Run(project)
'''

Start = tuple[Recipe, str, str | None]
"""(recipe, folder, folder of the run to continue or None)."""


def train_all(rank: int, world_size: int, starts: list[Start], packages: str) -> list[tuple[int, str, dict[str, Any]]]:
    """(exit code, what was said, `look`) of each start, one after the other in this process."""
    import os

    from toolkit.engine import process
    from toolkit.train import run
    from toolkit.train.run import RunOptions, train

    sys.path.insert(0, packages)
    found, built = [], {}
    build = run.build_engine

    def build_and_look(*arguments: Any) -> Any:
        engine = build(*arguments)
        built.update(look(engine, arguments[2]))
        return engine

    run.build_engine = build_and_look
    for recipe, folder, source in starts:
        built.clear()
        if source is not None and rank == 0:
            rewind(Path(source), Path(folder), HALF)
        if world_size > 1:
            process.agree(lambda: None)
        os.environ["TRACKIO_FILE"] = f"{folder}/trackio.json"
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            try:
                code = train(recipe, RunOptions("test", Path(folder), source and "auto"), keep_group=True)
            except ToolkitError as error:
                code = error.exit_code
                print(error)
        found.append((code, printed.getvalue(), dict(built)))
    return found


def look(engine: Any, config: dict[str, Any]) -> dict[str, Any]:
    """What the engine is made of."""
    from toolkit.engine.groups import inner_optimizer

    model = engine.model
    return {
        "config": json.dumps(config, sort_keys=True),
        "optimizer": type(inner_optimizer(engine.engine)).__name__,
        "attention": getattr(getattr(model, "config", None), "_attn_implementation", None),
        "checkpointing": getattr(model, "is_gradient_checkpointing", None),
        "forwards": Counter(module.forward.__qualname__ for module in model.modules()),
        "mesh": repr(engine.mesh),
    }


def recipe_of(changed: dict[str, Any], places: dict[str, Any]) -> Recipe:
    values: dict[str, Any] = {}
    for name, value in (COMMON | changed).items():
        section, _, last = name.rpartition(".")
        target = values.setdefault(section, {}) if section else values
        target[last] = value.format(**places) if isinstance(value, str) else value
    return Recipe(**values)


@pytest.fixture(scope="module")
def seen(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case | str], Seen]:
    """Make every run and every case, once: one start of one rank, one of two."""
    folder = tmp_path_factory.mktemp("fields")
    (folder / "packages").mkdir()
    (folder / "packages" / "trackio.py").write_text(TRACKIO)
    write_lines(folder / "chats.jsonl", [
        {"messages": [{"role": "user", "content": f"{WORDS[number % 8]} {number}?"},
                      {"role": "assistant", "content": f"{WORDS[(number + 3) % 8]} of {number} " * (1 + number % 3)}]}
        for number in range(40)
    ])  # fmt: skip
    places = {"model": tiny_llama_dir, "tmp": folder}
    runs = {name: changed for name, changed in RUNS.items() if computes_in(changed.get("precision.dtype", "fp32"))}
    starts: dict[int, dict[Any, Start]] = {1: {}, 2: {}}
    for name, changed in runs.items():
        starts[1][name] = (recipe_of(changed, places), str(folder / name), None)
    for index, case in enumerate(CASES):
        if case.run not in runs:
            continue
        source = str(folder / case.run)
        starts[case.ranks][index] = (recipe_of(case.changed(), places), str(folder / f"case{index}"), source)
    found: dict[Any, Seen] = {}
    for ranks, some in starts.items():
        results = run_distributed(train_all, ranks, list(some.values()), str(folder / "packages"), timeout_s=300)[0]
        for (key, (recipe, place, _)), (code, said, built) in zip(some.items(), results, strict=True):
            found[key] = Seen(recipe, Path(place), code, said, built)
    return lambda key: found[key if isinstance(key, str) else CASES.index(key)]


@pytest.mark.parametrize(("case", "name"), CHANGED, ids=lambda value: value if isinstance(value, str) else value.run)
def test_a_changed_field_takes_effect(case: Case, name: str, seen: Callable[[Case | str], Seen]) -> None:
    require_number_format(RUNS[case.run].get("precision.dtype", "fp32"))
    straight, resumed = seen(case.run), seen(case)
    assert straight.code == 0, straight.said
    assert resumed.code == 0, resumed.said
    assert flatten(straight.recipe)[name] != flatten(resumed.recipe)[name]
    assert role_of(name) is Role.SURROUNDING or f"{name} " in resumed.said
    case.effects[name][1](straight, resumed, name)


Settings = dict[str, Any]


def overflow(rank: int, world_size: int, resumes: list[tuple[Settings, Settings, int]]) -> list[list[float]]:
    """Of each (settings before, now, steps): loss scales after a resume where every step overflows, as one did before."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    from toolkit.engine.base import SCALER_STATE, restore_scaler

    common = {"init_scale": 2.0**16, "scale_window": 100, "min_scale": 1.0, "delayed_shift": 2}
    results = []
    for before, now, steps in resumes:
        old, new = (DynamicLossScaler(**{**common, **own}, consecutive_hysteresis=False) for own in (before, now))
        old.update_scale(True)
        stored = {"loss_scaler": {name: getattr(old, name) for name in SCALER_STATE}, "hysteresis": old.delayed_shift}
        restore_scaler(new, stored)
        found = [new.loss_scale / 2.0**16]
        while len(found) < steps:
            new.update_scale(True)
            found.append(new.loss_scale / 2.0**16)
        results.append(found)
    return results


def test_a_loss_scale_goes_on_by_the_new_settings() -> None:
    """By DeepSpeed's own scaler, also where the processor has no fp16."""
    once = {"delayed_shift": 1}
    resumes: list[tuple[Settings, Settings, int]] = [
        ({}, {}, 3), ({}, {"delayed_shift": 3}, 4), (once, {}, 3), (once, once | {"min_scale": 2.0**17}, 1)
    ]  # fmt: skip
    assert run_distributed(overflow, 1, resumes)[0] == [
        [1.0, 0.5, 0.25],  # the first of the two overflows was before
        [1.0, 1.0, 1.0, 0.5],
        [0.5, 0.5, 0.25],
        [2.0],
    ]
