"""What is hidden from a masked language model, and heads that compute hidden tokens alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.architectures import tiny_config
from tests.tasks import KINDS, whole_model
from tests.tiny import byte_tokenizer, wordpiece_tokenizer
from toolkit.data.batches import StoredBatches
from toolkit.data.order import Order
from toolkit.data.packing import Counts
from toolkit.errors import DataError, ModelError, RecipeError
from toolkit.models.document_choice import use_packed_attention
from toolkit.models.isolation import check_isolation, leak
from toolkit.models.selected_rows import SelectedRows
from toolkit.recipe import MaskedLM
from toolkit.tasks.language.masked_lm import MaskedLMTask
from toolkit.tasks.language.masking import choose, hide, num_chosen

TOKENIZER = wordpiece_tokenizer()
TEXT = "Return a dictionary of the configuration, deserialised from the environment."


def draws(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def test_chosen_tokens_are_a_share_of_the_text_and_never_special() -> None:
    words = np.array([-1, *range(40), -1, 41, -1], np.int32)
    seen = Counter(int(place) for seed in range(400) for place in choose(words, 0.15, draws(seed), whole_word=False))
    assert seen.total() == 400 * 6 == 400 * num_chosen(41, 0.15)
    assert set(seen) == {*np.flatnonzero(words >= 0)}
    assert max(seen.values()) < 90 and min(seen.values()) > 30  # 58.5 each: more than four standard deviations off
    assert (num_chosen(1, 0.01), num_chosen(3, 0.15), num_chosen(2, 0.99), num_chosen(0, 0.5)) == (1, 1, 2, 0)


def test_words_are_chosen_whole() -> None:
    words = np.array([-1, 0, 0, 0, 1, 2, 2, 3, 4, 4, 4, 4, -1], np.int32)
    sizes = Counter(words[words >= 0].tolist())
    for seed in range(100):
        chosen = choose(words, 0.4, draws(seed), whole_word=True)
        told = Counter(words[chosen].tolist())
        assert all(told[word] == sizes[word] for word in told) and 1 <= len(chosen) <= 4
    long = choose(np.array([5, 5, 5, 5], np.int32), 0.15, draws(), whole_word=True)
    assert long.tolist() == [0, 1, 2, 3], "one word at least, however long"


def test_what_stands_in_the_place_of_hidden_tokens() -> None:
    ids = np.full(200_000, 7, np.int32)
    chosen = np.arange(0, 200_000, 2)
    hidden = hide(
        ids, chosen, draws(), mask_token=4, mask_share=0.8, others=np.array([8, 9], np.int32), random_share=0.1
    )
    assert (hidden[1::2] == 7).all() and (ids == 7).all()
    shares = {token: float((hidden[chosen] == token).mean()) for token in (4, 8, 9, 7)}
    assert shares == pytest.approx({4: 0.8, 8: 0.05, 9: 0.05, 7: 0.1}, abs=0.006)  # four standard deviations


def task(**fields: Any) -> MaskedLMTask:
    return MaskedLMTask(MaskedLM(**fields), TOKENIZER)


def test_an_example_is_hidden_by_its_random_numbers_alone() -> None:
    one = task(whole_word=True, mask_probability=0.3)
    (example,) = one.encode({"text": TEXT})
    first, again, other = (one.transform(example, draws(seed), is_trained=True) for seed in (1, 1, 2))
    assert all((first[name] == again[name]).all() for name in first)
    assert (first["labels"] != other["labels"]).any()
    told = first["labels"] != -100
    assert (first["labels"][told] == example["input_ids"][told]).all()
    assert (first["input_ids"][~told] == example["input_ids"][~told]).all()
    assert not {*TOKENIZER.all_special_ids} - {TOKENIZER.mask_token_id} & {*first["input_ids"][told].tolist()}
    numbers = TOKENIZER(TEXT).word_ids()
    assert all(told[place] == told[other] for place in range(1, len(numbers) - 1) for other in range(1, len(numbers) - 1) if numbers[place] == numbers[other])  # fmt: skip


class Kept(list[Any]):
    """Examples with their lengths, as a store has them."""

    @property
    def lengths(self) -> Any:
        return np.array([len(example["input_ids"]) for example in self])


def test_masks_are_the_same_on_any_number_of_ranks_and_drawn_anew_in_each_pass() -> None:
    one = task(mask_probability=0.4)
    store: Any = Kept(one.encode({"text": f"{TEXT} {number} times"})[0] for number in range(12))
    order = Order(12, 4, 3, True)

    def seen(world_size: int, micro_size: int, steps: range) -> list[list[tuple[str, str]]]:
        ranks = [
            StoredBatches(
                store, [[index] for index in range(12)], order, one.collate, rank, world_size, micro_size, one
            )
            for rank in range(world_size)
        ]
        found = []
        for step in steps:
            rows = []
            for batches in ranks:
                for batch in next(iter(batches.iterate(step, step + 1))).micro_batches:
                    real = batch["attention_mask"].bool()
                    rows += [(str(ids[keep].tolist()), str(labels[keep].tolist())) for ids, labels, keep in zip(batch["input_ids"], batch["targets"], real, strict=True)]  # fmt: skip
            found.append(sorted(rows))
        return found

    wanted = seen(1, 4, range(6))
    assert wanted == seen(2, 1, range(6)) == seen(4, 1, range(6))
    assert wanted[4:] == seen(2, 2, range(4, 6)), "a resumed run draws the same"
    assert len({row for step in wanted for row in step}) == 24, "two passes over twelve texts"


def test_a_long_text_is_split_between_special_tokens() -> None:
    one = task()
    (example,) = one.encode({"text": TEXT})
    counts = Counts()
    parts = one.fitted(example, 8, "split", counts)
    assert counts.split == 1 and [len(part["input_ids"]) for part in parts[:-1]] == [8] * (len(parts) - 1)
    ids = [part["input_ids"].tolist() for part in parts]
    assert {(part[0], part[-1]) for part in ids} == {(TOKENIZER.cls_token_id, TOKENIZER.sep_token_id)}
    assert [token for part in ids for token in part[1:-1]] == example["input_ids"].tolist()[1:-1]
    (cut,) = one.fitted(example, 8, "truncate", counts)
    assert cut["input_ids"].tolist() == [*example["input_ids"][:7], TOKENIZER.sep_token_id]
    with pytest.raises(DataError, match="has no place for a token beside the 2 special ones"):
        one.fitted(example, 2, "split", counts)


def test_packed_texts_are_documents_with_positions_of_their_own() -> None:
    one = task()
    drawn = [
        one.transform(one.encode({"text": text})[0], draws(), is_trained=True)
        for text in ("a list", TEXT, "the file object")
    ]
    sizes = [len(example["input_ids"]) for example in drawn]
    batch = one.collate([drawn[:2], drawn[2:]])
    assert "attention_mask" not in batch
    assert batch["document_lengths"].tolist() == [sizes[:2], [sizes[2], sum(sizes[:2]) - sizes[2]]]
    assert batch["position_ids"][0].tolist() == [*range(sizes[0]), *range(sizes[1])]
    assert one.count(batch) == sum(int((example["labels"] != -100).sum()) for example in drawn)
    assert "position_ids" not in one.collate([drawn[:1], drawn[2:]])


@pytest.mark.parametrize(
    ("fields", "tokenizer", "what"),
    [
        ({}, byte_tokenizer, "has no mask token, with task.name='masked_lm'"),
        ({"sample_prompt": "no mask"}, wordpiece_tokenizer, "task.sample_prompt='no mask' has 0 mask tokens"),
    ],
)
def test_what_cannot_be_masked(fields: dict[str, Any], tokenizer: Any, what: str) -> None:
    with pytest.raises(RecipeError) as refused:
        MaskedLMTask(MaskedLM(**fields), tokenizer())
    assert what in refused.value.what


def test_shares_of_more_than_all() -> None:
    with pytest.raises(RecipeError, match=r"task\.mask_share=0.8 and task.random_share=0.3 are more than all"):
        MaskedLM(random_share=0.3)


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"text": ""}, "task.text_field='text' is empty"),
        ({"text": None}, "task.text_field='text' is null"),
        ({"text": ["a"]}, "task.text_field='text' gives ['a']"),
        ({"body": "a"}, "task.text_field='text' is not there; the columns are body"),
        ({"text": "[SEP]"}, "task.text_field='text' gives '[SEP]', without a token to hide"),
    ],
)
def test_rows_without_a_text(row: dict[str, Any], what: str) -> None:
    with pytest.raises(DataError) as refused:
        task().encode(row)
    assert refused.value.what.startswith(what)


ENCODERS = ("albert", "bert", "camembert", "deberta-v2", "distilbert", "electra", "ernie", "modernbert", "mpnet", "roberta", "xlm-roberta")  # fmt: skip


@pytest.mark.parametrize("model_type", ENCODERS)
def test_logits_of_hidden_tokens_alone(model_type: str) -> None:
    """The same loss and gradients as of all logits, and as many logits as there are hidden tokens."""
    kind = KINDS["masked_lm"]
    model = whole_model(kind, tiny_config(model_type)).double()
    batch = kind.batch()
    rows = (batch["targets"].flatten() != -100).nonzero().squeeze(1)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}

    def computed(selected: SelectedRows) -> tuple[float, dict[str, torch.Tensor]]:
        model.zero_grad()
        logits = selected.logits(model, inputs, rows)
        assert logits.shape == (len(rows), model.config.vocab_size)  # type: ignore[union-attr]
        loss = nn.functional.cross_entropy(logits, batch["targets"].flatten()[rows], reduction="sum")
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach()), {
            name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
        }

    selected = SelectedRows(model)
    wanted = computed(selected)
    with torch.no_grad():
        selected.choose(model.eval())
    model.train()
    assert selected.active, model_type
    found = computed(selected)
    assert found[0] == pytest.approx(wanted[0], rel=1e-6)
    assert found[1].keys() == wanted[1].keys()
    for name, gradient in wanted[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-5, atol=1e-7)


def test_a_head_that_mixes_tokens_computes_all() -> None:
    class Mixing(nn.Module):
        """A head that adds the mean of the text to each token."""

        def __init__(self, head: nn.Module) -> None:
            super().__init__()
            self.head = head

        def forward(self, hidden: torch.Tensor) -> Any:
            return self.head(hidden + hidden.mean(1, keepdim=True))

    model: Any = whole_model(KINDS["masked_lm"], tiny_config("bert")).eval()
    model.cls = Mixing(model.cls)
    selected = SelectedRows(model)
    with torch.no_grad():
        selected.choose(model)
    assert not selected.active


@pytest.mark.parametrize("model_type", ["bert", "distilbert", "electra", "modernbert"])
def test_packed_documents_of_encoders_see_only_themselves(model_type: str) -> None:
    model = whole_model(KINDS["masked_lm"], tiny_config(model_type, attn_implementation="sdpa")).eval()
    with torch.no_grad():
        assert (leak(model) or 0.0) > 1e-2, "by transformers' mask they see one another"
        with pytest.raises(ModelError, match=r"or model\.attention='auto' if it is another"):
            check_isolation(leak(model), type(model).__name__, attention="auto")
        assert use_packed_attention(model, "toolkit_documents") is None
        check_isolation(leak(model), type(model).__name__)


@pytest.mark.parametrize(
    "model_type",
    ["roberta", "deberta-v2"],  # positions that begin at another number; attention of its own
)
def test_encoders_that_cannot_be_packed(model_type: str) -> None:
    model = whole_model(KINDS["masked_lm"], tiny_config(model_type)).eval()
    with torch.no_grad():
        assert use_packed_attention(model, "toolkit_documents") == "its hidden states would be others"
        with pytest.raises(ModelError, match=r"set data\.packing=False for this model"):
            check_isolation(leak(model), type(model).__name__, attention="auto")
