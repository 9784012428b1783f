"""`toolkit plan`: memory by DeepSpeed's arithmetic and a trace, time, the choice, and what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from toolkit.cli.verbs import main
from toolkit.ds_config.render import render
from toolkit.ds_config.target import Target
from toolkit.engine.out_of_memory import is_out_of_memory
from toolkit.errors import InputError, LaunchError, RecipeError, RunFailed
from toolkit.models.flops import count_model_flops
from toolkit.plan import calibration
from toolkit.plan.calibration import Finished, fit
from toolkit.plan.choice import Chooser, as_flags, cheapest_changes, describe, runner_up, why_slower
from toolkit.plan.depth import Depths
from toolkit.plan.devices import DEVICES, find_device
from toolkit.plan.inventory import Inventory, Parameter
from toolkit.plan.memory import GIB
from toolkit.plan.page import page
from toolkit.plan.speed import Place, Rates
from toolkit.plan.start import resolved, subject_or_refused
from toolkit.plan.states import Keeper, count_states, keeper_of
from toolkit.plan.strategy import Planned, plan_strategy, target_of
from toolkit.plan.subject import way_of
from toolkit.plan.work import NOTHING, work_of
from toolkit.recipe import Batch, Checkpoint, Data, LoRA, Model, Optimizer, Parallel, Precision, Recipe
from toolkit.recipe.mesh import Mesh
from toolkit.train.planned import RunPlan, memory_explained
from toolkit.train.progress import Display

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "pad_token_id": 0,
}
LLAMA_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "pad_token_id": 0,
}


def recipe(config: dict[str, Any], /, length: int = 256, global_size: int = 16, **sections: Any) -> Recipe:
    model = {"architecture": "llama", "weights": "random", "config": config, "tokenizer": "none"}
    given: dict[str, Any] = {
        "model": Model(**model, **sections.pop("model", {})),
        "data": Data(train="rows.jsonl"),
        "batch": Batch(global_size=global_size, micro_size=sections.pop("micro", 1), sequence_length=length),
        "precision": Precision(dtype="bf16"),
        "checkpoint": Checkpoint(export=False),
        "steps": 100,
        **sections,
    }
    return Recipe(**given)


def planned(given: Recipe, world_size: int, device: str = "h100") -> Planned:
    place = Place(find_device(device), 8)
    return plan_strategy(subject_or_refused(given), given, target_of(given, world_size, place), place)


@pytest.mark.parametrize(
    ("parallel", "dtype", "sums", "keeper"),
    [
        ({"zero_stage": 0}, "fp32", "fp32", Keeper.PLAIN),
        ({"zero_stage": 1}, "fp32", "fp32", Keeper.SHARED),
        ({"zero_stage": 1}, "bf16", "fp32", Keeper.BF16),
        ({"zero_stage": 1}, "bf16", "bf16", Keeper.SHARED),
        ({"zero_stage": 1, "offload_optimizer": "cpu"}, "bf16", "fp32", Keeper.SHARED),
        ({"zero_stage": 2}, "bf16", "fp32", Keeper.SHARED),
        ({"zero_stage": 3}, "bf16", "fp32", Keeper.PARTITIONED),
    ],
)
def test_who_keeps_the_states(parallel: dict[str, Any], dtype: Any, sums: Any, keeper: Keeper) -> None:
    given = recipe(SMALL, parallel=Parallel(**parallel), precision=Precision(dtype=dtype, accumulation_dtype=sums))
    assert keeper_of(render(given, Target(2, "cpu"))) is keeper


def test_states_of_stage_2_are_those_of_the_paper() -> None:
    """Rajbhandari et al. 2019, figure 1: 2 bytes of weights, and (4 + 8) / N of masters and moments for each number."""
    inventory = Inventory((Parameter("w", 8_000_000, True, True), Parameter("b", 1_000, False, True)), 0)
    config = render(recipe(SMALL, parallel=Parallel(zero_stage=2)), Target(8, "cuda"))
    steady = count_states(inventory, config, 8, "cuda").steady.device
    numbers = 8_001_000
    assert steady["parameters"] == pytest.approx(2 * numbers, rel=1e-4)
    assert steady["master weights"] == pytest.approx(4 * numbers / 8, rel=1e-4)
    assert steady["optimizer states"] == pytest.approx(8 * numbers / 8, rel=1e-4)


def test_offloaded_states_lie_on_the_host_and_pinned_memory_is_rounded_up() -> None:
    inventory = Inventory((Parameter("w", 3_000_000, True, True),), 0)
    given = recipe(SMALL, parallel=Parallel(zero_stage=2, offload_optimizer="cpu"))
    held = count_states(inventory, render(given, Target(2, "cuda")), 2, "cuda").steady
    assert "master weights" not in held.device
    assert held.host["master weights"] == 4 * 1_500_000
    # 6 MB take 8: torch's allocator of page-locked memory gives powers of two.
    assert held.rounding >= 2 * (2**23 - 6_000_000)


def test_adapters_are_what_has_states() -> None:
    whole = planned(recipe(SMALL, parallel=Parallel(zero_stage=2)), 2)
    beside = planned(recipe(SMALL, parallel=Parallel(zero_stage=2), tuning=LoRA(rank=4)), 2)
    assert beside.trained < 0.2 * whole.trained < whole.total < beside.total
    assert beside.memory.device["optimizer states"] < 0.2 * whole.memory.device["optimizer states"]


def test_a_deep_model_costs_what_its_layers_cost() -> None:
    """Twice as many layers: the plan of 24 is that of 12 and as much again, without tracing 24."""
    sizes = {
        depth: planned(recipe({**SMALL, "num_hidden_layers": depth}, parallel=Parallel(zero_stage=1)), 1).memory
        for depth in (6, 12, 24)
    }
    activations = {depth: memory.device.get("activations", 0) for depth, memory in sizes.items()}
    each = (activations[12] - activations[6]) / 6
    assert activations[24] == pytest.approx(activations[12] + 12 * each, rel=0.01)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_three_layers_tell_what_all_layers_hold(tied: bool, checkpointing: bool) -> None:
    """Tied to a head of a large vocabulary: with three layers the embedding's gradients are the fullest moment, with twelve
    it is the turn from forward to backward pass."""
    config = {**SMALL, "num_hidden_layers": 12, "vocab_size": 20_000, "tie_word_embeddings": tied}
    given = recipe(config, model={"activation_checkpointing": checkpointing})
    subject = subject_or_refused(given)
    subject.target_share = 0.02
    mesh, way = Mesh(1), way_of(given, torch.bfloat16, "cpu", has_head=True)
    traced = subject.trace(given, mesh, way)
    carried, shallow = traced.whole, traced.base
    subject.depths, subject._traces = Depths({}), {}
    whole = subject.trace(given, mesh, way).whole
    for part in ("turn", "tail"):
        assert getattr(carried, part).live == pytest.approx(getattr(whole, part).live, rel=1e-3), part
    if tied and not checkpointing:
        assert whole.turn.live > 1.5 * whole.tail.live and shallow.turn.live < shallow.tail.live
    assert carried.kept == pytest.approx(whole.kept, rel=1e-3)
    assert carried.work.flops == pytest.approx(whole.work.flops, rel=1e-3)


EXPERTS = {**SMALL, "moe_intermediate_size": 32, "num_experts": 8, "num_experts_per_tok": 2, "decoder_sparse_step": 1}


@pytest.mark.parametrize(("architecture", "config"), [("llama", SMALL), ("qwen3_moe", EXPERTS)])
def test_work_is_what_a_run_reports_as_its_flops(architecture: str, config: dict[str, Any]) -> None:
    """Two ways to the same number: operators of a whole micro-batch counted, and a formula fitted to forward passes."""
    given = recipe({}, data=Data(train="rows.jsonl", packing=False))
    model = Model(architecture=architecture, weights="random", config=config, tokenizer="none")
    given = given.model_copy(update={"model": model})
    subject = subject_or_refused(given)
    flops = count_model_flops(subject.task.auto_class, subject.config, 256, is_causal=True)
    lengths = np.full(16, 256)
    attention = sum(each * pairs.count(lengths) for pairs, each in flops.per_pair.items())
    # Flash attention multiplies the scores once more in its backward pass: five products where the formula has four.
    step = flops.of_step(lengths, 16 * 255) + 0.5 * attention
    assert planned(given, 1).model_flops == pytest.approx(step, rel=0.01)


def test_what_moves_nothing_asks_for_nothing() -> None:
    rows, index = torch.zeros(1000, 8), torch.zeros(4, dtype=torch.int64)
    aten = torch.ops.aten
    assert work_of(aten.view.default, (rows, [8, 1000]), {}, rows) is NOTHING
    assert work_of(aten.empty_like.default, (rows,), {}, rows) is NOTHING
    assert work_of(aten.add.Tensor, (rows, rows), {}, rows).traffic == 3 * 4 * 8000
    # Of a table only the rows are read that are asked for.
    assert work_of(aten.embedding.default, (rows, index), {}, rows[index]).traffic == 4 * 8 + 2 * 4 * 4 * 8
    sums = work_of(
        aten.addmm_.default, (torch.zeros(2, 5), torch.zeros(2, 3), torch.zeros(3, 5)), {}, torch.zeros(2, 5)
    )
    assert (sums.flops, sums.traffic) == (2 * 2 * 3 * 5, 0)


def test_checkpointing_tiles_and_offload_save_activations() -> None:
    long, deep = {"length": 4096, "parallel": Parallel(zero_stage=2)}, {**SMALL, "num_hidden_layers": 64}
    plain = planned(recipe(deep, **long), 1).memory.device["activations"]
    again = planned(recipe(deep, model={"activation_checkpointing": True}, **long), 1).memory.device["activations"]
    moved = planned(
        recipe(deep, model={"activation_checkpointing": True, "activation_offload": True}, **long), 1
    ).memory
    assert again < 0.6 * plain
    assert moved.device["activations"] < again
    assert moved.host["activations"] > 0


@pytest.mark.parametrize(
    "parallel",
    [{"tensor": 2}, {"sequence": 2}, {"pipeline": 2}, {"pipeline": 2, "tensor": 2}],
    ids=lambda parallel: "-".join(parallel),
)
def test_a_divided_model_needs_less_of_each_rank(parallel: dict[str, int]) -> None:
    ranks = 4
    alone = planned(recipe(SMALL, parallel=Parallel(zero_stage=1), length=2048), 1).memory.tensors
    divided = planned(recipe(SMALL, parallel=Parallel(zero_stage=1, **parallel), length=2048), ranks)
    assert divided.memory.tensors < alone
    assert divided.mesh.world_size == ranks
    assert divided.seconds.communication > 0


def test_the_largest_model_of_one_card_is_found() -> None:
    """8 billion parameters in full: 120 GiB of states on one H100 are refused, an eighth of them is not."""
    given = recipe(
        LLAMA_8B, length=4096, global_size=64, model={"activation_checkpointing": True}, parallel=Parallel(zero_stage=1)
    )
    assert not planned(given, 1).fits()
    assert planned(given.model_copy(update={"parallel": Parallel(zero_stage=3)}), 8).fits()


def test_the_choice_names_the_fastest_that_fits_and_why() -> None:
    given = recipe(LLAMA_8B, length=4096, global_size=64)
    choice = Chooser(subject_or_refused(given), given, 8, Place(find_device("H100"), 8)).choose()
    best, second = choice.best, runner_up(choice)
    assert best is not None and second is not None
    assert best.fits() and best.recipe.parallel.zero_stage in (2, 3)
    assert best.seconds.total == min(plan.seconds.total for plan in choice.fitting)
    assert describe(best).startswith("ZeRO-")
    assert why_slower(best, second)
    assert all(not plan.fits() for plan in choice.others)
    # The same global batch under every strategy.
    assert {plan.recipe.batch.global_size for plan in choice.fitting} == {64}


def test_what_does_not_fit_gets_changes_that_make_it_fit() -> None:
    given = recipe(SMALL, length=8192, global_size=64, micro=8, parallel=Parallel(zero_stage=1))
    place = Place(replace(find_device("H100"), memory=2 * GIB), 8)
    subject, target = subject_or_refused(given), target_of(given, 8, place)
    found = cheapest_changes(subject, given, target, place)
    assert len(found) == 3
    for change, plan in found:
        assert change and plan.fits()
        assert plan.recipe.batch.global_size == 64
    assert [plan.seconds.total for _, plan in found] == sorted(plan.seconds.total for _, plan in found)


def test_a_run_that_cannot_fit_is_refused_with_these_changes() -> None:
    given = recipe(SMALL, length=8192, global_size=64, micro=8, parallel=Parallel(zero_stage=1))
    place = Place(replace(find_device("H100"), memory=2 * GIB), 8)
    subject, target = subject_or_refused(given), target_of(given, 8, place)
    made = RunPlan(subject, plan_strategy(subject, given, target, place), target)
    with pytest.raises(LaunchError, match=r"this run needs [\d.]+ GiB per rank \(.*activations") as error:
        made.check(Display(is_main=False))
    assert error.value.do.count("--") >= 4
    assert "--launch.memory_check off" in error.value.do


def test_changes_are_named_as_flags() -> None:
    changes = {"model.activation_checkpointing": False, "model.activation_offload": True, "batch.micro_size": 2}
    assert as_flags(changes) == "--model.no_activation_checkpointing --model.activation_offload --batch.micro_size 2"


def test_an_allocation_that_fails_says_what_was_planned() -> None:
    given = recipe(SMALL)
    place = Place(find_device("L4"), 1)
    subject, target = subject_or_refused(given), target_of(given, 1, place)
    made = RunPlan(subject, plan_strategy(subject, given, target, place), target)
    with pytest.raises(RunFailed, match="out of memory") as error, memory_explained(made, "--output_dir runs/x"):
        torch.empty(1 << 60, dtype=torch.uint8)
    assert "as planned" in error.value.expected
    assert "--resume auto --output_dir runs/x" in error.value.do
    assert error.value.exit_code == 3


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(ValueError, match="of another kind"), memory_explained(None, ""):
        raise ValueError("of another kind")
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
    assert is_out_of_memory(MemoryError())


def test_every_device_has_what_a_plan_needs() -> None:
    for name, device in DEVICES.items():
        assert find_device(name.upper().replace("-", "_")) is device
        assert device.memory > 10 * GIB and device.bandwidth > 1e11 and device.watts > 0 and device.source
    with pytest.raises(InputError, match=r"--device H1000: .*did you mean 'h100'"):
        find_device("H1000")


def _finished(flops: float, moved: float, measured: float) -> Finished:
    return Finished("x", "cpu", "fp32", flops, moved, 0.5, 1.0, measured, 100, 100)


def test_rates_are_fitted_to_finished_runs() -> None:
    """Runs that differ in what they are made of tell both rates, whatever the processor seemed to reach when they began."""
    flops_per_s, bytes_per_s = 5e10, 2.5e9
    amounts = ((1e11, 2e10), (3e11, 1e10), (2e11, 2e10), (4e11, 1e9))
    runs = [_finished(flops, moved, 0.5 + flops / flops_per_s + moved / bytes_per_s) for flops, moved in amounts]
    for listed in (1e11, 4e11):
        found = fit(runs, listed, 1e10, Rates(0.9, 0.9))
        for run in runs:
            seconds = 0.5 + run.flops / (listed * found.compute) + run.moved / (1e10 * found.memory)
            assert seconds == pytest.approx(run.measured_s, rel=0.02)
    # One run moves both alike.
    alone = fit(runs[:1], 1e11, 1e10, Rates(0.8, 0.4))
    assert runs[0].flops / (1e11 * alone.compute) + runs[0].moved / (1e10 * alone.memory) == pytest.approx(10.0)
    assert alone.compute / alone.memory == pytest.approx(2.0)
    assert fit([], 1e11, 1e10, Rates(0.7, 0.6)) == Rates(0.7, 0.6)


def test_the_ledger_passes_over_what_it_does_not_know(tmp_path: Path) -> None:
    file = tmp_path / "ledger.jsonl"
    calibration.note(_finished(1.0, 1.0, 4.0), file)
    with file.open("a") as lines:
        lines.write("not json\n" + json.dumps({"of": "another version"}) + "\n")
    calibration.note(_finished(1.0, 1.0, 4.0), file)
    assert len(calibration.finished_runs("cpu", "fp32", file)) == 2
    assert calibration.finished_runs("h100", "fp32", file) == []
    assert "2 finished runs" in calibration.said(calibration.finished_runs("cpu", "fp32", file))


def test_the_plan_decides_what_the_recipe_leaves_to_it() -> None:
    given = recipe(SMALL, parallel="auto")
    assert given.parallel.auto
    found, said = resolved(given, 2, 2)
    assert not found.parallel.auto
    assert found.batch.global_size == given.batch.global_size
    assert said.startswith("plan: ")
    sized = recipe(SMALL, batch=Batch(global_size=16, micro_size="auto", sequence_length=64))  # type: ignore[arg-type]
    assert (sized.batch.micro_size, sized.batch.auto_micro_size) == (1, True)
    found, _ = resolved(sized, 2, 2)
    assert (found.batch.micro_size, found.batch.auto_micro_size) == (8, False)


def test_nothing_fits_is_said() -> None:
    huge = {**LLAMA_8B, "num_hidden_layers": 40, "hidden_size": 12288, "num_attention_heads": 96}
    with pytest.raises(RecipeError, match=r"parallel='auto': nothing fits on 1 x cpu"):
        resolved(recipe(huge, length=512, parallel="auto"), 1, 1)


def test_a_page_has_its_pictures_in_it() -> None:
    given = recipe(SMALL, optimizer=Optimizer(learning_rate=3e-4))
    choice = Chooser(subject_or_refused(given), given, 2, Place(find_device("L4"), 8)).choose()
    text = page("a <title>", planned(given, 2, "l4"), choice, given)
    assert "a &lt;title&gt;" in text and "<title>a &lt;" in text
    assert text.count("<svg") == text.count("</svg>") == 3
    assert not re.search(r'(?:src|href)="', text)
    data = json.loads(re.search(r'id="plan">(.*?)</script>', text)[1])  # type: ignore[index]
    assert data["fits"] is True and data["memory"]["device_bytes"]["parameters"] > 0


def test_a_task_that_needs_its_data_is_said_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "speech.py"
    file.write_text(SPEECH)
    assert main(["plan", str(file), "--device", "L4", "--devices", "1"]) == 2
    said = capsys.readouterr().err
    assert "this recipe cannot be planned: task.name='speech_ctc' needs its data" in said
    assert "a plan is then made of its first batch" in said


RECIPE = """
from toolkit import Batch, Checkpoint, Data, Model, Parallel, Recipe, main

recipe = Recipe(
    model=Model(architecture="llama", weights="random", tokenizer="none", config={config}),
    data=Data(train="rows.jsonl"),
    batch=Batch(global_size=16, sequence_length=256),
    checkpoint=Checkpoint(export=False),
    parallel=Parallel(zero_stage=1),
    steps=10,
)

if __name__ == "__main__":
    main(recipe)
"""

SPEECH = """
from toolkit import Batch, Data, Model, Recipe, SpeechCTC

recipe = Recipe(
    model=Model(architecture="wav2vec2", weights="random", tokenizer="none"),
    data=Data(train="rows.jsonl", packing=False, overlong="drop"),
    task=SpeechCTC(freeze_feature_encoder=False),
    batch=Batch(global_size=4),
    steps=1,
)
"""

MEDIUM = {**SMALL, "hidden_size": 512, "intermediate_size": 1408, "num_attention_heads": 8, "vocab_size": 8192}


def test_the_verb_prints_memory_time_and_choice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "small.py"
    file.write_text(RECIPE.replace("{config}", repr(MEDIUM)))
    html = tmp_path / "plan.html"
    arguments = ["--devices", "2", "--device", "L4", "--precision.dtype", "bf16", "--price", "2.5", "--html", str(html)]
    assert main(["plan", str(file), *arguments]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^memory: fits: [\d.]+ GiB of 22\.0 GiB of a device", said, re.MULTILINE)
    assert (
        "optimizer states" in said
        and "per step" in said
        and "10 steps: " in said
        and "at 2.5 per device and hour" in said
    )
    assert "fastest that fits: ZeRO-" in said and "take it: --" in said
    assert html.read_text().startswith("<!doctype html>")
    assert main(["plan", str(file), "--devices", "2", "--device", "L4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["as_given"]["fits"] and found["fitting"][0]["changes"]["parallel.zero_stage"] in (1, 2, 3)


def test_what_cannot_run_as_it_is_on_these_devices_gets_a_strategy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 16 sequences 32 replicas get none: the recipe's own strategy is no reason to plan nothing."""
    file, html = tmp_path / "small.py", tmp_path / "plan.html"
    file.write_text(RECIPE.replace("{config}", repr(MEDIUM)))
    assert main(["plan", str(file), "--device", "L4", "--devices", "32", "--html", str(html)]) == 0
    said = capsys.readouterr().out
    assert "as the recipe says: not possible: batch.global_size=16 is not a multiple of" in said
    assert re.search(r"fastest that fits: .*(tensor ranks|stages|sequence ranks)", said)
    assert re.search(r"take it: .*--parallel\.(tensor|pipeline|sequence) \d", said)
    assert "not possible: batch.global_size=16" in html.read_text()
    # Where no strategy can run either, the reason is the answer.
    assert main(["plan", str(file), "--device", "L4", "--devices", "7"]) == 2
    assert "error: batch.global_size=16 is not a multiple of" in capsys.readouterr().err


def test_the_verb_refuses_what_fits_nowhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "small.py"
    file.write_text(RECIPE.replace("{config}", repr(MEDIUM)))
    assert main(["plan", str(file), "--device", "L4", "--devices", "1", "--device-memory-gib", "0.6"]) == 3
    said = capsys.readouterr()
    assert "DOES NOT FIT" in said.out and "no strategy fits" in said.out
    assert re.search(r"error: small does not fit on 1 x l4: the least is [\d.]+ GiB of 0\.6", said.err)
    assert main(["plan", str(file), "--device", "nothing"]) == 2
    assert "--device nothing: not a device" in capsys.readouterr().err
