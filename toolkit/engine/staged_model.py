"""A model whose layers are on other ranks, for the few callers that want a whole one: generation and probes."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from toolkit.engine import device
from toolkit.engine.protocol import Batch
from toolkit.recipe.mesh import Mesh


class StagedModel(nn.Module):
    """Looks like a Hugging Face causal LM; every rank of a pipeline must call it alike. No cache: it is for short texts."""

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

    def hidden(self, input_ids: torch.Tensor, position_ids: torch.Tensor, **options: Any) -> torch.Tensor:
        """Final hidden states [B, T, D] for input_ids [B, T], on every rank."""
        return self._walk(input_ids, position_ids, self._hand_over, **options)

    def _walk(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        finish: Callable[[Batch], torch.Tensor],
        **options: Any,
    ) -> torch.Tensor:
        """What `finish` makes of the last stage's inputs, on every rank."""
        current = tokens
        for index, source in enumerate(self._ranks):
            if index == self._index:
                inputs = {"input_ids" if index == 0 else "inputs_embeds": current, "position_ids": positions} | options
                current = finish(inputs) if source == self._ranks[-1] else self._hand_over(inputs)
            current = self._from(source, current)
        return current

    def _hand_over(self, inputs: Batch) -> torch.Tensor:
        hidden: torch.Tensor = self._stage[0].model.base_model(**inputs, use_cache=False).last_hidden_state
        return hidden.contiguous()

    def _likeliest(self, inputs: Batch) -> torch.Tensor:
        logits: torch.Tensor = self._stage[0].model(**inputs, use_cache=False).logits
        return logits[:, -1:].argmax(-1)

    def _from(self, source: int, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` of rank `source`, on every rank of the pipeline."""
        about: list[Any] = [(tensor.shape, tensor.dtype)]
        dist.broadcast_object_list(about, source, group=self._group, device=device.current())
        shape, dtype = about[0]
        mine = tensor if dist.get_rank() == source else torch.empty(shape, dtype=dtype, device=device.current())
        dist.broadcast(mine, source, group=self._group)
        return mine

    def generate(self, tokens: torch.Tensor, *, max_new_tokens: int, **_: Any) -> torch.Tensor:
        """Greedy continuation of tokens [1, T]; ends after a token that ends a text."""
        ends = getattr(self._stage[0].model.generation_config, "eos_token_id", None)
        stops = set(ends if isinstance(ends, list) else [ends])
        for _step in range(max_new_tokens):
            positions = torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0)
            chosen = self._walk(tokens, positions, self._likeliest)
            tokens = torch.cat([tokens, chosen], dim=1)
            if int(chosen) in stops:
                break
        return tokens


class _Base(nn.Module):
    """The model without its head."""

    def __init__(self, whole: StagedModel) -> None:
        super().__init__()
        self._whole = [whole]

    def forward(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, use_cache: bool = False, **options: Any
    ) -> Any:
        """Hidden states as transformers returns them."""
        return SimpleNamespace(last_hidden_state=self._whole[0].hidden(input_ids, position_ids, **options))
