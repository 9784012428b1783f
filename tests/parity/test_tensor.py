"""Tensor parallelism of stock models: every architecture with a tensor plan against its own whole model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import deepspeed.comm as dist
import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.architectures import LAYERS, SIZES, VOCABULARY, tiny_config
from tests.distributed import run_distributed
from tests.pages import PARALLELISM
from toolkit.engine.tensor import apply_tensor_parallel, mark_parameters
from toolkit.errors import ModelError
from toolkit.models.heads import token_loss, use_loss_head
from toolkit.models.shards import shard_of
from toolkit.models.tensor_plan import tensor_plan

Case = tuple[str, dict[str, Any]]
"""model_type, and changes to its tiny config."""

Computed = tuple[torch.Tensor, dict[str, torch.Tensor]]
"""A loss, and the gradient of each parameter."""

PLANNED: dict[str, Case] = {
    kind: (kind, {})
    for kind in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    if getattr(CONFIG_MAPPING[kind], "base_model_tp_plan", None)
}
"""Every causal language model of the installed transformers whose config carries a tensor plan."""

CHANGED: dict[str, Case] = {
    "granitemoehybrid": (
        "granitemoehybrid",
        {"mamba_n_heads": 4, "layer_types": ["linear_attention", "full_attention"] * (LAYERS // 2)},
    ),
    "lfm2_moe": ("lfm2_moe", {"layer_types": ["conv", "full_attention"] * (LAYERS // 2)}),
    "llama4": (
        "llama4",
        {
            "text_config": {
                **{name: value for name, value in SIZES.items() if not name.endswith("_token_id")},
                "intermediate_size_mlp": 48,
            }
        },
    ),
    "qwen4_exp_text": (
        "qwen4_exp_text",
        {
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 8,
            "indexer_budget": 4,
            "indexer_compress_ratio": 2,
            "hc_lowrank": 4,
            "hc_count": 2,
        },
    ),
}
"""Planned ones that the common sizes do not fit."""

WITHOUT_PLAN: dict[str, Case] = {
    "gpt2": ("gpt2", {}),
    "gpt_neo": ("gpt_neo", {"attention_types": [[["global", "local"], LAYERS // 2]]}),
    "gptj": ("gptj", {"rotary_dim": 4}),
    "opt": ("opt", {}),
    "bloom": ("bloom", {}),
    "falcon": ("falcon", {}),
    "falcon, grouped queries": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon, all heads": ("falcon", {"multi_query": False}),
    "falcon, alibi": ("falcon", {"multi_query": False, "alibi": True}),
    "falcon, alibi, eager": ("falcon", {"multi_query": False, "alibi": True, "attn_implementation": "eager"}),
    "mpt": ("mpt", {}),
    "gemma3": ("gemma3", {}),
    "bert": ("bert", {}),
    "roberta": ("roberta", {}),
    "electra": ("electra", {}),
}

CASES = PLANNED | CHANGED | WITHOUT_PLAN

UNSUPPORTED = {"falcon": "does not divide this falcon's num_kv_heads (1)"}
"""Case -> what its ModelError says: all query heads share the one key-value head, which cannot be cut."""

TOLERANCE = 1e-5


def inputs_and_targets() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Two rows of 16 tokens, each of two packed documents; targets [2, 16] with a gap at each document's end."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, VOCABULARY, (2, 16), generator=generator)
    positions = torch.tensor([[*range(7), *range(9)], [*range(4), *range(12)]])
    targets = torch.randint(3, VOCABULARY, (2, 16), generator=generator)
    targets[0, 6] = targets[1, 3] = -100
    return {"input_ids": tokens, "position_ids": positions}, targets


def build(case: Case) -> nn.Module:
    """The whole model in fp32; no weight is left at zero or one, where a fault could hide."""
    kind, changes = case
    config = tiny_config(kind, **changes)
    is_encoder = kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or kind in ("bert", "roberta", "electra")
    factory: Any = AutoModelForSequenceClassification if is_encoder else AutoModelForCausalLM
    torch.manual_seed(0)
    model: nn.Module = factory.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.1 if parameter.dim() == 1 else 0.02))
    return model.train()


def loss_and_gradients(model: nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    inputs, targets = inputs_and_targets()
    torch.manual_seed(2)  # some experts are chosen with noise
    if hasattr(model, "num_labels") and model.get_output_embeddings() is None:  # type: ignore[operator]
        labels = torch.tensor([0, 1])
        loss = nn.functional.cross_entropy(model(input_ids=inputs["input_ids"]).logits, labels, reduction="sum")
    else:
        use_loss_head(model)
        loss = token_loss(model, inputs, targets, label_smoothing=0.0, gradient_scale=1.0)
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return loss.detach(), gradients


def deviation(whole: nn.Module, cut: nn.Module) -> float:
    """As `gradients_apart`, of one batch."""
    return gradients_apart(loss_and_gradients(whole), loss_and_gradients(cut), cut)


def gradients_apart(wanted_both: Computed, found_both: Computed, cut: nn.Module) -> float:
    """Largest relative difference of the loss and of any parameter's gradient, on this rank's part of it.

    A gradient that is a thousand times smaller than the model's is measured against that thousandth: what should be
    zero (the bias of a key) is rounding.
    """
    (wanted_loss, wanted), (found_loss, found) = wanted_both, found_both
    assert wanted.keys() == found.keys()
    total = float(torch.nn.utils.get_total_norm(list(wanted.values())))
    shards = {name: shard_of(parameter) for name, parameter in cut.named_parameters()}
    worst = abs(float(found_loss - wanted_loss)) / abs(float(wanted_loss))
    for name, gradient in wanted.items():
        shard = shards[name]
        mine = gradient if shard is None else shard.cut(gradient)
        difference = float((found[name] - mine).norm()) / (float(mine.norm()) + 1e-3 * total)
        worst = max(worst, difference)
    return worst


def tensor_parallel(model: nn.Module, degree: int, group: Any) -> nn.Module:
    cut = copy.deepcopy(model)
    apply_tensor_parallel(cut, tensor_plan(cut, degree), group)
    return cut


def walk(rank: int, world_size: int, cases: dict[str, Case]) -> dict[str, float | str]:
    """Deviation of each case, or why there is none."""
    results: dict[str, float | str] = {}
    for name, case in cases.items():
        try:
            whole = build(case)
            cut = tensor_parallel(whole, world_size, dist.get_world_group())
            results[name] = deviation(whole, cut)
        except ModelError as error:
            results[name] = error.what
    return results


def check(results: Sequence[dict[str, float | str]], unsupported: dict[str, str]) -> None:
    refused = {name: result for name, result in results[0].items() if isinstance(result, str)}
    assert refused.keys() == unsupported.keys(), refused
    for name, cause in unsupported.items():
        assert cause in refused[name]
    worst = {name: max(float(result[name]) for result in results) for name in results[0] if name not in refused}
    assert {name: value for name, value in worst.items() if not value < TOLERANCE} == {}


def test_every_architecture_on_two_ranks() -> None:
    """Loss and gradients of the halves are those of the whole model, or the architecture is refused with its reason."""
    assert CHANGED.keys() <= PLANNED.keys()
    assert f"the {len(PLANNED)} with a tensor plan" in PARALLELISM.read_text(encoding="utf-8")
    check(run_distributed(walk, 2, CASES, timeout_s=300), UNSUPPORTED)


def test_four_ranks() -> None:
    """More ranks than two; more ranks than key-value heads are refused."""
    four = {"num_key_value_heads": 4}
    kinds = ("llama", "phi3", "qwen3", "olmo2", "mixtral", "deepseek_v2", "gpt2", "bloom")
    cases: dict[str, Case] = {kind: (kind, four if "key_value" in str(tiny_config(kind)) else {}) for kind in kinds}
    cases["llama, two"] = ("llama", {"num_key_value_heads": 2})
    check(run_distributed(walk, 4, cases), {"llama, two": "heads of k_proj (2)"})


def skeleton_and_checkpointing(rank: int, world_size: int, kinds: Sequence[str]) -> dict[str, bool]:
    """Whether a cut skeleton with loaded shares, and one that recomputes its activations, give the very same gradients."""
    group = dist.get_world_group()
    results = {}
    for kind in kinds:
        whole = build((kind, {}))
        wanted = loss_and_gradients(tensor_parallel(whole, world_size, group))
        recomputing = tensor_parallel(whole, world_size, group)
        recomputing.gradient_checkpointing_enable()  # type: ignore[operator]
        results[f"{kind}, checkpointing"] = same(wanted, loss_and_gradients(recomputing))
        results[f"{kind}, skeleton"] = same(wanted, loss_and_gradients(filled_skeleton(whole, world_size, group)))
    return results


def filled_skeleton(whole: nn.Module, degree: int, group: Any) -> nn.Module:
    """Cut while its parameters are on the meta device; then given its share of `whole`, as loading does."""
    skeleton = copy.deepcopy(whole)
    for module in skeleton.modules():
        for name, parameter in module._parameters.items():
            module._parameters[name] = None if parameter is None else nn.Parameter(parameter.to("meta"))
    plan = tensor_plan(skeleton, degree)
    apply_tensor_parallel(skeleton, plan, group)
    assert all(parameter.is_meta for parameter in skeleton.parameters())
    shards = plan.of_rank(dist.get_rank(group))
    for name, parameter in whole.named_parameters():
        owner, _, last = name.rpartition(".")
        share = shards[name].cut(parameter.detach()) if name in shards else parameter.detach()
        skeleton.get_submodule(owner)._parameters[last] = nn.Parameter(share.clone())
    skeleton.tie_weights()  # type: ignore[operator]
    mark_parameters(skeleton, plan, group)
    return skeleton


def same(
    one: tuple[torch.Tensor, dict[str, torch.Tensor]], other: tuple[torch.Tensor, dict[str, torch.Tensor]]
) -> bool:
    return bool(torch.equal(one[0], other[0])) and all(torch.equal(one[1][name], other[1][name]) for name in one[1])


def test_skeletons_and_activation_checkpointing() -> None:
    """Bit for bit what a loaded model without checkpointing gives."""
    for results in run_distributed(skeleton_and_checkpointing, 2, ["qwen3", "gpt2", "mixtral", "gemma2"]):
        assert results and all(results.values()), results


def drop(model: nn.Module, rate: float) -> None:
    """Set every dropout of `model`: modules, and the numbers that attention reads."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, rate)


def losses_with_dropout(rank: int, world_size: int, kinds: Sequence[str]) -> dict[str, tuple[float, float, bool]]:
    """Loss without and with dropout, and whether this rank's gradients of whole parameters are the first rank's."""
    group = dist.get_world_group()
    results = {}
    for kind in kinds:
        model = tensor_parallel(build(CASES[kind]), world_size, group)
        plain, _ = loss_and_gradients(model)
        drop(model, 0.2)
        loss, gradients = loss_and_gradients(model)
        is_whole = {name for name, found in model.named_parameters() if shard_of(found) is None}
        whole = [gradient for name, gradient in gradients.items() if name in is_whole]
        flat = torch.cat([gradient.flatten() for gradient in whole])
        first = flat.clone()
        dist.broadcast(first, src=0)
        results[kind] = (float(plain), float(loss), bool(torch.equal(flat, first)))
    return results


def test_dropout_agrees_within_a_group() -> None:
    """Whole activations lose the same elements on every rank: one loss, and whole weights stay equal."""
    kinds = ["gpt2", "phi", "llama", "opt", "bert", "bloom", "deepseek_v2"]
    first, second = run_distributed(losses_with_dropout, 2, kinds)
    assert first == second
    for kind, (plain, dropped, agree) in first.items():
        assert dropped != plain and agree, kind


Masks = list[torch.Tensor]


def masks_of_a_step(rank: int, world_size: int, checkpointing: bool) -> tuple[Masks, Masks, torch.Tensor]:
    """What GPT-2's dropout at 0.5 keeps: of whole activations [B, T, D], of this rank's heads [B, H, T, T]; and all
    gradients of this rank. In the order in which they are drawn, recomputed ones included."""
    # The last layer's recomputation may end inside of a region, where nothing more is needed.
    model = tensor_parallel(build(("gpt2", {"attn_implementation": "eager"})), world_size, dist.get_world_group())
    drop(model, 0.5)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    drawn: Masks = []
    plain = nn.functional.dropout

    def recorded(values: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        result = plain(torch.ones_like(values), *args, **kwargs)
        drawn.append(result.detach() != 0)
        return values * result

    nn.functional.dropout = recorded
    try:
        _, gradients = loss_and_gradients(model)
    finally:
        nn.functional.dropout = plain
    whole, local = ([mask for mask in drawn if mask.dim() == dims] for dims in (3, 4))
    return whole, local, torch.cat([gradient.flatten() for gradient in gradients.values()])


def test_heads_draw_their_own_dropout() -> None:
    """Two ranks keep the same half of whole activations, and of their heads halves that have nothing to do with each
    other; so do two layers. That is the distribution of one process, whose heads all draw for themselves."""
    (whole, local, _), (same_whole, other, _) = run_distributed(masks_of_a_step, 2, False)
    assert len(whole) == 1 + 2 * LAYERS and len(local) == LAYERS
    assert all(torch.equal(one, two) for one, two in zip(whole, same_whole, strict=True))
    heads = [head.flatten().double() for masks in (*local, *other) for head in masks.unbind(1)]
    correlations = torch.corrcoef(torch.stack(heads))
    size = len(heads[0])
    assert len(heads) == LAYERS * 4 and size == 512
    off = correlations - torch.eye(len(heads))
    assert float(off.abs().max()) < 5 / size**0.5
    kept = float(torch.stack(heads).mean())
    assert abs(kept - 0.5) < 5 * 0.5 / (size * len(heads)) ** 0.5


def test_recomputed_layers_draw_their_dropout_again() -> None:
    """Activation checkpointing repeats both kinds of masks: gradients are those without it, bit for bit."""
    once, again = run_distributed(masks_of_a_step, 2, False), run_distributed(masks_of_a_step, 2, True)
    for (whole, local, wanted), (more_whole, more_local, found) in zip(once, again, strict=True):
        assert len(more_local) == 2 * len(local) and len(more_whole) > len(whole)
        assert all(any(torch.equal(mask, known) for known in local) for mask in more_local)
        assert torch.equal(found, wanted)
