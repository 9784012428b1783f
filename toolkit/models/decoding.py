"""Answers of a model, token by token: transformers' own `generate` with a cache, batched, the same under every engine.

What a recipe does not say (no_repeat_ngram_size, forced_bos_token_id, decoder_start_token_id, where to stop) is what the
model's `generation_config` has: that of the checkpoint with the ends that training has found, which the export gets, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, LogitsProcessor, LogitsProcessorList
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from transformers.models.whisper.generation_whisper import WhisperGenerationMixin

from toolkit.errors import ModelError
from toolkit.models.attention import set_attention
from toolkit.models.generation import end_ids
from toolkit.models.quiet import quiet

Batch = dict[str, Tensor]

Agree = Callable[[Tensor, bool], Tensor]
"""(scores [rows, V], whether only the largest of each row matters) -> scores that are the same on all ranks of a replica."""

OURS = "toolkit_"
"""How the names of our attention functions begin. transformers makes no mask for them, not of the padding before a prompt either."""


@dataclass(frozen=True)
class GenerationSettings:
    """How an answer is chosen: greedily, by beam search (num_beams > 1), or by sampling (a temperature)."""

    max_new_tokens: int
    """Longest answer, in tokens, its end included."""
    num_beams: int = 1
    length_penalty: float = 1.0
    """Of beams: the exponent of the length by which a sum of log-probabilities is divided."""
    temperature: float | None = None
    """Divides the logits before a token is drawn; None: nothing is drawn."""
    top_k: int | None = None
    """Of sampling: only the k likeliest tokens."""
    top_p: float | None = None
    """Of sampling: only the likeliest tokens that together reach this probability."""
    seed: int = 0
    """Of sampling. What is drawn depends on it, the prompt's tokens and the place in the answer, and on nothing else."""
    stop_ids: tuple[int, ...] | None = None
    """Tokens that end an answer; None: those of the model's generation_config, which training has decided."""
    pad_id: int | None = None
    """Fills ended answers up while others of the batch go on; None: the model's. It is never returned."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.num_beams < 1:
            raise ValueError(f"{self.max_new_tokens=} and {self.num_beams=} are at least 1")
        if self.stop_ids == ():
            raise ValueError("stop_ids=(): None takes the model's own, and an answer without an end has none to name")
        if self.temperature is not None and (self.temperature <= 0 or self.num_beams > 1):
            raise ValueError("sampling has a temperature above 0 and no beams")
        if self.temperature is None and (self.top_k is not None or self.top_p is not None):
            raise ValueError("top_k and top_p belong to sampling: set a temperature")


class Generate(Protocol):
    """What an engine offers: see `toolkit.engine.protocol.Engine.generate`."""

    def __call__(self, batch: Batch, settings: GenerationSettings) -> list[list[int]]:
        """The answer's tokens for each row of `batch`, the token that ends it included where one does.

        `batch` holds the model's inputs by name: for a decoder the prompts, padded on the LEFT (see `left_padded`), with
        their attention_mask; for an encoder-decoder what its encoder reads, padded anywhere, and perhaps the
        decoder_input_ids [B, N] that each answer begins with, which are not returned. Collective: every rank
        calls it as often as the others, each with rows of its own, ranks of one replica with the same rows.
        """
        ...


def left_padded(prompts: Sequence[Sequence[int]], pad_id: int) -> Batch:
    """input_ids and attention_mask [B, T] of prompts that end together, as a decoder continues them."""
    longest = max(map(len, prompts))
    if not all(prompts):
        raise ValueError("a prompt has no token: there is nothing to continue")
    tokens = [[pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return {"input_ids": torch.tensor(tokens), "attention_mask": torch.tensor(mask)}


def generate(
    model: nn.Module,
    batch: Batch,
    settings: GenerationSettings,
    *,
    in_step: bool = False,
    agree: Agree | None = None,
    use_cache: bool = True,
) -> list[list[int]]:
    """What `Generate` promises, of `model`, whose inputs lie on its device.

    `in_step`: every rank of the process group runs as many forward passes as the one with the longest answer, because they
    gather weights from each other (ZeRO-3). `agree` is called with the scores of every token before one is chosen.
    Raises ModelError for a model that does not generate.
    """
    if not getattr(model, "can_generate", bool)():
        raise ModelError(
            f"{type(model).__name__} generates nothing",
            expected="a causal language model or an encoder-decoder with a language-model head",
            do="choose another model, or a task without generated answers",
        )
    stated: Any = model.generation_config
    stops = list(settings.stop_ids) if settings.stop_ids is not None else end_ids(stated.eos_token_id)
    pad = next((token for token in (settings.pad_id, stated.pad_token_id, *stops) if token is not None), 0)
    choice = _Choice(settings, batch, agree)
    config = GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        num_beams=settings.num_beams,
        length_penalty=settings.length_penalty,
        do_sample=False,  # what is drawn is drawn by _Choice
        num_return_sequences=1,
        return_dict_in_generate=False,
        eos_token_id=stops or None,
        pad_token_id=pad,
        use_cache=use_cache,
    )
    with quiet(), attention_with_masks(model):
        found: Tensor = _loop(model)(
            **batch, generation_config=config, logits_processor=LogitsProcessorList([choice]), synced_gpus=in_step
        )
    return [_until(row, stops) for row in found[:, choice.start :].tolist()]


def _loop(model: Any) -> Callable[..., Tensor]:
    """The `generate` of `model`. Whisper's own goes through long recordings in windows, which ranks cannot do in step."""
    return partial(GenerationMixin.generate, model) if isinstance(model, WhisperGenerationMixin) else model.generate


def _until(tokens: list[int], stops: Sequence[int]) -> list[int]:
    """`tokens` up to the first that ends an answer; behind it there is padding."""
    end = next((place for place, token in enumerate(tokens) if token in stops), len(tokens))
    return tokens[: end + 1]


@contextmanager
def attention_with_masks(model: nn.Module) -> Iterator[None]:
    """Let `model` mask padding by itself for a while, where its attention is one that is told the ends of documents."""
    implementation: str = model.config._attn_implementation  # type: ignore[union-attr, assignment]
    if not implementation.startswith(OURS):
        yield
        return
    set_attention(model, "sdpa")
    try:
        yield
    finally:
        set_attention(model, implementation)


class _Choice(LogitsProcessor):  # type: ignore[misc]
    """The last thing that happens to the scores of the next token: sampling, and agreement among ranks."""

    def __init__(self, settings: GenerationSettings, batch: Batch, agree: Agree | None) -> None:
        self.start = 0
        """Tokens that the decoder was given: those of the prompt, or of the decoder's start."""
        self._is_new = True
        self._by_largest = settings.num_beams == 1
        self._agree = agree
        self._noise = None if settings.temperature is None else _Noise(settings.seed, batch)
        self._warpers = LogitsProcessorList(_warpers(settings))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """scores [rows, V] of the token that follows input_ids [rows, T]."""
        if self._is_new:
            self.start, self._is_new = input_ids.shape[1], False
        if self._noise is not None:
            scores = self._warpers(input_ids, scores) + self._noise(input_ids.shape[1] - self.start, scores)
        return scores if self._agree is None else self._agree(scores, self._by_largest)


def _warpers(settings: GenerationSettings) -> Iterator[LogitsProcessor]:
    if settings.temperature is not None:
        yield TemperatureLogitsWarper(float(settings.temperature))
    if settings.top_k is not None:
        yield TopKLogitsWarper(settings.top_k)
    if settings.top_p is not None:
        yield TopPLogitsWarper(settings.top_p)


class _Noise:
    """Gumbel noise: the largest of log p + noise is a draw from p (Gumbel 1954; Maddison et al. 2014, arXiv 1411.0030).

    Drawn on the CPU for each row by itself, so that an answer depends on no other row, rank, or batch size.
    """

    def __init__(self, seed: int, batch: Batch) -> None:
        tokens = batch["input_ids"].cpu()
        masks = batch.get("attention_mask", torch.ones_like(tokens)).cpu().bool()
        self._keys = [_number(seed, row[mask].numpy().tobytes()) for row, mask in zip(tokens, masks, strict=True)]

    def __call__(self, place: int, scores: Tensor) -> Tensor:
        rows = []
        for key in self._keys:
            generator = torch.Generator().manual_seed(_number(key, place.to_bytes(8, "little")))
            rows.append(torch.empty(scores.shape[1]).exponential_(generator=generator).log().neg())
        return torch.stack(rows).to(scores.device)


def _number(seed: int, content: bytes) -> int:
    digest = hashlib.blake2b(content, digest_size=8, salt=(seed % 2**64).to_bytes(8, "little")).digest()
    return int.from_bytes(digest, "little") >> 1
