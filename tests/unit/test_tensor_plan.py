"""How weights are divided for tensor parallelism: no process group, and nothing allocated."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForCTC,
    AutoModelForImageClassification,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
    PretrainedConfig,
)

from tests.architectures import tiny_config
from toolkit.errors import ModelError
from toolkit.models.shards import Shard
from toolkit.models.stages import build_skeleton, cut
from toolkit.models.tensor_plan import TensorPlan, tensor_plan
from toolkit.models.tensor_styles import STYLES, Boundary, Enter, Leave


def skeleton(kind: str, auto_class: Any = AutoModelForCausalLM, **changes: Any) -> nn.Module:
    config: PretrainedConfig = tiny_config(kind, **changes)
    with torch.device("meta"):
        model: nn.Module = auto_class.from_config(config)
    return model


def plan_of(kind: str, degree: int = 2, **changes: Any) -> TensorPlan:
    return tensor_plan(skeleton(kind, **changes), degree)


@pytest.mark.parametrize(
    "kind", ["llama", "phi3", "gpt2", "mixtral", "llama4_text", "deepseek_v2", "olmo2", "granite_swa"]
)
@pytest.mark.parametrize("degree", [2, 4])
def test_shards_hold_every_element_once(kind: str, degree: int) -> None:
    """The ranks' parts together are the whole parameter, in equal shares."""
    changes = {} if kind == "gpt2" else {"num_key_value_heads": 4}
    model = skeleton(kind, **changes)
    plan = tensor_plan(model, degree)
    assert plan.shards
    for name, parameter in model.named_parameters():
        if name not in plan.shards:
            continue
        numbers = torch.arange(parameter.numel()).view(parameter.shape)
        parts = [shard.cut(numbers) for shard in plan.shards[name]]
        assert {tuple(part.shape) for part in parts} == {tuple(parts[0].shape)} and len(parts) == degree
        assert torch.equal(torch.cat([part.flatten() for part in parts]).sort().values, numbers.flatten()), name
        assert plan.of_rank(1)[name] is plan.shards[name][1]


def test_a_plain_layer() -> None:
    """Columns, rows, and what stays whole."""
    plan = plan_of("llama")
    layer = "model.layers.0"
    assert plan.shards[f"{layer}.self_attn.k_proj.weight"][1] == Shard((16, 32), 0, ((8, 8),))
    assert plan.shards[f"{layer}.mlp.down_proj.weight"][1] == Shard((32, 48), 1, ((24, 24),))
    assert plan.boundaries[f"{layer}.self_attn.k_proj"] == Boundary(Enter.SUM_GRADIENT, Leave.AS_IS)
    assert plan.boundaries[f"{layer}.mlp.down_proj"] == Boundary(Enter.AS_IS, Leave.SUM)
    assert not {"model.norm.weight", f"{layer}.input_layernorm.weight"} & plan.shards.keys()
    assert not plan.partial


def test_the_vocabulary_is_divided_with_its_head() -> None:
    """By rows, the first ranks holding one more where it does not divide; tied weights once, under their one name."""
    plan = plan_of("llama", vocab_size=97)
    assert (plan.head, plan.embedding, plan.vocabulary) == ("lm_head", "model.embed_tokens", (49, 48))
    assert plan.shards["lm_head.weight"] == (Shard((97, 32), 0, ((0, 49),)), Shard((97, 32), 0, ((49, 48),)))
    assert plan.shards["model.embed_tokens.weight"] == plan.shards["lm_head.weight"]
    assert plan.boundaries["lm_head"] == Boundary(Enter.SUM_GRADIENT, Leave.GATHER, widths=(49, 48))
    tied = plan_of("gpt2")
    assert "transformer.wte.weight" in tied.shards and "lm_head.weight" not in tied.shards
    assert tied.shards["transformer.wte.weight"][1].share == 0.5
    assert "lm_head.bias" in plan_of("phi").shards


@pytest.mark.parametrize(("kind", "changes"), [("gemma2", {}), ("cohere", {}), ("granite", {"logits_scaling": 8.0})])
def test_a_vocabulary_stays_whole_where_logits_are_changed(kind: str, changes: dict[str, Any]) -> None:
    """Their loss needs the logits in full: gathered, they would cost what they save."""
    plan = plan_of(kind, **changes)
    assert plan.head is plan.embedding is None and not plan.vocabulary
    assert not any("embed" in name or "lm_head" in name for name in plan.shards)


def test_fused_projections_are_cut_part_by_part() -> None:
    """Query, key and value of phi3 (32, 16 and 16 wide), gate and up, the thirds of a Conv1D."""
    plan = plan_of("phi3")
    layer = "model.layers.3"
    assert plan.shards[f"{layer}.self_attn.qkv_proj.weight"][1].spans == ((16, 16), (40, 8), (56, 8))
    assert plan.shards[f"{layer}.mlp.gate_up_proj.weight"][0].spans == ((0, 24), (48, 24))
    assert plan.counts[f"{layer}.self_attn"] == {"num_key_value_heads": 1, "config.num_attention_heads": 2}
    plan = plan_of("gpt2")
    attention = "transformer.h.0.attn"
    assert plan.shards[f"{attention}.c_attn.weight"][1] == Shard((32, 96), 1, ((16, 16), (48, 16), (80, 16)))
    assert plan.shards[f"{attention}.c_attn.bias"][1] == Shard((96,), 0, ((16, 16), (48, 16), (80, 16)))
    assert f"{attention}.c_proj.bias" not in plan.shards
    assert plan.counts[attention] == {"num_heads": 2, "split_size": 16}


def test_encoders_and_decoders() -> None:
    """Self- and cross-attention by heads, distances by the heads that read them; the shared vocabulary stays whole."""
    plan = tensor_plan(skeleton("t5", AutoModelForSeq2SeqLM), 2)
    cross = "decoder.block.1.layer.1.EncDecAttention"
    assert plan.shards[f"{cross}.k.weight"][1] == Shard((32, 32), 0, ((16, 16),))
    assert plan.counts[cross] == {"n_heads": 2, "inner_dim": 16}
    distances = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias"
    assert plan.shards[f"{distances}.weight"][1] == Shard((32, 4), 1, ((2, 2),))
    assert distances not in plan.boundaries
    plan = tensor_plan(skeleton("bart", AutoModelForSeq2SeqLM), 2)
    assert plan.boundaries["model.decoder.layers.0.encoder_attn.out_proj"] == Boundary(Enter.AS_IS, Leave.SUM)
    assert plan.head is None and "model.shared.weight" not in plan.shards


@pytest.mark.parametrize(
    ("kind", "auto_class"),
    [("vit", AutoModelForImageClassification), ("whisper", AutoModelForSpeechSeq2Seq),
     ("wav2vec2", AutoModelForCTC), ("hubert", AutoModelForCTC)],
)  # fmt: skip
def test_images_and_speech(kind: str, auto_class: Any) -> None:
    """Every projection of attention and both matrices of every feed-forward are cut, and nothing else but a vocabulary."""
    with torch.device("meta"):
        model = auto_class.from_config(AutoConfig.for_model(kind))
    plan = tensor_plan(model, 2)
    layers = {name for name, _ in model.named_parameters() if ".layers." in name and name.endswith("weight")}
    assert {name for name in layers if "norm" not in name} == {name for name in plan.shards if name in layers}
    assert all(plan.shards[name][0].share == 0.5 for name in plan.shards if name in layers)


@pytest.mark.parametrize("kind", ["resnet", "convnext"])
def test_convolutions_are_not_cut(kind: str) -> None:
    with torch.device("meta"):
        model = AutoModelForImageClassification.from_config(AutoConfig.for_model(kind))
    with pytest.raises(ModelError, match=f"{kind} cannot be cut: transformers has no tensor plan for it"):
        tensor_plan(model, 2)


def test_norms_of_single_heads_and_activations_see_a_part() -> None:
    plan = plan_of("qwen3")
    assert "model.layers.0.self_attn.q_norm.weight" in plan.partial
    assert "model.layers.0.mlp.act_fn.alpha_p" in plan_of("apertus").partial
    assert not plan.partial & plan.shards.keys()


def test_what_does_not_divide_but_need_not_stays_whole() -> None:
    """Between whole activations a module is only cut to save memory."""
    divides, not_so = plan_of("olmo2"), plan_of("olmo2", 8, hidden_size=36)
    assert "model.layers.0.self_attn.q_proj.weight" in divides.shards
    assert "model.layers.0.self_attn.q_proj.weight" not in not_so.shards
    assert "model.layers.0.self_attn.q_proj" not in not_so.boundaries
    assert "model.layers.0.mlp.up_proj.weight" in not_so.shards


@pytest.mark.parametrize(
    ("kind", "changes", "degree", "what", "degrees"),
    [
        ("llama", {}, 4, "heads of k_proj (2)", "1, 2"),
        (
            "llama",
            {"hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3},
            2,
            "num_attention_heads (9)",
            "1, 3",
        ),
        ("llama", {"intermediate_size": 50}, 4, "heads of k_proj (2)", "1, 2"),
        ("gemma2", {"intermediate_size": 45}, 2, "features of model.layers.*.mlp.gate_proj (45)", "1"),
        ("falcon", {}, 2, "num_kv_heads (1)", "1"),
    ],
)
def test_degrees_that_do_not_divide(kind: str, changes: dict[str, Any], degree: int, what: str, degrees: str) -> None:
    with pytest.raises(ModelError) as caught:
        plan_of(kind, degree, **changes)
    assert what in caught.value.what and f"parallel.tensor={degree}" in caught.value.what
    assert caught.value.expected == f"a degree that divides every such count: {degrees}"
    assert caught.value.do == f"set parallel.tensor={degrees.rpartition(' ')[2]}"


def test_the_largest_degree_named_works() -> None:
    plan = plan_of("llama", 3, hidden_size=36, num_attention_heads=9, num_key_value_heads=3, head_dim=4)
    assert plan.shards["model.layers.0.self_attn.q_proj.weight"][2].spans == ((24, 12),)


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("mamba", {}, "transformers has no tensor plan for it, and the toolkit has none"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention=True: cross-attention is not cut"),
        ("bloom", {"slow_but_exact": True}, "slow_but_exact=True: its code then reads the weights past the modules"),
    ],
)
def test_architectures_that_cannot_be_cut(kind: str, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelError) as caught:
        plan_of(kind, **changes)
    assert caught.value.what == f"parallel.tensor=2: {kind} cannot be cut: {reason}"
    assert "parallel.tensor=1" in caught.value.do


def test_a_plan_that_asks_for_more_than_is_known() -> None:
    """A new style in a later transformers, and experts that add a whole bias on every rank."""
    model: Any = skeleton("llama")
    model._tp_plan = {**model._tp_plan, "model.layers.*.mlp.up_proj": "diagonal"}
    with pytest.raises(ModelError, match=r"its plan asks for 'diagonal' at model\.layers\.0\.mlp\.up_proj"):
        tensor_plan(model, 2)
    model = skeleton("mixtral")
    del model._tp_plan["model.layers.*.mlp.experts.down_proj"]
    with pytest.raises(ModelError, match=r"model.layers.0.mlp.experts.down_proj is whole inside a module whose output"):
        tensor_plan(model, 2)


def test_every_style_of_transformers_is_known() -> None:
    """All that are registered, but the one for activations divided along the sequence."""
    from transformers.distributed.tensor_parallel import ALL_PARALLEL_STYLES

    expert_parallel = {"ep_router", "ep_dispatch_experts", "grouped_gemm", "ep_packed_grouped_gemm"}
    unknown = set(ALL_PARALLEL_STYLES.keys()) - STYLES.keys() - {"sequence_parallel"}
    assert unknown <= expert_parallel, unknown


def test_a_stage_takes_its_part_of_the_whole_plan() -> None:
    """Only what is there is cut, under the names of the whole model; a tied vocabulary on both ends, alike."""
    whole = skeleton("llama", tie_word_embeddings=True)
    plan = tensor_plan(whole, 2)
    ends = []
    for layers in ((0, 3), (3, 4)):
        stage = build_skeleton(AutoModelForCausalLM, whole.config)  # type: ignore[arg-type]
        cut(stage, layers)
        ends.append((stage, plan.within(stage)))
    shared = "model.embed_tokens.weight"
    for stage, part in ends:
        names = {name for name, _ in stage.named_parameters()}
        assert part.shards == {name: value for name, value in plan.shards.items() if name in names}
        assert part.boundaries.keys() <= {name for name, _ in stage.named_modules()}
        assert shared in part.shards and part.vocabulary == plan.vocabulary
    (_, first), (_, last) = ends
    assert (first.head, first.embedding, last.head) == (None, "model.embed_tokens", "lm_head")
    assert "lm_head" in last.boundaries and "lm_head" not in first.boundaries
    assert set(first.shards) & set(last.shards) == {shared} and {*first.shards, *last.shards} == set(plan.shards)
