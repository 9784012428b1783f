# ruff: noqa: F811 (fixtures are arguments)
"""Samples of the field's formats, clean and broken: what is learned of each, by text, through SmolLM2's own chat template
and through one with tools and reasoning; and the message of what cannot be used."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.test_data_tokens import trained_runs
from tests.unit.test_rows import alone, cache, prepared, previewed, recipe  # noqa: F401
from toolkit.data.forms.preference_tokens import encode_preference, encode_unpaired
from toolkit.data.forms.preferences import preference_of, unpaired_of
from toolkit.errors import DataError
from toolkit.models.loading import load_tokenizer
from toolkit.recipe import CausalLM, Model
from toolkit.tasks.language.causal_lm import CausalLMTask

# After Qwen 3: tools in the system message, calls and results in tags, reasoning before the last answer alone.
QWEN = """
{%- if tools %}
    {{- '<|im_start|>system\\n' }}{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- '<tools>' }}{%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}{{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{%- endif %}
{%- set ns = namespace(last=0) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for m in messages %}
    {%- if m.role == 'user' or (m.role == 'system' and not loop.first) %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
    {%- elif m.role == 'assistant' %}
        {%- set content = m.content %}{%- set thought = '' %}
        {%- if m.reasoning_content is string %}{%- set thought = m.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.last and thought %}{{- '<think>\\n' + thought + '\\n</think>\\n\\n' }}{%- endif %}
        {{- content }}
        {%- for call in m.tool_calls or [] %}
            {%- if content or not loop.first %}{{- '\\n' }}{%- endif %}
            {{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}{{- call.function.arguments | tojson }}{{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif m.role == 'tool' %}{{- '<|im_start|>user\\n<tool_response>\\n' + m.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
DEFAULT_SYSTEM = ("system", "You are a helpful AI assistant named SmolLM, trained by Hugging Face")
"""What SmolLM2's template writes first where a conversation has no system message."""

END = "<|im_end|>"
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}}}]  # fmt: skip
SHOWN = "<tool_call>\n" + '{"name": "add", "arguments": {"a": 1}}' + "\n</tool_call>"
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Any]:
    """SmolLM2's tokenizer with its own chat template, with that of QWEN, and without one."""
    made = {name: load_tokenizer(Model(path="smollm2-135m-instruct")) for name in ("smollm2", "qwen", "none")}
    made["qwen"].chat_template, made["none"].chat_template = QWEN, None
    return made


def task_of(tokenizer: Any, **fields: Any) -> CausalLMTask:
    return CausalLMTask(CausalLM(**fields), tokenizer)


def made(tokenizer: Any, row: dict[str, Any], **fields: Any) -> tuple[str, list[str]]:
    """The whole text that `row` becomes, and what of it is learned."""
    [example] = task_of(tokenizer, **fields).encode(row)
    return tokenizer.decode(example["input_ids"].tolist()), trained_runs(tokenizer, example)


def chatml(*turns: tuple[str, str]) -> str:
    return "".join(f"<|im_start|>{role}\n{text}{END}\n" for role, text in turns)


def smol(*turns: tuple[str, str]) -> str:
    """As SmolLM2 writes a conversation."""
    return chatml(*(turns if turns[0][0] == "system" else (DEFAULT_SYSTEM, *turns)))


HUMAN, GPT = {"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "2"}
ONE_TURN = [("user", "1+1?"), ("assistant", "2")]
TWO_TURNS = [("user", "Hi"), ("assistant", "Hello"), ("user", "1+1?"), ("assistant", "2")]
TALK = [user("Hi"), assistant("Hello"), user("1+1?"), assistant("2")]

CLEAN = {
    "openai messages": ({"messages": TALK}, TWO_TURNS, "chat messages (messages)"),
    "openai messages with a null name": ({"messages": [{**user("1+1?"), "name": None}, assistant("2")]}, ONE_TURN, "chat messages (messages)"),
    "openai messages as json text": ({"messages": json.dumps(TALK)}, TWO_TURNS, "chat messages (messages)"),
    "openai messages as an object of lists": ({"messages": {"role": ["user", "assistant"], "content": ["1+1?", "2"]}}, ONE_TURN, "chat messages (messages)"),
    "openai content parts": ({"messages": [user([{"type": "text", "text": "1+1?"}]), assistant([{"type": "text", "text": "2"}])]}, ONE_TURN, "chat messages (messages)"),
    "openai content parts of the newer types": ({"messages": [user([{"type": "input_text", "text": "1+1?"}]), assistant([{"type": "output_text", "text": "2"}])]}, ONE_TURN, "chat messages (messages)"),
    "openai developer": ({"messages": [{"role": "developer", "content": "Be brief."}, user("1+1?"), assistant("2")]}, [("system", "Be brief."), *ONE_TURN], "chat messages (messages)"),
    "sharegpt": ({"conversations": [HUMAN, GPT], "id": "x"}, ONE_TURN, "ShareGPT (conversations)"),
    "sharegpt with a system column": ({"system": "S", "conversations": [HUMAN, GPT]}, [("system", "S"), *ONE_TURN], "ShareGPT (system, conversations)"),
    "sharegpt with openai's names": ({"conversations": [{"from": "user", "value": "1+1?"}, {"from": "assistant", "value": "2"}]}, ONE_TURN, "ShareGPT (conversations)"),
    "alpaca": ({"instruction": "Add.", "input": "1 1", "output": "2"}, [("user", "Add.\n\n1 1"), ("assistant", "2")], "Alpaca (instruction, input, output)"),
    "alpaca with system and history": ({"instruction": "1+1?", "input": "", "output": "2", "system": "S", "history": [["Hi", "Hello"]]}, [("system", "S"), *TWO_TURNS], "Alpaca (instruction, output, system, history)"),
    "trl prompt and completion": ({"prompt": "1+1?", "completion": "2"}, ONE_TURN, "prompt and completion (prompt, completion)"),
    "question and answer": ({"question": "1+1?", "answer": "2"}, ONE_TURN, "questions with answers (question, answer)"),
    "system, question and response": ({"system_prompt": "S", "question": "1+1?", "response": "2"}, [("system", "S"), *ONE_TURN], "questions with responses (system_prompt, question, response)"),
    "instruction, context and response": ({"instruction": "Add.", "context": "1 1", "response": "2"}, [("user", "Add.\n\n1 1"), ("assistant", "2")], "instructions with responses (instruction, context, response)"),
}  # fmt: skip


@pytest.mark.parametrize("name", CLEAN)
def test_answers_are_learned_and_the_format_is_named(tokenizers, name):
    row, turns, form = CLEAN[name]
    assert made(tokenizers["smollm2"], row) == (
        smol(*turns),
        [text + END for role, text in turns if role == "assistant"],
    )
    assert str(task_of(tokenizers["smollm2"]).recognised(row)) == form


def test_prompt_and_completion_as_messages_learn_the_completion_alone(tokenizers):
    row = {"prompt": TALK[:3], "completion": TALK[3:]}
    assert made(tokenizers["smollm2"], row) == (smol(*TWO_TURNS), ["2" + END])


def test_plain_text_is_learned_whole(tokenizers):
    assert made(tokenizers["smollm2"], {"text": "One and one."}) == ("One and one." + END, [" and one." + END])
    assert str(task_of(tokenizers["smollm2"]).recognised({"text": "x"})) == "plain text (text)"


def test_texts_for_a_tokenizer_without_a_chat_template_are_joined(tokenizers):
    pair = {"prompt": "1+1=", "completion": "2"}
    assert made(tokenizers["none"], pair) == ("1+1=2" + END, ["2" + END])
    text, learned = made(tokenizers["none"], {"instruction": "Add.", "input": "1 1", "output": "2"})
    assert text.endswith("### Instruction:\nAdd.\n\n### Input:\n1 1\n\n### Response:2" + END) and learned == ["2" + END]


CALLS = {
    "tool_calls with a null content": [user("1+?"), assistant(None, tool_calls=[CALL]), {"role": "tool", "tool_call_id": "c1", "content": "2"}, assistant("2.")],
    "function_call, the older form": [user("1+?"), assistant(None, function_call=CALL["function"]), {"role": "function", "name": "add", "content": "2"}, assistant("2.")],
    "sharegpt": [{"from": "human", "value": "1+?"}, {"from": "function_call", "value": json.dumps(CALL["function"])}, {"from": "observation", "value": "2"}, {"from": "gpt", "value": "2."}],
    "tool_call and tool_response": [{"from": "human", "value": "1+?"}, {"from": "tool_call", "value": '{"name": "add", "arguments": {"a": 1}}'}, {"from": "tool_response", "value": "2"}, {"from": "gpt", "value": "2."}],
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("tools", [TOOLS, json.dumps(TOOLS), [TOOLS[0]["function"]], None])
def test_tool_calls_are_learned_as_the_template_writes_them(tokenizers, name, tools):
    column = "messages" if "role" in CALLS[name][0] else "conversations"
    row = {column: CALLS[name], "tools": tools}
    turns = [
        ("user", "1+?"),
        ("assistant", SHOWN),
        ("user", "<tool_response>\n2\n</tool_response>"),
        ("assistant", "2."),
    ]
    shown = f"<|im_start|>system\n<tools>\n{json.dumps(TOOLS[0])}\n</tools>{END}\n" if tools else ""
    assert made(tokenizers["qwen"], row) == (shown + chatml(*turns), [SHOWN + END, "2." + END])
    columns = task_of(tokenizers["qwen"]).recognised(row).columns
    assert columns == (column, "tools") if tools else (column,)


THOUGHTS = {
    "reasoning_content": assistant("2", reasoning_content="One more."),
    "reasoning": assistant("2", reasoning="One more."),
    "thinking": assistant("2", thinking="One more."),
    "thinking block": assistant([{"type": "thinking", "thinking": "One more.", "signature": "x"}, {"type": "text", "text": "2"}]),
    "reasoning block": assistant([{"type": "reasoning", "text": "One more."}, {"type": "text", "text": "2"}]),
    "think tags": assistant("<think>\nOne more.\n</think>\n\n2"),
}  # fmt: skip


@pytest.mark.parametrize("name", THOUGHTS)
def test_reasoning_is_learned_where_the_template_has_it(tokenizers, name):
    """Before the last answer; this template leaves it out of earlier ones."""
    answer = THOUGHTS[name]
    said = "<think>\nOne more.\n</think>\n\n2"
    assert made(tokenizers["qwen"], {"messages": [user("1+1?"), answer]}) == (
        chatml(("user", "1+1?"), ("assistant", said)),
        [said + END],
    )
    text, learned = made(tokenizers["qwen"], {"messages": [user("1+1?"), answer, user("Sure?"), assistant("Yes.")]})
    assert text == chatml(("user", "1+1?"), ("assistant", "2"), ("user", "Sure?"), ("assistant", "Yes."))
    assert learned == ["2" + END, "Yes." + END]


def test_reasoning_that_the_template_does_not_read_is_said(tokenizers):
    row = {"messages": [user("1+1?"), THOUGHTS["thinking"]]}
    assert made(tokenizers["smollm2"], row)[1] == ["2" + END]
    assert task_of(tokenizers["smollm2"]).remarks([row]) == [
        "note: the tokenizer's chat template does not read the messages' thinking"
    ]


@pytest.mark.parametrize("flag", [{"weight": 0}, {"train": False}, {"training": False}, {"weight": 0.0, "train": 0}])
def test_a_flag_leaves_an_answer_out_of_the_loss(tokenizers, flag):
    messages = [TALK[0], {**TALK[1], **flag}, *TALK[2:]]
    assert made(tokenizers["smollm2"], {"messages": messages}) == (smol(*TWO_TURNS), ["2" + END])


@pytest.mark.parametrize("after", [[user("And 2+2?")], [user("Run it."), {"role": "tool", "content": "4"}]])
def test_what_no_answer_follows_is_left_out_and_counted(tokenizers, recipe, tmp_path, capfd, alone, after):
    row = {"messages": [*TALK, *after]}
    assert made(tokenizers["smollm2"], row) == (smol(*TWO_TURNS), ["Hello" + END, "2" + END])
    assert made(tokenizers["smollm2"], row, train_on="all")[0].startswith(smol(*TWO_TURNS)[:-1] + "\n<|im_start|>user")
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in [{"messages": TALK}, row, row]))
    said = "rows end with messages after the last answer: nothing replies to them, so they are left out"
    for streaming, first in ((False, ""), (True, "the first ")):
        options = {"streaming": True, "packing": False} if streaming else {}
        assert prepared(recipe(path, length=256, **options))[1] == [f"note: 2 of {first}3 {said}"]
    code, out, _ = previewed(recipe(path, length=256), capfd)
    assert code == 0 and f"note: 2 of the first 3 {said}\n" in out


def test_the_preview_names_every_format_with_its_columns_and_rows(recipe, tmp_path, capfd, alone):
    rows = [CLEAN[name][0] for name in ("alpaca", "alpaca with system and history", "trl prompt and completion")]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, _ = previewed(recipe(path, length=256), capfd)
    line = "  the first 3 rows read: 2 as Alpaca (instruction, input, output, system, history), 1 as prompt and completion (prompt, completion)\n"
    assert code == 0 and out.count(line) == 1 and out.index(line) < out.index("sequence 1")


PAIRS = {
    "prompt, chosen, rejected": {"prompt": "1+1?", "chosen": "2", "rejected": "3"},
    "as messages": {"prompt": [user("1+1?")], "chosen": [assistant("2")], "rejected": [assistant("3")]},
    "as json text": {"prompt": json.dumps([user("1+1?")]), "chosen": json.dumps([assistant("2")]), "rejected": json.dumps([assistant("3")])},
    "implicit": {"chosen": [user("1+1?"), assistant("2")], "rejected": [user("1+1?"), assistant("3")]},
    "whole conversations beside the prompt": {"prompt": "1+1?", "chosen": [user("1+1?"), assistant("2")], "rejected": [user("1+1?"), assistant("3")]},
    "question": {"question": "1+1?", "chosen": "2", "rejected": "3"},
    "alpaca": {"instruction": "1+1?", "input": "", "chosen": "2", "rejected": "3"},
    "sharegpt": {"conversations": [HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": "3"}},
    "openai": {"input": {"messages": [user("1+1?")]}, "preferred_output": [assistant("2")], "non_preferred_output": [assistant("3")]},
    "messages": {"messages": [user("1+1?")], "chosen": "2", "rejected": "3"},
    "transcripts": {"chosen": "\n\nHuman: 1+1?\n\nAssistant: 2", "rejected": "\n\nHuman: 1+1?\n\nAssistant: 3"},
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_preferences_are_one_prompt_and_two_answers(tokenizers, name):
    tokenizer = tokenizers["smollm2"]
    found = preference_of(PAIRS[name])
    assert not found.is_tie and found.form.columns == tuple(PAIRS[name] if name != "alpaca" else ("instruction", "chosen", "rejected"))  # fmt: skip
    for example, answer in zip(encode_preference(tokenizer, found), "23", strict=True):
        assert tokenizer.decode(example["input_ids"].tolist()) == smol(("user", "1+1?"), ("assistant", answer))
        assert trained_runs(tokenizer, example) == [answer + END]


def test_preferences_with_earlier_turns_a_system_message_and_tools(tokenizers):
    tokenizer = tokenizers["qwen"]
    row = {
        "system": "S",
        "prompt": TALK[:3],
        "chosen": [assistant(None, tool_calls=[CALL])],
        "rejected": [assistant("3")],
    }
    found = preference_of({**row, "tools": TOOLS}, with_tools=True)
    before = f"<|im_start|>system\nS\n\n<tools>\n{json.dumps(TOOLS[0])}\n</tools>{END}\n" + chatml(*TWO_TURNS[:3])
    for example, answer in zip(encode_preference(tokenizer, found), (SHOWN, "3"), strict=True):
        assert tokenizer.decode(example["input_ids"].tolist()) == before + chatml(("assistant", answer))
        assert trained_runs(tokenizer, example) == [answer + END]
    assert [message["content"] for message in found.prompt.messages] == ["S", "Hi", "Hello", "1+1?"]
    assert found.form.columns == ("system", "prompt", "chosen", "rejected", "tools")


def test_other_columns_beside_whole_conversations_are_not_read():
    """As in Capybara's preferences, whose column has a form of its own."""
    row = {"conversation": [{"input": "1+1?", "output": "2"}], **PAIRS["implicit"]}
    assert preference_of(row).form.columns == ("chosen", "rejected")


def test_preferences_that_part_after_a_shared_answer(tokenizers):
    before = [TALK[0], {**TALK[1], "weight": 1}, TALK[2]]
    row = {"chosen": [*before, TALK[3]], "rejected": [*before, assistant("3"), user("Sure?"), assistant("No.")]}
    chosen, rejected = encode_preference(tokenizers["smollm2"], preference_of(row))
    assert trained_runs(tokenizers["smollm2"], chosen) == ["2" + END]
    assert trained_runs(tokenizers["smollm2"], rejected) == ["3" + END, "No." + END]


@pytest.mark.parametrize(
    ("row", "prompt", "answers"),
    [
        ({"prompt": "1+1=", "chosen": "2", "rejected": "3"}, "1+1=", ["2", "3"]),
        ({"chosen": "The sum is four.", "rejected": "The sum is forty."}, "The sum is", [" four.", " forty."]),
        (PAIRS["transcripts"], "\n\nHuman: 1+1?\n\nAssistant:", [" 2", " 3"]),
    ],
)
def test_preferences_of_texts_without_a_chat_template(tokenizers, row, prompt, answers):
    tokenizer = tokenizers["none"]
    for example, answer in zip(encode_preference(tokenizer, preference_of(row)), answers, strict=True):
        assert tokenizer.decode(example["input_ids"].tolist()) == prompt + answer + END
        assert trained_runs(tokenizer, example) == [answer + END]


@pytest.mark.parametrize("answer", ["2", [assistant("2")]])
def test_two_answers_that_are_the_same_are_a_tie(tokenizers, answer):
    assert preference_of({"prompt": "1+1?", "chosen": answer, "rejected": answer}).is_tie
    same = [user("1+1?"), assistant("2")]
    assert preference_of({"chosen": same, "rejected": same}).is_tie


@pytest.mark.parametrize(("label", "is_good"), [(True, True), (False, False), (1, True), (0, False), ("true", True), ("False", False)])  # fmt: skip
def test_answers_with_a_label(tokenizers, label, is_good):
    tokenizer = tokenizers["smollm2"]
    for row, runs in (
        ({"prompt": "1+1?", "completion": "2"}, ["2" + END]),
        ({"prompt": [user("1+1?")], "completion": [assistant("2")]}, ["2" + END]),
        ({"messages": [user("1+1?"), assistant("2")]}, ["2" + END]),
    ):
        found = unpaired_of({**row, "label": label})
        assert found.is_good is is_good and found.form.columns == (*row, "label")
        example = encode_unpaired(tokenizer, found)
        assert tokenizer.decode(example["input_ids"].tolist()) == smol(*ONE_TURN)
        assert trained_runs(tokenizer, example) == runs


IMAGE = {"type": "image_url", "image_url": {"url": "x"}}
BROKEN = {
    "openai without an answer": ({"messages": [user("Hi")]}, "messages has no message of the role 'assistant', so nothing would be trained"),
    "openai with an unknown role": ({"messages": [user("Hi"), {"role": "bott", "content": "x"}]}, "messages[1].role='bott'"),
    "openai with an image": ({"messages": [user([{"type": "text", "text": "See"}, IMAGE]), assistant("x")]}, "messages[0].content[1] is of the type 'image_url'"),
    "openai with an empty answer": ({"messages": [user("Hi"), assistant("")]}, "messages[1].content='': an empty answer would be trained"),
    "openai with calls that are no json": ({"messages": [user("Hi"), assistant(None, tool_calls=[{"function": {"name": "f", "arguments": "{a"}}])]}, "messages[1].tool_calls[0].function.arguments is text, but no JSON"),
    "openai with tools that are no json": ({"messages": TALK, "tools": "add, subtract"}, "tools is text, but no JSON"),
    "openai with two flags": ({"messages": [user("Hi"), assistant("x", weight=1, train=False)]}, "messages[1] says weight=1 and train=False"),
    "openai with half a weight": ({"messages": [user("Hi"), assistant("x", weight=0.5)]}, "messages[1].weight=0.5 of a message with the role 'assistant'"),
    "thinking twice": ({"messages": [user("Hi"), assistant([{"type": "thinking", "thinking": "a"}, {"type": "text", "text": "b"}], reasoning_content="c")]}, "messages[1].content has thinking blocks, and the message 'reasoning_content' beside them"),
    "thinking that is null": ({"messages": [user("Hi"), assistant([{"type": "thinking", "thinking": None}, "b"])]}, "messages[1].content[0].thinking is null"),
    "sharegpt with an unknown speaker": ({"conversations": [HUMAN, {"from": "alien", "value": "x"}]}, "conversations[1].from='alien'"),
    "sharegpt with a null": ({"conversations": [HUMAN, {"from": "gpt", "value": None}]}, "conversations[1].value is null"),
    "lists of two lengths": ({"conversations": {"from": ["human"], "value": ["Hi", "x"]}}, "conversations is an object with the keys ['from', 'value']"),
    "alpaca without an answer": ({"instruction": "Add.", "output": ""}, "output is empty"),
    "alpaca with half a history": ({"instruction": "Add.", "output": "2", "history": [["Hi"]]}, "history[0] is"),
    "trl of two kinds": ({"prompt": [user("Hi")], "completion": "x"}, "prompt is a list, but completion is text: 'x'"),
    "trl with a number": ({"prompt": "1+1?", "completion": 2}, "completion is int '2'"),
    "text that is a number": ({"text": 3}, "text is int '3'"),
    "unknown columns": ({"instruct": "Add.", "output": "2"}, "the columns instruct, output hold no training text under the names that are looked for"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_sample_is_refused_by_its_own_place(tokenizers, name):
    row, said = BROKEN[name]
    with pytest.raises(DataError) as caught:
        made(tokenizers["qwen"], row)
    assert caught.value.what.startswith(said)


@pytest.mark.parametrize(
    ("row", "near", "do"),
    [
        ({"instruct": "Add.", "output": "2"}, "the nearest format is Alpaca (instruction, output; it may have input, history, system, system_prompt): instruction (instruct is like it) is not there", "rename the columns: 'instruct' to 'instruction'"),
        ({"question": "q", "reply": "a"}, "the nearest format is questions with answers (question, answer; it may have system, system_prompt): answer is not there", "set task.text_field='question' if it is plain text"),
        ({"chosen": "a", "rejected": "b"}, "the nearest format is preferences, for a task that learns from them (prompt, chosen, rejected): prompt is not there", "these are preferences; to learn the chosen answers alone, set task.text_field='chosen'"),
        ({"prompt": "q", "response": "a"}, "the nearest format is prompt and completion (prompt, completion; it may have tools): completion is not there", "set task.completion_field to the column that holds it, for instance task.completion_field='response'"),
        ({"body": "b"}, "the nearest format is plain text (text): text is not there", "set task.text_field='body' if it is plain text"),
    ],
)  # fmt: skip
def test_unknown_columns_are_told_the_nearest_format(tokenizers, row, near, do):
    with pytest.raises(DataError) as caught:
        made(tokenizers["smollm2"], row)
    assert caught.value.expected.endswith(near) and caught.value.do.startswith(do)


BROKEN_PAIRS = {
    "no rejected": ({"prompt": "q", "chosen": "a"}, "rejected is not there; the columns are chosen, prompt"),
    "a null": ({"prompt": "q", "chosen": "a", "rejected": None}, "rejected is null"),
    "empty": ({"prompt": "q", "chosen": " ", "rejected": "b"}, "chosen is empty"),
    "a number": ({"prompt": "q", "chosen": 2, "rejected": "b"}, "chosen is int '2'"),
    "two kinds": ({"prompt": "q", "chosen": "a", "rejected": [assistant("b")]}, "rejected is a list, but chosen is text: 'a'"),
    "a null prompt": ({"prompt": None, "chosen": "a", "rejected": "b"}, "prompt is null"),
    "nothing shared": ({"chosen": "a b", "rejected": "c d"}, "chosen and rejected share no beginning, and there is no column with a prompt"),
    "other prompts": ({"chosen": [user("q"), assistant("a")], "rejected": [user("p"), assistant("a")]}, "chosen and rejected begin with different messages, and there is no column with a prompt"),
    "parts at a question": ({"chosen": [*TALK[:2], user("q"), assistant("a")], "rejected": [*TALK[:2], user("p"), assistant("a")]}, "chosen and rejected differ in a message of the role 'user', chosen[2]"),
    "one goes on": ({"chosen": TALK, "rejected": TALK[:2]}, "chosen goes on after the last message of rejected, and is the same before"),
    "another prompt": ({"prompt": "x", "chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]}, "prompt is not in the messages with which chosen and rejected begin"),
    "openai's frame": ({"input": "q", "preferred_output": [assistant("a")], "non_preferred_output": [assistant("b")]}, "input is text: 'q'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN_PAIRS)
def test_broken_preferences_are_refused_by_their_column(name):
    row, said = BROKEN_PAIRS[name]
    with pytest.raises(DataError) as caught:
        preference_of(row)
    assert caught.value.what.startswith(said)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "q", "completion": "a"}, "label is not there; the columns are completion, prompt"),
        ({"prompt": "q", "completion": "a", "label": None}, "label is null"),
        ({"prompt": "q", "completion": "a", "label": "good"}, "label is 'good'"),
        ({"prompt": "q", "completion": "a", "label": 0.5}, "label is 0.5"),
        ({"prompt": "q", "completion": "", "label": 1}, "completion is empty"),
        ({"completion": "a", "label": 1}, "prompt is not there; the columns are completion, label"),
        ({"prompt": [user("q")], "completion": [user("a")], "label": 1}, "completion[0] has the role 'user'"),
        ({"messages": [user("q")], "label": 1}, "messages[0] has the role 'user'"),
    ],
)
def test_broken_labels_are_refused_by_their_column(row, said):
    with pytest.raises(DataError) as caught:
        unpaired_of(row)
    assert caught.value.what.startswith(said)
