"""A model whose layers are on other ranks, for the few callers that want a whole one: predictions and probes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from toolkit.engine import device
from toolkit.models.stages import base_states, without_cache
from toolkit.recipe.mesh import Mesh

Inputs = dict[str, Any]
"""Of a model: input_ids [B, T], attention_mask [B, T] and what else it takes, by name."""


class StagedModel(nn.Module):
    """Looks like a Hugging Face model; every rank of a pipeline must call it alike. It computes without a cache."""

    def __init__(self, stage: Any, mesh: Mesh, rank: int, group: dist.ProcessGroup) -> None:
        super().__init__()
        self._stage = [stage]  # in a list: it is a module of the engine, not one of ours
        self._group = group
        self._index = mesh.coordinate(rank, "pipeline")
        self._ranks = dist.get_process_group_ranks(group)
        self.config = stage.model.config
        self.base_model = _Base(self)

    @property
    def stage_base(self) -> Any:
        """The base model of this rank's stage."""
        return self._stage[0].model.base_model

    def parameters(self, recurse: bool = True) -> Any:
        """Those of this rank's stage."""
        return self._stage[0].model.parameters(recurse)

    def set_attn_implementation(self, name: str) -> None:
        """As in transformers, on this rank's stage."""
        self._stage[0].model.set_attn_implementation(name)

    def forward(self, **inputs: Any) -> Any:
        """The tensors that the whole model returns for its inputs (logits, ...), by name, on every rank."""
        found: dict[str, torch.Tensor] = {}

        def finish(received: Inputs) -> torch.Tensor:
            model = self._stage[0].model
            output = model(**received, **without_cache(model))
            found.update({name: value for name, value in output.items() if torch.is_tensor(value)})
            return torch.zeros((), device=device.current())

        self._walk(inputs, finish)
        names = self._told(list(found))
        return SimpleNamespace(**{name: self._from(self._ranks[-1], found.get(name)) for name in names})

    def hidden(self, **inputs: Any) -> torch.Tensor:
        """Final hidden states [B, T, D] for input_ids [B, T], on every rank."""
        return self._walk(inputs, self._hand_over)

    def _walk(self, inputs: Inputs, finish: Callable[[Inputs], torch.Tensor]) -> torch.Tensor:
        """What `finish` makes of the last stage's inputs, on every rank."""
        current: torch.Tensor | None = None
        for index, source in enumerate(self._ranks):
            if index == self._index:
                received = inputs if index == 0 else {**inputs, "inputs_embeds": current}
                current = finish(received) if source == self._ranks[-1] else self._hand_over(received)
            current = self._from(source, current)
        assert current is not None, "a pipeline has stages"
        return current

    def _hand_over(self, inputs: Inputs) -> torch.Tensor:
        return base_states(self._stage[0].model, inputs).contiguous()

    def _told(self, value: Any) -> Any:
        """`value` of the last stage, on every rank of the pipeline."""
        about: list[Any] = [value]
        dist.broadcast_object_list(about, self._ranks[-1], group=self._group, device=device.current())
        return about[0]

    def _from(self, source: int, tensor: torch.Tensor | None) -> torch.Tensor:
        """`tensor` of rank `source`, on every rank of the pipeline; what others give is not looked at."""
        mine = tensor.contiguous() if tensor is not None and dist.get_rank() == source else None
        about: list[Any] = [None if mine is None else (mine.shape, mine.dtype)]
        dist.broadcast_object_list(about, source, group=self._group, device=device.current())
        shape, dtype = about[0]
        if mine is None:
            mine = torch.empty(shape, dtype=dtype, device=device.current())
        dist.broadcast(mine, source, group=self._group)
        return mine


class _Base(nn.Module):
    """The model without its head: its hidden states as transformers returns them."""

    def __init__(self, whole: StagedModel) -> None:
        super().__init__()
        self._whole = [whole]

        # With transformers' signature, which tells what the model takes.
        @functools.wraps(whole.stage_base.forward)
        def forward(use_cache: bool = False, **inputs: Any) -> Any:
            return SimpleNamespace(last_hidden_state=whole.hidden(**inputs))

        self.forward = forward

    def register_forward_pre_hook(self, hook: Any, **options: Any) -> Any:
        """On the base model of this rank's stage, which is called whenever the whole model is."""
        return self._whole[0].stage_base.register_forward_pre_hook(hook, **options)
