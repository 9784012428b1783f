"""Generation by several ranks at once: hidden states travel from stage to stage, chosen tokens back.

Every rank of a pipeline runs transformers' `generate` on its own stage, with a cache of its own layers' keys and values.
A forward pass waits for the hidden states of the stage before; the logits exist on the last stage alone, and what it
chooses is broadcast (`SameTokens`), so that all stages stay in step.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from toolkit.engine import device

OF_THE_HEAD = ("logits_to_keep", "labels", "return_dict")
"""Arguments of a causal language model that its base model does not know."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
DIMENSIONS = 4
"""Most that hidden states have."""


class SameTokens:
    """Scores of the rank that has the logits (the first tensor rank of the last stage), for all ranks of a replica."""

    def __init__(self, group: dist.ProcessGroup, tensor_ranks: int) -> None:
        self._group = group
        self._source = dist.get_process_group_ranks(group)[-tensor_ranks]

    def __call__(self, scores: Tensor, by_largest: bool) -> Tensor:
        """scores [rows, V]; where only the largest of each row matters (`by_largest`), its place is all that travels."""
        if not by_largest:
            scores = scores.contiguous()
            dist.broadcast(scores, self._source, group=self._group)
            return scores
        chosen = scores.argmax(-1, keepdim=True)
        dist.broadcast(chosen, self._source, group=self._group)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)


@contextmanager
def relayed(stage: nn.Module, group: dist.ProcessGroup) -> Iterator[bool]:
    """Let the forward pass of `stage`, a causal LM cut by `toolkit.models.stages.cut`, run through all stages for a while.

    The value is whether it can use a cache; an architecture that keeps more than keys and values computes without one.
    """
    plain = stage.forward
    relay = _Relay(stage, plain, group)
    # transformers reads the signature to see what the model takes.
    stage.forward = functools.wraps(plain)(relay)
    try:
        yield relay.can_cache
    finally:
        del stage.forward


class _Relay:
    """One rank's part of the forward passes of one `generate`."""

    def __init__(self, stage: nn.Module, plain: Any, group: dist.ProcessGroup) -> None:
        self._stage, self._plain, self._group = stage, plain, group
        ranks = dist.get_process_group_ranks(group)
        index = dist.get_group_rank(group, dist.get_rank())
        self._before = ranks[index - 1] if index > 0 else None
        self._after = ranks[index + 1] if index < len(ranks) - 1 else None
        self._last = ranks[-1]
        self.can_cache = _has_plain_cache(stage)
        self._form: tuple[torch.dtype, list[int]] | None = None
        """Of received hidden states: format, and the sizes behind [B, T]; announced before the first of them."""
        self._is_announced = False
        self._vocabulary = 0

    def __call__(self, **inputs: Any) -> CausalLMOutputWithPast:
        """Logits [B, T or 1, V] on the last stage, zeros of that width on the others."""
        cache = inputs.get("past_key_values")
        tokens: Tensor = inputs["input_ids"]
        before = _places(cache)
        if self._before is not None:
            inputs["inputs_embeds"] = self._receive(tokens, self._before)
            del inputs["input_ids"]
        if self._after is None:
            logits = self._plain(**inputs).logits
        else:
            own = {name: value for name, value in inputs.items() if name not in OF_THE_HEAD}
            self._send(self._stage.base_model(**own).last_hidden_state, self._after)  # type: ignore[operator]
            logits = None
        if cache is not None:
            _keep_places(cache, before, tokens)
        if not self._vocabulary:
            self._vocabulary = self._width(logits)
        if logits is None:
            logits = torch.zeros(tokens.shape[0], 1, self._vocabulary, device=tokens.device)
        return CausalLMOutputWithPast(logits=logits, past_key_values=cache)

    def _receive(self, tokens: Tensor, source: int) -> Tensor:
        if self._form is None:
            header = torch.zeros(1 + DIMENSIONS, dtype=torch.int64, device=device.current())
            dist.recv(header, source, group=self._group)
            kind, *sizes = header.tolist()
            self._form = (DTYPES[kind], [size for size in sizes if size])
        dtype, sizes = self._form
        hidden = torch.empty(*tokens.shape, *sizes, dtype=dtype, device=device.current())
        dist.recv(hidden, source, group=self._group)
        return hidden

    def _send(self, hidden: Tensor, target: int) -> None:
        if not self._is_announced:
            sizes = list(hidden.shape[2:])
            header = [DTYPES.index(hidden.dtype), *sizes, *[0] * (DIMENSIONS - len(sizes))]
            dist.send(torch.tensor(header, device=device.current()), target, group=self._group)
            self._is_announced = True
        dist.send(hidden.contiguous(), target, group=self._group)

    def _width(self, logits: Tensor | None) -> int:
        width = torch.tensor(0 if logits is None else logits.shape[-1], device=device.current())
        dist.broadcast(width, self._last, group=self._group)
        return int(width)


def _places(cache: Any) -> int:
    """Tokens that a cache holds; every layer as many."""
    return max((layer.get_seq_length() for layer in cache.layers), default=0) if cache is not None else 0


def _keep_places(cache: Any, before: int, tokens: Tensor) -> None:
    """Let layers of other stages take as many places for `tokens` [B, T]: masks and positions are counted from any layer."""
    places = torch.zeros(tokens.shape[0], 1, tokens.shape[1], 1, device=tokens.device)
    for index, layer in enumerate(cache.layers):
        if layer.get_seq_length() == before:
            cache.update(places, places, index)


def _has_plain_cache(stage: nn.Module) -> bool:
    """Whether all layers keep keys and values and nothing else."""
    if not stage._supports_default_dynamic_cache():  # type: ignore[operator]
        return False
    kinds = {type(layer) for layer in DynamicCache(config=stage.config).layers}
    return kinds <= {DynamicLayer, DynamicSlidingWindowLayer}
