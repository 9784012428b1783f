"""Model FLOPs of a step: counted once on a trace of the forward pass, then scaled by tokens and document lengths.

The conventions are those of PaLM (arXiv 2204.02311, appendix B): two FLOPs per multiply-add of a matrix product, none
for the rest (norms, softmax, looking up embeddings), the backward pass twice the forward pass, activations that are
computed a second time not counted. What the data asks of the model is counted, not what a strategy or a kernel
computes: attention by the pairs of tokens of one document that may look at each other (half of t^2 where it is causal,
fewer in a sliding window; PaLM takes all of t^2), the head on the tokens that have a target, and padding never.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AttentionInterface, PretrainedConfig

from toolkit.models.attention import looks_back_only
from toolkit.models.custom import MODEL_TYPE
from toolkit.models.stages import build_skeleton

COUNTED = "toolkit_counted"
"""Name, among transformers' attention functions, of the one that notes what it is given and computes nothing."""

LONGEST = 512
"""Tokens of the longest trace. More would cost nothing, but for architectures that loop over them."""

Lengths = NDArray[np.integer[Any]]
"""Tokens of each document."""


@dataclass(frozen=True)
class Pairs:
    """Which pairs of tokens of one document an attention layer looks at."""

    is_causal: bool
    window: int | None = None
    """A token looks at those fewer than so many places away from it; None: at all of them."""

    def count(self, lengths: Lengths) -> int:
        """Pairs in all documents of these lengths."""
        sizes = lengths.astype(np.int64)
        reach = sizes if self.window is None else np.minimum(sizes, self.window)
        one_sided = sizes * reach - reach * (reach - 1) // 2
        return int(one_sided.sum() if self.is_causal else (2 * one_sided - sizes).sum())


@dataclass(frozen=True)
class ModelFlops:
    """FLOPs of a forward pass, by what goes in."""

    per_token: float
    per_pair: Mapping[Pairs, float]
    """Kind of attention -> FLOPs, in all layers of that kind, for each pair that they look at."""
    per_target: float = 0.0
    """Of a language model's head. A classifier's, one per document, is in `per_document`."""
    per_document: float = 0.0
    adapters: int | None = None
    """Numbers in adapters beside frozen weights; None: all weights are trained."""

    def of_step(self, lengths: Lengths, targets: int) -> float:
        """Forward and backward over documents of `lengths`, in which `targets` tokens carry loss."""
        tokens = int(lengths.sum())
        forward = self.per_token * tokens + self.per_target * targets + self.per_document * len(lengths)
        attention = sum(flops * pairs.count(lengths) for pairs, flops in self.per_pair.items())
        if self.adapters is None:
            return 3.0 * (forward + attention)
        # A frozen weight has no gradient of its own: the backward pass multiplies by it once, not twice.
        return 2.0 * forward + 3.0 * (attention + 2.0 * self.adapters * tokens)


class Uncountable(Exception):
    """The trace cannot tell the FLOPs of an architecture; `str` says why."""


def count_model_flops(
    auto_class: Any, config: PretrainedConfig, sequence_length: int, *, is_causal: bool
) -> ModelFlops:
    """Trace what `auto_class` makes of `config` on the meta device: no weights, about 10 ms per layer and length.

    What grows with the square of the length outside transformers' attention functions is taken for attention in the
    model's own code, causal where `is_causal`. Raises Uncountable.
    """
    if config.model_type == MODEL_TYPE:
        raise Uncountable("what a module of one's own is called with is not known")
    if getattr(config, "is_encoder_decoder", False):
        raise Uncountable("the FLOPs of an encoder and a decoder follow from two lengths for each text")
    longest = min(sequence_length, LONGEST) // 4 * 4
    if longest == 0:
        raise Uncountable(f"sequences of {sequence_length} tokens are too short to trace")
    prepared = _prepared(config)
    try:
        AttentionInterface.register(COUNTED, _Trace().attend)
        model = build_skeleton(auto_class, prepared).to("meta")
        for part in _parts(model.config):
            part.use_cache = False
        first, half = _trace(model, longest), _trace(model, longest // 2)
        # Most models are linear outside attention: then two lengths say all, and the third is not traced.
        quarter = half if first.rest == 2 * half.rest else _trace(model, longest // 4)
    except Exception as error:  # the model's own code, which was not written to run without values
        raise Uncountable(f"{config.model_type} does not run without values ({str(error).strip()[:120]})") from error
    if any(other.per_pair != first.per_pair for other in (half, quarter)):
        raise Uncountable(f"the attention of {config.model_type} is another one at another length")
    rests = (first.rest, half.rest, half.rest // 2 if quarter is half else quarter.rest)
    squared, per_token, constant = _parabola(longest, *rests)
    if min(squared, per_token, constant) < 0:
        raise Uncountable(f"the matrix products of {config.model_type} do not grow evenly with the length")
    pairs = dict(first.per_pair)
    if squared:
        own = Pairs(is_causal)
        pairs[own] = pairs.get(own, 0.0) + squared
    return ModelFlops(per_token, pairs, first.head / longest, constant)


def count_flops_per_example(auto_class: Any, config: PretrainedConfig, example: Mapping[str, Tensor]) -> ModelFlops:
    """The same for a model whose inputs all have the shapes of `example`, one example on the meta device; attention is counted in
    full. Raises Uncountable."""
    try:
        model = build_skeleton(auto_class, config).to("meta").eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(**example)
    except Exception as error:  # the model's own code, which was not written to run without values
        raise Uncountable(f"{config.model_type} does not run without values ({str(error).strip()[:120]})") from error
    return ModelFlops(0.0, {}, per_document=float(counter.get_total_flops()))


def _prepared(config: PretrainedConfig) -> PretrainedConfig:
    """A copy that notes its attention, and multiplies, of a mixture, for the experts that a token is sent to only."""
    config = copy.deepcopy(config)
    for part in _parts(config):
        if "chunked_attention" in (getattr(part, "layer_types", None) or ()):
            raise Uncountable(f"the chunked attention of {config.model_type} is not counted")
        part._attn_implementation = COUNTED
        # "grouped_mm" would ask for values, to know how many tokens each expert gets.
        part._experts_implementation = "batched_mm"
    return config


def _parts(config: Any) -> list[Any]:
    text = config.get_text_config()
    return [config] if text is config else [config, text]


@dataclass
class _Trace:
    """One forward pass over one document."""

    per_pair: dict[Pairs, float] = field(default_factory=dict)
    head: int = 0
    """FLOPs of the output layer."""
    rest: int = 0
    """FLOPs of everything but that and attention."""

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        sliding_window: int | None = None,
        is_causal: bool | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """Note query [B, H, T, D] times key, and its product with value [B, K, T, E]; returns [B, T, H, E]."""
        batch, heads, length, width = query.shape
        pairs = Pairs(looks_back_only(module, is_causal), sliding_window)
        self.per_pair[pairs] = self.per_pair.get(pairs, 0.0) + 2.0 * heads * (width + value.shape[-1])
        return query.new_empty(batch, length, heads, value.shape[-1]), None


def _trace(model: nn.Module, length: int) -> _Trace:
    trace = _Trace()
    AttentionInterface.register(COUNTED, trace.attend)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=torch.zeros((1, length), dtype=torch.int64, device="meta"))
    head = model.get_output_embeddings()  # type: ignore[operator]
    names = [name for name, module in model.named_modules() if head is not None and module is head]
    counts = counter.get_flop_counts()
    trace.head = sum(sum(counts.get(f"{type(model).__name__}.{name}", {}).values()) for name in names)
    trace.rest = counter.get_total_flops() - trace.head
    return trace


def _parabola(longest: int, whole: int, half: int, quarter: int) -> tuple[float, float, float]:
    """(a, b, c) with a t^2 + b t + c equal to `whole` at t = `longest`, to `half` and `quarter` at those parts of it."""
    # Divided differences; the numbers are whole, so where a is 0 it is exactly that.
    upper, lower = 2 * (whole - half), 4 * (half - quarter)
    squared = (upper - lower) / (longest * longest * 3 / 4)
    per_token = upper / longest - squared * longest * 3 / 2
    return squared, per_token, whole - longest * (per_token + squared * longest)
