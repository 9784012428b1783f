"""Loss curves of every kind of head, cut into stages, tensors and sequences, against plain PyTorch in one process."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.architectures import tiny_config
from tests.distributed import run_distributed
from tests.parity.strategies import recipe
from tests.tasks import ANSWERS, KINDS, LENGTHS, Batch, Kind, count_of
from toolkit.ds_config.render import render
from toolkit.engine import device, process
from toolkit.engine.protocol import Engine
from toolkit.models.attention import DOCUMENTS, tell_documents
from toolkit.models.attention_choice import choose_attention
from toolkit.models.random_weights import RandomWeights
from toolkit.models.ties import base_first
from toolkit.parity.report import deviation
from toolkit.parity.strategies import STRATEGIES
from toolkit.recipe import Batch as BatchSection
from toolkit.recipe import Model, Optimizer, Recipe, Schedule
from toolkit.recipe.mesh import model_ranks
from toolkit.tasks.base import Loss, Sums, Task
from toolkit.tasks.sequence_parts import part_of
from toolkit.train.build import build_engine
from toolkit.train.inputs import Inputs
from toolkit.train.progress import Display
from toolkit.train.run_folder import RunFolder

Case = tuple[str, str, str]
"""Task, model_type and strategy."""

TWO_RANKS: list[Case] = [
    *[("masked_lm", model, cut) for model in ("bert", "modernbert") for cut in ("pp2", "tp2", "sp2")],
    ("masked_lm", "xlm-roberta", "pp2"),
    ("masked_lm", "deberta-v2", "tp2"),
    *[("token_classification", "llama", cut) for cut in ("pp2", "tp2", "sp2")],
    ("token_classification", "distilbert", "pp2"),
    ("sequence_classification", "qwen3", "pp2"),
    ("sequence_classification", "gpt2", "tp2"),
    *[("question_answering", "roberta", cut) for cut in ("pp2", "tp2")],
    ("seq2seq", "t5", "tp2"),
    ("seq2seq", "bart", "tp2"),
]
FOUR_RANKS: list[Case] = [("masked_lm", "bert", "pp2_tp2"), ("token_classification", "llama", "pp2_dp2")]

STEPS, MICRO_BATCHES = 3, 4
RATE, LARGEST_NORM = 1e-3, 0.1
SEED = 3
TOLERANCE = 1e-5


class Minimal(Task):
    """A kind of head as a task; its batches are given."""

    answers = frozenset(ANSWERS)

    def __init__(self, kind: Kind) -> None:
        self.processor = None
        self.kind = kind
        self.auto_class = kind.auto_class  # type: ignore[misc]

    def encode(self, row: Any) -> Any:
        raise NotImplementedError

    def collate(self, sequences: Any) -> Batch:
        raise NotImplementedError

    def split(self, batch: Batch, index: int, count: int) -> Batch:
        return part_of(batch, index, count)

    def count(self, batch: Batch) -> int:
        return count_of(batch)

    def loss(self, model: nn.Module, batch: Batch, gradient_scale: float) -> Loss:
        return Loss(self.kind.loss(model, batch))

    def evaluate(self, model: nn.Module, batch: Batch) -> Sums:
        return {"loss": float(self.kind.loss(model, batch)), "targets": float(count_of(batch))}

    def metrics(self, sums: Any) -> dict[str, float]:
        return {"loss": sums["loss"] / sums["targets"]}


def batches_of(kind: Kind, step: int) -> list[Batch]:
    """The micro-batches of one step."""
    return [kind.batch(seed=10 * step + index) for index in range(MICRO_BATCHES)]


def config_of(task: str, model_type: str) -> Any:
    config = tiny_config(model_type, **KINDS[task].fields)
    config._attn_implementation = choose_attention(KINDS[task].auto_class, config, "auto")
    return config


def problem(case: Case, tokenizer: str) -> Recipe:
    """Random weights, clipping that bites, no decay."""
    task, model_type, strategy = case
    return recipe(
        task,
        Path(tokenizer),
        Path("unread.jsonl"),
        model=Model(architecture=model_type, weights="random", tokenizer=tokenizer),
        optimizer=Optimizer(learning_rate=RATE, weight_decay=0.0, max_grad_norm=LARGEST_NORM, implementation="torch"),
        schedule=Schedule(type="constant", warmup_steps=0),
        batch=BatchSection(global_size=MICRO_BATCHES * len(LENGTHS), micro_size=len(LENGTHS), sequence_length=16),
        parallel=STRATEGIES[strategy].parallel,
        steps=STEPS,
        seed=SEED,
    )


Curve = tuple[list[float], list[float], float]
"""Losses and norms of each step, and the loss afterwards."""


def whole(case: Case) -> nn.Module:
    """The model with the weights that a run draws."""
    kind, config = KINDS[case[0]], config_of(*case[:2])
    model: nn.Module = kind.auto_class.from_config(config, dtype=torch.float32).train()
    base_first(model)
    drawn = RandomWeights(kind.auto_class, config, SEED)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(drawn.parameter(name))
    return model


def plain_curve(case: Case) -> Curve:
    """AdamW on the whole model, all micro-batches at once."""
    kind, model = KINDS[case[0]], whole(case)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    losses, norms = [], []
    for step in range(STEPS):
        batches = batches_of(kind, step)
        loss = torch.stack([kind.loss(model, batch) for batch in batches]).sum() / sum(map(count_of, batches))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), LARGEST_NORM)))
        optimizer.step()
        losses.append(float(loss.detach()))
    held_out = batches_of(kind, STEPS)
    with torch.no_grad():
        after = sum(float(kind.loss(model.eval(), batch)) for batch in held_out) / sum(map(count_of, held_out))
    return losses, norms, after


def curves(rank: int, world_size: int, cases: list[Case], tokenizer: str, folder: str) -> list[Curve]:
    """Each case trained by the product's engines, from weights to steps and an evaluation."""
    found = []
    for index, case in enumerate(cases):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            found.append(curve(case, tokenizer, Path(folder) / str(index)))
    return found


def built(run: Recipe, task: Task, config: Any, folder: Path) -> tuple[Engine, process.Process]:
    """The engine of a run whose data are not read."""
    me = process.from_environment(run.parallel)
    target = device.target(me.world_size, wanted="cpu", model_ranks=model_ranks(run.parallel))
    rendered = render(run, target)
    process.start(me, timeout_s=60)
    nothing: Any = None
    inputs = Inputs(task, config, None, "", nothing, None, [], STEPS)
    return build_engine(run, inputs, rendered, me, RunFolder(folder), Display(is_main=False)), me


def curve(case: Case, tokenizer: str, folder: Path) -> Curve:
    task = Minimal(KINDS[case[0]])
    engine, me = built(problem(case, tokenizer), task, config_of(*case[:2]), folder)
    replica, replicas = me.mesh.coordinate(me.rank, "data"), me.mesh.data
    losses, norms = [], []
    for step in range(STEPS):
        mine = batches_of(task.kind, step)[replica::replicas]
        result = engine.train_step(mine, list(range(len(mine))))
        losses.append(result.loss)
        norms.append(result.grad_norm or 0.0)
    sums = engine.evaluate(iter(batches_of(task.kind, STEPS)[replica::replicas]), task.evaluate)
    engine.close()
    return losses, norms, task.metrics(sums)["loss"]


@pytest.mark.parametrize("cases", [TWO_RANKS, FOUR_RANKS], ids=["two-ranks", "four-ranks"])
def test_curves_are_those_of_one_process(cases: list[Case], tiny_bert_dir: Path, tmp_path: Path) -> None:
    """Losses, gradient norms, and a held-out loss after the last step."""
    world_size = STRATEGIES[cases[0][2]].world_size
    found = run_distributed(curves, world_size, cases, str(tiny_bert_dir), str(tmp_path), timeout_s=300)
    assert found[0] == found[-1]
    apart = {}
    for case, (losses, norms, after) in zip(cases, found[0], strict=True):
        wanted_losses, wanted_norms, wanted_after = plain_curve(case)
        assert min(wanted_norms) > 2 * LARGEST_NORM, f"{case}: clipping must bite, {wanted_norms}"
        apart[case] = max(
            deviation(losses, wanted_losses), deviation(norms, wanted_norms), deviation([after], [wanted_after])
        )
    assert {case: value for case, value in apart.items() if not value < TOLERANCE} == {}


def told_apart_without_a_mask(rank: int, world_size: int, tokenizer: str, folder: str) -> tuple[str, float]:
    """BERT in two stages with attention inside each row: the implementation of this rank's stage, and how far the logits
    of the staged model are from the whole model's."""
    case = ("sequence_classification", "bert", "pp2")
    run, kind, config = problem(case, tokenizer), KINDS[case[0]], config_of(*case[:2])
    run = run.model_copy(update={"model": run.model.model_copy(update={"attention": "varlen"})})
    engine, _ = built(run, Minimal(kind), config, Path(folder))
    inputs = {name: values for name, values in kind.batch().items() if name not in ANSWERS}
    found = engine.call(lambda model: model(**tell_documents(model, inputs)).logits)
    with torch.no_grad():
        wanted = whole(case).eval()(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    used = str(engine.model.config._attn_implementation)  # type: ignore[union-attr]
    engine.close()
    return used, float((found - wanted).abs().max() / wanted.abs().max())


def test_stages_tell_documents_apart_without_a_mask(tiny_bert_dir: Path, tmp_path: Path) -> None:
    """All stages change over together, after the last has shown that its head hands the bounds on."""
    for used, apart in run_distributed(told_apart_without_a_mask, 2, str(tiny_bert_dir), str(tmp_path)):
        assert used == DOCUMENTS and apart < TOLERANCE
