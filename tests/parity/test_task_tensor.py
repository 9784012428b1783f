"""Tensor parallelism under every kind of head, of encoders and encoder-decoders: two ranks against the whole model."""

from __future__ import annotations

import functools
from typing import Any

import deepspeed.comm as dist
import torch
from torch import nn
from transformers import EncoderDecoderConfig, EncoderDecoderModel

from tests.architectures import tiny_config
from tests.distributed import run_distributed
from tests.parity.test_tensor import check, drop, gradients_apart, tensor_parallel
from tests.tasks import KINDS, Kind, whole_model
from toolkit.errors import ModelError
from toolkit.models.shards import shard_of

ENCODERS = ("albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "ernie", "eurobert")
ENCODERS += ("modernbert", "mpnet", "roberta", "xlm-roberta")
DECODERS = ("bloom", "gpt2", "llama", "mixtral", "phi3", "qwen3")
SEQ2SEQ = ("bart", "blenderbot", "blenderbot-small", "m2m_100", "marian", "mbart", "mt5", "pegasus", "t5", "umt5")

SOME = ("bert", "distilbert", "modernbert")
"""Encoders that are tried under every head; those of the others differ in nothing that is cut."""

BY_TASK = {
    "sequence_classification": (*SOME, *DECODERS),
    "token_classification": (*SOME, "eurobert", "gpt2", "llama"),
    "masked_lm": ENCODERS,
    "question_answering": (*SOME, "qwen3"),
    "seq2seq": SEQ2SEQ,
}

CASES = {f"{task} {kind}": (task, kind) for task, kinds in BY_TASK.items() for kind in kinds}
"""Name -> task and model_type."""

VARIANTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "shared keys of positions": ("masked_lm", "deberta-v2", {"share_att_key": True}),
    "gated feed-forward": ("seq2seq", "t5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "talking heads": ("masked_lm", "deberta", {"talking_head": True}),
    "odd heads": ("seq2seq", "t5", {"num_attention_heads": 3}),
}

UNSUPPORTED = {
    "talking heads": "deberta cannot be cut: talking_head=True: it mixes the scores of all heads",
    "odd heads": "parallel.tensor=2 does not divide this t5's num_attention_heads (3)",
}
"""Case -> what its ModelError says."""


def build(task: str, model_type: str, **changes: Any) -> nn.Module:
    return whole_model(KINDS[task], tiny_config(model_type, **{**KINDS[task].fields, **changes}))


def bert_to_bert() -> nn.Module:
    """A BERT that reads, and one that writes and looks at the first."""
    halves = tiny_config("bert"), tiny_config("bert", is_decoder=True, add_cross_attention=True)
    config = EncoderDecoderConfig.from_encoder_decoder_configs(*halves, decoder_start_token_id=2, pad_token_id=0)
    torch.manual_seed(0)
    model: nn.Module = EncoderDecoderModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.train()


def loss_and_gradients(kind: Kind, model: nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(2)
    loss = kind.loss(model, kind.batch())
    loss.backward()  # type: ignore[no-untyped-call]
    parameters = {name: value for name, value in model.named_parameters() if name not in kind.without_effect}
    gradients = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
    model.zero_grad()
    return loss.detach(), gradients


def walk(rank: int, world_size: int) -> dict[str, float | str]:
    """Deviation of each case, or why there is none."""
    cases = {name: (case[0], functools.partial(build, *case)) for name, case in CASES.items()}
    cases |= {name: (case[0], functools.partial(build, *case[:2], **case[2])) for name, case in VARIANTS.items()}
    cases["BERT to BERT"] = ("seq2seq", bert_to_bert)
    results: dict[str, float | str] = {}
    for name, (task, factory) in cases.items():
        try:
            whole = factory()
            cut = tensor_parallel(whole, world_size, dist.get_world_group())
        except ModelError as error:
            results[name] = error.what
            continue
        wanted, found = (loss_and_gradients(KINDS[task], model) for model in (whole, cut))
        results[name] = gradients_apart(wanted, found, cut)
    return results


def test_every_kind_of_head_on_two_ranks() -> None:
    """Loss and gradients of the halves are those of the whole model; padded rows throughout."""
    check(run_distributed(walk, 2, timeout_s=300), UNSUPPORTED)


def agreement_with_dropout(
    rank: int, world_size: int, cases: list[tuple[str, str]]
) -> dict[str, tuple[float, float, bool]]:
    """Loss without and with dropout, and whether this rank's gradients of whole parameters are the first rank's."""
    results = {}
    for task, name in cases:
        kind = KINDS[task]
        model = tensor_parallel(build(task, name), world_size, dist.get_world_group())
        plain, _ = loss_and_gradients(kind, model)
        drop(model, 0.2)
        loss, gradients = loss_and_gradients(kind, model)
        is_whole = {key for key, found in model.named_parameters() if shard_of(found) is None}
        flat = torch.cat([gradient.flatten() for key, gradient in gradients.items() if key in is_whole])
        first = flat.clone()
        dist.broadcast(first, src=0)
        results[f"{task} {name}"] = (float(plain), float(loss), bool(torch.equal(flat, first)))
    return results


def test_dropout_agrees_within_a_group() -> None:
    """What is whole loses the same elements on every rank, also where it lies between what is local (DeBERTa's positions)."""
    cases = [("masked_lm", name) for name in ("modernbert", "distilbert", "deberta", "deberta-v2", "mpnet", "albert")]
    cases += [("seq2seq", "t5"), ("seq2seq", "bart"), ("token_classification", "llama")]
    first, second = run_distributed(agreement_with_dropout, 2, cases)
    assert first == second
    for name, (plain, dropped, agree) in first.items():
        assert dropped != plain and agree, name
