"""Where models are cut, how evenly, and what a stage is made of."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, MambaConfig

from tests.architectures import LAYERS, tiny_config
from toolkit.errors import ModelError
from toolkit.models.absent import AbsentLayer
from toolkit.models.partial import place
from toolkit.models.stage_plan import balance, layer_costs, stage_plan
from toolkit.models.stages import build_skeleton, cut, tied_parameters
from toolkit.models.tensor_plan import tensor_plan


def skeleton(kind: str, **changes: Any) -> nn.Module:
    return build_skeleton(AutoModelForCausalLM, tiny_config(kind, **changes))


def stage(kind: str, number: int, num_stages: int = 2, **changes: Any) -> nn.Module:
    """With random weights."""
    built = skeleton(kind, **changes)
    cut(built, balance(built, num_stages)[number])
    torch.manual_seed(0)
    for name, value in built.state_dict().items():
        if value.is_meta:
            place(built, name, 0.1 * torch.randn(value.shape))
    return built


def test_a_skeleton_has_no_weights_but_its_buffers() -> None:
    model = skeleton("llama", tie_word_embeddings=True)
    assert all(parameter.is_meta and parameter.dtype == torch.float32 for parameter in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())
    assert model.get_parameter("lm_head.weight") is model.get_parameter("model.embed_tokens.weight")


def test_names_are_those_of_the_whole_model() -> None:
    first, last = stage("llama", 0), stage("llama", 1)
    names = [{name for name, _ in part.named_parameters()} for part in (first, last)]
    assert names[0] | names[1] == {name for name, _ in skeleton("llama").named_parameters()}
    assert "model.embed_tokens.weight" in names[0]
    assert {"model.norm.weight", "lm_head.weight", "model.layers.3.mlp.up_proj.weight"} <= names[1]
    assert not names[0] & names[1]


def test_tied_weights_are_on_both_ends_under_one_name() -> None:
    ends = [stage("llama", number, 3, tie_word_embeddings=True) for number in range(3)]
    assert [tied_parameters(end) for end in ends] == [
        ("model.embed_tokens.weight",),
        (),
        ("model.embed_tokens.weight",),
    ]
    held = ["model.embed_tokens.weight" in dict(end.named_parameters()) for end in ends]
    assert held == [True, False, True]
    last = ends[-1]
    assert last.get_parameter("lm_head.weight") is last.get_parameter("model.embed_tokens.weight")
    assert tied_parameters(skeleton("llama", tie_word_embeddings=True)) == ()


def test_stand_ins_keep_what_the_loop_may_read() -> None:
    layer = nn.Linear(2, 3)
    layer.attention_type = "sliding_attention"  # type: ignore[assignment]
    absent: Any = AbsentLayer(layer, outputs=2)
    assert (absent.attention_type, absent.in_features) == ("sliding_attention", 2)
    assert list(absent.parameters()) == []
    assert absent("hidden") == ("hidden", None)
    assert absent(hidden_states="hidden") == ("hidden", None)


def test_outputs_of_layers_are_checked() -> None:
    """An outline that says one value where the loop takes the first of several would lose the batch."""
    last = stage("bloom", 1)
    for layer in last.modules():
        if isinstance(layer, AbsentLayer):
            layer.outputs = 1
    with pytest.raises(RuntimeError, match="layers return 1 values by the outline"):
        last(inputs_embeds=torch.zeros(2, 5, 32))


def test_a_later_stage_needs_hidden_states() -> None:
    with pytest.raises(RuntimeError, match="a later stage is called with inputs_embeds"):
        stage("llama", 1)(input_ids=torch.zeros(1, 4, dtype=torch.int64))


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_within_a_stage(reentrant: bool) -> None:
    hidden = torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(1))
    gradients = []
    for checkpointing in (False, True):
        middle: Any = stage("granite", 1, 3)
        middle.train()
        if checkpointing:
            middle.gradient_checkpointing_enable({"use_reentrant": reentrant})
        received = hidden.clone().requires_grad_()
        output = middle.base_model(inputs_embeds=received, use_cache=False).last_hidden_state
        output.square().sum().backward()
        gradients.append([received.grad, *(parameter.grad for parameter in middle.parameters())])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain, rtol=0, atol=0)


def test_a_stage_keeps_no_activations_and_can_be_copied() -> None:
    middle: Any = stage("granite", 1, 3)
    hidden = torch.randn(2, 6, 32)
    twin = copy.deepcopy(middle)
    outputs = [part.base_model(inputs_embeds=hidden).last_hidden_state for part in (middle, twin)]
    assert torch.equal(*outputs)
    kept = [value for part in (middle, twin) for module in part.modules() for value in vars(module).values()]
    assert not any(isinstance(value, torch.Tensor) for value in kept)


def test_what_precedes_the_layers_runs_on_the_first_stage_only() -> None:
    """Granite scales its embedding in the forward pass; a later stage must not scale what it receives."""
    outputs = [
        stage("granite", 1, 3, embedding_multiplier=factor).base_model(inputs_embeds=torch.ones(1, 3, 32))  # type: ignore[operator]
        for factor in (1.0, 7.0)
    ]
    assert torch.equal(outputs[0].last_hidden_state, outputs[1].last_hidden_state)


def test_balance_weighs_the_head() -> None:
    """A vocabulary as expensive as two layers takes the place of two layers."""
    model = skeleton("llama", vocab_size=96)
    layer = layer_costs(model, stage_plan(model.config))[0]  # type: ignore[arg-type]
    wide = skeleton("llama", vocab_size=round(2 * layer / 6 / 32))
    assert balance(model, 2) == [(0, 2), (2, 4)]
    assert balance(wide, 2) == [(0, 3), (3, 4)]


def test_balance_weighs_what_a_tensor_rank_computes() -> None:
    """A head that stays whole costs each of two ranks as much as before, while their layers cost half."""
    model = skeleton("llama", vocab_size=96)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    shards = {name: shard for name, shard in tensor_plan(model, 2).of_rank(0).items() if ".layers." in name}
    plan = stage_plan(model.config)  # type: ignore[arg-type]
    whole, halves = layer_costs(model, plan), layer_costs(model, plan, shards)
    norms = 6 * sum(size for name, size in sizes.items() if "layers.0." in name and "layernorm" in name)
    assert halves[0] == pytest.approx((whole[0] - norms) / 2 + norms)
    assert halves[-1] - halves[0] == pytest.approx(whole[-1] - whole[0]) != 0
    wide = skeleton("llama", vocab_size=round(0.7 * whole[0] / 6 / 32))
    assert (balance(wide, 2), balance(wide, 2, shards)) == ([(0, 2), (2, 4)], [(0, 3), (3, 4)])


def test_towers_for_images_cost_no_text_model_anything() -> None:
    config = tiny_config(
        "gemma3", vision_config={**tiny_config("gemma3").vision_config.to_dict(), "num_hidden_layers": 9}
    )
    assert balance(build_skeleton(AutoModelForCausalLM, config), 2) == [(0, 2), (2, 4)]


def test_costs_count_six_flops_per_weight_and_only_the_chosen_experts() -> None:
    model = skeleton("mixtral")
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    experts = sum(size for name, size in sizes.items() if "layers.1." in name and ".experts." in name)
    other = sum(size for name, size in sizes.items() if "layers.1." in name and ".experts." not in name)
    assert experts > 0
    costs = layer_costs(model, stage_plan(model.config))  # type: ignore[arg-type]
    assert costs[1] == pytest.approx(6 * (other + experts * 2 / 4))
    assert costs[3] - costs[1] == pytest.approx(6 * (sizes["lm_head.weight"] + sizes["model.norm.weight"]))


@pytest.mark.parametrize("num_stages", [1, 2, 3, 4])
def test_balance_is_the_best_there_is(num_stages: int) -> None:
    model = skeleton("llama", num_hidden_layers=7, vocab_size=500)
    costs = layer_costs(model, stage_plan(model.config))  # type: ignore[arg-type]

    def most(edges: tuple[int, ...]) -> float:
        places = (0, *edges, 7)
        return max(sum(costs[start:stop]) for start, stop in itertools.pairwise(places))

    best = min(most(edges) for edges in itertools.combinations(range(1, 7), num_stages - 1))
    ranges = balance(model, num_stages)
    assert most(tuple(start for start, _ in ranges[1:])) == pytest.approx(best)
    assert [start for start, _ in ranges] == [0, *(stop for _, stop in ranges[:-1])]
    assert ranges[-1][1] == 7


def test_layers_that_need_their_neighbour_stay_with_it() -> None:
    assert balance(skeleton("glm_moe_dsa"), 2) == [(0, 2), (2, 4)]
    shared = tiny_config("gemma4_text", num_kv_shared_layers=1, layer_types=["full_attention"] * 4)
    assert stage_plan(shared).joined == {3}
    assert stage_plan(tiny_config("deepseek_v4", mlp_layer_types=["hash_moe", "hash_moe", "moe", "moe"])).joined == {1}
    with pytest.raises(ModelError, match=r"4 layers, 2 of which need the layer before(.|\n)*1 to 2 stages"):
        balance(skeleton("glm_moe_dsa"), 3)
    with pytest.raises(ValueError, match="begin no stage"):
        cut(skeleton("glm_moe_dsa"), (1, 4))


def test_too_many_stages() -> None:
    with pytest.raises(ModelError, match=r"parallel.pipeline=5: the model has 4 layers\n  expected: 1 to 4 stages"):
        balance(skeleton("llama"), LAYERS + 1)


def test_architectures_that_cannot_be_cut_say_why() -> None:
    with pytest.raises(
        ModelError, match="mamba cannot be cut into pipeline stages: its configuration has no pipeline plan"
    ):
        stage_plan(MambaConfig())
    with pytest.raises(ModelError, match="reads an embedding of the input tokens of its own"):
        stage_plan(tiny_config("gemma4_text", hidden_size_per_layer_input=8))
    with pytest.raises(ModelError, match=r"opt cannot be cut into pipeline stages: layerdrop=0.1 skips whole layers"):
        stage_plan(tiny_config("opt", layerdrop=0.1))
    odd = skeleton("llama")
    odd.base_model.extra = nn.Linear(2, 2)  # type: ignore[union-attr]
    with pytest.raises(
        ModelError, match=r"llama cannot be cut into pipeline stages: model.extra.weight belongs to no stage"
    ):
        cut(odd, (0, 2))
