"""One name for a weight that a model uses in several places."""

from __future__ import annotations

from torch import nn


def base_first(model: nn.Module) -> None:
    """Let `model` have its base model before its head, in place.

    torch names a shared parameter by the first module that holds it. Nearly all of transformers' classes have the base
    model first, where the source of a tie lies (the embedding); the masked language models of XLM-RoBERTa and CamemBERT
    have their head first. Checkpoints, exports and pipeline stages, of which only one has the head, need one name.
    """
    base = model.base_model
    name = next((name for name, module in model._modules.items() if module is base), None)
    if name is not None:
        others = dict(model._modules)
        first = others.pop(name)
        model._modules.clear()
        model._modules.update({name: first, **others})
