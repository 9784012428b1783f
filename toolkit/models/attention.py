"""Where documents end in packed sequences, told to attention; and attention one document at a time.

transformers' "sdpa" and "eager" keep documents apart by a mask over the whole sequence, made from positions that
restart. Attention that is told the bounds of the documents needs no mask: it computes each of them alone, also in
several rows at once. So the bounds are counted once per micro-batch, on the CPU, travel in the batch as
DOCUMENT_LENGTHS, and are handed to the model with its other inputs: to transformers' flash implementations in their own
words, to `document_attention` as `Documents`. Its core is torch's variable-length flash kernel where that computes
(CUDA, 16 bits), everywhere else torch's attention document by document: of "sdpa"'s mask most is False and all is
computed; cut at the bounds only what is attended to is computed.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from toolkit.models.alike import kind_of
from toolkit.models.generation import text_config
from toolkit.models.varlen import KERNEL, VarlenKernel

DOCUMENTS = "toolkit_documents"
"""Name of this implementation, one document after the other, among transformers' attention functions."""

VARLEN = "toolkit_varlen"
"""Name of this implementation with torch's variable-length kernel."""

DOCUMENT_LENGTHS = "document_lengths"
"""Name in a batch: tokens of each document, [B, N], rows filled up with zeros. Stays on the CPU, where it is read. Among
a model's keyword arguments: the same as `Documents`."""

MASKED = ("sdpa", "eager")
"""Implementations that keep documents apart by a mask, for which restarting positions are enough."""

BEYOND_KERNEL = ("softcap", "s_aux", "position_bias", "cache")
"""Options of transformers' attention functions that the kernel does not know."""


class Documents:
    """The documents in the rows of one micro-batch; the device learns of them once, whatever the number of layers.

    A plain class, so that torch.compile takes it as it is and does not compile a layer again for other lengths.
    """

    def __init__(self, rows: Sequence[Sequence[int]]) -> None:
        self.rows = [[length for length in row if length] for row in rows]
        """Tokens of each document."""
        flat = list(itertools.chain.from_iterable(self.rows))
        self.longest = max(flat)
        """Tokens of the longest document."""
        self._ends = [0, *itertools.accumulate(flat)]
        self._bounds: dict[torch.device, Tensor] = {}

    @property
    def tokens(self) -> int:
        """Of all rows."""
        return self._ends[-1]

    def bounds(self, device: torch.device) -> Tensor:
        """Where documents begin and the last one ends, all rows laid end to end; int32 [documents + 1] on `device`."""
        found = self._bounds.get(device)
        if found is None:
            # From pinned memory, so that nobody waits for the copy.
            pinned = torch.tensor(self._ends, dtype=torch.int32, pin_memory=device.type == "cuda")
            found = self._bounds[device] = pinned.to(device, non_blocking=True)
        return found


@torch.compiler.disable  # type: ignore[untyped-decorator]
def document_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    kernel: VarlenKernel | None = None,
    document_lengths: Documents | None = None,
    position_ids: Tensor | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention inside each document of query [B, H, T, D], key and value [B, K, T, D]; returns [B, T, H, D].

    Without `document_lengths` a document ends where position_ids [B, T] stop rising by one, which waits for the device.
    Without either, and with a cache, it is transformers' own "sdpa". With dropout, options that `kernel` does not know,
    or no kernel, documents are computed one after the other.
    """
    length = query.shape[2]
    is_told = document_lengths is not None or position_ids is not None
    if attention_mask is not None or not is_told or key.shape[2] != length or length == 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)  # type: ignore[no-any-return]
    if document_lengths is None:
        assert position_ids is not None, "one of the two is given"
        document_lengths = Documents(lengths_by_positions(position_ids.expand(query.shape[0], -1)))
    if kernel is not None and _is_plain(options) and kernel.fits(query, value, sliding_window):
        return _end_to_end(module, kernel, query, key, value, document_lengths, sliding_window, **options), None
    if kind_of(query) == "cuda" and query.dtype not in (torch.float16, torch.bfloat16):
        # None of torch's kernels with linear memory has grouped heads in fp32: it would keep all scores.
        module, key, value = ungrouped(module, query, key, value)
    is_causal = looks_back_only(module, **options)
    rows = []
    for row, sizes in enumerate(document_lengths.rows):
        pieces = [torch.split(tensor[row : row + 1], sizes, dim=2) for tensor in (query, key, value)]
        outputs = [
            sdpa_attention_forward(module, *piece, _window_mask(piece[0], sliding_window, is_causal), **options)[0]
            for piece in zip(*pieces, strict=True)
        ]
        rows.append(torch.cat(outputs, dim=1))
    return torch.cat(rows, dim=0), None


def ungrouped(module: Any, query: Tensor, key: Tensor, value: Tensor) -> tuple[Any, Tensor, Tensor]:
    """What stands for `module` where each of its query's heads has a key of its own; key and value [B, K, T, D] with as many
    heads as query [B, H, T, D], those of each group alike."""
    times = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(times, dim=1) for tensor in (key, value))
    return SimpleNamespace(is_causal=looks_back_only(module)), key, value


def _is_plain(options: Mapping[str, Any]) -> bool:
    return not options.get("dropout") and all(options.get(name) is None for name in BEYOND_KERNEL)


def looks_back_only(module: Any, is_causal: bool | None = None, **_: Any) -> bool:
    """Whether attention is causal, as transformers decides it."""
    return bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)


def _end_to_end(
    module: nn.Module,
    kernel: VarlenKernel,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    documents: Documents,
    window: int | None,
    scaling: float | None = None,
    **options: Any,
) -> Tensor:
    """All rows in one call of `kernel`; [B, T, H, D]."""
    batch, _, length, _ = query.shape
    # The kernel believes its bounds: past the end of the tensors it would read what is not theirs.
    assert documents.tokens == batch * length, f"documents of {documents.tokens} tokens in {batch} x {length}"
    query, key, value = (tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, value))
    found = kernel(
        query,
        key,
        value,
        documents.bounds(query.device),
        documents.longest,
        causal=looks_back_only(module, **options),
        window=window,
        scale=scaling,
    )
    return found.view(batch, length, *found.shape[1:])


def lengths_by_positions(position_ids: Tensor) -> list[list[int]]:
    """Tokens of each document, for each row of position_ids [B, T]. Waits for the device."""
    starts = torch.ones_like(position_ids, dtype=torch.bool)
    starts[:, 1:] = position_ids[:, 1:] != position_ids[:, :-1] + 1
    end = position_ids.shape[1]
    found = []
    for row in starts.cpu():
        bounds = [*row.nonzero().flatten().tolist(), end]
        found.append([stop - start for start, stop in itertools.pairwise(bounds)])
    return found


def lengths_tensor(rows: list[list[int]]) -> Tensor:
    """What a batch holds under DOCUMENT_LENGTHS: int64 [B, N]."""
    width = max(map(len, rows))
    return torch.tensor([row + [0] * (width - len(row)) for row in rows], dtype=torch.int64)


def is_lengths(name: str) -> bool:
    """Whether an entry of a batch holds document lengths: its own, or of a part of it, whose name stands before theirs."""
    return name.endswith(DOCUMENT_LENGTHS)


def tell_documents(model: nn.Module, inputs: Mapping[str, Tensor | Documents]) -> dict[str, Any]:
    """`inputs` of `model` with DOCUMENT_LENGTHS, [B, N] or `Documents` already, in the form in which its attention takes them.

    A model that takes no further keyword arguments is told nothing: whether positions are enough for it is for
    `toolkit.models.isolation` to find out.
    """
    told: dict[str, Any] = dict(inputs)
    lengths = told.pop(DOCUMENT_LENGTHS, None)
    implementation: Any = model.config._attn_implementation  # type: ignore[union-attr]
    if lengths is None or implementation in MASKED or not takes_options(model):
        return told
    documents = lengths if isinstance(lengths, Documents) else Documents(lengths.tolist())
    if "flash" not in implementation:
        return told | {DOCUMENT_LENGTHS: documents}
    if "attention_mask" in told:
        # transformers finds the bounds of padded rows by itself.
        return told
    bounds = documents.bounds(next(iter(told.values())).device)
    # transformers' names (FlashAttentionKwargs).
    told |= {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds}
    return told | {"max_length_q": documents.longest, "max_length_k": documents.longest}


def takes_options(model: nn.Module) -> bool:
    """Whether further keyword arguments of the model reach its layers."""
    parameters = inspect.signature(model.base_model.forward).parameters.values()  # type: ignore[union-attr]
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)


def set_attention(model: nn.Module, name: str) -> None:
    """Let `model` compute its attention by the implementation `name`; of one that sees images the language model alone.

    A vision tower attends inside each image, and may be handed what is told of the documents of the text.
    """
    config: Any = model.config
    text = text_config(config)
    part = next((key for key in config.sub_configs if text is not config and getattr(config, key, None) is text), None)
    model.set_attn_implementation(name if part is None else {"": name, part: name})  # type: ignore[operator]


def _window_mask(query: Tensor, window: int | None, is_causal: bool) -> Tensor | None:
    """[1, 1, t, t], True where a token may look: itself, the window - 1 before it, and as many after it if it may."""
    length = query.shape[2]
    if window is None or length <= window:
        return None
    places = torch.arange(length, device=query.device)
    behind = places[:, None] - places[None, :]
    return ((behind >= (0 if is_causal else 1 - window)) & (behind < window))[None, None]


def register(name: str, kernel: VarlenKernel | None) -> None:
    """Make `document_attention` with `kernel` known to transformers as `name`."""
    AttentionInterface.register(name, functools.partial(document_attention, kernel=kernel))


register(DOCUMENTS, None)
register(VARLEN, KERNEL)
