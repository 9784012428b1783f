"""Sentence embeddings: rows, messages, batches, and losses and figures by their formulas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, BertConfig, T5Config

from tests import tiny
from toolkit.data.packing import Counts
from toolkit.engine.comparison import Comparison
from toolkit.errors import DataError, ModelError, RecipeError
from toolkit.recipe import Batch, SentenceEmbedding
from toolkit.tasks.similarity.contrast import contrastive_losses, cosent_loss, ranks
from toolkit.tasks.similarity.sentence_embedding import EMBEDDINGS, GRADIENTS, LOSSES, SentenceEmbeddingTask

PIECES = tiny.wordpiece_tokenizer()
ROW = {"anchor": "a file", "positive": "the class of a file", "negative": "a number", "score": 0.5}
SIZES = Batch(global_size=4, micro_size=2, sequence_length=64)


def task(**fields: Any) -> SentenceEmbeddingTask:
    return SentenceEmbeddingTask(SentenceEmbedding(**fields), PIECES)


def test_an_example_holds_its_texts_and_a_batch_all_of_them() -> None:
    ours = task(negative_field="negative", anchor_prefix="query: ", positive_prefix="text: ")
    (example,) = ours.encode(ROW)
    texts = ["query: a file", "text: the class of a file", "text: a number"]
    ids = [PIECES(text)["input_ids"] for text in texts]
    assert example["input_ids"].tolist() == [token for text in ids for token in text]
    assert example["lengths"].tolist() == list(map(len, ids)) and ours.size(example) == sum(map(len, ids))
    assert ours.targets(example) == 1 and ours.targets(ours.ignored(example)) == 0
    batch = ours.collate([[example], [ours.ignored(example)]])
    assert batch["input_ids"].shape == (6, max(map(len, ids))) and ours.count(batch) == 1
    for row, wanted in zip(batch["input_ids"][3:], ids, strict=True):
        assert row.tolist() == wanted + [PIECES.pad_token_id] * (len(row) - len(wanted))
    assert ours.columns(ROW) == ["anchor", "positive", "negative"]
    assert "texts" not in ours.describe() and "pooling" not in ours.describe()
    assert ours.show(example).parts[0] == ("[CLS] query : a file [SEP]\n", False)


@pytest.mark.parametrize(
    ("fields", "row", "what"),
    [
        ({}, {"text": "a", "positive": "b"}, "task.anchor_field='anchor' is not there; the columns are text, positive"),
        ({}, {"anchor": "a", "positive": ""}, "task.positive_field='positive' is empty"),
        ({"negative_field": "no"}, {"anchor": "a", "positive": "b", "no": None}, "task.negative_field='no' is null"),
        ({"negative_field": "no"}, ROW, "task.negative_field='no' is not there"),
        ({"score_field": "score"}, ROW | {"score": "high"}, "task.score_field='score' gives 'high'"),
        ({"score_field": "score"}, ROW | {"score": math.nan}, "task.score_field='score' gives nan"),
        ({"score_field": "score"}, ROW | {"score": 4.5}, "task.score_field='score' gives 4.5"),
        ({"score_field": "score"}, ROW | {"score": True}, "task.score_field='score' gives True"),
        ({"score_field": "grade"}, ROW, "task.score_field='grade' is not there"),
    ],
)
def test_a_row_that_cannot_be_used(fields: dict[str, Any], row: dict[str, Any], what: str) -> None:
    with pytest.raises(DataError) as caught:
        task(**fields, **({"objective": "mse"} if "score_field" in fields else {})).encode(row)
    assert caught.value.what.startswith(what)


def test_scores_of_any_scale_are_ordered() -> None:
    (example,) = task(objective="cosent", score_field="score").encode(ROW | {"score": "4.5"})
    assert example["scores"].tolist() == [4.5]


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"objective": "mse"}, "task.objective='mse' with task.score_field=None"),
        ({"score_field": "score"}, "task.objective='contrastive' with task.score_field='score'"),
        (
            {"objective": "cosent", "score_field": "s", "negative_field": "n"},
            "task.objective='cosent' with task.negative_field='n'",
        ),
        (
            {"objective": "mse", "score_field": "s", "temperature": 0.5},
            "task.temperature=0.5 with task.objective='mse', which takes cosines as they are",
        ),
        (
            {"objective": "cosent", "score_field": "s", "normalize": False},
            "task.normalize=False with task.objective='cosent', which takes cosines as they are",
        ),
    ],
)
def test_fields_that_do_not_fit_together(fields: dict[str, Any], what: str) -> None:
    with pytest.raises(RecipeError) as caught:
        SentenceEmbedding(**fields)
    assert caught.value.what == what


def test_models_and_batches_that_do_not_fit() -> None:
    with pytest.raises(ModelError, match="t5 is an encoder with a decoder"):
        task().meet(T5Config(), SIZES)
    alone = SIZES.model_copy(update={"global_size": 1})
    with pytest.raises(RecipeError, match=r"global_size=1 with task.objective='contrastive'"):
        task().meet(BertConfig(), alone)
    task(negative_field="negative").meet(BertConfig(), alone)


def test_each_text_is_cut_by_itself() -> None:
    ours, counts = task(), Counts()
    (example,) = ours.encode({"anchor": "a file", "positive": "the class of a file and its name " * 5})
    short = int(example["lengths"][0])
    (cut,) = ours.fitted(example, 8, "truncate", counts)
    assert cut["lengths"].tolist() == [min(short, 8), 8] and counts.truncated == 1
    whole = example["input_ids"].tolist()
    assert cut["input_ids"].tolist() == [*whole[:short], *whole[short : short + 7], PIECES.sep_token_id]
    assert ours.fitted(example, 8, "drop", counts) == [] and counts.dropped == 1
    assert ours.fitted(cut, 8, "error", counts) == [cut]
    with pytest.raises(DataError, match=f"a text has {example['lengths'][1]} tokens and batch.sequence_length is 8"):
        ours.fitted(example, 8, "error", counts)


def vectors(count: int, texts: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn(count, texts, 8, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(found, dim=-1)


def test_losses_are_those_of_the_formulas() -> None:
    found = vectors(5, 3)
    losses = contrastive_losses(found, 0.2)
    for index in range(5):
        others = [found[other, text] for text in (1, 2) for other in range(5)]
        exponentials = [math.exp(float(found[index, 0] @ other) / 0.2) for other in others]
        own = math.exp(float(found[index, 0] @ found[index, 1]) / 0.2)
        assert float(losses[index]) == pytest.approx(-math.log(own / sum(exponentials)), rel=1e-12)
    cosines, scores = torch.tensor([0.3, -0.2, 0.9, 0.1]).double(), torch.tensor([1.0, 2.0, 2.0, 0.0])
    wrong = [
        math.exp(float(cosines[j] - cosines[i]) / 0.2) for i in range(4) for j in range(4) if scores[i] > scores[j]
    ]
    assert float(cosent_loss(cosines, scores, 0.2)) == pytest.approx(math.log(1 + sum(wrong)), rel=1e-12)
    assert float(cosent_loss(cosines, torch.ones(4), 0.2)) == 0.0


def test_short_texts_are_not_filled_up_to_long_ones() -> None:
    """The model sees anchors and positives by themselves, and the vectors are those of each text alone."""
    ours = task(pooling="mean")
    rows = [{"anchor": "a file", "positive": "the class of a file and its name " * n} for n in (1, 4)]
    batch = ours.collate([ours.encode(row) for row in rows])
    model = AutoModel.from_config(tiny.bert(PIECES).config).eval()
    shapes = []
    model.register_forward_pre_hook(lambda _, __, given: shapes.append(given["input_ids"].shape), with_kwargs=True)
    with torch.no_grad():
        found = ours.embeddings(model, batch)
        assert found.shape[:2] == (2, 2) and shapes[0][1] < shapes[1][1] == batch["input_ids"].shape[1]
        for vectors, row in zip(found, rows, strict=True):
            for vector, text in zip(vectors, row.values(), strict=True):
                hidden = model(**PIECES(text, return_tensors="pt")).last_hidden_state
                wanted = torch.nn.functional.normalize(hidden.mean(1)[0], dim=-1)
                torch.testing.assert_close(vector, wanted, rtol=0, atol=1e-6)


def test_ranks_count_what_is_nearer() -> None:
    anchors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    positives = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, 0.8]])
    negatives = torch.tensor([[0.8, 0.6], [0.0, 1.0], [1.0, 0.0]])
    assert ranks(torch.stack([anchors, positives], 1)).tolist() == [1, 1, 1], "the same text twice is in nobody's way"
    assert ranks(torch.stack([anchors, positives, negatives], 1)).tolist() == [1, 2, 1]


def test_two_passes_are_one_graph() -> None:
    """The gradients by the vectors, micro-batch by micro-batch, are those of the whole loss by all of them."""
    ours, whole = task(negative_field="negative"), vectors(6, 3).requires_grad_()
    total = contrastive_losses(whole, 0.05).sum()
    (wanted,) = torch.autograd.grad(total, whole)
    parts = [{EMBEDDINGS: part.detach()} for part in whole.split(2)]
    compared = Comparison(ours.look, ours.compare).of_each(parts)
    assert [sorted(part) for part in compared] == [[GRADIENTS, LOSSES]] * 3
    assert torch.equal(torch.cat([part[GRADIENTS] for part in compared]), wanted)
    assert float(torch.cat([part[LOSSES] for part in compared]).sum()) == pytest.approx(float(total.detach()))


def test_held_out_losses_are_taken_in_groups_of_a_global_batch() -> None:
    ours, found = task(), vectors(10, 2)
    ours.meet(BertConfig(), SIZES)
    sums = ours.tally({EMBEDDINGS: found})
    wanted = sum(float(contrastive_losses(group, 0.05).sum()) for group in found.split(4))
    places = ranks(found).numpy()
    metrics = ours.metrics(sums)
    assert metrics["loss"] == pytest.approx(wanted / 10)
    assert metrics["accuracy_at_1"] == np.mean(places == 1) and metrics["mrr"] == pytest.approx(np.mean(1 / places))


def test_files_describe_the_vectors() -> None:
    config = BertConfig(hidden_size=48)
    files = task(pooling="cls", normalize=False, anchor_prefix="query: ").files(config, SIZES)
    assert [part["path"] for part in files["modules.json"]] == ["", "1_Pooling"]
    on = {name for name, value in files["1_Pooling/config.json"].items() if value is True}
    assert on == {"pooling_mode_cls_token", "include_prompt"}
    assert files["1_Pooling/config.json"]["word_embedding_dimension"] == 48
    assert files["config_sentence_transformers.json"]["prompts"] == {"query": "query: "}
    assert task().files(config, SIZES)["modules.json"][-1]["type"] == "sentence_transformers.models.Normalize"
