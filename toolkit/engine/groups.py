"""Parameter groups: what is decayed, and what Muon orthogonalises."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from toolkit.engine.adam8bit import Adam8bit
from toolkit.models.output_layer import embedding_parameters
from toolkit.recipe import Optimizer
from toolkit.recipe.optimizers import optimizer_parameters


def parameter_groups(model: nn.Module, optimizer: Optimizer) -> list[dict[str, Any]]:
    """Trainable parameters in one or two groups: matrices with weight decay, biases and norm weights without.

    A vector has one dimension, also under ZeRO-3, where the shape is in `ds_shape`. Parameters for Muon are tagged
    instead: DeepSpeed makes its groups itself from the tags.
    """
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if optimizer.type == "muon":
        embeddings = embedding_parameters(model)
        for _, parameter in trainable:
            parameter.use_muon = num_dimensions(parameter) >= 2 and id(parameter) not in embeddings  # type: ignore[attr-defined]
    matrices = [parameter for _, parameter in trainable if num_dimensions(parameter) >= 2]
    vectors = [parameter for _, parameter in trainable if num_dimensions(parameter) < 2]
    groups = [
        {"params": matrices, "weight_decay": optimizer.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def num_dimensions(parameter: nn.Parameter) -> int:
    """Dimensions of the whole parameter, whether or not ZeRO-3 has partitioned it."""
    return len(getattr(parameter, "ds_shape", parameter.shape))


def client_optimizer(
    config: Mapping[str, Any], optimizer: Optimizer
) -> Callable[[list[dict[str, Any]]], torch.optim.Optimizer] | None:
    """What builds the optimizer from parameter groups where `config` has no block for it: Adam with 8-bit states."""
    if "optimizer" in config:
        return None
    own = optimizer_parameters(optimizer.type, optimizer.model_dump())
    return partial(
        Adam8bit,
        lr=optimizer.learning_rate,
        weight_decay=optimizer.weight_decay,
        decoupled=optimizer.type == "adamw",
        **own,
    )


def inner_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The optimizer that updates fp32 weights, under whatever ZeRO wraps around it."""
    outer = engine.optimizer
    inner: torch.optim.Optimizer = getattr(outer, "optimizer", outer)
    return inner


def share_hyperparameters(engine: Any) -> None:
    """Give the optimizer of the states that stay on the device the groups of the one on the host.

    With offload_optimizer.ratio below 1 DeepSpeed builds an AdamW beside its CPU Adam and copies the first group's
    numbers once (runtime/zero/stage3.py): no schedule would ever reach it.
    """
    backup = getattr(engine.optimizer, "backup_optimizer", None)
    if backup is not None:
        backup.param_groups[:] = inner_optimizer(engine).param_groups
        for group in backup.param_groups:
            for name, value in backup.defaults.items():
                group.setdefault(name, value)


def regroup_adagrad(engine: Any) -> None:
    """Give ZeRO's Adagrad its parameter groups back, and the memory of the sums that nobody reads.

    ZeRO rebuilds torch's Adagrad from its fp32 partitions as one group (runtime/zero/stage_1_and_2.py and stage3.py,
    initialize_optimizer_states): each group's own weight decay is lost, and the step then indexes groups that are gone.
    The first Adagrad has made a sum for every whole parameter when it was built.
    """
    first, inner = engine.basic_optimizer, inner_optimizer(engine)
    if not isinstance(inner, torch.optim.Adagrad):
        return
    if inner is not first:
        inner.param_groups = first.param_groups
        if hasattr(engine.optimizer, "_link_all_hp_params") and hasattr(engine.optimizer, "bit16_groups"):
            # It linked weights to their fp32 copies group by group, and saw one group.
            engine.optimizer._link_all_hp_params()
    stepped = {id(parameter) for group in inner.param_groups for parameter in group["params"]}
    for optimizer in {id(first): first, id(inner): inner}.values():
        for parameter in [known for known in optimizer.state if id(known) not in stepped]:
            del optimizer.state[parameter]
