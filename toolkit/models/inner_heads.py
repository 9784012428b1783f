"""The loss inside a head that only the whole model can call: what goes into it is made outside of the base model.

T5 scales its decoder's output, BERT's family transforms it, and an EncoderDecoderModel has its head inside its decoder. Such a
model is called as a whole; where nothing is done to the logits either, its head can return the loss in their place.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from toolkit.models.quiet import quiet

LossOf = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""(hidden [B, T, D], weight [V, D], bias [V] or None) -> the loss, 0-dim."""


def hands_logits_on(model: nn.Module) -> bool:
    """Whether the logits of an encoder-decoder are what its head, a Linear, returned: asked of a copy without weights."""
    if not isinstance(model.get_output_embeddings(), nn.Linear):  # type: ignore[operator]
        return False
    sentinel = torch.zeros((), device="meta")
    tokens = torch.zeros((1, 4), dtype=torch.int64, device="meta")
    try:
        with torch.device("meta"), quiet(), torch.no_grad():
            empty: Any = type(model)(copy.deepcopy(model.config))
            empty.get_output_embeddings().forward = lambda _: sentinel
            found = empty.eval()(input_ids=tokens, decoder_input_ids=tokens, use_cache=False).logits
    except Exception:
        # The model's own code, which was not written to run without values; or logits that are no longer 0-dim.
        return False
    return found is sentinel


def use_inner_loss(model: nn.Module) -> bool:
    """Let the head of an encoder-decoder return the loss while `inner_loss` asks for it; False where it cannot.

    As in `toolkit.models.heads`, it is the head's own forward pass that computes it: ZeRO-3 gathers the weight for that.
    """
    if not hands_logits_on(model):
        return False
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    plain_forward = head.forward
    head.loss_of = None

    def forward(hidden: torch.Tensor) -> Any:
        return plain_forward(hidden) if head.loss_of is None else head.loss_of(hidden, head.weight, head.bias)

    head.forward = forward
    return True


def has_inner_loss(model: nn.Module) -> bool:
    """Whether `use_inner_loss` was called and is in use."""
    return hasattr(model.get_output_embeddings(), "loss_of")  # type: ignore[operator]


def inner_loss(model: nn.Module, inputs: dict[str, Any], loss_of: LossOf) -> torch.Tensor:
    """What `loss_of` makes of the head's input when `model` is called with `inputs`."""
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    head.loss_of = loss_of
    try:
        loss: torch.Tensor = model(**inputs, use_cache=False).logits
    finally:
        head.loss_of = None
    return loss
