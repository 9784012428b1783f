"""Modules of one's own: loss, gradient and metrics against plain PyTorch, every ZeRO stage, resuming, and the export."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import toolkit
from tests.distributed import run_distributed
from tests.parity.strategies import precision
from tests.parity.topologies import numbers, rewind
from tests.parity.worker import export_weights, global_batches, read_metrics, run_recipe
from tests.processor import require_number_format
from toolkit.errors import DataError
from toolkit.examples.residues import MASK, PADDING, RESIDUES, MaskedResidues
from toolkit.examples.two_tower import TwoTower
from toolkit.models.random_weights import generator_of
from toolkit.recipe import (
    Batch,
    Checkpoint,
    Custom,
    Data,
    Evaluation,
    Model,
    Optimizer,
    Parallel,
    Precision,
    Recipe,
    Schedule,
    Tracking,
)
from toolkit.tasks.custom.task import COUNTED

TASKS: dict[str, Custom] = {
    "two_tower": Custom(
        "toolkit.examples.two_tower:TwoTower", arguments={"users": 12, "items": 40, "width": 8, "negatives": 5}
    ),
    "residues": Custom(
        "toolkit.examples.residues:MaskedResidues",
        arguments={"families": 3, "sequences": 30, "held_out": 7, "width": 16, "depth": 2, "heads": 2},
    ),
}
STEPS = 6


def make_recipe(name: str, **changes: Any) -> Recipe:
    """A few steps in fp32; of the residues two passes."""
    return Recipe(
        model=changes.pop("model", Model()),
        task=TASKS[name],
        data=Data(train="own", evaluation="own", packing=False, prefetch=0),
        batch=Batch(global_size=8, micro_size=2),
        optimizer=Optimizer(learning_rate=1e-2, implementation="torch", weight_decay=0.01, max_grad_norm=0.5),
        schedule=Schedule(type="linear", warmup_steps=2, min_ratio=0.0),
        checkpoint=Checkpoint(every_steps=3, keep=3, export_dtype="fp32"),
        tracking=Tracking(tensorboard=False),
        steps=STEPS,
        **{
            "parallel": Parallel(zero_stage=1),
            "evaluation": Evaluation(every_steps=3),
            "precision": Precision(dtype="fp32"),
        }
        | changes,
    )


def evaluations(folder: Path) -> list[dict[str, float]]:
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [record["eval"] for record in records if "eval" in record]


def drawn(recipe: Recipe, module: Any) -> nn.Module:
    """The module as the run draws it."""
    with generator_of(recipe.seed, ""):
        found: nn.Module = module()
    return found


# The judges: written anew, in the plainest form.


def two_tower_losses(module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    def vector(tower: Any, ids: Tensor) -> Tensor:
        plain = tower.table.weight[ids]
        first, _, last = tower.layers
        inner = plain @ first.weight.T + first.bias
        inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
        result: Tensor = plain + inner @ last.weight.T
        return result

    users, items = vector(module.users, batch["user"]), vector(module.items, batch["choice"])
    scores = (users[:, None] * items).sum(-1) + module.popularity.weight[batch["choice"], 0]  # type: ignore[union-attr, index]
    return torch.logsumexp(scores, 1) - scores[:, 0]


def residue_losses(module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    losses = []
    for ids, labels in zip(batch["ids"], batch["labels"], strict=True):
        length = int((ids != PADDING).sum())  # each sequence by itself, without padding
        logits = module(ids[None, :length])[0]
        said = torch.log_softmax(logits, -1)
        losses.append(sum(-said[place, label] for place, label in enumerate(labels[:length].tolist()) if label != -100))
    return torch.stack(losses)  # type: ignore[arg-type]


JUDGES: dict[str, tuple[Any, Any, Any]] = {
    "two_tower": (lambda: TwoTower(12, 40, 8, 5).build(), two_tower_losses, lambda batch: len(batch["user"])),
    "residues": (
        lambda: MaskedResidues(width=16, depth=2, heads=2).build(),
        residue_losses,
        lambda batch: int((batch["labels"] != -100).sum()),
    ),
}


@pytest.fixture(params=list(TASKS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_loss_and_gradient_are_those_of_plain_torch(name: str, tmp_path: Path) -> None:
    recipe = make_recipe(name)
    inputs, steps = global_batches(recipe, 1)
    build, judge, count = JUDGES[name]
    shell, plain = drawn(recipe, lambda: inputs.task.auto_class.from_config(inputs.model_config)), drawn(recipe, build)
    assert [key for key, _ in shell.named_parameters()] == [key for key, _ in plain.named_parameters()]
    for batch in steps[0]:
        loss = inputs.task.loss(shell, batch, 1.0).total
        wanted = judge(plain, batch).sum()
        assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
        assert inputs.task.count(batch) == count(batch)
        shell.zero_grad()
        plain.zero_grad()
        loss.backward()
        wanted.backward()
        for (key, found), (_, other) in zip(shell.named_parameters(), plain.named_parameters(), strict=True):
            assert found.grad is not None and other.grad is not None, key
            torch.testing.assert_close(found.grad, other.grad, rtol=1e-6, atol=1e-6)


def test_a_run_is_the_loop_that_anybody_would_write(name: str, tmp_path: Path) -> None:
    """The same steps with torch's AdamW: losses, norms and what is exported, which load_custom gives back."""
    recipe = make_recipe(name)
    run_distributed(run_recipe, 1, [(recipe, str(tmp_path / "run"), None)])
    inputs, steps = global_batches(recipe, STEPS)
    build, judge, count = JUDGES[name]
    module, curve = drawn(recipe, build), []
    decayed = [weight for weight in module.parameters() if weight.ndim > 1]
    others = [weight for weight in module.parameters() if weight.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}])
    for record, batches in zip(read_metrics(tmp_path / "run"), steps, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = record["learning_rate"]
        targets = sum(map(count, batches))
        loss = sum(judge(module, batch).sum() for batch in batches) / targets
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(module.parameters(), 0.5)
        optimizer.step()
        curve.append((loss.item(), norm.item()))
        assert (record["loss"], record["grad_norm"]) == pytest.approx(curve[-1], rel=1e-5)
    assert curve[-1][0] < curve[0][0]
    loaded, weights = toolkit.load_custom(tmp_path / "run" / "export"), dict(module.named_parameters())
    assert type(loaded) is type(module) and not loaded.training
    assert (
        {key for key, _ in loaded.named_parameters()}
        == weights.keys()
        == export_weights(tmp_path / "run" / "export").keys()
    )
    for key, weight in loaded.named_parameters():
        torch.testing.assert_close(weight, weights[key], rtol=1e-4, atol=1e-5)
    store, task = inputs.held_out, inputs.task
    with torch.no_grad():
        sums = task.evaluate(loaded, task.collate([[_transformed(task, store, index)] for index in range(len(store))]))
    assert task.metrics(sums) == pytest.approx(evaluations(tmp_path / "run")[-1], rel=1e-5)


def _transformed(task: Any, store: Any, index: int) -> dict[str, np.ndarray[Any, Any]]:
    from toolkit.data.drawing import drawing

    with drawing(task, 0, is_trained=False) as draw:
        [[[found]]] = draw.of([[((0, 0, index), lambda: store[index])]], [[0]])
    return found  # type: ignore[no-any-return]


def test_metrics_of_a_recommender_are_ranks_counted_by_hand(tmp_path: Path) -> None:
    recipe = make_recipe("two_tower")
    inputs, _ = global_batches(recipe, 1)
    module = drawn(recipe, JUDGES["two_tower"][0])
    task: TwoTower = inputs.task.own
    rows = task.rows("test")
    recalls, gains = [], []
    with torch.no_grad():
        for row in rows:
            scores = module(torch.tensor([row["user"]]), torch.arange(task.items))[0].tolist()
            better = [
                item for item, score in enumerate(scores) if item not in row["seen"] and score > scores[row["item"]]
            ]
            recalls.append(len(better) < 10)
            gains.append(1 / np.log2(len(better) + 2) if len(better) < 10 else 0.0)
        batch = inputs.task.collate([[_transformed(inputs.task, inputs.held_out, index)] for index in range(len(rows))])
        found = inputs.task.metrics(inputs.task.evaluate(module, batch))
    assert 0 < sum(recalls) < len(recalls)
    assert found["recall_at_10"] == pytest.approx(np.mean(recalls), rel=1e-6)
    assert found["ndcg_at_10"] == pytest.approx(np.mean(gains), rel=1e-6)


def test_metrics_of_residues_are_counted_by_hand(tmp_path: Path) -> None:
    recipe = make_recipe("residues")
    inputs, _ = global_batches(recipe, 1)
    module, store = drawn(recipe, JUDGES["residues"][0]), inputs.held_out
    right, losses = [], []
    with torch.no_grad():
        examples = [_transformed(inputs.task, store, index) for index in range(len(store))]
        for number, example in enumerate(examples):
            text = MaskedResidues(families=3, held_out=7).rows("test")[number]["sequence"]
            hidden = [place for place, label in enumerate(example["labels"]) if label != -100]
            assert len(hidden) == round(0.15 * len(text)) and {example["ids"][place] for place in hidden} == {MASK}
            logits = module(torch.from_numpy(example["ids"])[None])[0]
            for place in hidden:
                said = torch.log_softmax(logits[place], -1)
                losses.append(-float(said[RESIDUES.index(text[place])]))
                right.append(RESIDUES[int(said.argmax())] == text[place])
        found = inputs.task.metrics(inputs.task.evaluate(module, inputs.task.collate([[one] for one in examples])))
    assert found == pytest.approx(
        {"loss": np.mean(losses), "perplexity": np.exp(np.mean(losses)), "accuracy": np.mean(right)}, rel=1e-5
    )


STRATEGIES = {
    **{f"zero{stage}": Parallel(zero_stage=stage) for stage in (1, 2, 3)},
    "zero2_offload": Parallel(zero_stage=2, offload_optimizer="cpu"),
    "zero3_offload": Parallel(zero_stage=3, offload_optimizer="cpu", offload_param="cpu"),
}


def test_every_stage_on_two_ranks_is_one_process(name: str, tmp_path: Path) -> None:
    run_distributed(run_recipe, 1, [(make_recipe(name), str(tmp_path / "alone"), None)])
    runs = [(make_recipe(name, parallel=parallel), str(tmp_path / kind), None) for kind, parallel in STRATEGIES.items()]
    run_distributed(run_recipe, 2, runs)
    wanted, exported = read_metrics(tmp_path / "alone"), export_weights(tmp_path / "alone" / "export")
    for kind in STRATEGIES:
        folder = tmp_path / kind
        found = read_metrics(folder)
        for key in ("loss", "grad_norm", "targets"):
            assert [record[key] for record in found] == pytest.approx([record[key] for record in wanted], rel=1e-5)
        for measured, other in zip(evaluations(folder), evaluations(tmp_path / "alone"), strict=True):
            assert measured == pytest.approx(other, rel=1e-5)
        for key, weight in export_weights(folder / "export").items():
            torch.testing.assert_close(weight, exported[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_sixteen_bits(name: str, dtype: str, tmp_path: Path) -> None:
    require_number_format(dtype)
    formats = {"fp32": Precision(dtype="fp32"), dtype: precision(dtype)}
    run_distributed(
        run_recipe,
        2,
        [(make_recipe(name, precision=chosen), str(tmp_path / key), None) for key, chosen in formats.items()],
    )
    losses = [[record["loss"] for record in read_metrics(tmp_path / key)] for key in formats]
    assert losses[1] == pytest.approx(losses[0], rel=0.02) and losses[0] != losses[1]


def test_a_resumed_run_is_the_unbroken_one(name: str, tmp_path: Path) -> None:
    """In the middle of a pass, on another number of ranks too: what is hidden or drawn goes on where it was."""
    recipe = make_recipe(name)
    run_distributed(run_recipe, 2, [(recipe, str(tmp_path / "straight"), None)])
    again, alone = (rewind(tmp_path / "straight", tmp_path / folder, 3) for folder in ("again", "alone"))
    run_distributed(run_recipe, 2, [(recipe, str(again), "auto")])
    run_distributed(run_recipe, 1, [(recipe, str(alone), "auto")])
    straight = read_metrics(tmp_path / "straight")
    assert numbers(read_metrics(again)) == numbers(straight)
    for found, wanted in zip(numbers(read_metrics(alone)), numbers(straight), strict=True):
        assert found == pytest.approx(wanted, rel=1e-5)


def test_a_run_begins_with_the_weights_of_an_export(tmp_path: Path) -> None:
    run_distributed(run_recipe, 1, [(make_recipe("residues"), str(tmp_path / "first"), None)])
    export = tmp_path / "first" / "export"
    runs = [
        (make_recipe("residues", model=Model(path=str(export)), parallel=Parallel(zero_stage=stage)), stage)
        for stage in (1, 3)
    ]
    run_distributed(run_recipe, 2, [(recipe, str(tmp_path / f"second{stage}"), None) for recipe, stage in runs])
    for _, stage in runs:
        begun = evaluations(tmp_path / f"second{stage}")[0]
        assert begun == pytest.approx(evaluations(tmp_path / "first")[-1], rel=1e-5)


def test_global_batches_do_not_depend_on_the_world_size(name: str) -> None:
    from toolkit.train.inputs import prepare_inputs
    from toolkit.train.progress import Display

    recipe = make_recipe(name)
    _, steps = global_batches(recipe, STEPS)
    of_ranks = [
        [batch.micro_batches for batch in inputs.batches.iterate(0, STEPS)]
        for rank in range(2)
        for inputs in [prepare_inputs(recipe, rank, 2, Display(is_main=False))]
    ]
    key = "user" if name == "two_tower" else "labels"
    for step, alone in enumerate(steps):
        found = [batch for rank in range(2) for batch in of_ranks[rank][step]]
        assert sorted(map(_content, found)) == sorted(map(_content, alone)) and all(COUNTED in batch for batch in found)
    # Another pass hides and draws anew.
    first, later = (steps[0][0], steps[-1][0])
    assert not torch.equal(first[key], later[key])


PAGE = Path(__file__).parents[2] / "docs" / "adding.md"


def trained_page(rank: int, world_size: int, folder: str) -> list[float]:
    """A short run of the page's recipe on every rank, under ZeRO-3; the held-out errors."""
    from toolkit.recipe.load import load_recipe
    from toolkit.train.run import RunOptions, train

    sys.path.insert(0, folder)
    recipe = load_recipe(Path(folder) / "forecast.py")
    values = dict(recipe) | {"parallel": Parallel(zero_stage=3), "steps": 40, "evaluation": Evaluation(every_steps=20)}
    place = Path(folder) / "runs" / "forecast"
    changes = {"precision": Precision(dtype="fp32"), "tracking": Tracking(tensorboard=False)}
    train(Recipe(**values | changes), RunOptions("forecast", place), keep_group=True)
    return [found["absolute_error"] for found in evaluations(place)]


def test_the_page_has_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file as it stands there, and the line that loads the export."""
    [source] = re.findall(r"```python\n(\"\"\"Forecast.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(source.splitlines()) < 60
    (tmp_path / "forecast.py").write_text(source)
    errors, _ = run_distributed(trained_page, 2, str(tmp_path))
    assert len(errors) == 3 and errors[-1] < 0.6 * errors[0]
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    [line] = re.findall(r"^`(toolkit\.load_custom\(.*?\))`", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    module = eval(line)
    rows = sys.modules["forecast"].Forecast().rows("test")
    past, wanted = (torch.tensor([row[name] for row in rows]) for name in ("past", "next"))
    with torch.no_grad():
        error = float((module(past) - wanted).abs().mean())
    assert error == pytest.approx(errors[-1], rel=0.02)  # exported in bf16
    sys.modules.pop("forecast")


UNSEEDED = """
import numpy as np
from toolkit.examples.two_tower import TwoTower
class Unseeded(TwoTower):
    def rows(self, split):
        rows = list(super().rows(split))
        return [rows[index] for index in np.random.default_rng().permutation(len(rows))]
"""


def refused(rank: int, world_size: int, folder: str) -> str:
    from toolkit.train.run import RunOptions, train

    sys.path.insert(0, folder)
    task = Custom("unseeded:Unseeded", arguments=TASKS["two_tower"].arguments)
    recipe = Recipe(**dict(make_recipe("two_tower")) | {"task": task})
    with pytest.raises(DataError) as caught:
        train(recipe, RunOptions("x", Path(folder) / "run"), keep_group=True)
    return caught.value.what


def test_rows_that_differ_between_processes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "unseeded.py").write_text(UNSEEDED)
    said = run_distributed(refused, 2, str(tmp_path))
    assert said == ["rank 1 has other rows in data.train than rank 0"] * 2


def _content(batch: dict[str, Tensor]) -> str:
    return json.dumps({name: values.tolist() for name, values in sorted(batch.items())})


def test_other_interactions_follow_from_another_seed_alone() -> None:
    one, other = TwoTower(seed=1), TwoTower(seed=2)
    assert one.rows("train") == TwoTower(**asdict(one)).rows("train") != other.rows("train")
    users = {row["user"]: set(row["seen"]) for row in one.rows("test")}
    assert all(row["item"] not in users[row["user"]] for row in one.rows("test"))


CENTRED = """
from dataclasses import dataclass

import torch
from torch import nn

from toolkit.tasks.custom import CustomTask


class Centred(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, values):
        if self.training and torch.is_grad_enabled():
            with torch.no_grad():
                self.mean = self.mean.lerp(values.mean(0), 0.25)
                self.calls += 1
        return self.layer(values - self.mean)[:, 0]


@dataclass
class Centre(CustomTask):
    def build(self):
        return Centred()

    def rows(self, split):
        numbers = torch.arange(48.0).reshape(12, 4) / 8
        return [{"values": (row + 3).tolist(), "wanted": float(row.sum())} for row in numbers]

    def loss(self, model, batch):
        return (model(batch["values"]) - batch["wanted"]) ** 2
"""


def run_beside(rank: int, world_size: int, folder: str, runs: list[tuple[Recipe, str, str | None]]) -> None:
    sys.path.insert(0, folder)
    run_recipe(rank, world_size, runs)


def test_buffers_that_a_module_moves_are_those_of_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Averaged over ranks, resumed, and what the last evaluation was made with."""
    (tmp_path / "centred.py").write_text(CENTRED)
    monkeypatch.syspath_prepend(str(tmp_path))
    values = dict(make_recipe("two_tower")) | {"task": Custom("centred:Centre")}
    run = Recipe(**values | {"batch": Batch(global_size=4, micro_size=2)})
    three = Recipe(**dict(run) | {"parallel": Parallel(zero_stage=3)})
    straight = tmp_path / "straight"
    run_distributed(run_beside, 2, str(tmp_path), [(run, str(straight), None), (three, str(tmp_path / "three"), None)])
    again = rewind(straight, tmp_path / "again", 3)
    run_distributed(run_beside, 2, str(tmp_path), [(run, str(again), "auto")])
    assert numbers(read_metrics(again)) == numbers(read_metrics(straight))
    weights = export_weights(straight / "export")
    assert weights["calls"] == STEPS and float(weights["mean"].min()) > 1
    for folder in (again, tmp_path / "three"):
        for name, value in export_weights(folder / "export").items():
            torch.testing.assert_close(value, weights[name], rtol=1e-5, atol=1e-6)
    module = toolkit.load_custom(straight / "export")
    rows = sys.modules["centred"].Centre().rows("test")
    inputs, wanted = (torch.tensor([row[name] for row in rows]) for name in ("values", "wanted"))
    with torch.no_grad():
        loss = float(((module(inputs) - wanted) ** 2).mean())
    assert loss == pytest.approx(evaluations(straight)[-1]["loss"], rel=1e-5)
    sys.modules.pop("centred")


BOUNDED = """
from dataclasses import dataclass

import torch
from torch import nn

from toolkit.tasks.custom import CustomTask


@dataclass
class Bounded(CustomTask):
    def build(self):
        bounded = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 6))
        return nn.Sequential(bounded, nn.Tanh(), nn.Linear(6, 1))

    def rows(self, split):
        return [{"values": row.tolist(), "wanted": float(row.sum())} for row in torch.arange(96.0).reshape(24, 4) / 40]

    def loss(self, model, batch):
        return (model(batch["values"])[:, 0] - batch["wanted"]) ** 2
"""


def test_buffers_that_are_computed_from_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A spectral norm's vectors: drawn with the weights, moved by each forward pass, exported, under every stage."""
    (tmp_path / "bounded.py").write_text(BOUNDED)
    monkeypatch.syspath_prepend(str(tmp_path))
    values = dict(make_recipe("two_tower")) | {"task": Custom("bounded:Bounded")}
    # One forward pass in each step on every number of ranks: each of them moves the vectors.
    alone = Recipe(**values | {"batch": Batch(global_size=8, micro_size=8)})
    _, steps = global_batches(alone, STEPS)
    module = drawn(alone, lambda: sys.modules["bounded"].Bounded().build())
    optimizer = torch.optim.AdamW(module.parameters(), weight_decay=0.0)
    runs = [Recipe(**values | {"batch": Batch(global_size=8, micro_size=4), "parallel": Parallel(zero_stage=stage),
                               "optimizer": Optimizer(learning_rate=1e-2, implementation="torch", weight_decay=0.0, max_grad_norm=0.5)})
            for stage in (1, 2, 3)]  # fmt: skip
    run_distributed(
        run_beside, 2, str(tmp_path), [(run, str(tmp_path / f"zero{run.parallel.zero_stage}"), None) for run in runs]
    )
    rates = [record["learning_rate"] for record in read_metrics(tmp_path / "zero1")]
    curve = []
    for rate, [batch] in zip(rates, steps, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        loss = ((module(batch["values"])[:, 0] - batch["wanted"]) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        curve.append((loss.item(), nn.utils.clip_grad_norm_(module.parameters(), 0.5).item()))
        optimizer.step()
    for stage in (1, 2, 3):
        found = [(record["loss"], record["grad_norm"]) for record in read_metrics(tmp_path / f"zero{stage}")]
        assert np.allclose(found, curve, rtol=1e-5, atol=0)
        loaded, wanted = toolkit.load_custom(tmp_path / f"zero{stage}" / "export"), module.state_dict()
        for key, value in loaded.state_dict().items():
            torch.testing.assert_close(value, wanted[key], rtol=1e-4, atol=1e-5)
    sys.modules.pop("bounded")
