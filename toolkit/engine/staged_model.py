"""A model whose layers are on other ranks, for the few callers that want a whole one: predictions and probes."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from toolkit.engine import device
from toolkit.recipe.mesh import Mesh

Inputs = dict[str, Any]
"""Of a model: input_ids [B, T], position_ids [B, T] and what else it takes, by name."""


class StagedModel(nn.Module):
    """Looks like a Hugging Face causal LM; every rank of a pipeline must call it alike. It computes without a cache."""

    def __init__(self, stage: Any, mesh: Mesh, rank: int, group: dist.ProcessGroup) -> None:
        super().__init__()
        self._stage = [stage]  # in a list: it is a module of the engine, not one of ours
        self._group = group
        self._index = mesh.coordinate(rank, "pipeline")
        self._ranks = dist.get_process_group_ranks(group)
        self.config = stage.model.config
        self.base_model = _Base(self)

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
            output = self._stage[0].model(**received)
            found.update({name: value for name, value in output.items() if torch.is_tensor(value)})
            return torch.zeros((), device=device.current())

        self._walk({**inputs, "use_cache": False}, finish)
        names = self._told(list(found))
        nothing = torch.zeros((), device=device.current())
        return SimpleNamespace(**{name: self._from(self._ranks[-1], found.get(name, nothing)) for name in names})

    def hidden(self, **inputs: Any) -> torch.Tensor:
        """Final hidden states [B, T, D] for input_ids [B, T], on every rank."""
        return self._walk({**inputs, "use_cache": False}, self._hand_over)

    def _walk(self, inputs: Inputs, finish: Callable[[Inputs], torch.Tensor]) -> torch.Tensor:
        """What `finish` makes of the last stage's inputs, on every rank."""
        current = inputs.pop("input_ids")
        for index, source in enumerate(self._ranks):
            if index == self._index:
                received = {"input_ids" if index == 0 else "inputs_embeds": current, **inputs}
                current = finish(received) if source == self._ranks[-1] else self._hand_over(received)
            current = self._from(source, current)
        result: torch.Tensor = current
        return result

    def _hand_over(self, inputs: Inputs) -> torch.Tensor:
        hidden: torch.Tensor = self._stage[0].model.base_model(**inputs).last_hidden_state
        return hidden.contiguous()

    def _told(self, value: Any) -> Any:
        """`value` of the last stage, on every rank of the pipeline."""
        about: list[Any] = [value]
        dist.broadcast_object_list(about, self._ranks[-1], group=self._group, device=device.current())
        return about[0]

    def _from(self, source: int, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` of rank `source`, on every rank of the pipeline."""
        about: list[Any] = [(tensor.shape, tensor.dtype)]
        dist.broadcast_object_list(about, source, group=self._group, device=device.current())
        shape, dtype = about[0]
        mine = (
            tensor.contiguous()
            if dist.get_rank() == source
            else torch.empty(shape, dtype=dtype, device=device.current())
        )
        dist.broadcast(mine, source, group=self._group)
        return mine


class _Base(nn.Module):
    """The model without its head."""

    def __init__(self, whole: StagedModel) -> None:
        super().__init__()
        self._whole = [whole]

    def forward(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, use_cache: bool = False, **options: Any
    ) -> Any:
        """Hidden states as transformers returns them."""
        found = self._whole[0].hidden(input_ids=input_ids, position_ids=position_ids, **options)
        return SimpleNamespace(last_hidden_state=found)
