"""A causal model is told from one that looks ahead, in every format, with trained weights or without."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.architectures import tiny_config
from toolkit.errors import ModelError
from toolkit.models.causality import check_causal, check_positions, foresight, shift
from toolkit.models.isolation import leak

CAUSAL = ("llama", "gpt2", "qwen3_moe", "deepseek_v3", "gemma3_text", "mamba", "bloom", "opt", "falcon", "gpt_oss")
BLIND: dict[str, tuple[dict[str, Any], str]] = {
    "bert": ({}, "set model.config is_decoder to True, or choose a decoder"),
    "electra": ({}, "set model.config is_decoder to True, or choose a decoder"),
    "gemma3_text": (
        {"use_bidirectional_attention": True},
        "set model.config use_bidirectional_attention to False, or choose a decoder",
    ),
}


def probed(kind: str, dtype: torch.dtype, **changes: Any) -> tuple[float, Any]:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(kind, **changes), dtype=dtype).eval()
    with torch.no_grad():
        return foresight(model), model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_causal_models_pass(dtype: torch.dtype) -> None:
    for kind in CAUSAL:
        moved, model = probed(kind, dtype)
        check_causal(moved, model.config, model)
    for kind in ("bert", "electra"):
        moved, model = probed(kind, dtype, is_decoder=True)
        check_causal(moved, model.config, model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", BLIND)
def test_an_attention_that_looks_ahead_is_refused(kind: str, dtype: torch.dtype) -> None:
    changes, cure = BLIND[kind]
    moved, model = probed(kind, dtype, **changes)
    with pytest.raises(ModelError) as caught:
        check_causal(moved, model.config, model)
    assert caught.value.what.startswith(f"{type(model).__name__} lets a token see those after it")
    assert caught.value.do == cure


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_positions_that_do_not_begin_at_zero_are_refused(dtype: torch.dtype) -> None:
    """RoBERTa's begin after the padding index: trained from 0, its export would compute something else."""
    for kind in ("llama", "gpt2", "opt", "bert", "bloom", "gemma3_text"):
        _, model = probed(kind, dtype)
        with torch.no_grad():
            check_positions(shift(model), model)
    _, model = probed("roberta", dtype, is_decoder=True)
    with pytest.raises(ModelError, match="RobertaForCausalLM does not count positions from 0"), torch.no_grad():
        check_positions(shift(model), model)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_the_cause_that_is_named(value: float) -> None:
    """And not that the model looks ahead, which NaN would look like."""
    model = AutoModelForCausalLM.from_config(tiny_config("llama"), dtype=torch.float32).eval()
    model.model.layers[0].mlp.up_proj.weight.data[3, 5] = value
    for probe in (foresight, shift, leak):
        with (
            torch.no_grad(),
            pytest.raises(ModelError, match="NaN or infinite numbers from its starting weights, in float32"),
        ):
            probe(model)
