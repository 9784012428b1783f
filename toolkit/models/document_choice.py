"""Which of our ways of computing attention a model gets in the place of transformers' "sdpa", asked of the model itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from toolkit.errors import ModelError
from toolkit.models.agreement import excess, hidden_states, takes_positions, vocabulary_size
from toolkit.models.attention import (
    DOCUMENT_LENGTHS,
    DOCUMENTS,
    VARLEN,
    Documents,
    set_attention,
    takes_options,
    tell_documents,
)
from toolkit.models.isolation import ROWS, TOLERANCE, difference, leak, probe, probe_tokens
from toolkit.models.varlen import LARGEST_HEAD, kernel_fault

LAYERS = {"full_attention", "sliding_attention"}
"""Kinds of layers whose documents can be computed one by one."""

PADDED = (8, 5)
"""Tokens of the rows of the probe of padded batches; the second one is filled up."""


def kernel_obstacle(model: nn.Module) -> str | None:
    """Why torch's variable-length kernel does not compute this model's attention in training; None where it does."""
    parameter = next(model.parameters())
    config: Any = model.config.get_text_config()  # type: ignore[union-attr, operator]
    for name, value in config.to_dict().items():
        is_dropout = ("attn" in name or "attention" in name) and ("drop" in name)
        if is_dropout and isinstance(value, float) and value > 0:
            return f"the variable-length kernel has no dropout ({name}={value}; --model.dropout 0 turns it off)"
    heads, width = (getattr(config, name, None) for name in ("num_attention_heads", "hidden_size"))
    size = getattr(config, "head_dim", None) or (width // heads if width and heads else 0)
    if size > LARGEST_HEAD:
        return f"the variable-length kernel computes heads of up to {LARGEST_HEAD} numbers, not {size}"
    return kernel_fault(parameter.device, parameter.dtype)


def use_document_attention(model: nn.Module, name: str) -> str | None:
    """Switch a causal model from "sdpa" to attention inside each document, `name`; None, or why it stays as it is.

    It stays where layers are neither causal nor sliding, where its hidden states would change by more than rounding, and
    where a document would see another one.
    """
    if not takes_positions(model):
        return "it takes no positions"
    return _switch(model, name, lambda: probe(model, 7), lambda _: _packed_fault(model))


def use_packed_attention(model: nn.Module, name: str) -> str | None:
    """Switch a model whose tokens see what comes after them from "sdpa" to attention inside each document, `name`; None,
    or why it stays.

    No mask of transformers' keeps documents apart there: packed, they are compared with each of them by itself.
    """
    if not takes_positions(model):
        return "it takes no positions"
    is_packed = iter((False, True))  # before the switch, and after it
    return _switch(model, name, lambda: _documents(model, packed=next(is_packed)), lambda _: None)


def _documents(model: nn.Module, *, packed: bool) -> torch.Tensor:
    """Hidden states [tokens, D] of the probe's documents: packed, or each by itself at positions of the model's own."""
    if packed:
        return probe(model, 7).flatten(0, 1)
    tokens = probe_tokens(model, 7)
    alone = [
        hidden_states(model, document.unsqueeze(0), None)[0]
        for row, lengths in zip(tokens, ROWS, strict=True)
        for document in torch.split(row, list(lengths))
    ]
    return torch.cat(alone)


def use_padded_attention(model: nn.Module, name: str) -> str | None:
    """Switch a model of padded rows from "sdpa" and its mask to attention inside each row, `name`; None, or why not.

    A row's tokens are one document and its padding is another. Compares hidden states of the tokens, which must not
    move either when the padding changes, and asks whether the model hands the bounds on when it is called as a whole.
    """
    return _switch(model, name, lambda: _padded(model, 3), lambda found: _padded_fault(model, found))


def _switch(
    model: nn.Module,
    name: str,
    compute: Callable[[], torch.Tensor],
    fault: Callable[[torch.Tensor], str | None],
) -> str | None:
    """Switch if `compute` then finds the same as before, and `fault`, which is given that, nothing."""
    if (reason := unfit(model)) is not None:
        return reason
    try:
        before = compute()
        set_attention(model, name)
        found = compute()
        reason = fault(found) if excess(model, found, before) < 1.0 else "its hidden states would be others"
    except ModelError:
        raise
    except Exception as error:
        # Every architecture that does not fit fails in its own way, and all ranks alike.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = f"it fails: {lines[0][:200]}"
    if reason is not None:
        set_attention(model, "sdpa")
    return reason


def _packed_fault(model: nn.Module) -> str | None:
    return None if (leak(model) or 0.0) < TOLERANCE else "a document sees another one without a mask"


def _padded_fault(model: nn.Module, found: torch.Tensor) -> str | None:
    if not difference(found, _padded(model, 11)) < TOLERANCE:
        return "its tokens see the padding without a mask"
    return None if _hands_on(model) else f"{type(model).__name__} does not hand the bounds on"


def implementation(obstacle: str | None) -> str:
    """Name of the attention for a model with this `kernel_obstacle`."""
    return VARLEN if obstacle is None else DOCUMENTS


def unfit(model: nn.Module) -> str | None:
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())  # type: ignore[union-attr, operator]
    if getattr(model.config, "is_encoder_decoder", False):
        return "it has an encoder and a decoder"
    if not kinds <= LAYERS:
        return f"it has layers of {', '.join(sorted(kinds - LAYERS))}"
    return None if takes_options(model) else "it takes no further keyword arguments"


def _padded_inputs(model: nn.Module, shift: int) -> dict[str, Any]:
    """Two rows, of which the second has padding; `shift` chooses the tokens there."""
    device, vocabulary = next(model.parameters()).device, vocabulary_size(model)
    places = torch.arange(max(PADDED)).expand(len(PADDED), -1)
    real = places < torch.tensor(PADDED).unsqueeze(1)
    # None of them is a padding token, which some models look for: 0 and 1.
    tokens = 2 + torch.where(real, places * 3, places + shift) % (vocabulary - 2)
    rows = torch.tensor([[length, max(PADDED) - length] for length in PADDED])
    inputs = {"input_ids": tokens.to(device), "attention_mask": real.long().to(device), DOCUMENT_LENGTHS: rows}
    return tell_documents(model, inputs)


def _padded(model: nn.Module, shift: int) -> torch.Tensor:
    """Hidden states [tokens, D] of the probe's tokens, in fp32."""
    base: nn.Module = model.base_model  # type: ignore[assignment]
    hidden: torch.Tensor = base(**_padded_inputs(model, shift)).last_hidden_state
    return torch.cat([row[:length] for row, length in zip(hidden.float(), PADDED, strict=True)])


def _hands_on(model: nn.Module) -> bool:
    """Whether what the whole model is told about documents reaches its base model."""
    seen: list[Any] = []
    base: nn.Module = model.base_model  # type: ignore[assignment]
    hook = base.register_forward_pre_hook(
        lambda _, __, options: seen.append(options.get(DOCUMENT_LENGTHS)), with_kwargs=True
    )
    try:
        model(**_padded_inputs(model, 3))
    except TypeError:  # takes no further keyword arguments
        return False
    finally:
        hook.remove()
    return bool(seen) and all(isinstance(documents, Documents) for documents in seen)
