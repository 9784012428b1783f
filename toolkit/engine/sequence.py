"""Sequence parallelism: each rank holds a part of every sequence, and attention trades tokens for heads (Ulysses).

Before attention an all-to-all turns "my tokens, all heads" into "all tokens, my heads", afterwards back (Jacobs et al.
2023, arXiv 2309.14509). DeepSpeed's exchange is used as it is. What it lacks is a mask: transformers builds one from
the tokens a rank holds, so DeepSpeed drops it, and packed documents would see each other. Between the exchanges runs
attention inside each document instead: the batch says where the documents of the whole sequence end.
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
from transformers.integrations.flash_attention import flash_attention_forward

from toolkit.engine import process
from toolkit.engine.protocol import Batch
from toolkit.engine.sequence_probe import TOKENS, packed_probe, padded_probe
from toolkit.errors import ModelError
from toolkit.models.agreement import excess, hidden_states, takes_positions
from toolkit.models.attention import DOCUMENT_LENGTHS, document_attention
from toolkit.models.positions import first_position
from toolkit.models.varlen import KERNEL, VarlenKernel, kernel_fault

NAME = "toolkit_sequence"
"""Of this implementation, over "sdpa", among transformers' attention functions."""

LENGTHS = {DOCUMENT_LENGTHS, "cu_seq_lens_q"}
"""Options of attention functions that say where documents end: ours, and that of transformers' flash."""

LAYERS = {"full_attention", "sliding_attention"}
"""Kinds of layers that look at other tokens through attention alone."""


class SequenceAttention:
    """transformers' attention function for models whose sequences are spread over `group`."""

    def __init__(self, config: PretrainedConfig, group: dist.ProcessGroup, *, core: Any = None) -> None:
        """`core` computes attention over whole sequences, in the place of what the model's config names."""
        self.active = True
        self.group = group
        self.first_position = 0
        """Of a text's first token, for batches that leave the counting to the model."""
        implementation = str(config._attn_implementation)
        text = config.get_text_config()
        heads = text.num_attention_heads
        head_size = getattr(text, "head_dim", None) or text.hidden_size // heads
        self.kernel: VarlenKernel | None = None
        core = core or (self._documents if implementation == "sdpa" else flash_attention_forward)
        self._core = core
        # transformers' flash function loads its kernel by the name that the model's config has, so the name stays.
        self.name = NAME if implementation == "sdpa" else implementation
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
        AttentionInterface.register(self.name, self)

    def with_positions(self, batch: Batch) -> Batch:
        """`batch` of whole sequences with position_ids [B, T], which a part of a sequence cannot count by itself."""
        if "position_ids" in batch:
            return batch
        tokens = batch["input_ids"]
        positions = self.first_position + torch.arange(tokens.shape[1], device=tokens.device)
        return {**batch, "position_ids": positions.expand_as(tokens)}

    def _documents(self, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
        return document_attention(*arguments, kernel=self.kernel, **options)  # type: ignore[no-any-return]

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """query [B, H, t, D], key and value [B, K, t, D] of this rank's t tokens; returns [B, t, H, D]."""
        if not self.active:
            plain: tuple[Tensor, Tensor | None] = self._core(module, query, key, value, attention_mask, **options)
            return plain
        if attention_mask is not None:
            # Made from the tokens of this rank alone; transformers makes none for an implementation it does not know.
            raise _not_exchangeable(type(module).__name__, "attends through a mask of its own")
        if "position_ids" not in options and LENGTHS & options.keys():
            # DeepSpeed asks for positions, which it gathers; attention that is told the documents looks at none.
            options["position_ids"] = torch.zeros(
                query.shape[0], query.shape[2], dtype=torch.int64, device=query.device
            )
        groups = getattr(module, "num_key_value_groups", None)
        found, weights = self._exchange(module, query, key, value, None, **options)
        if groups is not None:
            # DeepSpeed leaves its own number there where ranks share a key-value head.
            module.num_key_value_groups = groups
        # DeepSpeed joins the heads, which not every model expects (GPT-2).
        return found.unflatten(-1, (query.shape[1], -1)), weights


class _Exchange(UlyssesSPAttentionHF):  # type: ignore[misc]
    """DeepSpeed's exchange with a batch size that may differ from call to call."""

    def forward(self, module: nn.Module, query: Tensor, *arguments: Any, **options: Any) -> Any:
        self.batch_size = query.shape[0]
        for name in ("required_query_shape", "required_key_value_shape", "required_context_shape"):
            shape = getattr(self, name)
            setattr(self, name, torch.Size([shape[0], self.batch_size, *shape[2:]]))
        return super().forward(module, query, *arguments, **options)


@contextmanager
def whole_sequences(attention: SequenceAttention | None, whole: bool = True) -> Iterator[None]:
    """Let every rank compute whole sequences by itself for a while (generation, probes), or not."""
    if attention is None:
        yield
        return
    before, attention.active = attention.active, not whole
    try:
        yield
    finally:
        attention.active = before


def use_sequence_attention(
    model: nn.Module, attention: SequenceAttention, longest: int, *, padded: bool = False
) -> float:
    """Switch `model` to `attention`, and compare: hidden states of this rank's part with the model's own of the whole.

    Of packed documents or of `padded` rows, as the batches have them, in a context of `longest` tokens. Collective; see
    `toolkit.models.agreement.excess` for the result.
    """
    rank, count = dist.get_rank(attention.group), dist.get_world_size(attention.group)
    parameter, architecture = next(model.parameters()), type(model).__name__
    attention.kernel = KERNEL if kernel_fault(parameter.device, parameter.dtype) is None else None
    attention.first_position = first_position(model)
    if padded:
        if not takes_positions(model):
            raise _not_exchangeable(architecture, "takes no positions, which a part of a sequence cannot count itself")
        probe = padded_probe(model, count, longest, attention.first_position)
    else:
        probe = packed_probe(model, count, longest)
    mine = slice(rank * TOKENS, (rank + 1) * TOKENS)
    with whole_sequences(attention):
        if padded and probe.miscounted(model):
            raise _not_exchangeable(architecture, "counts positions in a way of its own")
        wanted = probe.whole(model)[:, mine]
    model.set_attn_implementation(attention.name)  # type: ignore[operator]
    share_longest_position(model, attention)
    try:
        with whole_sequences(attention, False):
            found = probe.part(model, mine)
    except ModelError:
        raise
    except Exception as error:
        # Every architecture that does not fit fails in its own way, and all ranks alike.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise _not_exchangeable(architecture, f"fails: {lines[0][:200]}") from None
    with whole_sequences(attention):
        # "dynamic" rotary embeddings stay as stretched as they were last, until they see something short.
        hidden_states(model, probe.tokens[:, :1], probe.positions[:, :1].clamp(max=attention.first_position))
    real = probe.real[:, mine]
    return excess(model, found[real], wanted[real])


def share_longest_position(model: nn.Module, attention: SequenceAttention) -> None:
    """Make rotary embeddings that stretch with the longest document see that of the whole sequence.

    transformers chooses the frequencies of the types "dynamic" and "longrope" by the largest position it is given
    (modeling_rope_utils.py, dynamic_rope_update), which would be another one on each rank.
    """
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        kinds = set(kinds.values()) if isinstance(kinds, dict) else {kinds}
        if any(kind == "longrope" or "dynamic" in str(kind) for kind in kinds):
            _show_longest_position(module, attention)


def _show_longest_position(rotary: nn.Module, attention: SequenceAttention) -> None:
    plain = rotary.forward

    def forward(hidden: Tensor, position_ids: Tensor, *arguments: Any, **options: Any) -> Any:
        if not attention.active:
            return plain(hidden, position_ids, *arguments, **options)
        longest = position_ids.max()
        dist.all_reduce(longest, op=dist.ReduceOp.MAX, group=attention.group)
        # As one more token, whose row is then taken away.
        seen = torch.cat([position_ids, longest.expand(*position_ids.shape[:-1], 1)], dim=-1)
        return tuple(table[..., :-1, :] for table in plain(hidden, seen, *arguments, **options))

    rotary.forward = forward


def check_sequence_attention(excess: float, architecture: str) -> None:
    """Raise ModelError, on every rank, when the exchange changes what the model computes on one of them. Collective."""
    if not max(process.gather_objects(excess)) < 1.0:
        raise _not_exchangeable(
            architecture, "computes other hidden states from parts of a sequence than from the whole"
        )


def _not_exchangeable(architecture: str, reason: str) -> ModelError:
    return ModelError(
        f"parallel.sequence: {architecture} {reason}",
        expected="a model whose tokens meet in attention only, through transformers' attention functions",
        do="set parallel.sequence=1; parallel.tensor or parallel.pipeline also save activation memory",
    )


def check_sequence_parallel(config: PretrainedConfig, degree: int) -> None:
    """Raise ModelError for an architecture, its attention chosen, whose sequences cannot be spread over `degree` ranks."""
    text = config.get_text_config()
    name = type(config).__name__
    kinds = set(getattr(text, "layer_types", None) or ())
    heads = getattr(text, "num_attention_heads", None)
    if heads is None or config.is_encoder_decoder or not kinds <= LAYERS:
        what = ", ".join(sorted(kinds - LAYERS)) or "no attention heads"
        what = "an encoder and a decoder" if config.is_encoder_decoder else what
        raise ModelError(
            f"parallel.sequence={degree}: {name} has {what}",
            expected="a model whose tokens meet in attention only",
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
    if config._attn_implementation == "eager":
        raise ModelError(
            f"eager attention with parallel.sequence={degree}",
            expected="'sdpa' or a flash_attention: eager needs a mask of the whole sequence",
            do="set model.attention='auto'; where that is eager too (it says so), set parallel.sequence=1",
        )
