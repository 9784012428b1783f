"""Every architecture that can be cut, cut: stages run one after the other in one process against the model's own code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from tests.architectures import VOCABULARY, WITHOUT_PLAN, planned, tiny_config
from tests.pages import PARALLELISM
from toolkit.errors import ModelError
from toolkit.models.heads import token_loss, use_loss_head
from toolkit.models.partial import place
from toolkit.models.stage_plan import balance
from toolkit.models.stages import build_skeleton, cut, tied_parameters

TOLERANCE = 1e-5
"""Relative, fp32."""

FLOOR = 1e-3
"""A parameter's deviation is measured against its gradient's norm, or this share of the largest one: some gradients are
zero but for rounding (a bias added to every key)."""

REFUSED = {
    "gemma3n_text": "each of its layers reads an embedding of the input tokens of its own",
    "hrm_text": "it runs two stacks of layers in turns, not one stack once",
}
"""Architectures with a pipeline plan that cannot be cut, and why."""

THREE_STAGES = ("bloom", "deepseek_v4", "gemma2", "gpt2", "gpt_oss", "granite", "llama", "opt", "qwen3_next")
"""Of several kinds: positions, scales and norms around the embedding, several residual streams, mixed layers."""

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("falcon", {"alibi": True}),
    ("gemma4_unified_text", {"num_kv_shared_layers": 1, "layer_types": ["full_attention"] * 4}),
    ("llama", {"tie_word_embeddings": True}),
    ("opt", {"do_layer_norm_before": False}),
]
"""Options that change what travels, or what lies before and after the layers."""

Gradients = dict[str, Tensor]


def batch(kind: str) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Token ids [2, 16], positions of two packed documents per row, targets with gaps."""
    generator = torch.Generator().manual_seed(1)
    tokens, targets = torch.randint(3, VOCABULARY, (2, 2, 16), generator=generator)
    rows = [torch.cat([torch.arange(first), torch.arange(16 - first)]) for first in (7, 11)]
    positions = torch.stack(rows)
    targets[positions == 0] = -100
    # BLOOM has no positions, only distances.
    return tokens, {} if kind == "bloom" else {"position_ids": positions}, targets


def whole_model(kind: str, **changes: Any) -> nn.Module:
    """Random weights, none of them the zeros and ones that some start from."""
    torch.manual_seed(0)
    model: nn.Module = AutoModelForCausalLM.from_config(tiny_config(kind, **changes), dtype=torch.float32).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def run_whole(model: nn.Module, kind: str) -> tuple[float, Gradients]:
    """The model's own logits and torch's cross-entropy."""
    tokens, positions, targets = batch(kind)
    logits = model(input_ids=tokens, use_cache=False, **positions).logits.float()
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    loss.backward()
    return float(loss.detach()), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def stages_of(model: nn.Module, num_stages: int) -> list[nn.Module]:
    """Each built as a rank of a pipeline builds it, with the weights of `model`."""
    config: Any = model.config
    weights = model.state_dict()
    stages = [build_skeleton(AutoModelForCausalLM, config).train() for _ in range(num_stages)]
    for stage, layers in zip(stages, balance(stages[0], num_stages), strict=True):
        cut(stage, layers)
        for name in stage.state_dict():
            place(stage, name, weights[name].clone())
    return stages


def run_stages(stages: list[nn.Module], kind: str) -> tuple[float, list[Gradients]]:
    """Forward and backward with nothing but tensors handed from stage to stage, as between processes."""
    tokens, positions, targets = batch(kind)
    use_loss_head(stages[-1])
    given, handed = tokens, []
    for stage in stages[:-1]:
        source = {"inputs_embeds" if handed else "input_ids": given}
        output = stage.base_model(**source, **positions, use_cache=False).last_hidden_state  # type: ignore[operator]
        given = output.detach().requires_grad_()
        handed.append((output, given))
    inputs = {"inputs_embeds": given, **positions}
    loss = token_loss(stages[-1], inputs, targets, label_smoothing=0.0, gradient_scale=1.0)
    loss.backward()
    for output, given in reversed(handed):
        output.backward(given.grad)
    gradients = [{name: p.grad for name, p in stage.named_parameters() if p.grad is not None} for stage in stages]
    return float(loss.detach()), gradients


def deviation(kind: str, num_stages: int, **changes: Any) -> float:
    """Largest relative deviation of the loss and of any parameter's gradient; checks that the stages share out the model."""
    whole = whole_model(kind, **changes)
    stages = stages_of(whole, num_stages)
    names = [name for stage in stages for name, _ in stage.named_parameters()]
    tied = [name for stage in stages for name in tied_parameters(stage)]
    assert sorted(names) == sorted([*dict(whole.named_parameters()), *set(tied)]), kind
    loss, expected = run_whole(whole, kind)
    got, parts = run_stages(stages, kind)
    summed: Gradients = {}
    for part in parts:
        for name, gradient in part.items():
            assert name not in summed or name in tied, f"{kind}: {name} on two stages"
            summed[name] = summed[name] + gradient if name in summed else gradient
    assert summed.keys() == expected.keys(), kind
    floor = FLOOR * max(float(gradient.norm()) for gradient in expected.values())
    worst = [float((summed[name] - g).norm()) / max(float(g.norm()), floor) for name, g in expected.items()]
    return max(abs(got - loss) / abs(loss), *worst)


def test_architectures() -> None:
    """Two stages each; the list of those that cannot be cut is exact, with the reason."""
    kinds = [*planned(), *WITHOUT_PLAN]
    assert set(REFUSED) < set(kinds)
    deviations = {kind: deviation(kind, 2) for kind in kinds if kind not in REFUSED}
    assert {kind: value for kind, value in deviations.items() if not value < TOLERANCE} == {}
    count = sum(kind in deviations for kind in planned())
    assert f"{count} of the {len(planned())} with a pipeline plan" in PARALLELISM.read_text(encoding="utf-8")
    for kind, reason in REFUSED.items():
        with pytest.raises(ModelError, match=reason):
            stages_of(whole_model(kind), 2)


def test_three_stages() -> None:
    deviations = {kind: deviation(kind, 3) for kind in THREE_STAGES}
    assert {kind: value for kind, value in deviations.items() if not value < TOLERANCE} == {}


def test_variants() -> None:
    deviations = {f"{kind} {changes}": deviation(kind, 2, **changes) for kind, changes in VARIANTS}
    assert {name: value for name, value in deviations.items() if not value < TOLERANCE} == {}
