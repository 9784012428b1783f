"""A vocabulary divided among ranks: the loss, every gradient and the logits are those of the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import deepspeed.comm as dist
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoTokenizer

from tests import tiny
from tests.distributed import run_distributed
from tests.parity.test_tensor import build, inputs_and_targets, loss_and_gradients, tensor_parallel
from tests.parity.topologies import TOPOLOGIES, resumable, train_pairs, worst
from tests.parity.worker import export_weights, read_metrics
from toolkit.models.cross_entropy import linear_cross_entropy
from toolkit.models.heads import token_loss, use_loss_head
from toolkit.models.log_probabilities import linear_log_probabilities, segment_sum
from toolkit.models.shards import shard_of
from toolkit.models.vocabulary import VocabularyPart, even_sizes
from toolkit.recipe import Checkpoint

TOKENS, WIDTH, VOCABULARY = 37, 16, 101

Leaves = tuple[Tensor, Tensor, Tensor]


def problem(dtype: torch.dtype) -> tuple[Leaves, Tensor]:
    """hidden, weight and bias, and targets of which a third is ignored."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((TOKENS, WIDTH), (VOCABULARY, WIDTH), (VOCABULARY,))
    hidden, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes
    )
    targets = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    targets[torch.rand(TOKENS, generator=generator) < 0.3] = -100
    return (hidden, weight, bias), targets


def part_of(rank: int, world_size: int) -> VocabularyPart:
    return VocabularyPart(dist.get_world_group(), rank, even_sizes(VOCABULARY, world_size))


def largest_difference(found: Tensor, wanted: Tensor) -> float:
    return float((found.detach() - wanted.detach()).abs().max())


def differences(rank: int, world_size: int, dtype: torch.dtype) -> list[float]:
    """Largest of the loss and of each gradient, from torch's own linear and cross_entropy; with and without smoothing,
    bias and gradients, in chunks of several sizes."""
    part = part_of(rank, world_size)
    rows = slice(part.start, part.start + part.size)
    apart = []
    for smoothing, with_bias, chunk in ((0.0, True, 5), (0.1, True, None), (0.1, False, 1), (0.0, False, 1000)):
        (hidden, weight, bias), targets = problem(dtype)
        leaves = [hidden, weight, *([bias] if with_bias else [])]
        logits = F.linear(hidden, weight, bias if with_bias else None)
        wanted = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
        gradients = torch.autograd.grad(wanted * 3.7, leaves)
        mine = [hidden.detach().requires_grad_(), *(leaf.detach()[rows].requires_grad_() for leaf in leaves[1:])]
        options: dict[str, Any] = {"label_smoothing": smoothing, "chunk_tokens": chunk, "part": part}
        given = (mine[0], mine[1], mine[2] if with_bias else None, targets)
        found = linear_cross_entropy(*given, gradient_scale=8.0, **options)
        with torch.no_grad():
            apart.append(largest_difference(linear_cross_entropy(*given, **options), found))
        # 3.7 differs from the scale given: the backward pass has to correct it.
        of_mine = torch.autograd.grad(found * 3.7, mine)
        parts = [gradients[0], *(gradient[rows] for gradient in gradients[1:])]
        apart += [largest_difference(*pair) for pair in zip((found, *of_mine), (wanted, *parts), strict=True)]
    return apart


def test_loss_and_gradients_in_float64() -> None:
    """Two ranks of 51 and 50 rows; three of 34, 34 and 33."""
    for world_size in (2, 3):
        for found in run_distributed(differences, world_size, torch.float64):
            assert len(found) == 2 * (2 + 3) + 2 * (2 + 2) and max(found) < 1e-10, found


def log_probability_differences(rank: int, world_size: int) -> list[float]:
    """Largest of the tokens' log-probabilities and of each gradient, from torch's own linear and log_softmax."""
    part = part_of(rank, world_size)
    rows = slice(part.start, part.start + part.size)
    apart = []
    for with_bias, chunk in ((True, 5), (True, None), (False, 1)):
        (hidden, weight, bias), targets = problem(torch.float64)
        targets = targets.clamp(min=0)
        leaves = [hidden, weight, *([bias] if with_bias else [])]
        weights = torch.linspace(-1.0, 2.0, TOKENS, dtype=torch.float64)
        logits = F.linear(hidden, weight, bias if with_bias else None)
        wanted = logits.log_softmax(-1).gather(1, targets.unsqueeze(1)).squeeze(1)
        gradients = torch.autograd.grad(wanted @ weights, leaves)
        mine = [hidden.detach().requires_grad_(), *(leaf.detach()[rows].requires_grad_() for leaf in leaves[1:])]
        given = (mine[0], mine[1], mine[2] if with_bias else None, targets)
        found = linear_log_probabilities(*given, chunk_tokens=chunk, part=part)
        of_mine = torch.autograd.grad(found @ weights, mine)
        parts = [gradients[0], *(gradient[rows] for gradient in gradients[1:])]
        apart += [largest_difference(*pair) for pair in zip((found, *of_mine), (wanted, *parts), strict=True)]
    return apart


def test_log_probabilities_and_gradients_in_float64() -> None:
    for world_size in (2, 3):
        for found in run_distributed(log_probability_differences, world_size):
            assert len(found) == 2 * 4 + 3 and max(found) < 1e-10, found


def shared_segments(rank: int, world_size: int) -> tuple[list[float], list[float]]:
    """Sums over segments of which every rank has some tokens, and the gradient of the sum of the ranks' losses."""
    group = dist.get_world_group()
    values = torch.tensor([1.0, 2.0, 4.0]) * 8**rank
    values.requires_grad_()
    sums = segment_sum(values, torch.tensor([0, 1, 0]), 2, group)
    # Each rank has the loss of one segment only: rank 0 that of the first, rank 1 that of the second.
    sums[rank].square().backward()  # type: ignore[no-untyped-call]
    assert values.grad is not None
    return sums.tolist(), values.grad.tolist()


def test_documents_that_ranks_share_are_summed_with_the_gradients_of_all() -> None:
    first, second = 5.0 + 40.0, 2.0 + 16.0
    for sums, gradient in run_distributed(shared_segments, 2):
        assert sums == [first, second]
        assert gradient == [2 * first, 2 * second, 2 * first]


def small_fp16_gradients(rank: int, world_size: int) -> tuple[float, int]:
    """Relative error of the weight's gradient where it is below fp16's smallest number; nonzero numbers without a scale."""
    sizes = even_sizes(50_000, world_size)
    part = VocabularyPart(dist.get_world_group(), rank, sizes)
    hidden = (1e-4 * torch.randn(4, 8, generator=torch.Generator().manual_seed(0))).half()
    weight = torch.full((sum(sizes), 8), 1e-2, dtype=torch.float16)
    targets, scale = torch.arange(4), 2.0**16
    exact = weight.double().requires_grad_()
    (F.cross_entropy(hidden.double() @ exact.T, targets, reduction="sum") * scale).backward()  # type: ignore[no-untyped-call]
    assert exact.grad is not None
    wanted = exact.grad[part.start : part.start + part.size][4:]
    found = []
    for given in (scale, 1.0):
        mine = weight[: part.size].clone().requires_grad_()
        loss = linear_cross_entropy(hidden, mine, None, targets, gradient_scale=given, part=part)
        found.append(torch.autograd.grad(loss * scale, mine)[0][4:])
    return float((found[0].double() - wanted).norm() / wanted.norm()), int(found[1].count_nonzero())


def test_the_scale_keeps_small_fp16_gradients() -> None:
    for error, unscaled in run_distributed(small_fp16_gradients, 2):
        assert error < 5e-3 and unscaled == 0


def of_a_model(rank: int, world_size: int, kind: str, changes: dict[str, Any]) -> dict[str, float]:
    """Largest relative difference of loss, gradients and logits from the whole model's, with label smoothing."""
    whole = build((kind, changes))
    cut: Any = tensor_parallel(whole, world_size, dist.get_world_group())
    inputs, targets = inputs_and_targets()
    found: dict[str, float] = {}
    with torch.no_grad():
        logits, wanted = (model(**inputs, use_cache=False).logits for model in (cut, whole))
    found["logits"] = largest_difference(logits, wanted) / float(wanted.abs().max())
    losses = []
    for model in (cut, whole):
        use_loss_head(model)
        loss = token_loss(model, inputs, targets, label_smoothing=0.1, gradient_scale=1.0)
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss)
    found["loss"] = largest_difference(*losses) / float(losses[1])
    total = float(torch.nn.utils.get_total_norm([p.grad for p in whole.parameters() if p.grad is not None]))
    for (name, mine), (_, theirs) in zip(cut.named_parameters(), whole.named_parameters(), strict=True):
        assert mine.grad is not None and theirs.grad is not None
        shard = shard_of(mine)
        found[name] = largest_difference(mine.grad, theirs.grad if shard is None else shard.cut(theirs.grad)) / total
    head = cut.get_output_embeddings().weight
    assert head.shape[0] == even_sizes(whole.config.vocab_size, world_size)[rank]  # type: ignore[union-attr, arg-type]
    assert (head is cut.get_input_embeddings().weight) == bool(changes.get("tie_word_embeddings"))
    return found


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_with_an_uneven_vocabulary(tied: bool) -> None:
    """97 tokens on two ranks, the padding token among the second's, whose embedding learns nothing."""
    changes = {"vocab_size": 97, "tie_word_embeddings": tied, "pad_token_id": 90}
    for found in run_distributed(of_a_model, 2, "llama", changes):
        assert max(found.values()) < 1e-6, found


def with_a_token_too_many(rank: int, world_size: int) -> list[str]:
    """What an id outside the vocabulary says, as a target and as an input."""
    part, said = part_of(rank, world_size), []
    (hidden, weight, _), targets = problem(torch.float32)
    targets[0] = VOCABULARY
    cut: Any = tensor_parallel(build(("llama", {})), world_size, dist.get_world_group())
    for call in (
        lambda: linear_cross_entropy(hidden, weight[: part.size], None, targets, part=part),
        lambda: cut(input_ids=torch.tensor([[3, 96]])),
    ):
        try:
            call()
        except RuntimeError as error:
            said.append(str(error))
    return said


def test_a_token_of_no_rank_is_refused() -> None:
    """As one process does, and not taken for one that the other rank has."""
    for said in run_distributed(with_a_token_too_many, 2):
        assert said == ["a token id is outside [0, 101)", "a token id is outside [0, 96)"]


def test_whole_heads_still_are() -> None:
    """Gemma 2 caps its logits: head and embedding stay whole, and the loss is that of full logits."""
    for found, wanted in run_distributed(capped, 2):
        assert found == pytest.approx(wanted, rel=1e-5)


def capped(rank: int, world_size: int) -> tuple[float, float]:
    whole = build(("gemma2", {}))
    cut = tensor_parallel(whole, world_size, dist.get_world_group())
    modules: list[Any] = [whole.get_output_embeddings(), cut.get_output_embeddings()]  # type: ignore[operator]
    assert modules[0].weight.shape == modules[1].weight.shape and isinstance(modules[1], nn.Linear)
    return float(loss_and_gradients(cut)[0]), float(loss_and_gradients(whole)[0])


def test_an_uneven_vocabulary_in_checkpoints_and_exports(
    tiny_tokenizer_dir: Path, chat_file: Path, tmp_path: Path
) -> None:
    """Two ranks continue one, one continues two, and pipeline x tensor both ends; the exports are one model's."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
    model = tiny.llama(tokenizer)
    model.config.tie_word_embeddings = False
    torch.manual_seed(0)
    model = type(model)(model.config)
    model.resize_token_embeddings(len(tokenizer) + 1 - len(tokenizer) % 2)
    source = tiny.save(model, tokenizer, tmp_path / "model")
    names, checkpoint = ("zero0", "tp2", "pp2_tp2"), Checkpoint(every_steps=2, export_dtype="fp32")
    recipes = {
        name: resumable(source, chat_file, TOPOLOGIES[name], steps=4, half=2, checkpoint=checkpoint) for name in names
    }
    pairs = [("zero0", "tp2"), ("tp2", "zero0"), ("tp2", "pp2_tp2")]
    train_pairs({name: TOPOLOGIES[name] for name in names}, recipes, pairs, 2, tmp_path)
    wanted, weights = read_metrics(tmp_path / "zero0"), export_weights(tmp_path / "zero0" / "export")
    assert weights["lm_head.weight"].shape[0] % 2 == 1
    for name in (*names, *(f"{writer}--{reader}" for writer, reader in pairs)):
        assert worst(read_metrics(tmp_path / name), wanted) < 1e-5, name
        exported = export_weights(tmp_path / name / "export")
        assert exported.keys() == weights.keys()
        for key, value in exported.items():
            torch.testing.assert_close(value, weights[key], rtol=0, atol=2e-6, msg=f"{name}: {key}")
