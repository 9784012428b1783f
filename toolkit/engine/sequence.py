"""Sequence parallelism: each rank holds a part of every sequence, and attention trades tokens for heads (Ulysses).

Before attention an all-to-all turns "my tokens, all heads" into "all tokens, my heads", afterwards back (Jacobs et al.
2023, arXiv 2309.14509). DeepSpeed's exchange is used as it is. What it lacks is a mask: transformers builds one from
the tokens a rank holds, so DeepSpeed drops it, and packed documents would see each other. Between the exchanges runs
attention document by document instead, by the positions of the whole sequence.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF
from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from toolkit.errors import ModelError
from toolkit.models.attention import document_attention

NAME = "toolkit_sequence"
"""Of this implementation among transformers' attention functions."""

CAUSAL_LAYERS = {"full_attention", "sliding_attention"}
"""Kinds of layers that look at other tokens through attention alone."""


class SequenceAttention:
    """transformers' attention function for models whose sequences are spread over `group`."""

    def __init__(self, config: PretrainedConfig, implementation: str, group: dist.ProcessGroup) -> None:
        self.active = True
        text = config.get_text_config()
        heads = text.num_attention_heads
        head_size = getattr(text, "head_dim", None) or text.hidden_size // heads
        core = document_attention if implementation == "sdpa" else ALL_ATTENTION_FUNCTIONS[implementation]
        self._core = core
        self._exchange = _Exchange(
            core,
            batch_size=1,
            attn_head_count=heads,
            attn_head_size=head_size,
            kv_head_count=getattr(text, "num_key_value_heads", None) or heads,
            num_hidden_layers=text.num_hidden_layers,
            process_group=group,
            seq_length_is_variable=True,
        )
        # transformers hands a model the function of its implementation's name; one run has one such model.
        AttentionInterface.register(NAME, self)

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """query [B, H, t, D], key and value [B, K, t, D] of this rank's t tokens; returns [B, t, H x D]."""
        run = self._exchange if self.active else self._core
        found: tuple[Tensor, Tensor | None] = run(module, query, key, value, attention_mask, **options)
        return found


class _Exchange(UlyssesSPAttentionHF):  # type: ignore[misc]
    """DeepSpeed's exchange with a batch size that may differ from call to call."""

    def forward(self, module: nn.Module, query: Tensor, *arguments: Any, **options: Any) -> Any:
        self.batch_size = query.shape[0]
        for name in ("required_query_shape", "required_key_value_shape", "required_context_shape"):
            shape = getattr(self, name)
            setattr(self, name, torch.Size([shape[0], self.batch_size, *shape[2:]]))
        return super().forward(module, query, *arguments, **options)


@contextmanager
def whole_sequences(attention: SequenceAttention | None) -> Iterator[None]:
    """Let every rank compute whole sequences by itself for a while (generation, probes)."""
    if attention is None:
        yield
        return
    attention.active = False
    try:
        yield
    finally:
        attention.active = True


def check_sequence_parallel(config: PretrainedConfig, implementation: str, degree: int) -> None:
    """Raise ModelError for an architecture whose sequences cannot be spread over `degree` ranks."""
    text = config.get_text_config()
    name = type(config).__name__
    kinds = set(getattr(text, "layer_types", None) or ())
    heads = getattr(text, "num_attention_heads", None)
    if heads is None or not kinds <= CAUSAL_LAYERS:
        what = ", ".join(sorted(kinds - CAUSAL_LAYERS)) or "no attention heads"
        raise ModelError(
            f"parallel.sequence={degree}: {name} has {what}",
            expected="a model whose tokens meet in causal attention only",
            do="set parallel.sequence=1; parallel.tensor or parallel.pipeline also save activation memory",
        )
    keys = getattr(text, "num_key_value_heads", None) or heads
    if heads % degree or (keys % degree and degree % keys):
        fitting = [n for n in range(2, heads + 1) if heads % n == 0 and (keys % n == 0 or n % keys == 0)]
        raise ModelError(
            f"parallel.sequence={degree} with {heads} attention heads and {keys} key-value heads",
            expected="a degree that divides the heads, and divides the key-value heads or is a multiple of them",
            do=f"set parallel.sequence to one of {', '.join(map(str, fitting)) or 'none: 1'}",
        )
    if implementation == "eager":
        raise ModelError(
            f"model.attention='eager' with parallel.sequence={degree}",
            expected="'sdpa' or a flash_attention: eager needs a mask of the whole sequence",
            do="set model.attention='sdpa'",
        )
