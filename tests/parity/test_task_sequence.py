"""Sequence parallelism of encoders and of classifiers of tokens: padded rows in parts against the whole model."""

from __future__ import annotations

import copy

import deepspeed.comm as dist
import pytest
import torch
from torch import nn

from tests import varlen
from tests.architectures import tiny_config
from tests.distributed import run_distributed
from tests.tasks import KINDS, Batch, Kind, whole_model
from toolkit.engine.sequence import (
    SequenceAttention,
    check_sequence_attention,
    check_sequence_parallel,
    use_sequence_attention,
)
from toolkit.errors import ModelError
from toolkit.tasks.sequence_parts import part_of

EXACT = {
    "masked_lm": (
        "albert",
        "bert",
        "camembert",
        "distilbert",
        "electra",
        "eurobert",
        "modernbert",
        "roberta",
        "xlm-roberta",
    ),
    "token_classification": ("bert", "gpt2", "llama", "modernbert", "qwen3"),
}
"""Task -> architectures."""

REFUSED = {
    ("masked_lm", "deberta-v2"): "eager attention with parallel.sequence=2",
    ("masked_lm", "mpnet"): "eager attention with parallel.sequence=2",
    ("masked_lm", "bart"): "BartConfig has an encoder and a decoder",
    ("token_classification", "bloom"): "eager attention with parallel.sequence=2",
}
"""Task and architecture -> what its ModelError says."""

TOLERANCE = 1e-5
LONGEST = 40
"""Context length that models are probed for, in tokens."""


def spread(model: nn.Module, degree: int) -> tuple[nn.Module, SequenceAttention]:
    """A copy of `model` whose sequences are spread over all ranks, as a run makes it."""
    part = copy.deepcopy(model)
    check_sequence_parallel(part.config, degree)  # type: ignore[arg-type]
    attention = SequenceAttention(part.config, dist.get_world_group())  # type: ignore[arg-type]
    with torch.no_grad():
        excess = use_sequence_attention(part.eval(), attention, LONGEST, padded=True)
    check_sequence_attention(excess, type(part).__name__)
    return part.train(), attention


def loss_and_gradients(kind: Kind, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    loss = kind.loss(model, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def deviation(kind: Kind, model_type: str, rank: int, degree: int) -> float:
    """Largest relative difference of the loss and of any parameter's gradient, summed over the parts, as in test_sequence."""
    whole = whole_model(kind, tiny_config(model_type, **kind.fields))
    part, attention = spread(whole, degree)
    batch = kind.batch()
    wanted_loss, wanted = loss_and_gradients(kind, whole, batch)
    loss, found = loss_and_gradients(kind, part, part_of(attention.with_positions(batch), rank, degree))
    assert found.keys() == wanted.keys()
    for tensor in (loss, *found.values()):
        dist.all_reduce(tensor)
    worst = abs(float(loss - wanted_loss)) / abs(float(wanted_loss))
    floor = 1e-3 * float(torch.nn.utils.get_total_norm(list(wanted.values())))
    for name, gradient in wanted.items():
        worst = max(worst, float((found[name] - gradient).norm()) / (float(gradient.norm()) + floor))
    return worst


def walk(rank: int, world_size: int) -> dict[tuple[str, str], float | str]:
    """Deviation of each case, or why it is refused."""
    results: dict[tuple[str, str], float | str] = {}
    for task, model_type in [*[(task, kind) for task, kinds in EXACT.items() for kind in kinds], *REFUSED]:
        try:
            results[task, model_type] = deviation(KINDS[task], model_type, rank, world_size)
        except ModelError as error:
            results[task, model_type] = error.what
    return results


def test_every_architecture_on_two_ranks() -> None:
    """Loss and gradients of the halves are those of the whole, or the architecture is refused with its reason."""
    for results in run_distributed(walk, 2, timeout_s=300):
        refused = {name: result for name, result in results.items() if isinstance(result, str)}
        assert refused.keys() == REFUSED.keys(), refused
        assert all(REFUSED[name] in result for name, result in refused.items()), refused
        inexact = {name: v for name, v in results.items() if not isinstance(v, str) and not v < TOLERANCE}
        assert inexact == {}


def uneven(rank: int, world_size: int) -> tuple[float, float]:
    """Rows of 12 tokens filled up to 15 for three ranks: deviation of BERT; and of ModernBERT with a window."""
    fields = {"hidden_size": 36, "num_attention_heads": 3}
    kind = KINDS["masked_lm"]
    found = []
    for model_type in ("bert", "modernbert"):
        whole = whole_model(kind, tiny_config(model_type, **fields)).double()
        part, attention = spread(whole, world_size)
        batch = {name: values[:, :11] if values.shape[1:] == (12,) else values for name, values in kind.batch().items()}
        batch["document_lengths"] = torch.tensor([[11, 0], [7, 4], [9, 2]])
        wanted = kind.loss(whole, batch).detach()
        loss = kind.loss(part, part_of(attention.with_positions(batch), rank, world_size)).detach()
        dist.all_reduce(loss)
        found.append(abs(float(loss - wanted)) / float(wanted))
    return found[0], found[1]


def test_rows_that_do_not_divide() -> None:
    for deviations in run_distributed(uneven, 3):
        assert max(deviations) < TOLERANCE


def kernel(rank: int, world_size: int) -> list[list[int]]:
    """Bounds that the variable-length kernel is given for padded rows; its losses are compared."""
    patch = pytest.MonkeyPatch()
    patch.setattr("toolkit.engine.sequence.KERNEL", varlen.KERNELS["newest"])
    patch.setattr("toolkit.engine.sequence.kernel_fault", lambda *_: None)
    kind = KINDS["masked_lm"]
    bounds = []
    for model_type in ("bert", "modernbert"):
        whole = whole_model(kind, tiny_config(model_type)).double()
        part, attention = spread(whole, world_size)
        varlen.CALLS.clear()
        batch = kind.batch()
        loss = kind.loss(part, part_of(attention.with_positions(batch), rank, world_size)).detach()
        dist.all_reduce(loss)
        wanted = kind.loss(whole, batch).detach()
        assert abs(float(loss - wanted)) / float(wanted) < TOLERANCE, model_type
        assert len(varlen.CALLS) == part.config.num_hidden_layers  # type: ignore[union-attr]
        bounds.append(varlen.CALLS[-1].bounds.tolist())
    patch.undo()
    return bounds


def test_the_kernel_is_told_rows_and_their_padding() -> None:
    for bounds in run_distributed(kernel, 2):
        assert bounds == [[0, 12, 19, 24, 33, 36]] * 2
