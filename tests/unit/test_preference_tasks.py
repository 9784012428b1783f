"""Rows of preferences as examples and batches: what is trained, what is refused, what is cut, what counts once."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from tests import tiny
from toolkit.data import documents
from toolkit.data.example import IGNORED, Example
from toolkit.data.packing import Counts
from toolkit.errors import DataError, RecipeError
from toolkit.models.attention import DOCUMENT_LENGTHS
from toolkit.models.heads import TARGET_ROWS
from toolkit.recipe import DPO, KTO, ORPO, Batch, Data, LoRA, Model, Recipe, RewardModel, SimPO
from toolkit.tasks.packed_rows import COUNTED, TARGET_DOCUMENTS
from toolkit.tasks.preferences.answers import ANSWER_TOKENS, REFERENCE
from toolkit.tasks.preferences.dpo import DPOTask, ORPOTask, SimPOTask
from toolkit.tasks.preferences.kto import OTHERS, KTOTask
from toolkit.tasks.preferences.reward_model import RewardModelTask

ROW = {"prompt": "What is it?", "chosen": "A list.", "rejected": "A string of text."}
EXAMPLE = {
    "input_ids": np.arange(1, 16, dtype=np.int32),
    "labels": np.array([IGNORED] * 2 + [3, 4, 5] + [IGNORED] * 2 + list(range(8, 16)), np.int32),
    "lengths": np.array([5, 10], np.int32),
}
"""A pair of five and ten tokens, two of each in the prompt."""


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny.byte_tokenizer()


def answered(tokenizer: Any, example: Example) -> list[str]:
    """The trained text of each document."""
    return [tokenizer.decode(tokens[labels != IGNORED]) for tokens, labels in documents.apart(example)]


def test_answers_are_trained_and_prompts_are_not(tokenizer: Any) -> None:
    [example] = DPOTask(DPO(), tokenizer).encode(ROW)
    texts = [tokenizer.decode(tokens) for tokens, _ in documents.apart(example)]
    assert all(text.startswith("<|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assistant\n") for text in texts)
    assert answered(tokenizer, example) == ["A list.<|im_end|>", "A string of text.<|im_end|>"]


def test_columns_have_the_names_that_the_recipe_says(tokenizer: Any) -> None:
    task = DPOTask(DPO(prompt_field="q", chosen_field="good", rejected_field="bad"), tokenizer)
    row = {"q": "What?", "good": "This.", "bad": "That.", "id": 7}
    assert answered(tokenizer, task.encode(row)[0]) == ["This.<|im_end|>", "That.<|im_end|>"]
    assert set(task.columns(row)) == {"q", "good", "bad"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**ROW, "rejected": "A list."}, "chosen and rejected are the same answer"),
        ({"prompt": "What?", "rejected": "No."}, "chosen is not there"),
        ({**ROW, "chosen": ""}, "chosen is empty"),
        ({**ROW, "rejected": None}, "rejected is null"),
        ({**ROW, "prompt": ""}, "prompt is empty"),
        ({**ROW, "chosen": ["a"], "rejected": ["b"]}, "chosen"),
    ],
)
def test_a_row_that_cannot_be_compared_is_named_by_its_column(tokenizer: Any, row: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ORPOTask(ORPO(), tokenizer).encode(row)


@pytest.mark.parametrize("margin", ["1", None, math.nan, True])
def test_a_margin_is_a_number(tokenizer: Any, margin: Any) -> None:
    task = RewardModelTask(RewardModel(margin_field="gap"), tokenizer)
    assert task.encode({**ROW, "gap": 2})[0]["margin"].tolist() == [2.0]
    with pytest.raises(DataError, match=r"task.margin_field='gap' is"):
        task.encode({**ROW, "gap": margin})
    with pytest.raises(DataError, match=r"task.margin_field='gap' is not there"):
        task.encode(ROW)


def test_a_judgement_is_true_or_false(tokenizer: Any) -> None:
    task = KTOTask(KTO(), tokenizer)
    row = {"prompt": "What?", "completion": "This."}
    assert [task.encode({**row, "label": label})[0]["desirable"][0] for label in (True, 0)] == [True, False]
    with pytest.raises(DataError, match="label is 'maybe'"):
        task.encode({**row, "label": "maybe"})


def test_rows_of_the_other_kind_of_preferences_name_its_task(tokenizer: Any) -> None:
    judged = {"prompt": "What?", "completion": "This.", "label": True}
    with pytest.raises(DataError, match=r"chosen is not there; the columns are completion, label, prompt") as caught:
        DPOTask(DPO(), tokenizer).encode(judged)
    assert caught.value.do == "pass --task.name kto, which learns from such rows"
    with pytest.raises(DataError, match=r"label is not there; the columns are chosen, prompt, rejected") as caught:
        KTOTask(KTO(), tokenizer).encode(ROW)
    assert caught.value.do == "pass --task.name dpo (or orpo, simpo, reward_model), which learn from such rows"


def test_judgements_of_one_kind_are_said(tokenizer: Any) -> None:
    task = KTOTask(KTO(), tokenizer)
    rows = [{"prompt": "What?", "completion": "This.", "label": label} for label in (1, True, 0, 0, 0)]
    assert task.remarks(rows) == []
    assert task.remarks(rows[:2])[0].startswith(
        "warning: all 2 answers are good, and none is bad, by task.label_field="
    )
    assert task.remarks(rows[2:])[0].startswith(
        "warning: all 3 answers are bad, and none is good, by task.label_field="
    )
    assert task.remarks([{"prompt": "What?", "completion": "This."}]) == []


def test_truncating_a_pair_takes_from_its_longest_answer(tokenizer: Any) -> None:
    task, counts = DPOTask(DPO(), tokenizer), Counts()
    [cut] = task.fitted(EXAMPLE, 12, "truncate", counts)
    assert cut["lengths"].tolist() == [5, 7] and cut["input_ids"].tolist() == [*range(1, 6), *range(6, 13)]
    [cut] = task.fitted(EXAMPLE, 8, "truncate", counts)
    assert cut["lengths"].tolist() == [4, 4] and cut["labels"].tolist() == [-100, -100, 3, 4, -100, -100, 8, 9]
    assert counts.truncated == 2 and task.targets(cut) == 1
    # Nothing of the answers is left.
    assert task.targets(task.fitted(EXAMPLE, 4, "truncate", counts)[0]) == 0
    assert task.fitted(EXAMPLE, 15, "truncate", counts) == [EXAMPLE]
    assert task.fitted(EXAMPLE, 14, "drop", counts) == [] and counts.dropped == 1
    with pytest.raises(DataError, match="an example of 2 answers"):
        task.fitted(EXAMPLE, 14, "error", counts)


def test_equal_answers_after_a_cut_are_no_pair(tokenizer: Any) -> None:
    same = {**EXAMPLE, "input_ids": np.array([1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9], np.int32)}
    task = DPOTask(DPO(), tokenizer)
    assert task.targets(same) == 1
    assert task.targets(task.fitted(same, 10, "truncate", Counts())[0]) == 0


def examples_of(task: Any, count: int) -> list[Example]:
    rows = tiny.judged(count) if isinstance(task, KTOTask) else tiny.preferences(count)
    return [example for row in rows for example in task.encode(row)]


def test_a_batch_says_which_token_belongs_to_which_answer(tokenizer: Any) -> None:
    task = DPOTask(DPO(), tokenizer)
    examples = examples_of(task, 3)
    batch = task.collate([examples[:2], [task.ignored(examples[2])]])
    assert batch[COUNTED].tolist() == [True, True, False] and task.count(batch) == 2
    documents_ = [parts for example in examples for parts in documents.apart(example)]
    assert batch[ANSWER_TOKENS].tolist() == [int((labels != IGNORED).sum()) for _, labels in documents_[:4]] + [0, 0]
    predicted = batch["targets"].flatten()[batch[TARGET_ROWS]]
    for number, (_, labels) in enumerate(documents_[:4]):
        assert predicted[batch[TARGET_DOCUMENTS] == number].tolist() == labels[labels != IGNORED].tolist()


@pytest.mark.parametrize("kind", [DPOTask, KTOTask])
def test_parts_of_a_batch_have_every_token_and_count_every_example_once(tokenizer: Any, kind: Any) -> None:
    task = kind(DPO() if kind is DPOTask else KTO(), tokenizer)
    examples = examples_of(task, 5)
    for example in examples:
        example[REFERENCE] = np.array([1.0, 2.0])
    batch = task.collate([examples[:3], examples[3:]])
    parts = [task.split(batch, index, 2) for index in range(2)]
    for before in ("",) if kind is DPOTask else ("", OTHERS):
        owners, places = (
            torch.cat([part[before + name] for part in parts]) for name in (TARGET_DOCUMENTS, TARGET_ROWS)
        )
        assert len(places) == len(owners)
        assert owners.bincount().tolist() == batch[f"{before}{ANSWER_TOKENS}"].tolist()
        counted = torch.stack([part[before + COUNTED] for part in parts]).int()
        assert torch.equal(counted.sum(0).bool(), batch[before + COUNTED]) and counted.sum(0).max() == 1
        assert all(torch.equal(part[before + REFERENCE], batch[before + REFERENCE]) for part in parts)
    assert sum(task.count(part) for part in parts) == task.count(batch) == 5


def test_answers_go_to_the_prompts_of_their_sequence(tokenizer: Any) -> None:
    """The first prompt gets the last answer; the length of a sequence stays; who is alone has no other."""
    task = KTOTask(KTO(), tokenizer)
    rows = [{"prompt": f"Q{n}?", "completion": f"Answer {n} " * (n + 1), "label": n > 0} for n in range(4)]
    examples = [task.encode(row)[0] for row in rows]
    batch = task.collate([examples[:3], examples[3:]])
    lengths = batch[OTHERS + DOCUMENT_LENGTHS][0].tolist()
    first = torch.split(batch[OTHERS + "input_ids"][0, : sum(lengths)], lengths)
    said = [tokenizer.decode(ids) for ids in first[:3]]
    for place, text in enumerate(said):
        assert (
            f"Q{place}?" in text and f"Answer {(place - 1) % 3}" in text and text.count("Answer") == (place - 1) % 3 + 1
        )
    assert batch[OTHERS + COUNTED].tolist() == [True, True, True, False]
    assert sum(lengths[:3]) == sum(len(example["input_ids"]) for example in examples[:3])
    assert batch["desirable"].tolist() == [False, True, True, True]


@pytest.mark.parametrize(
    "kind", [(ORPOTask, ORPO()), (SimPOTask, SimPO()), (DPOTask, DPO()), (RewardModelTask, RewardModel())]
)
def test_fillers_add_nothing_to_an_evaluation(tokenizer: Any, kind: Any) -> None:
    from transformers import AutoModelForSequenceClassification

    task = kind[0](kind[1], tokenizer)
    model = tiny.llama(tokenizer).eval()
    if kind[0] is RewardModelTask:
        torch.manual_seed(0)
        model.config.num_labels = 1
        model = AutoModelForSequenceClassification.from_config(model.config).eval()
    task.prepare(model)
    examples = examples_of(task, 3)
    for example in examples:
        example[REFERENCE] = np.array([-30.0, -50.0])
    with torch.no_grad():
        alone = task.evaluate(model, task.collate([examples[:2]]))
        filled = task.evaluate(model, task.collate([examples[:2], [task.ignored(examples[2])]]))
    assert alone["targets"] == 2 and alone["loss"] > 0
    assert filled == pytest.approx(alone, rel=1e-6)


def test_a_reward_is_that_of_transformers_own_classifier(tokenizer: Any) -> None:
    """Packed here; each text alone, padded and through the class itself there. A text that ends with padding tokens, too."""
    from transformers import AutoModelForSequenceClassification

    task = RewardModelTask(RewardModel(), tokenizer)
    config = tiny.llama(tokenizer).config
    config.num_labels = 1
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    examples = examples_of(task, 2)
    ended = documents.joined(
        [
            {"input_ids": np.append(ids, tokenizer.pad_token_id), "labels": np.append(labels, IGNORED)}
            for ids, labels in documents.apart(examples[1])
        ]
    )
    texts = [ids for example in (examples[0], ended) for ids, _ in documents.apart(example)]
    longest = max(map(len, texts))
    padded = np.stack([np.pad(ids, (0, longest - len(ids)), constant_values=tokenizer.pad_token_id) for ids in texts])
    mask = torch.tensor([[place < len(ids) for place in range(longest)] for ids in texts])
    with torch.no_grad():
        wanted = model(input_ids=torch.tensor(padded), attention_mask=mask.long()).logits[:, 0]
        found = task.rewards(model, task.collate([[examples[0], ended]]))
    torch.testing.assert_close(found.float(), wanted, rtol=1e-5, atol=1e-6)


def test_answers_that_are_alone_in_their_sequence_are_counted(tokenizer: Any) -> None:
    task = KTOTask(KTO(), tokenizer)
    assert task.remarks_on_packs([[0, 1], [2, 3]]) == []
    assert "1 of 3 answers are alone in their sequence" in task.remarks_on_packs([[0, 2], [1]])[0]
    with pytest.raises(DataError, match="each of the 2 answers has a sequence of its own"):
        task.remarks_on_packs([[0], [1]])


def made(**changes: Any) -> Recipe:
    sections: dict[str, Any] = {
        "model": Model(path="somewhere"),
        "data": Data(train="rows.jsonl"),
        "batch": Batch(global_size=8, micro_size=1, sequence_length=128),
        "steps": 4,
    }
    return Recipe(**{**sections, **changes})


@pytest.mark.parametrize("task", [DPO(), KTO()])
def test_a_stream_has_no_reference_of_first_weights(task: Any) -> None:
    stream = Data(train="rows.jsonl", streaming=True, evaluation_examples=0)
    with pytest.raises(RecipeError, match=r"data.streaming=True with task.name='(dpo|kto)' and tuning.name='full'"):
        made(task=task, data=stream)
    with pytest.raises(RecipeError, match=r"tuning.name='lora'"):
        made(task=task, data=stream, tuning=LoRA(modules_to_save=("embed_tokens",)))
    assert made(task=task, data=stream, tuning=LoRA()).tuning.keeps_base
    made(task=ORPO(), data=stream)


def test_fields_that_say_nothing_together_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"task.label_smoothing=0.1 with task.loss='ipo'"):
        DPO(loss="ipo", label_smoothing=0.1)
    with pytest.raises(RecipeError, match=r"task.loss='robust' with task.label_smoothing=0"):
        DPO(loss="robust")
    with pytest.raises(RecipeError, match=r"data.packing=False with task.name='kto'"):
        made(task=KTO(), data=Data(train="rows.jsonl", packing=False))
    with pytest.raises(RecipeError, match=r"beta"):
        DPO(beta=0)


def test_what_is_logged_of_judged_answers_are_means_of_each_kind(tokenizer: Any) -> None:
    task = KTOTask(KTO(), tokenizer)
    task.surveyed({"total": 6.0, "count": 4.0})
    means = {"desirable": 0.25, "desirable_rewards": 0.5, "undesirable_rewards": -0.75, "right": 0.5}
    assert task.summary(means) == {
        "rewards/chosen": 2.0,
        "rewards/rejected": -1.0,
        "rewards/margins": 3.0,
        "rewards/accuracies": 0.5,
        "kl": 1.5,
    }
    nothing_bad = {"desirable": 1.0, "desirable_rewards": 0.5, "undesirable_rewards": 0.0, "right": 1.0}
    assert task.summary(nothing_bad)["rewards/rejected"] == 0.0


def test_routers_are_balanced_where_the_config_asks_for_it(tokenizer: Any) -> None:
    """What is added is transformers' own loss of the same row, times the pairs in it; nothing in an evaluation."""
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    experts = {"num_local_experts": 4, "output_router_logits": True, "router_aux_loss_coef": 0.5}
    config = MixtralConfig(vocab_size=len(tokenizer), num_key_value_heads=2, **sizes, **experts)
    torch.manual_seed(0)
    model = MixtralForCausalLM(config)
    task = DPOTask(DPO(), tokenizer)
    task.prepare(model)
    assert task.adds_loss
    examples = examples_of(task, 2)
    for example in examples:
        example[REFERENCE] = np.array([-30.0, -50.0])
    batch = task.collate([examples])
    loss = task.loss(model, batch, 1.0)
    plain: Any = MixtralForCausalLM(config)
    plain.load_state_dict(model.state_dict())
    own = plain(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).aux_loss
    assert float(loss.added) == pytest.approx(2 * 0.5 * float(own), rel=1e-5)
    assert loss.trained.item() == pytest.approx(loss.total.item() + float(loss.added), rel=1e-6)
    with torch.no_grad():
        assert task.evaluate(model, batch)["loss"] == pytest.approx(loss.total.item(), rel=1e-5)
