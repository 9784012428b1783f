"""What our attention hands torch's variable-length kernel, against attention under a mask; and when it is used."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from tests import varlen
from tests.architectures import tiny_config
from toolkit.models.attention import (
    DOCUMENT_LENGTHS,
    DOCUMENTS,
    Documents,
    document_attention,
    lengths_tensor,
    tell_documents,
)
from toolkit.models.document_choice import kernel_obstacle, use_document_attention, use_padded_attention
from toolkit.models.varlen import VarlenKernel, kernel_fault, torch_kernel

ROWS = [[3, 5, 2, 1, 1], [12]]


def inputs(heads: int, groups: int, size: int, values: int) -> list[Tensor]:
    """query [2, heads, 12, size], key, value [2, heads // groups, 12, size or values] in fp64."""
    torch.manual_seed(0)
    shapes = ((heads, size), (heads // groups, size), (heads // groups, values))
    return [torch.randn(2, count, 12, width, dtype=torch.float64, requires_grad=True) for count, width in shapes]


def masked(query: Tensor, key: Tensor, value: Tensor, causal: bool, window: int | None, scale: float) -> Tensor:
    """The same, written out for all rows at once under one mask; [B, T, H, E]."""
    document = torch.stack([torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row)) for row in ROWS])
    ahead = torch.arange(12)[None, :] - torch.arange(12)[:, None]
    reach = window or 12
    allowed = (document[:, :, None] == document[:, None, :]) & (ahead > -reach) & (ahead < (1 if causal else reach))
    key, value = (tensor.repeat_interleave(query.shape[1] // tensor.shape[1], 1) for tensor in (key, value))
    scores = (query @ key.transpose(-1, -2) * scale).masked_fill(~allowed[:, None], float("-inf"))
    return (scores.softmax(-1) @ value).transpose(1, 2)


CASES = {
    "plain": (4, 1, 8, 8, True, None, None),
    "grouped": (4, 2, 8, 8, True, None, None),
    "window": (4, 2, 8, 8, True, 3, 0.2),
    "bidirectional": (2, 1, 8, 8, False, None, None),
    "bidirectional window": (2, 1, 8, 8, False, 3, None),
    "odd heads": (4, 2, 6, 6, True, None, 0.3),
    "narrow values": (2, 1, 12, 8, True, None, None),
}
"""Name -> heads, groups, size of keys and values, causal, window, scale."""


@pytest.mark.parametrize("version", varlen.KERNELS)
@pytest.mark.parametrize("case", CASES)
def test_equals_masked_attention(version: str, case: str) -> None:
    """Outputs and gradients in fp64, through the arguments of either version of the kernel."""
    heads, groups, size, values, causal, window, scale = CASES[case]
    module = nn.Module()
    module.num_key_value_groups, module.is_causal = groups, causal  # type: ignore[assignment]
    kernel = varlen.KERNELS[version]
    tensors = inputs(heads, groups, size, values)
    documents = Documents(ROWS)
    varlen.CALLS.clear()
    found, _ = document_attention(
        module, *tensors, None, kernel=kernel, document_lengths=documents, sliding_window=window, scaling=scale
    )
    # The first version knows no windows: those documents are computed one after the other.
    assert len(varlen.CALLS) == (window is None or version == "newest")
    wanted = masked(*tensors, causal, window, scale or size**-0.5)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    weights = torch.randn_like(wanted)
    gradients = [torch.autograd.grad((result * weights).sum(), tensors) for result in (found, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


def test_every_call_fits_the_kernel_of_this_torch() -> None:
    """The arguments, and their defaults, are those of the installed torch's function."""
    signature = varlen.real_signature()
    if signature is None:
        assert torch_kernel() is None
        return
    bound: list[inspect.BoundArguments] = []

    def same_arguments(*positional: Any, **named: Any) -> Tensor:
        bound.append(signature.bind(*positional, **named))
        return positional[0]

    same_arguments.__signature__ = signature  # type: ignore[attr-defined]
    kernel = VarlenKernel(same_arguments)
    query, key, value = (tensor[0].detach().transpose(0, 1) for tensor in inputs(4, 2, 8, 8))
    for causal, window in ((True, None), (False, None), *(((True, 4),) if kernel.takes_windows else ())):
        kernel(query, key, value, Documents(ROWS[1:]).bounds(query.device), 12, causal=causal, window=window)
    names = list(signature.parameters)
    assert names[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
    if kernel.takes_windows:
        assert [call.arguments["window_size"] for call in bound] == [(-1, 0), (-1, -1), (3, 0)]
        assert all(call.arguments["enable_gqa"] and call.arguments["scale"] == 8**-0.5 for call in bound)
    newest = inspect.signature(varlen.newest).parameters
    assert not kernel.takes_windows or set(newest) <= set(names), "the stand-in has arguments that torch's has not"


def test_the_kernel_computes_in_16_bits_on_cuda_alone() -> None:
    """Elsewhere, with dropout and with options that it does not know, documents are computed one after the other."""
    half = torch.zeros(1, 1, 1, 8, dtype=torch.bfloat16)
    assert not VarlenKernel(varlen.newest).fits(half, half, None), "bf16 on a CPU"
    on_meta = VarlenKernel(varlen.newest, "meta")
    assert on_meta.fits(half.to("meta"), half.to("meta"), None)
    assert not on_meta.fits(half.to("meta").float(), half.to("meta").float(), None)
    wide = torch.zeros(1, 1, 1, 264, dtype=torch.bfloat16, device="meta")
    assert not on_meta.fits(wide, wide, None)
    fault = kernel_fault(torch.device("cpu"), torch.float32)
    assert fault is not None and ("not in float32 on cpu" in fault or "has no variable-length kernel" in fault)
    tensors = [tensor.float() for tensor in inputs(2, 1, 8, 8)]
    varlen.CALLS.clear()
    for options in ({"dropout": 0.5}, {"s_aux": torch.zeros(2)}):
        document_attention(
            nn.Module(), *tensors, None, kernel=varlen.KERNELS["newest"], document_lengths=Documents(ROWS), **options
        )
    assert varlen.CALLS == []
    with pytest.raises(AssertionError, match="documents of 23 tokens in 2 x 12"):
        short = Documents([[11], [12]])
        document_attention(nn.Module(), *tensors, None, kernel=varlen.KERNELS["newest"], document_lengths=short)


def test_the_kernel_is_tried_before_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs and gradients against plain attention: one that leaks, or fails, is named and not used."""

    def leaking(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, *rest: Any, **options: Any) -> Tensor:
        return varlen.newest(query, key, value, (ends := bounds[[0, -1]]), ends, len(query), len(query), **options)

    leaking.__signature__ = inspect.signature(varlen.newest)  # type: ignore[attr-defined]

    def failing(*arguments: Any, **options: Any) -> Tensor:
        raise RuntimeError("no kernel image is available\nCompile with ...")

    faults = []
    for function in (varlen.newest, varlen.first, leaking, failing):
        monkeypatch.setattr("toolkit.models.varlen.KERNEL", VarlenKernel(function, "cpu", varlen.DTYPES))
        with torch.no_grad():
            faults += [kernel_fault.__wrapped__(torch.device("cpu"), dtype) for dtype in varlen.DTYPES]
    assert faults[:6] == [None] * 6
    assert all(
        str(fault).startswith("the variable-length kernel computes something else here") for fault in faults[6:9]
    )
    assert faults[9:] == ["the variable-length kernel fails here: no kernel image is available"] * 3


def test_dropout_and_wide_heads_are_named() -> None:
    model = AutoModelForCausalLM.from_config(tiny_config("llama", attention_dropout=0.25))
    assert kernel_obstacle(model) == (
        "the variable-length kernel has no dropout (attention_dropout=0.25; --model.dropout 0 turns it off)"
    )
    model.config.attention_dropout, model.config.head_dim = 0.0, 512
    assert kernel_obstacle(model) == "the variable-length kernel computes heads of up to 256 numbers, not 512"


def packed(model: nn.Module, rows: list[list[int]] = ROWS) -> dict[str, Any]:
    """Two rows of 12 tokens and their documents, as `model` takes them."""
    tokens = torch.arange(24).view(2, 12) * 5 % 60 + 2
    positions = torch.stack([torch.cat([torch.arange(length) for length in row]) for row in rows])
    lengths = lengths_tensor(rows)
    return tell_documents(model, {"input_ids": tokens, "position_ids": positions, DOCUMENT_LENGTHS: lengths})


def outcome(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Hidden states and all gradients of a packed batch."""
    model.zero_grad()
    hidden = model.base_model(**packed(model), use_cache=False).last_hidden_state  # type: ignore[operator]
    # Of weights drawn at random: the sum of squares after the final norm hardly depends on anything.
    weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1), dtype=hidden.dtype)
    (hidden * weights).sum().backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return hidden.detach(), torch.cat(gradients)


WINDOWED = {"sliding_window": 4}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": WINDOWED,
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1, **WINDOWED},
    "gemma3_text": WINDOWED,
}


@pytest.mark.parametrize("kind", MODELS)
def test_models_of_packed_rows(kind: str) -> None:
    """fp64: hidden states and gradients of transformers' eager attention, whose softmax is in fp32; bounds made once."""
    torch.manual_seed(0)
    config = tiny_config(kind, **MODELS[kind])
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config).double().eval()
    wanted, gradients = outcome(model)
    model.set_attn_implementation("sdpa")
    with torch.no_grad():
        assert use_document_attention(model, varlen.NEWEST) is None
    varlen.CALLS.clear()
    found, others = outcome(model)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-6
    assert float((others - gradients).norm() / gradients.norm()) < 1e-6
    assert len(varlen.CALLS) == config.num_hidden_layers and all(call.causal for call in varlen.CALLS)
    assert len({id(call.bounds) for call in varlen.CALLS}) == 1, "the bounds of a batch go to the device once"
    windows = {call.window[0] for call in varlen.CALLS}
    assert windows == ({-1} if kind == "llama" else {3} if kind == "mistral" else {-1, 3})


def padded(model: nn.Module) -> Any:
    """Logits of two texts, of 12 and 7 tokens."""
    lengths = torch.tensor([[12, 0], [7, 5]])
    mask = (torch.arange(12) < lengths[:, :1]).long()
    tokens = torch.where(mask == 1, torch.arange(24).view(2, 12) * 5 % 60 + 2, 0)
    batch = {"input_ids": tokens, "attention_mask": mask, DOCUMENT_LENGTHS: lengths}
    return model(**tell_documents(model, batch)).logits


@pytest.mark.parametrize("kind", ["bert", "modernbert", "llama"])
@pytest.mark.parametrize("attention", [DOCUMENTS, varlen.NEWEST])
def test_models_of_padded_rows(kind: str, attention: str) -> None:
    """Logits and gradients of texts of unlike lengths are those of the mask of padding, and there is no mask."""
    torch.manual_seed(0)
    config = classifier_config(kind)
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="sdpa").double().eval()
    wanted = padded(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(wanted.pow(2).sum(), parameters, allow_unused=True)
    with torch.no_grad():
        assert use_padded_attention(model, attention) is None
    assert model.config._attn_implementation == attention
    varlen.CALLS.clear()
    found = padded(model)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    others = torch.autograd.grad(found.pow(2).sum(), parameters, allow_unused=True)
    torch.testing.assert_close(others, gradients, rtol=1e-9, atol=1e-9)
    assert len(varlen.CALLS) == (config.num_hidden_layers if attention == varlen.NEWEST else 0)
    assert all(call.causal == (kind == "llama") for call in varlen.CALLS)


def classifier_config(kind: str) -> Any:
    config = tiny_config(kind, pad_token_id=0)
    config.num_labels = 3
    return config


def test_a_classifier_that_drops_the_bounds_keeps_its_mask() -> None:
    """Its hidden states are right in the probe of the base model; called as a whole it would see the padding."""
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(
        classifier_config("bert"), attn_implementation="sdpa"
    ).eval()
    whole = model.forward
    model.forward = lambda input_ids, attention_mask, **_: whole(input_ids, attention_mask)
    with torch.no_grad():
        refused = use_padded_attention(model, varlen.NEWEST)
    assert refused == "BertForSequenceClassification does not hand the bounds on"
    assert model.config._attn_implementation == "sdpa"


def test_layers_of_other_kinds_keep_their_mask() -> None:
    model = AutoModelForCausalLM.from_config(tiny_config("llama"), attn_implementation="sdpa").eval()
    model.config.layer_types = ["full_attention", "chunked_attention"]
    assert use_document_attention(model, DOCUMENTS) == "it has layers of chunked_attention"
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("attention", [DOCUMENTS, varlen.NEWEST])
def test_other_documents_compile_nothing_again(attention: str) -> None:
    """Documents of other numbers and lengths leave a compiled layer as it is."""
    model = AutoModelForCausalLM.from_config(tiny_config("llama", num_hidden_layers=1), attn_implementation="sdpa")
    model.set_attn_implementation(attention)
    torch.compiler.reset()
    counter = CompileCounter()
    model.base_model.layers[0].compile(backend=counter)
    counts = []
    for rows in ([[12], [12]], ROWS, [[1] * 12, [7, 5]]):
        model.base_model(**packed(model, rows), use_cache=False)
        counts.append(counter.frame_count)
    torch.compiler.reset()
    assert counts[0] > 0 and counts == counts[:1] * 3
