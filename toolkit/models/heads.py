"""The language-model loss without the logits: hidden states go into the loss, not into a vocabulary-wide matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from toolkit.models.cross_entropy import linear_cross_entropy
from toolkit.models.generation import text_config
from toolkit.models.head_chunks import IGNORED
from toolkit.models.inner_heads import has_inner_loss, inner_loss, use_inner_loss
from toolkit.models.log_probabilities import linear_log_probabilities

SCALED_LOGITS = (
    "final_logit_softcapping",
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
    "logits_mup_width_multiplier",
    "unpadded_vocab_size",
    "logits_soft_cap",
    "output_logit_soft_cap",
    "ngram",
)
"""Config fields by which an architecture changes what goes into its head, or the logits that come out."""


TARGET_ROWS = "target_rows"
"""Name in a batch of what `target_rows` found: how many there are is known without waiting for the device."""


def target_rows(targets: torch.Tensor) -> torch.Tensor:
    """Where targets [B, T] on the CPU have loss: indices into the flattened tensor, int64 [N], rising."""
    return (targets.flatten() != IGNORED).nonzero().squeeze(1)


def is_plain_head(model: nn.Module) -> bool:
    """Whether the logits are exactly head(last hidden state): a Linear, nothing before it and nothing after it.

    Nothing but the vector that BART and its kin add; see `_bias`.
    """
    config: Any = model.config
    head = model.get_output_embeddings()  # type: ignore[operator]
    base = getattr(model, "base_model", model)
    if not isinstance(head, nn.Linear) or base is model:
        return False
    if any(getattr(part, name, None) not in (None, 1, 1.0) for part in _parts(config) for name in SCALED_LOGITS):
        return False
    if hasattr(model, "final_logits_bias") and hasattr(head, "vocabulary"):
        return False  # this rank has some rows of the head, and all of the vector
    # What else has weights outside the base model transforms what goes into the head (BERT and its family).
    known = {id(parameter) for module in (base, head) for parameter in module.parameters()}
    return all(id(parameter) in known for parameter in model.parameters())


def _parts(config: Any) -> list[Any]:
    """`config`, and that of the language model in it."""
    return [config, text_config(config)]


def use_loss_head(model: nn.Module) -> bool:
    """Give the output head a second way to be called, `head(hidden, loss_of)`; False where the head is not plain.

    The loss has to be computed inside the head's forward: under ZeRO-3 that call is what gathers the weight.
    """
    if not is_plain_head(model):
        return bool(getattr(model.config, "is_encoder_decoder", False)) and use_inner_loss(model)
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    plain_forward = head.forward

    def forward(
        hidden: torch.Tensor,
        loss_of: Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor] | None = None,
    ) -> Any:
        if loss_of is None:
            return plain_forward(hidden)
        # The hidden states that came in here: ZeRO-3 frees the weight when their gradient goes out again.
        return loss_of(hidden, head.weight, _bias(model, head))

    head.forward = forward
    head.returns_loss = True
    return True


def _bias(model: nn.Module, head: Any) -> torch.Tensor | None:
    """[V]: what is added to the logits, by the head or, as in BART and its kin, by the model after it."""
    added: torch.Tensor | None = getattr(model, "final_logits_bias", None)
    bias: torch.Tensor | None = head.bias
    if added is None:
        return bias
    added = added.flatten().to(head.weight.dtype)
    return added if bias is None else bias + added


def token_loss(
    model: nn.Module,
    inputs: dict[str, Any],
    targets: torch.Tensor,
    *,
    label_smoothing: float,
    gradient_scale: float,
    rows: torch.Tensor | None = None,
    see: Callable[[Any], None] | None = None,
) -> torch.Tensor:
    """Sum over valid targets of the next-token loss, fp32.

    `targets` [B, T] are aligned with the positions that predict them (already shifted), -100 where there is none.
    `rows` are their `target_rows`, found here where not given, for which a GPU is waited for.
    `gradient_scale` is the factor by which the caller promises to multiply the gradient (see linear_cross_entropy).
    `see` is shown what the model returned.
    """
    head: Any = model.get_output_embeddings()  # type: ignore[operator]

    def head_loss(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return linear_cross_entropy(
            hidden.flatten(0, -2),
            weight,
            bias,
            targets.flatten(),
            rows=rows,
            label_smoothing=label_smoothing,
            gradient_scale=gradient_scale,
            part=getattr(head, "vocabulary", None),
            is_promised=True,
        )

    if has_inner_loss(model):
        return inner_loss(model, inputs, head_loss)
    if not getattr(head, "returns_loss", False):
        outputs = model(**inputs, use_cache=False)
        if see is not None:
            see(outputs)
        logits = outputs.logits.float()
        return nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum", label_smoothing=label_smoothing
        )
    outputs = model.base_model(**inputs, use_cache=False)  # type: ignore[operator]
    if see is not None:
        see(outputs)
    hidden = outputs.last_hidden_state
    loss: torch.Tensor = head(hidden, head_loss)
    return loss


def token_log_probabilities(
    model: nn.Module,
    inputs: dict[str, Any],
    targets: torch.Tensor,
    rows: torch.Tensor,
    *,
    see: Callable[[Any], None] | None = None,
) -> torch.Tensor:
    """Log-probability of each target, [M] fp32, in the order of `rows`, which are the `target_rows` of targets [B, T].

    `see` is shown what the model returned.
    """
    kept = targets.flatten()[rows]
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    if not getattr(head, "returns_loss", False):
        outputs = model(**inputs, use_cache=False)
        if see is not None:
            see(outputs)
        logits: torch.Tensor = outputs.logits.flatten(0, 1)[rows].float()
        return logits.log_softmax(-1).gather(1, kept.unsqueeze(1)).squeeze(1)
    outputs = model.base_model(**inputs, use_cache=False)  # type: ignore[operator]
    if see is not None:
        see(outputs)
    hidden = outputs.last_hidden_state.flatten(0, 1)[rows]

    def log_probabilities_of(given: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return linear_log_probabilities(given, weight, bias, kept, part=getattr(head, "vocabulary", None))

    found: torch.Tensor = head(hidden, log_probabilities_of)
    return found
