"""Conversations, pairs and text become tokens and labels; the preview shows them; the tokenizer's hash follows them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from toolkit.data.forms.chat import encode_conversation, encode_text
from toolkit.data.forms.conversations import in_column
from toolkit.data.forms.row_kind import row_kind
from toolkit.data.preview import preview
from toolkit.data.store import fingerprint, processor_hash
from toolkit.errors import DataError
from toolkit.recipe import CausalLM, SequenceClassification
from toolkit.tasks.labels.sequence_classification import SequenceClassificationTask
from toolkit.tasks.language.causal_lm import CausalLMTask

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m['content'] + '<|im_end|>' }}"
    "{% endif %}{{ '\n' }}{% endfor %}"
)
# No generation prompt, BOS written by the template, strict order of roles (as Llama 2 and Mistral).
BRACKETS = (
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
# The last answer gets a thinking block, earlier ones do not (as Qwen 3).
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NO_END = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Name a colour."},
    {"role": "assistant", "content": "Blue, na\u00efvely \U0001f40b."},
    {"role": "user", "content": "Another?"},
    {"role": "assistant", "content": "Red."},
]


def make_tokenizer(template: str | None = CHATML, *, bos: bool = False, **special: str) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|im_start|>", "<|im_end|>", "<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(
        ["Name a colour, another colour, the name of a brief colour. assistant user system"] * 4, trainer
    )
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
        )
    names = {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "bos_token": "<s>"} | special
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, **{key: value for key, value in names.items() if value}
    )
    tokenizer.chat_template = template
    return tokenizer


def trained_runs(tokenizer, example) -> list[str]:
    """The stretches of tokens with loss, decoded."""
    runs, current = [], []
    for token, label in zip(example["input_ids"].tolist(), example["labels"].tolist(), strict=True):
        assert label in (-100, token)
        if label != -100:
            current.append(token)
        elif current:
            runs.append(tokenizer.decode(current))
            current = []
    return runs + ([tokenizer.decode(current)] if current else [])


def encode(tokenizer, messages, train_on="assistant"):
    return encode_conversation(tokenizer, in_column(messages, "messages"), train_on=train_on)


def encode_pair(tokenizer, prompt, completion):
    """As a row with these two columns is encoded."""
    task = CausalLMTask(CausalLM(), tokenizer)
    [example] = task.encode({"prompt": prompt, "completion": completion})
    return example


@pytest.mark.parametrize("template", [CHATML, MARKED], ids=["spans", "generation blocks"])
def test_answers_are_trained_with_their_end_and_without_the_white_space_after_it(template):
    tokenizer = make_tokenizer(template)
    example = encode(tokenizer, TALK)
    assert trained_runs(tokenizer, example) == ["Blue, na\u00efvely \U0001f40b.<|im_end|>", "Red.<|im_end|>"]
    assert tokenizer.decode(example["input_ids"].tolist()) == tokenizer.apply_chat_template(TALK, tokenize=False)
    assert example["input_ids"].dtype == example["labels"].dtype == np.int32


def test_pad_equal_to_end_token_keeps_the_end_trained():
    tokenizer = make_tokenizer()
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    labels = encode(tokenizer, TALK)["labels"]
    assert (labels == tokenizer.eos_token_id).sum() == 2


def test_template_that_writes_bos_gets_no_second_one():
    tokenizer = make_tokenizer(BRACKETS, bos=True, eos_token="<|im_end|>")
    example = encode(tokenizer, TALK[1:])
    assert (example["input_ids"] == tokenizer.bos_token_id).sum() == 1
    assert trained_runs(tokenizer, example) == [" Blue, na\u00efvely \U0001f40b.<|im_end|>", " Red.<|im_end|>"]


def test_template_that_rewrites_earlier_answers_still_trains_them():
    tokenizer = make_tokenizer(THINKING)
    assert trained_runs(tokenizer, encode(tokenizer, TALK)) == [
        "Blue, na\u00efvely \U0001f40b.<|im_end|>",
        "<think>\n\n</think>\n\nRed.<|im_end|>",
    ]


def test_template_without_an_end_token_trains_the_line_end():
    tokenizer = make_tokenizer(NO_END)
    assert trained_runs(tokenizer, encode(tokenizer, TALK[1:3]))[0].endswith("\U0001f40b.\n")


def test_an_answer_that_opens_the_conversation_is_trained_without_its_header():
    tokenizer = make_tokenizer()
    assert trained_runs(tokenizer, encode(tokenizer, TALK[2:3])) == ["Blue, na\u00efvely \U0001f40b.<|im_end|>"]


def test_train_on_all_leaves_out_only_the_first_token():
    example = encode(make_tokenizer(), TALK, train_on="all")
    assert example["labels"][0] == -100
    assert (example["labels"][1:] == example["input_ids"][1:]).all()


def test_none_fields_added_by_the_loader_are_ignored():
    tokenizer = make_tokenizer()
    padded = [{**message, "name": None, "tool_calls": None} for message in TALK]
    assert (encode(tokenizer, padded)["input_ids"] == encode(tokenizer, TALK)["input_ids"]).all()


def test_prompt_and_completion_through_the_template():
    tokenizer = make_tokenizer()
    pair = encode_pair(tokenizer, "Name a colour.", "Red.")
    same = encode(tokenizer, [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Red."}])
    assert (pair["input_ids"] == same["input_ids"]).all() and (pair["labels"] == same["labels"]).all()


def test_prompt_and_completion_without_a_template():
    tokenizer = make_tokenizer(None, bos=True)
    example = encode_pair(tokenizer, "Name a colour: ", "red")
    assert tokenizer.decode(example["input_ids"].tolist()) == "<s>Name a colour: red<|im_end|>"
    assert "".join(trained_runs(tokenizer, example)).strip() == "red<|im_end|>"


def test_text_has_bos_where_the_tokenizer_adds_it_and_one_end():
    tokenizer = make_tokenizer(None, bos=True)
    example = encode_text(tokenizer, "Another colour", where="text")
    assert tokenizer.decode(example["input_ids"].tolist()) == "<s>Another colour<|im_end|>"
    assert trained_runs(tokenizer, example) == ["Another colour<|im_end|>"]
    assert len(encode_text(tokenizer, " \n", where="text")["input_ids"]) == 0


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ("hello", "messages is text: 'hello'"),
        ([], "messages is an empty list"),
        ({"role": ["user"]}, "messages is an object with the keys ['role']"),
        (["hi"], "messages[0] is text: 'hi'"),
        ([{"from": "human", "value": "hi"}], "messages has no message of the role 'assistant'"),
        (
            [{"speaker": "A", "text": "hi"}],
            "messages[0] has no 'role' and no 'content'; its keys are ['speaker', 'text']",
        ),
        ([{"role": "human", "content": "hi"}], "messages[0].role='human'"),
        ([{"role": "user", "content": 7}], "messages[0].content is int '7'"),
        ([{"role": "user", "content": None}], "messages[0].content is null"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}], "an empty answer would be trained"),
        ([{"role": "user", "content": "a"}], "messages has no message of the role 'assistant'"),
    ],
)
def test_messages_of_the_wrong_shape_are_named(messages, said):
    with pytest.raises(DataError) as caught:
        encode(make_tokenizer(), messages)
    assert said in str(caught.value)


def test_tokenizer_without_a_template_is_named():
    with pytest.raises(DataError, match="the tokenizer has no chat template"):
        encode(make_tokenizer(None), TALK)


def test_template_that_refuses_the_roles_is_quoted():
    with pytest.raises(DataError, match=r"refuses messages with the roles system, user.*roles must alternate"):
        encode(make_tokenizer(BRACKETS), TALK)


def test_template_that_loses_an_earlier_answer_is_refused():
    forgetful = CHATML.replace("m['content']", "(m['content'] if loop.last or m['role'] != 'assistant' else '(gone)')")
    with pytest.raises(DataError, match=r"leaves out the text of messages\[2\]"):
        encode(make_tokenizer(forgetful), TALK)


def test_template_that_changes_what_came_before_still_trains_the_answers():
    tokenizer = make_tokenizer("{{ messages | length }}" + CHATML)
    assert trained_runs(tokenizer, encode(tokenizer, TALK)) == [
        "Blue, na\u00efvely \U0001f40b.<|im_end|>",
        "Red.<|im_end|>",
    ]


def test_pairs_and_text_that_are_not_text_are_named():
    tokenizer = make_tokenizer(None)
    for made in (tokenizer, make_tokenizer()):
        with pytest.raises(DataError, match=r"^prompt is int '3'"):
            encode_pair(made, 3, "x")
        with pytest.raises(DataError, match=r"^completion is int '0'"):
            encode_pair(made, "x", 0)
        with pytest.raises(DataError, match=r"^completion is empty"):
            encode_pair(made, "x", " ")
    with pytest.raises(DataError, match="text is null"):
        encode_text(tokenizer, None, where="text")
    with pytest.raises(DataError, match="no end token to put after text"):
        encode_text(make_tokenizer(None, eos_token=""), "x", where="text")


FIELDS = {
    "messages_field": "messages",
    "prompt_field": "prompt",
    "completion_field": "completion",
    "text_field": "text",
}


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"messages": TALK, "id": 1}, "messages"),
        ({"prompt": "a", "completion": "b"}, "prompt_completion"),
        ({"text": "a", "messages": None}, "text"),
    ],
)
def test_row_kind(row, kind):
    assert row_kind(row, **FIELDS) == kind


def test_row_kind_names_the_columns_there_are():
    with pytest.raises(DataError) as caught:
        row_kind({"mesages": TALK, "id": 3}, **FIELDS)
    assert caught.value.what.startswith("the columns id, mesages hold no training text")
    assert caught.value.do == "mesages holds a list of messages: set task.messages_field='mesages'"
    with pytest.raises(DataError) as caught:
        row_kind({"messages": None, "id": 3}, **FIELDS)
    assert caught.value.what == "messages is null, and no other column holds training text"
    both = {"messages": TALK, "text": "a"}
    with pytest.raises(DataError, match="several forms of training text: messages, text") as caught:
        row_kind(both, **FIELDS)
    assert "--task.messages_field none_of_them leaves messages out, " in caught.value.do
    assert caught.value.do.endswith("--task.text_field none_of_them leaves the plain text of text out")
    assert row_kind(both, **{**FIELDS, "text_field": "none_of_them"}) == "messages"
    pair = {"messages": TALK, "prompt": "a", "completion": "b"}
    with pytest.raises(DataError) as caught:
        row_kind(pair, **FIELDS)
    assert "--task.messages_field none_of_them leaves messages out, " in caught.value.do
    assert caught.value.do.endswith("--task.completion_field none_of_them leaves prompt with completion out")
    assert row_kind(pair, **{**FIELDS, "messages_field": "none_of_them"}) == "prompt_completion"
    assert row_kind(pair, **{**FIELDS, "completion_field": "none_of_them"}) == "messages"


@pytest.mark.parametrize(
    ("named", "kind"),
    [
        ({"text_field": "completion"}, "text"),
        ({"text_field": "body"}, "text"),
        ({"messages_field": "talk"}, "messages"),
        ({"completion_field": "reply"}, "prompt_completion"),
    ],
)
def test_a_column_that_is_named_wins_over_those_that_are_merely_there(named, kind):
    row = {"prompt": "a", "completion": "b", "messages": TALK, "text": "t", "body": "c", "talk": TALK, "reply": "d"}
    assert row_kind(row, **{**FIELDS, **named}) == kind
    with pytest.raises(DataError, match="several forms of training text: talk, body"):
        row_kind(row, **{**FIELDS, "messages_field": "talk", "text_field": "body"})


def test_preview_marks_trained_tokens_and_the_ends_of_packed_examples():
    tokenizer = make_tokenizer()
    short = [{"role": "user", "content": "Name [b]a[/b]"}, {"role": "assistant", "content": "Red."}]
    stream = io.StringIO()
    preview(CausalLMTask(CausalLM(), tokenizer), [[encode(tokenizer, short), encode(tokenizer, TALK)]], stream=stream)
    said = stream.getvalue()
    assert "<|im_start|>user\nName [b]a[/b]<|im_end|>\n<|im_start|>assistant\n[[Red.<|im_end|>]]\n" in said
    assert "in 2 examples" in said and said.index("--- example 1:") < said.index("--- example 2:")
    assert "[[Blue, na\u00efvely \U0001f40b.<|im_end|>]]" in said


def test_preview_on_a_terminal_uses_colour(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    tokenizer, stream = make_tokenizer(), io.StringIO()
    preview(CausalLMTask(CausalLM(), tokenizer), [[encode(tokenizer, TALK)]], stream=stream)
    assert "\x1b[1;32mRed.<|im_end|>\x1b[0m" in stream.getvalue()
    assert "[[" not in stream.getvalue()


def test_preview_of_a_classification_example():
    stream = io.StringIO()
    ids = np.array(make_tokenizer()("Name a colour")["input_ids"], dtype=np.int32)
    tokenizer = make_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    task = SequenceClassificationTask(SequenceClassification(), tokenizer)
    preview(task, [[{"input_ids": ids, "labels": np.array([3], dtype=np.int32)}]], stream=stream)
    assert f"{len(ids)} tokens, label 3" in stream.getvalue() and "Name a colour" in stream.getvalue()
    assert stream.getvalue().startswith(
        "each text as the model reads it, with its label: of classes their number or names\n"
    )
    assert "[[" not in stream.getvalue()


def test_tokenizer_hash_follows_what_changes_tokens_and_nothing_else():
    tokenizer = make_tokenizer()
    before = processor_hash(tokenizer)
    tokenizer("Name a colour", truncation=True, max_length=2)
    assert processor_hash(tokenizer) == before == processor_hash(make_tokenizer())
    assert processor_hash(make_tokenizer(THINKING)) != before
    assert processor_hash(make_tokenizer(bos=True)) != before
    assert processor_hash(make_tokenizer(eos_token="<s>")) != before


def test_fingerprint_depends_on_rows_tokenizer_and_options():
    tokenizer = make_tokenizer()
    names = {
        fingerprint(["a"], tokenizer, capacity=8),
        fingerprint(["b"], tokenizer, capacity=8),
        fingerprint(["a"], tokenizer, capacity=9),
        fingerprint(["a"], make_tokenizer(THINKING), capacity=8),
    }
    assert len(names) == 4
    assert fingerprint(["a"], tokenizer, capacity=8) in names
