"""Mixtures of experts: the balancing loss that a config asks for is transformers' own, in the loss and in the gradient."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed import run_distributed
from tests.parity.strategies import recipe
from tests.parity.worker import global_batches, run_recipe
from tests.tiny import save
from toolkit.errors import InputError
from toolkit.parity.strategies import STRATEGIES, Strategy
from toolkit.recipe import Batch, Data, Evaluation, Model, Optimizer, Parallel, Recipe, Schedule
from toolkit.train.inputs import prepare_inputs
from toolkit.train.progress import Display

COEFFICIENT, STEPS = 0.5, 3
WIDTHS: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "router_aux_loss_coef": COEFFICIENT,
    # Routers with clear preferences: where two experts are nearly equal, rounding decides which one is counted.
    "initializer_range": 0.2,
}
MIXTURES: dict[str, dict[str, Any]] = {
    "olmoe": {"num_experts": 4, "output_router_logits": True},
    "mixtral": {"num_local_experts": 4, "output_router_logits": True},
    # The checkpoint leaves it off, the recipe switches it on.
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 48, "shared_expert_intermediate_size": 48},
}
LAYOUTS = {"zero0": Strategy(1, {"zero_stage": 0}), "zero2": STRATEGIES["zero2"], "zero3": STRATEGIES["zero3"]}
CASES = [(kind, layout) for kind in MIXTURES for layout in LAYOUTS]


@pytest.fixture(scope="module")
def mixtures(tiny_tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Architecture -> a random tiny checkpoint of it."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
    made = {}
    for kind, fields in MIXTURES.items():
        config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **WIDTHS, **fields)
        torch.manual_seed(1)
        made[kind] = save(AutoModelForCausalLM.from_config(config), tokenizer, tmp_path_factory.mktemp(kind))
    return made


def make_recipe(kind: str, model: Path, data: Path, /, **changes: Any) -> Recipe:
    """Plain gradient descent, without clipping, on padded rows, so that nothing hides a wrong gradient or a wrong mask."""
    values: dict[str, Any] = {
        "model": Model(path=str(model), config={"output_router_logits": True}),
        "data": Data(train=str(data), packing=False, prefetch=0, evaluation_examples=8),
        "batch": Batch(global_size=8, micro_size=2, sequence_length=96),
        "optimizer": Optimizer(type="sgd", learning_rate=0.2, max_grad_norm=0.0),
        "schedule": Schedule(type="constant"),
        "evaluation": Evaluation(max_sequences=4),
        "steps": STEPS,
    }
    return recipe("causal_lm", model, data, **values | changes)


@pytest.fixture(scope="module")
def found(mixtures: dict[str, Path], chat_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    """(architecture, layout) -> step records; layout "off" and "recomputed" are OLMoE under zero0."""
    folder, records = tmp_path_factory.mktemp("balanced"), {}
    cases: dict[int, list[tuple[tuple[str, str], Recipe]]] = {1: [], 2: []}
    for kind, layout in CASES:
        run = make_recipe(kind, mixtures[kind], chat_file, parallel=LAYOUTS[layout].parallel)
        cases[LAYOUTS[layout].world_size].append(((kind, layout), run))
    one = {"parallel": LAYOUTS["zero0"].parallel}
    for name, fields in (
        ("off", {"config": {"output_router_logits": False}}),
        ("recomputed", {"activation_checkpointing": True}),
    ):
        model = Model(path=str(mixtures["olmoe"]), **fields)
        cases[1].append((("olmoe", name), make_recipe("olmoe", mixtures["olmoe"], chat_file, model=model, **one)))
    for world_size, some in cases.items():
        runs = [(run, str(folder / "-".join(key)), None) for key, run in some]
        for (key, _), steps in zip(some, run_distributed(run_recipe, world_size, runs)[0], strict=True):
            lines = (folder / "-".join(key) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            held_out = [record["eval"]["loss"] for record in map(json.loads, lines) if "eval" in record]
            records[key] = (steps, held_out)
    return records


@pytest.fixture(scope="module")
def wanted(mixtures: dict[str, Path], chat_file: Path) -> dict[str, list[dict[str, float]]]:
    """What transformers' own forward makes of the same micro-batches, in one process."""
    return {kind: reference(make_recipe(kind, model, chat_file)) for kind, model in mixtures.items()}


def reference(run: Recipe) -> list[dict[str, float]]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(run.model.path), dtype=torch.float32, output_router_logits=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=run.optimizer.learning_rate)
    records = []
    for micro_batches in global_batches(run, STEPS)[1]:
        total = sum(int((batch["targets"] != -100).sum()) for batch in micro_batches)
        record = {"loss": 0.0, "aux_loss": 0.0}
        optimizer.zero_grad()
        for batch in micro_batches:
            # Positions restart where the padding of a row begins.
            real = ((batch["position_ids"] == 0).cumsum(1) == 1).long()
            labels = torch.nn.functional.pad(batch["targets"], (1, 0), value=-100)[:, :-1]
            outputs = model(input_ids=batch["input_ids"], attention_mask=real, labels=labels, use_cache=False)
            share = int((batch["targets"] != -100).sum()) / total
            (outputs.loss * share).backward()
            added = COEFFICIENT * float(outputs.aux_loss.detach())
            record["aux_loss"] += added * share
            record["loss"] += (float(outputs.loss.detach()) - added) * share
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        optimizer.step()
        records.append({**record, "grad_norm": float(norm)})
    return records


@pytest.mark.parametrize(("kind", "layout"), [*CASES, ("olmoe", "recomputed")])
def test_it_is_transformers_own(kind: str, layout: str, found: dict[Any, Any], wanted: dict[str, Any]) -> None:
    steps, _ = found[kind, layout]
    assert len(steps) == STEPS
    for ours, theirs in zip(steps, wanted[kind], strict=True):
        for name in ("loss", "aux_loss", "grad_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-6), (name, ours["step"])


def test_it_moves_the_weights_and_not_what_is_compared(found: dict[Any, Any]) -> None:
    """loss and the held-out loss stay token losses: before the first update they are those of a run without it."""
    (steps, held_out), (plain, plain_held_out) = found["olmoe", "zero0"], found["olmoe", "off"]
    assert "aux_loss" not in plain[0] and steps[0]["aux_loss"] > 0.4
    assert steps[0]["loss"] == pytest.approx(plain[0]["loss"], rel=1e-6)
    assert held_out[0] == pytest.approx(plain_held_out[0], rel=1e-6)
    assert abs(steps[-1]["loss"] - plain[-1]["loss"]) > 1e-5


def say(run: Recipe, capsys: pytest.CaptureFixture[str]) -> str:
    prepare_inputs(run, 0, 1, Display(is_main=True))
    return "".join(line for line in capsys.readouterr().out.splitlines(keepends=True) if line.startswith("experts"))


def test_what_is_said(
    mixtures: dict[str, Path], tiny_llama_dir: Path, chat_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    off = Model(path=str(mixtures["qwen2_moe"]))
    assert say(make_recipe("qwen2_moe", mixtures["qwen2_moe"], chat_file), capsys) == (
        "experts: the routers' balancing loss is trained too, x 0.5 (aux_loss in metrics.jsonl)\n"
    )
    assert say(make_recipe("qwen2_moe", mixtures["qwen2_moe"], chat_file, model=off), capsys) == (
        "experts: no balancing loss is trained, as the model's config says; "
        "model.config={'output_router_logits': True} adds it\n"
    )
    assert say(make_recipe("llama", tiny_llama_dir, chat_file, model=Model(path=str(tiny_llama_dir))), capsys) == ""


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        (
            {"parallel": Parallel(zero_stage=1, pipeline=2)},
            "olmoe cannot be cut into pipeline stages: its configuration has no pipeline plan",
        ),
        ({"parallel": Parallel(tensor=2)}, "output_router_logits=True in the model's config with parallel.tensor=2"),
        (
            {"parallel": Parallel(sequence=2)},
            "output_router_logits=True in the model's config with parallel.sequence=2",
        ),
        ({"model": {"mlp_tiles": 2}}, "output_router_logits=True in the model's config with model.mlp_tiles=2"),
        (
            {"model": {"config": {"output_router_logits": False, "router_aux_loss_coef": 5.0}}},
            "model.config['router_aux_loss_coef']=5.0 with output_router_logits=False",
        ),
    ],
)
def test_where_it_cannot_be_right_it_is_refused(
    changes: dict[str, Any], what: str, mixtures: dict[str, Path], chat_file: Path
) -> None:
    if "model" in changes:
        changes = {"model": Model(path=str(mixtures["olmoe"]), **changes["model"])}
    with pytest.raises(InputError) as caught:
        prepare_inputs(make_recipe("olmoe", mixtures["olmoe"], chat_file, **changes), 0, 1, Display(is_main=False))
    assert caught.value.what == what
