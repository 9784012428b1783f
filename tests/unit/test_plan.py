"""`toolkit plan`: memory by DeepSpeed's arithmetic and a trace, time, the choice, and what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from toolkit.cli.flags import parse
from toolkit.cli.verbs import main
from toolkit.ds_config.render import render
from toolkit.ds_config.target import Target
from toolkit.engine.out_of_memory import is_out_of_memory
from toolkit.errors import InputError, LaunchError, RecipeError, RunFailed
from toolkit.models.flops import count_model_flops
from toolkit.plan import calibration
from toolkit.plan.activations import Activations
from toolkit.plan.calibration import Finished, fit
from toolkit.plan.choice import (
    Choice,
    Chooser,
    as_flags,
    changed,
    describe,
    runner_up,
    why_slower,
)
from toolkit.plan.depth import Depths
from toolkit.plan.devices import DEVICES, any_processor, find_device, gpu_named
from toolkit.plan.inventory import Inventory, Parameter
from toolkit.plan.memory import GIB
from toolkit.plan.page import page
from toolkit.plan.remedies import changes_curve, cheapest_changes
from toolkit.plan.speed import FRESH, THREADED, Place, Rates, one_forward_one_backward, with_gradients
from toolkit.plan.stand_in import stand_in_batch
from toolkit.plan.start import place_for, resolved, subject_or_refused
from toolkit.plan.states import Keeper, count_states, keeper_of
from toolkit.plan.strategy import Planned, plan_strategy, target_of
from toolkit.plan.subject import way_of
from toolkit.plan.trace import Untraceable, _Watched
from toolkit.plan.work import NOTHING, Work, work_of
from toolkit.recipe import (
    DPO,
    KTO,
    ORPO,
    Batch,
    CausalLM,
    Checkpoint,
    Data,
    Launch,
    LoRA,
    MaskedLM,
    Model,
    Optimizer,
    Parallel,
    Precision,
    Recipe,
    SentenceEmbedding,
    SequenceClassification,
    SpeechCTC,
)
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
ENCODER = {name: value for name, value in SMALL.items() if name != "num_key_value_heads"}
MEDIUM = {**SMALL, "hidden_size": 512, "intermediate_size": 1408, "num_attention_heads": 8, "vocab_size": 8192}
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
        "model": Model(**{**model, **sections.pop("model", {})}),
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


def fullest(activations: Activations) -> float:
    """Of the turn from forward to backward pass, bytes."""
    return max(moment.live for moment in activations.turn)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_three_layers_tell_what_all_layers_hold(tied: bool, checkpointing: bool) -> None:
    """Tied to a head of a large vocabulary: with three layers the embedding's gradients are the fullest moment, with twelve
    it is the turn from forward to backward pass."""
    config = {**SMALL, "num_hidden_layers": 12, "vocab_size": 20_000, "tie_word_embeddings": tied}
    given = recipe(config, model={"activation_checkpointing": checkpointing})
    subject = subject_or_refused(given)
    subject.target_share = 0.02
    mesh, way = Mesh(1), way_of(given, subject.config, torch.bfloat16, "cpu", has_head=True)
    traced = subject.trace(given, mesh, way)
    carried, shallow = traced.whole, traced.base
    subject.whole.depths, subject._traces = Depths({}), {}
    whole = subject.trace(given, mesh, way).whole
    assert [moment.live for moment in carried.turn] == pytest.approx([moment.live for moment in whole.turn], rel=1e-3)
    assert carried.tail.live == pytest.approx(whole.tail.live, rel=1e-3)
    if tied and not checkpointing:
        assert fullest(whole) > 1.5 * whole.tail.live and fullest(shallow) < shallow.tail.live
    assert carried.kept == pytest.approx(whole.kept, rel=1e-3)
    assert carried.work.flops == pytest.approx(whole.work.flops, rel=1e-3)


EXPERTS = {**SMALL, "moe_intermediate_size": 32, "num_experts": 8, "num_experts_per_tok": 2, "decoder_sparse_step": 1}


LOCAL = {**SMALL, "head_dim": 16, "sliding_window": 64}
"""Two layers of three look no farther than 64 tokens."""


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        ("llama", SMALL),
        ("qwen3_moe", EXPERTS),
        ("mistral", LOCAL),
        ("gemma3_text", {**LOCAL, "layer_types": 2 * ["sliding_attention", "sliding_attention", "full_attention"]}),
    ],
)
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


@pytest.mark.parametrize(
    ("task", "passes"),
    [
        (CausalLM(), 2),  # of frozen weights: forward and backward
        (ORPO(), 2),
        (DPO(), 3),  # and forward without the adapters
        (KTO(), 5),  # and both once more, for the answers of others
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_preferences_are_planned_with_their_further_passes(task: Any, passes: int) -> None:
    """2 FLOPs for each weight and token of a pass (Kaplan et al. 2020): adapters of rank 1 and their gradients add little."""
    config = {**SMALL, "hidden_size": 256, "intermediate_size": 704, "vocab_size": 64}
    given = recipe(config, length=32, task=task, tuning=LoRA(rank=1))
    made = planned(given, 1)
    assert made.model_flops / (2 * made.total * 16 * 32) == pytest.approx(passes, rel=0.1)


def test_without_adapters_the_reference_is_known_before_training() -> None:
    with_reference, without = (planned(recipe(SMALL, task=task), 1).model_flops for task in (DPO(), ORPO()))
    assert with_reference == pytest.approx(without, rel=0.01)


def test_what_is_compared_with_the_global_batch_is_looked_at_before() -> None:
    """Contrastive losses take a forward pass more than cosines that have a value to reach: 4 in the place of 3."""
    data = Data(train="rows.jsonl", packing=False)
    tasks = SentenceEmbedding(), SentenceEmbedding(objective="mse", score_field="score")
    given = (recipe(ENCODER, model={"architecture": "bert"}, task=task, data=data) for task in tasks)
    contrastive, scored = (planned(one, 1).model_flops for one in given)
    assert contrastive / scored == pytest.approx(4 / 3, rel=0.05)


def test_hidden_words_are_planned_without_a_tokenizer() -> None:
    task = MaskedLM(sample_prompt="The capital of France is [MASK].")
    assert planned(recipe(ENCODER, model={"architecture": "bert"}, task=task), 1).model_flops > 0


def test_attention_is_work_of_its_queries_heads() -> None:
    """Scores and weighted values of 8 heads, whatever those of the keys; five such products backward."""
    aten = torch.ops.aten
    flash, back = (
        getattr(aten, f"_scaled_dot_product_flash_attention_for_cpu{end}").default for end in ("", "_backward")
    )
    query, key = torch.empty(2, 8, 16, 4), torch.empty(2, 2, 16, 4)
    product = 2 * 2 * 8 * 16 * 16 * 4
    assert work_of(flash, (query, key, key), {}, query).attention == 2 * product
    assert work_of(back, (query, query, key, key), {}, query).attention == 5 * product


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
    wide = {**SMALL, "intermediate_size": 2048}
    untiled, tiled = (
        planned(recipe(wide, model={"activation_checkpointing": True, "mlp_tiles": tiles}, **long), 1).memory.device[
            "activations"
        ]
        for tiles in (1, 8)
    )
    assert again < 0.6 * plain
    assert moved.device["activations"] < again
    assert moved.host["activations"] > 0
    assert tiled < 0.9 * untiled


@pytest.mark.parametrize(
    ("parallel", "fewer"),
    [
        ({"tensor": 2}, {"parameters", "activations"}),
        ({"sequence": 2}, {"activations"}),
        ({"pipeline": 2}, {"parameters"}),
        ({"pipeline": 2, "tensor": 2}, {"parameters"}),
    ],
    ids=["tensor", "sequence", "pipeline", "pipeline-tensor"],
)
def test_a_divided_model_needs_less_of_each_rank(parallel: dict[str, int], fewer: set[str]) -> None:
    """Than under data parallelism with as many ranks."""
    given = {"length": 2048, "global_size": 4}
    alone = planned(recipe(SMALL, parallel=Parallel(zero_stage=1), **given), 4)
    divided = planned(recipe(SMALL, parallel=Parallel(zero_stage=1, **parallel), **given), 4)
    for component in fewer:
        assert divided.memory.device[component] < 0.8 * alone.memory.device[component], component
    assert divided.memory.tensors < alone.memory.tensors
    assert divided.mesh.world_size == 4
    assert divided.seconds.communication > 0


STRATEGIES: list[tuple[int, dict[str, Any]]] = [
    (1, {"zero_stage": 0}),
    (8, {"zero_stage": 1}),
    (8, {"zero_stage": 3}),
    (8, {"zero_stage": 1, "pipeline": 2, "tensor": 2}),
    (8, {"zero_stage": 2, "offload_optimizer": "cpu"}),
    (8, {"zero_stage": 3, "offload_optimizer": "cpu", "offload_param": "cpu", "offload_ratio": 0.5}),
    (8, {"zero_stage": 3, "offload_optimizer": "nvme", "offload_param": "nvme", "nvme_path": "/tmp"}),
]


@pytest.mark.parametrize("device", ["h100", "cpu"])
@pytest.mark.parametrize(("ranks", "parallel"), STRATEGIES, ids=lambda value: str(value)[:60])
def test_a_step_is_its_flops_its_bytes_and_the_rest(device: str, ranks: int, parallel: dict[str, Any]) -> None:
    """What calibration takes for granted: only the rest of a step does not change with the rates."""
    given = recipe(MEDIUM, parallel=Parallel(**parallel), global_size=32)
    is_cpu = device == "cpu"
    hardware = any_processor() if is_cpu else find_device(device)
    for rates in (Rates(0.5, 0.5), Rates(0.2, 0.9)):
        place = Place(hardware, 8, rates, cores_shared=ranks if is_cpu else 1)
        plan = plan_strategy(subject_or_refused(given), given, target_of(given, ranks, place), place)
        spent = plan.seconds
        products = spent.flops / (hardware.flops(plan.number_format) * rates.compute)
        moved = spent.moved / (hardware.bandwidth * rates.memory)
        assert spent.total == pytest.approx(products + moved + spent.rest, rel=1e-9)
        assert spent.offload == 0 if is_cpu or "offload_optimizer" not in parallel else spent.offload > 0


def test_what_lies_on_the_host_travels_with_every_micro_batch() -> None:
    def offload(accumulation: int, **parallel: Any) -> float:
        size = 8 * accumulation
        return planned(recipe(MEDIUM, parallel=Parallel(zero_stage=3, **parallel), global_size=size), 8).seconds.offload

    everything = {"offload_optimizer": "cpu", "offload_param": "cpu"}
    assert offload(4, **everything) > 3 * offload(1, **everything)
    assert offload(1, offload_param="cpu") > 0
    assert offload(1, offload_optimizer="nvme", nvme_path="/tmp") > offload(1, offload_optimizer="cpu")


def test_what_lies_on_nvme_is_not_page_locked_memory() -> None:
    where = {"offload_optimizer": "nvme", "offload_param": "nvme", "nvme_path": "/tmp"}
    memory = planned(recipe(LLAMA_8B, parallel=Parallel(zero_stage=3, **where), global_size=64), 8).memory
    states = 8.03e9 / 8
    assert memory.nvme == pytest.approx((4 + 8 + 4 + 2) * states, rel=0.01)
    assert memory.pinned <= sum(memory.host.values())
    # Five buffers of parameters and four of a sub-group's states, as DeepSpeed has them by default.
    assert memory.host["swap buffers"] >= 5 * 100_000_000 * 2


def test_a_checkpoint_has_all_states_wherever_they_are() -> None:
    everything = {"zero_stage": 3, "offload_optimizer": "cpu", "offload_param": "cpu"}
    sizes = [
        planned(recipe(SMALL, parallel=Parallel(**everything, offload_ratio=ratio)), 2).disk.checkpoint
        for ratio in (1.0, 0.5)
    ]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)
    plain, averaged = (planned(recipe(SMALL, optimizer=Optimizer(ema_decay=decay)), 2) for decay in (0.0, 0.99))
    assert averaged.disk.checkpoint - plain.disk.checkpoint == pytest.approx(4 * plain.trained, rel=0.01)


def test_what_is_computed_twice_is_no_work_of_the_model() -> None:
    for tuning in ({}, {"tuning": LoRA(rank=4)}):
        once, twice = (
            planned(recipe(MEDIUM, model={"activation_checkpointing": again}, **tuning), 1).model_flops
            for again in (False, True)
        )
        assert twice == pytest.approx(once, rel=0.03)


def test_a_share_of_the_listed_rate_is_one_of_the_format() -> None:
    """A V100 has no bf16: 63 TFLOPS in fp16 are half of its rate, not four times that of fp32."""
    plan = planned(recipe(LLAMA_8B, length=2048, precision=Precision(dtype="fp16")), 8, "v100")
    assert plan.mfu is not None and 0.1 < plan.mfu < 0.75
    assert planned(recipe(SMALL), 1, "h100").mfu is not None
    assert gpu_named("NVIDIA Imaginary 1", 8 * GIB).is_assumed


def test_weights_are_flattened_on_the_host_where_the_device_has_no_room_for_them_twice() -> None:
    given = recipe(LLAMA_8B, parallel=Parallel(zero_stage=2, offload_optimizer="cpu"))
    assert planned(given, 8, "h100").memory.loading == 0
    assert planned(given, 8, "l4").memory.loading > 2 * 2 * 7.5e9


def test_hosts_are_those_of_the_recipe() -> None:
    given = recipe(SMALL).model_copy(update={"launch": Launch(devices=4, hosts=2)})
    options = SimpleNamespace(
        device="h100", devices=None, devices_per_host=None, device_memory_gib=None, host_memory_gib=100.0,
        link_gb_s=None, fabric_gb_s=None,
    )  # fmt: skip
    place = place_for(given, options)
    assert (place.devices_per_host, place.host_memory) == (4, 100 * GIB)
    options.device, options.devices = "cpu", 8
    assert place_for(given, options).cores_shared == 4
    assert place_for(recipe(SMALL), options).cores_shared == 8
    options.device = "h100"
    options.devices = 16
    assert place_for(recipe(SMALL), options).devices_per_host == 8


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


def test_what_the_recipe_does_now_does_not_change_the_choice() -> None:
    """On two devices of this size a model of 150 million parameters fits with its optimizer on the host alone."""
    place = Place(replace(find_device("H100"), memory=round(2.65 * GIB)), 8)
    wide = {**MEDIUM, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 3}
    subject = subject_or_refused(recipe(wide, length=512, global_size=2))

    def choose(**parallel: Any) -> Choice:
        given = recipe(wide, length=512, global_size=2, parallel=Parallel(**parallel))
        return Chooser(subject, given, 2, place).choose()

    wanted = choose(zero_stage=2)
    assert wanted.best is not None and wanted.best.recipe.parallel.offload_optimizer == "cpu"
    for parallel in (
        {"zero_stage": 2, "offload_optimizer": "cpu"},
        {"zero_stage": 3, "offload_optimizer": "cpu", "offload_param": "cpu"},
        {"zero_stage": 3, "offload_optimizer": "nvme", "nvme_path": "/tmp"},
        {"zero_stage": 1, "tensor": 2},
    ):
        found = choose(**parallel)
        assert found.best is not None
        assert describe(found.best) == describe(wanted.best)
        assert found.best.seconds == wanted.best.seconds
        assert {describe(plan) for plan in found.fitting} >= {describe(plan) for plan in wanted.fitting}


def test_nvme_is_an_answer_where_the_recipe_names_a_path() -> None:
    place = Place(find_device("l4"), 1, host_memory=48 * GIB)
    where = {"offload_optimizer": "nvme", "offload_param": "nvme", "nvme_path": "/tmp"}
    given = recipe(LLAMA_8B, length=512, global_size=1, parallel=Parallel(zero_stage=3, **where))
    best = Chooser(subject_or_refused(given), given, 1, place).choose().best
    assert best is not None and best.recipe.parallel.offload_optimizer == "nvme"


def test_one_rank_has_no_strategy_twice() -> None:
    given = recipe(SMALL)
    choice = Chooser(subject_or_refused(given), given, 1, Place(find_device("L4"), 8)).choose()
    seen = [(repr(plan.config), plan.recipe.model.activation_checkpointing) for plan in choice.fitting]
    assert len(seen) == len(set(seen))
    assert {plan.recipe.parallel.zero_stage for plan in choice.fitting} == {0, 2}


def test_what_one_degree_refuses_another_may_allow() -> None:
    """Heads divide among two ranks and not among eight: tensor parallelism is not "not possible"."""
    given = recipe({**SMALL, "num_attention_heads": 2, "num_key_value_heads": 2}, global_size=8)
    choice = Chooser(subject_or_refused(given), given, 16, Place(find_device("L4"), 8)).choose()
    assert any(plan.mesh.tensor == 2 for plan in choice.fitting)
    assert "tensor parallelism" not in choice.refused


def test_what_does_not_fit_gets_changes_that_make_it_fit() -> None:
    given = recipe(SMALL, length=8192, global_size=64, micro=8, parallel=Parallel(zero_stage=1))
    place = Place(replace(find_device("H100"), memory=round(2.75 * GIB)), 8)
    subject, target = subject_or_refused(given), target_of(given, 8, place)
    found = cheapest_changes(subject, given, target, place)
    assert len(found) == 3
    for change, plan in found:
        assert change and plan.fits()
        assert plan.recipe.batch.global_size == 64
        # Nothing is asked for beside a change that is enough alone.
        assert not any(other.items() < change.items() for other, _ in found)
    order = [(changes_curve(change), -plan.tokens_per_second) for change, plan in found]
    assert order == sorted(order)
    # Half as many tokens in a step are no cheaper way to the same ones.
    assert "batch.sequence_length" not in found[0][0]


def test_a_run_that_cannot_fit_is_refused_with_these_changes() -> None:
    given = recipe(SMALL, length=8192, global_size=64, micro=8, parallel=Parallel(zero_stage=1))
    place = Place(replace(find_device("H100"), memory=round(2.75 * GIB)), 8)
    subject, target = subject_or_refused(given), target_of(given, 8, place)
    made = RunPlan(subject, plan_strategy(subject, given, target, place), target)
    with pytest.raises(LaunchError, match=r"this run needs [\d.]+ GiB per rank \(.*activations") as error:
        made.check(Display(is_main=False))
    assert error.value.do.count("--") >= 4
    assert "--launch.memory_check off" in error.value.do


def test_a_host_that_is_too_small_refuses_a_run() -> None:
    given = recipe(LLAMA_8B, length=512, parallel=Parallel(zero_stage=2, offload_optimizer="cpu"))
    place = Place(find_device("H100"), 8, host_memory=64 * GIB)
    subject, target = subject_or_refused(given), target_of(given, 2, place)
    plan = plan_strategy(subject, given, target, place)
    assert plan.memory.peak < plan.limit and not plan.fits()
    made = RunPlan(subject, plan, target)
    with pytest.raises(
        LaunchError, match=r"this run needs [\d.]+ GiB of host memory \(of each rank: .*the host has 64"
    ) as error:
        made.check(Display(is_main=False))
    assert "--launch.memory_check off" in error.value.do
    made.check(Display(is_main=False), refuse=False)


def test_a_real_batch_is_cut_where_its_rows_are_examples() -> None:
    labels = SequenceClassification()
    given = recipe(SMALL, micro=4, length=64, task=labels, data=Data(train="rows.jsonl", packing=False))
    subject = subject_or_refused(given)
    subject.take_batch(stand_in_batch(subject.task, subject.config, 4, 64, packing=False, keeps_base=False), given)
    four, two = (
        plan_strategy(
            subject, changed(given, {"batch.micro_size": size}), Target(1, "cuda"), Place(find_device("L4"), 1)
        )
        for size in (4, 2)
    )
    assert two.memory.device["activations"] < 0.7 * four.memory.device["activations"]
    with pytest.raises(Untraceable, match="only the data can tell what a micro-batch of 8 is like"):
        larger = changed(given, {"batch.micro_size": 8})
        plan_strategy(subject, larger, Target(1, "cuda"), Place(find_device("L4"), 1))


def test_what_cannot_act_beside_a_change_goes_back_to_its_default() -> None:
    where = {"offload_optimizer": "nvme", "nvme_path": "/tmp", "param_persistence_threshold": 100}
    given = recipe(SMALL, parallel=Parallel(zero_stage=3, **where))
    found = changed(given, {"parallel.zero_stage": 2, "parallel.offload_optimizer": "none"}).parallel
    assert (found.nvme_path, found.param_persistence_threshold) == (None, None)
    with pytest.raises(RecipeError, match=r"parallel\.nvme_path='/x' has no effect"):
        changed(recipe(SMALL), {"parallel.nvme_path": "/x"})


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
            assert run.seconds(found, listed, 1e10) == pytest.approx(seconds)
            assert seconds == pytest.approx(run.measured_s, rel=0.02)
    # One run moves both alike.
    alone = fit(runs[:1], 1e11, 1e10, Rates(0.8, 0.4))
    assert runs[0].flops / (1e11 * alone.compute) + runs[0].moved / (1e10 * alone.memory) == pytest.approx(10.0)
    assert alone.compute / alone.memory == pytest.approx(2.0)
    assert fit([], 1e11, 1e10, Rates(0.7, 0.6)) == Rates(0.7, 0.6)
    # Two that are made of the same, one of which was held up: between them, where squares of relative errors are least.
    held_up = fit([_finished(1e11, 2e10, 8.5), _finished(1e11, 2e10, 12.5)], 1e11, 1e10, Rates(0.8, 0.4))
    assert 1e11 / (1e11 * held_up.compute) + 2e10 / (1e10 * held_up.memory) == pytest.approx(9.27, rel=0.01)


@pytest.mark.parametrize("forward", [1 / 3, 1 / 4])
def test_a_pipeline_waits_as_its_schedule_does(forward: float) -> None:
    """Equal stages: all micro-batches, and one more for each other stage (Narayanan et al. 2021); one stage never waits."""
    assert one_forward_one_backward([0.1], 7, forward) == 7 * 0.1
    for stages, micro_batches in ((2, 4), (4, 8), (4, 2), (8, 100)):
        whole = one_forward_one_backward([1.0] * stages, micro_batches, forward)
        assert whole == pytest.approx(micro_batches + stages - 1)
    # The last one sets the pace: it waits for the first forward pass, and the first stage for the last backward pass.
    assert one_forward_one_backward([0.6, 1.0], 4, forward) == pytest.approx(4.6)
    # The first one sets it: it waits as far as its second forward pass is shorter than what it waits for, and the last
    # backward pass but one shorter than the last micro-batch.
    late, left = max(0.0, 0.7 - forward), max(0.0, 0.7 - (1 - forward))
    assert one_forward_one_backward([1.0, 0.7], 4, forward) == pytest.approx(4.0 + late + left)
    # Of many micro-batches each takes as long as the slowest stage.
    few, many = (one_forward_one_backward([0.5, 1.0, 0.8], count, forward) for count in (12, 500))
    assert many - few == pytest.approx(488.0)


def test_threads_of_one_rank_multiply_less_than_ranks() -> None:
    alone, shared = Place(any_processor(), 1, cores_shared=1), Place(any_processor(), 1, cores_shared=64)
    assert (alone.threaded, shared.threaded) == (THREADED if alone.hardware.cores > 1 else 1.0, 1.0)
    assert Place(find_device("h100"), 8).threaded == 1.0


def test_memory_from_the_system_is_counted_by_who_asks_for_it() -> None:
    """glibc asks for tensors of 32 MiB each time, and from 2 MiB on where ZeRO-3 has had it give memory back."""
    with FakeTensorMode(), _Watched() as watched:
        torch.empty(16 * 2**20)
        watched.begin()
        made = [torch.empty(mebibytes * 2**18) for mebibytes in (1, 3, 40, 50)]
        made[-1].mul_(2)
    assert (watched.work.mapped, watched.work.returned) == (90 * 2**20, 3 * 2**20)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_memory_from_the_system_takes_time_on_a_processor(stage: int) -> None:
    """And gradients that ranks sum in every micro-batch are read and written more often than others."""
    inventory = Inventory((Parameter("weight", 10**7, True, True),), 0)
    config = {"zero_optimization": {"stage": stage}}
    asked = [
        with_gradients(Work(mapped=4e7, returned=2e7), inventory, config, hardware).traffic
        for hardware in (DEVICES["h100"], any_processor())
    ]
    assert asked[0] == (4 if stage == 1 else 8) * 4e7
    made = 4e7 + (2e7 + 2 * 4e7 if stage == 3 else 0.0)
    assert asked[1] - asked[0] == FRESH * made


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


@pytest.mark.parametrize(
    ("words", "auto"),
    [
        (["--batch.micro_size", "auto"], (False, True)),
        (["--batch.micro-size=auto"], (False, True)),
        (["--parallel", "auto", "--seed", "3"], (True, False)),
        (["--parallel=auto", "--batch.micro_size", "auto"], (True, True)),
        (["--note", "auto", "--batch.micro_size", "2"], (False, False)),
    ],
)
def test_a_flag_leaves_to_the_plan_what_a_recipe_file_can(words: list[str], auto: tuple[bool, bool]) -> None:
    found = parse(recipe(SMALL), words, output_dir=Path(), description="", prog="recipe").recipe
    assert (found.parallel.auto, found.batch.auto_micro_size) == auto


def test_nothing_fits_is_said() -> None:
    huge = {**LLAMA_8B, "num_hidden_layers": 40, "hidden_size": 12288, "num_attention_heads": 96}
    with pytest.raises(RecipeError, match=r"parallel='auto': nothing fits on 1 x cpu"):
        resolved(recipe(huge, length=512, parallel="auto"), 1, 1)


@pytest.mark.parametrize("sections", [{"parallel": "auto"}, {"batch": Batch(global_size=4, micro_size="auto")}])  # type: ignore[arg-type]
def test_what_cannot_be_decided_without_data_is_said(sections: dict[str, Any]) -> None:
    given = Recipe(
        model=Model(architecture="wav2vec2", weights="random", tokenizer="none"),
        data=Data(train="rows.jsonl", packing=False, overlong="drop"),
        task=SpeechCTC(freeze_feature_encoder=False),
        steps=1,
        **{"batch": Batch(global_size=4), **sections},
    )
    with pytest.raises(RecipeError, match=r"cannot be planned: task\.name='speech_ctc' needs its data"):
        resolved(given, 1, 1)


def test_a_page_has_its_pictures_in_it() -> None:
    given = recipe(SMALL, optimizer=Optimizer(learning_rate=3e-4))
    choice = Chooser(subject_or_refused(given), given, 2, Place(find_device("L4"), 8)).choose()
    text = page("a <title>", planned(given, 2, "l4"), choice, given, ["as <it> is"])
    assert "as &lt;it&gt; is" in text
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
    assert found["as_given"]["run"]["seconds"] == pytest.approx(10 * found["as_given"]["step_seconds"]["total"])
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
    page = ["--device-memory-gib", "0.6", "--html", str(html)]
    assert main(["plan", str(file), "--device", "L4", "--devices", "32", *page]) == 3
    assert "no strategy fits" in html.read_text()
    capsys.readouterr()
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
    # Where it is the host that has no room, that is what is said.
    shown = ["--parallel.zero_stage", "2", "--parallel.offload_optimizer", "cpu", "--host-memory-gib", "2.8"]
    assert main(["plan", str(file), "--device", "L4", "--devices", "1", *shown]) == 0
    assert re.search(r"^host:   DOES NOT FIT: [\d.]+ GiB of 2\.8 on each host", capsys.readouterr().out, re.MULTILINE)
    for flag in ("--link-gb-s", "--device-memory-gib", "--price"):
        for value in ("0", "nan", "-1", "inf"):
            assert main(["plan", str(file), f"{flag}={value}"]) == 2
            assert f"argument {flag}: {value!r} is not a number above 0" in capsys.readouterr().err
    assert main(["plan", str(file), "--device", "nothing"]) == 2
    assert "--device nothing: not a device" in capsys.readouterr().err
