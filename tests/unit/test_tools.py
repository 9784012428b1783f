# ruff: noqa: F811 (fixtures are arguments)
"""Tools and tool calls: what a chat template shows of them, what is learned of it, and what is refused with its place."""

from __future__ import annotations

import json
from typing import Any

import datasets
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.unit.test_data_tokens import trained_runs
from tests.unit.test_rows import cache, prepared, recipe  # noqa: F401
from toolkit.data.forms.chat import encode_conversation
from toolkit.data.forms.chat_template import template_of
from toolkit.data.forms.conversations import in_column
from toolkit.data.forms.tool_calls import tools_of
from toolkit.data.reading.described import as_described, described_rows, leaves_out_nulls
from toolkit.errors import DataError
from toolkit.recipe import CausalLM
from toolkit.tasks.language.causal_lm import CausalLMTask

# As of Qwen 2.5, without its default system message.
QWEN = """
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}{{- messages[0]['content'] + '\\n\\n' }}{%- endif %}
    {{- '# Tools\\n<tools>' }}
    {%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}{{- '\\n' + message.content }}{%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}{{- tool_call.arguments | tojson }}{{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' }}{{- message.content }}{{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
# As of Hermes 2 Pro and 3: `'</think>' in` and `| trim` as the later ones have them.
HERMES = """
{%- if tools %}
    {{- '<|im_start|>system\\nYou may call <tools> ' }}
    {%- for tool in tools %}{%- if tool.function is defined %}{%- set tool = tool.function %}{%- endif %}
        {{- '{"type": "function", "function": {"name": "' + tool.name + '", "description": "' + tool.description + '"}}' }}
    {%- endfor %}{{- ' </tools><|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "assistant" and message.tool_calls is defined %}
        {%- set said = message.content.split('</think>')[-1] if '</think>' in message.content else message.content | trim %}
        {{- '<|im_start|>assistant\\n' + said }}
        {%- for tool_call in message.tool_calls %}
            {{- '\\n<tool_call>\\n' + {"name": tool_call.function.name, "arguments": tool_call.function.arguments} | tojson + '\\n</tool_call>' }}
        {%- endfor %}{{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {{- '<|im_start|>tool\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
# As of Llama 3.1: tools stand in the first user message, results under the role ipython, one call a message.
LLAMA = """
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system_message = "" %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}{%- if tools is not none %}{{- "Environment: ipython\\n" }}{%- endif %}{{- system_message }}{{- "<|eot_id|>" }}
{%- if tools is not none %}
    {%- if messages | length != 0 %}
        {%- set first_user_message = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}
    {%- else %}{{- raise_exception("Cannot put tools in the first user message when there's no first user message!") }}{%- endif %}
    {{- '<|start_header_id|>user<|end_header_id|>\\n\\nRespond with JSON for a function call.\\n\\n' }}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}
    {{- first_user_message + "<|eot_id|>" }}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls | length == 1 %}{{- raise_exception("This model only supports single tool-calls at once!") }}{%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
        {{- '{"name": "' + tool_call.name + '", "parameters": ' }}{{- tool_call.arguments | tojson }}{{- "}<|eot_id|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}{{- message.content | tojson }}{%- else %}{{- message.content }}{%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""
# As of Mistral v3: no generation prompt, tools before the last user message, ids of nine letters.
MISTRAL = """
{%- if messages[0]["role"] == "system" %}{%- set system_message = messages[0]["content"] %}{%- set loop_messages = messages[1:] %}
{%- else %}{%- set loop_messages = messages %}{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}{%- set tool = tool.function %}{{- '{"type": "function", "function": ' + tool | tojson + '}' }}{%- if not loop.last %}{{- ", " }}{%- endif %}{%- endfor %}
            {{- "][/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}{{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}{{- "[INST] " + message["content"] + "[/INST]" }}{%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function | tojson %}{{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id | length != 9 %}{{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}{%- endif %}
            {{- ', "id": "' + tool_call.id + '"}' }}{%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" + eos_token }}{%- endif %}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}{{- " " + message["content"] | trim + eos_token }}
    {%- elif message["role"] == "tool" %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content | string + ', "call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- endif %}
{%- endfor %}
"""
# As of DeepSeek V3: arguments are joined as text; a call is only seen where there is no content, or a null.
DEEPSEEK = """
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}{{- '<User>' + message['content'] }}
    {%- elif message['role'] == 'assistant' and message['content'] is not defined %}
        {{- '<Assistant>' }}
        {%- for tool in message['tool_calls'] %}{{- '<call>' + tool['function']['name'] + '\\n```json\\n' + tool['function']['arguments'] + '\\n```' }}{%- endfor %}
        {{- eos_token }}
    {%- elif message['role'] == 'assistant' %}{{- '<Assistant>' + message['content'] + eos_token }}
    {%- elif message['role'] == 'tool' %}{{- '<output>' + message['content'] + '</output>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<Assistant>' }}{%- endif %}
"""
# As of Qwen 3 Coder and GLM 4.5: arguments one by one.
XML = QWEN.replace(
    """{{- '\\n<tool_call>\\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}{{- tool_call.arguments | tojson }}{{- '}\\n</tool_call>' }}""",
    """{{- '\\n<function=' + tool_call.name + '>' }}{%- for name, value in tool_call.arguments | items %}{{- '<parameter=' + name + '>' + value | string + '</parameter>' }}{%- endfor %}{{- '</function>' }}""",
)
# As of SmolLM 2 and many others: no word of tools.
PLAIN = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As of models that also see images: the content is a list of parts.
PARTS = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {
    "qwen": QWEN, "hermes": HERMES, "llama": LLAMA, "mistral": MISTRAL, "deepseek": DEEPSEEK, "xml": XML,
    "plain": PLAIN, "parts": PARTS,
}  # fmt: skip

WEATHER = {
    "name": "weather_at",
    "description": "The weather.",
    "parameters": {"type": "object", "properties": {"place": {"type": "string"}, "day": {"type": "string"}}},
}
TOOLS = [{"type": "function", "function": WEATHER}]
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "weather_at", "arguments": {"place": "Oslo"}}}
ASKED = [
    {"role": "user", "content": "Oslo?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "name": "weather_at", "tool_call_id": "abcdefghi", "content": "4 degrees"},
    {"role": "assistant", "content": "Cold.", "tool_calls": None},
]
TWICE = [*ASKED, *ASKED]
SHOWN = '{"name": "weather_at", "arguments": {"place": "Oslo"}}'
WANTED = {
    "qwen": [f"<tool_call>\n{SHOWN}\n</tool_call><|im_end|>", "Cold.<|im_end|>"],
    "hermes": [f"\n<tool_call>\n{SHOWN}\n</tool_call><|im_end|>", "Cold.<|im_end|>"],
    "llama": ['{"name": "weather_at", "parameters": {"place": "Oslo"}}<|eot_id|>', "Cold.<|eot_id|>"],
    "mistral": [f'[TOOL_CALLS] [{SHOWN[:-1]}, "id": "abcdefghi"}}]</s>', " Cold.</s>"],
    "deepseek": ['<call>weather_at\n```json\n{"place": "Oslo"}\n```</s>', "Cold.</s>"],
    "xml": ["<function=weather_at><parameter=place>Oslo</parameter></function><|im_end|>", "Cold.<|im_end|>"],
}
"""What is learned of ASKED."""


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Any]:
    """By name of the template, with one token a byte: what is trained is exact to the byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={byte: index for index, byte in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    made = {}
    for name, template in TEMPLATES.items():
        special = {"bos_token": "<s>", "eos_token": "</s>", "extra_special_tokens": ["<|im_end|>", "<|eot_id|>"]}
        made[name] = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
        made[name].chat_template = template
    return made


def encode(tokenizer: Any, row: dict[str, Any]) -> Any:
    [example] = CausalLMTask(CausalLM(), tokenizer).encode(row)
    return example


def learned(tokenizer: Any, row: dict[str, Any]) -> list[str]:
    return trained_runs(tokenizer, encode(tokenizer, row))


def whole(tokenizer: Any, row: dict[str, Any]) -> str:
    return str(tokenizer.decode(encode(tokenizer, row)["input_ids"].tolist()))


@pytest.mark.parametrize("name", WANTED)
def test_calls_and_answers_are_learned_exactly(tokenizers, name):
    """With and without tools; a null content, one left out, and an empty one are the same."""
    tokenizer = tokenizers[name]
    for tools in ({}, {"tools": TOOLS}, {"tools": None}, {"tools": json.dumps(TOOLS)}):
        assert learned(tokenizer, {"messages": ASKED, **tools}) == WANTED[name]
        assert learned(tokenizer, {"messages": TWICE, **tools}) == WANTED[name] * 2
    for content in ({}, {"content": ""}, {"content": []}):
        call = {"role": "assistant", "tool_calls": [CALL], **content}
        assert whole(tokenizer, {"messages": [ASKED[0], call]}) == whole(tokenizer, {"messages": ASKED[:2]})


@pytest.mark.parametrize("name", WANTED)
def test_the_tokens_are_those_of_the_template(tokenizers, name):
    """Against apply_chat_template itself, given the form that this template takes."""
    tokenizer, takes_text = tokenizers[name], name == "deepseek"
    arguments = '{"place": "Oslo"}' if takes_text else {"place": "Oslo"}
    call = {**CALL, "function": {"name": "weather_at", "arguments": arguments}}
    empty = {} if takes_text else {"content": ""}
    messages = [ASKED[0], {"role": "assistant", **empty, "tool_calls": [call]}, *ASKED[2:]]
    for tools in (None, TOOLS):
        expected = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
        assert whole(tokenizer, {"messages": ASKED, "tools": tools}) == expected
        assert ("The weather." in expected) == (tools is not None and name != "deepseek")


@pytest.mark.parametrize(
    ("name", "tools"),
    [("tools", TOOLS), ("tools", json.dumps(TOOLS)), ("tools", [json.dumps(TOOLS[0])]), ("tools", [WEATHER]),
     ("tools", TOOLS[0]), ("functions", [WEATHER]), ("functions", json.dumps([WEATHER])),
     ("tools", [{"type": "function", "function": WEATHER, "strict": None}])],
)  # fmt: skip
def test_every_way_to_write_tools_is_the_same(tokenizers, name, tools):
    expected = whole(tokenizers["qwen"], {"messages": ASKED, "tools": TOOLS})
    assert expected.startswith("<|im_start|>system\n# Tools\n<tools>\n" + json.dumps(TOOLS[0]) + "\n</tools>")
    assert whole(tokenizers["qwen"], {"messages": ASKED, name: tools}) == expected
    assert learned(tokenizers["mistral"], {"messages": TWICE, name: tools}) == WANTED["mistral"] * 2


@pytest.mark.parametrize("tools", [None, "", "[]", [], "null"])
def test_no_tools_are_none(tokenizers, tools):
    assert tools_of({"tools": tools}) is None
    for name in ("qwen", "llama"):
        assert whole(tokenizers[name], {"messages": ASKED, "tools": tools}) == whole(
            tokenizers[name], {"messages": ASKED}
        )


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"tools": "[{"}, "tools is text, but no JSON ("),
        ({"tools": "[{'name': 'f'}]"}, "tools is text, but no JSON ("),
        ({"tools": "7"}, "tools is of the type int: 7"),
        ({"tools": [7]}, "tools[0] is of the type int: 7"),
        ({"tools": [WEATHER, {"description": "d"}]}, "tools[1] names no function; its keys are ['description']"),
        ({"tools": [{"type": "function", "function": "f"}]}, "tools[0].function is text, but no JSON"),
        ({"tools": TOOLS, "functions": [WEATHER]}, "the columns tools and functions both hold tools"),
    ],
)
def test_tools_that_are_none_are_refused_with_their_column(tokenizers, columns, said):
    with pytest.raises(DataError) as caught:
        encode(tokenizers["qwen"], {"messages": ASKED, **columns})
    assert caught.value.what.startswith(said)
    if "'name'" in str(columns["tools"]):
        assert caught.value.do.startswith("write it with json.dumps") == isinstance(columns["tools"], str)


@pytest.mark.parametrize(
    ("arguments", "written"),
    [({"place": "Oslo"}, '{"place": "Oslo"}'), ('{"place":"Oslo"}', '{"place": "Oslo"}'), ({}, "{}"), ("", "{}"),
     (None, "{}"), ({"a": 1, "b": None}, '{"a": 1, "b": null}'), ('{"a": 1, "b": null}', '{"a": 1, "b": null}'),
     ({"a": {"b": [None, 1.5]}}, '{"a": {"b": [null, 1.5]}}'), ({"\u00e9": "\U0001f40b"}, '{"\u00e9": "\U0001f40b"}')],
)  # fmt: skip
def test_arguments_are_taken_as_an_object_and_as_json_text(tokenizers, arguments, written):
    """A null that was written is kept: rows of JSON files are read as they are."""
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
    for name, opening in (("qwen", ""), ("hermes", "\n")):
        [said] = learned(tokenizers[name], {"messages": [ASKED[0], call]})
        assert said == f'{opening}<tool_call>\n{{"name": "f", "arguments": {written}}}\n</tool_call><|im_end|>'
    assert learned(tokenizers["deepseek"], {"messages": [ASKED[0], call]}) == [f"<call>f\n```json\n{written}\n```</s>"]


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "tool_calls": json.dumps([CALL])},
        {"role": "assistant", "tool_calls": [{"name": "weather_at", "arguments": {"place": "Oslo"}}]},
        {
            "role": "assistant",
            "content": None,
            "function_call": {"name": "weather_at", "arguments": '{"place": "Oslo"}'},
        },
        {"from": "function_call", "value": SHOWN},
    ],
    ids=["json text", "bare", "function_call", "ShareGPT"],
)
def test_every_way_to_write_a_call_is_the_same(tokenizers, message):
    for name in ("qwen", "llama", "hermes"):
        assert learned(tokenizers[name], {"messages": [ASKED[0], message]}) == WANTED[name][:1]


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}, "messages[1].tool_calls[0].function.arguments is text, but no JSON"),
        ({"tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}, "messages[1].tool_calls[0].function.arguments is a list: [1]"),
        ({"tool_calls": [{"function": {"arguments": {}}}]}, "messages[1].tool_calls[0] names no function"),
        ({"tool_calls": {"name": "f"}}, "messages[1].tool_calls is an object"),
        ({"tool_calls": "f()"}, "messages[1].tool_calls is text, but no JSON"),
        ({"tool_calls": [], "content": None}, "messages[1].content is null"),
        ({"role": "user", "content": "x", "tool_calls": [CALL]}, "messages[1].tool_calls of a message with the role 'user'"),
    ],
)  # fmt: skip
def test_calls_that_are_none_are_refused_with_their_place(tokenizers, message, said):
    with pytest.raises(DataError) as caught:
        encode(tokenizers["qwen"], {"messages": [ASKED[0], {"role": "assistant", **message}]})
    assert caught.value.what.startswith(said)


def test_calls_that_the_template_leaves_out_are_refused(tokenizers):
    """Such a template would train an answer without its call, or an empty one."""
    for content in (None, "Let me see."):
        with pytest.raises(DataError) as caught:
            encode(tokenizers["plain"], {"messages": [ASKED[0], {**ASKED[1], "content": content}]})
        assert caught.value.what == "messages[1].tool_calls: the tokenizer's chat template leaves out tool calls"
    assert learned(tokenizers["plain"], {"messages": [ASKED[0], ASKED[3]], "tools": TOOLS}) == ["Cold.<|im_end|>"]


def test_what_the_template_itself_asks_for_is_quoted(tokenizers):
    without_id = {"role": "assistant", "tool_calls": [{"function": CALL["function"]}]}
    with pytest.raises(DataError, match="Tool call IDs should be alphanumeric"):
        encode(tokenizers["mistral"], {"messages": [ASKED[0], without_id]})
    two = {"role": "assistant", "tool_calls": [CALL, CALL]}
    with pytest.raises(DataError, match="only supports single tool-calls at once"):
        encode(tokenizers["llama"], {"messages": [ASKED[0], two]})
    with pytest.raises(DataError, match="description"):  # Hermes joins it as text
        encode(tokenizers["hermes"], {"messages": ASKED, "tools": [{"name": "f"}]})


def test_tools_that_the_template_does_not_show_are_said_once(tokenizers):
    rows = [{"messages": ASKED[:1] + ASKED[3:], "tools": TOOLS}] * 3
    said = {name: CausalLMTask(CausalLM(), tokenizers[name]).remarks(rows) for name in ("plain", "qwen")}
    assert said["plain"] == [
        "note: the tokenizer's chat template does not show the model the tools of the column tools: they are not read"
    ]
    assert said["qwen"] == []
    # A column of that name may be meant for something else: nobody reads it then.
    names = {"messages": ASKED[:1] + ASKED[3:], "tools": "search, calculator"}
    task = CausalLMTask(CausalLM(), tokenizers["plain"])
    assert learned(tokenizers["plain"], names) == ["Cold.<|im_end|>"] and task.remarks([names]) == said["plain"]
    with pytest.raises(DataError, match=r"^tools is text, but no JSON .*: 'search, calculator'") as caught:
        encode(tokenizers["qwen"], names)
    assert "the column, if it is meant for something else" in caught.value.do


def test_the_columns_that_are_read(tokenizers):
    """All others are named as not used."""
    qwen, base = (CausalLMTask(CausalLM(), tokenizer) for tokenizer in (tokenizers["qwen"], bare(tokenizers)))
    tools = {"tools", "functions"}
    for row, read in (
        ({"messages": ASKED, "id": 3}, {"messages"}),
        ({"prompt": "a", "completion": "b", "id": 3}, {"prompt", "completion"}),
        ({"instruction": "a", "input": "", "output": "b", "id": 3}, {"instruction", "output"}),
        ({"conversations": [], "system": "s", "id": 3}, {"conversations", "system"}),
    ):
        assert {*qwen.columns(row)} == read | tools and {*base.columns(row)} == read
    assert {*qwen.columns({"text": "a", "tools": TOOLS})} == {"text"}


def bare(tokenizers: dict[str, Any]) -> Any:
    """A tokenizer without a chat template."""
    return PreTrainedTokenizerFast(tokenizer_object=tokenizers["plain"].backend_tokenizer, eos_token="</s>")


def test_keys_of_messages_that_the_template_does_not_read_are_said_once(tokenizers):
    messages = [
        {"role": "user", "content": "a", "name": "Ann", "id": 3, "tool_call_id": "x"},
        {"role": "assistant", "content": "b"},
    ]
    messages[1] |= {"reasoning_content": "c", "weight": 1, "train": True, "refusal": None, "wieght": 1, "tool_call": []}
    task = CausalLMTask(CausalLM(), tokenizers["plain"])
    assert task.remarks([{"messages": messages}] * 2) == [
        "note: the tokenizer's chat template does not read the messages' name, id, tool_call_id, reasoning_content, "
        "wieght (did you mean 'weight'?), tool_call (did you mean 'tool_calls'?)"
    ]


def test_nulls_that_arrow_adds_are_not_learned(tokenizers):
    """The objects of an Arrow column have one set of keys: what one row lacks is null there."""
    other = {"id": "b" * 9, "type": "function", "function": {"name": "other", "arguments": {"day": "Monday", "n": 1}}}
    schema = {"type": "function", "function": {"name": "other", "parameters": {"properties": {"n": {"type": "int"}}}}}
    rows = [
        {"messages": ASKED, "tools": TOOLS},
        {"messages": [ASKED[0], {"role": "assistant", "tool_calls": [other]}], "tools": [schema]},
    ]
    table = datasets.Dataset.from_list(rows)
    unified = table[0]["messages"][1]["tool_calls"][0]["function"]["arguments"]
    assert unified == {"place": "Oslo", "day": None, "n": None}
    for source in (table, table.to_iterable_dataset()):
        tokenizer = tokenizers["qwen"]
        encode_row = as_described(CausalLMTask(CausalLM(), tokenizer).encode, source)
        for row, plain in zip(source, rows, strict=True):
            [example] = encode_row(row)
            assert tokenizer.decode(example["input_ids"].tolist()) == whole(tokenizer, plain)
            assert trained_runs(tokenizer, example) == learned(tokenizer, plain)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_table_of_calls_is_learned_as_it_was_written(recipe, tmp_path, tiny_tokenizer_dir, streaming):
    """From a Parquet file to the batches, with the tools; the nulls of its objects are nowhere."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
    tokenizer.chat_template = QWEN
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    other = {"type": "function", "function": {"name": "other", "arguments": {"day": "Monday"}}}
    rows = [
        {"messages": ASKED[:2], "tools": TOOLS},
        {"messages": [ASKED[0], {"role": "assistant", "tool_calls": [other]}], "tools": None},
    ]
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "rows.parquet"))
    plain = recipe(tmp_path / "rows.parquet", length=512, streaming=streaming, packing=False, shuffle=False)
    model = plain.model.model_copy(update={"tokenizer": str(tmp_path / "tokenizer")})
    inputs, notes = prepared(plain.model_copy(update={"model": model}))
    [batch] = inputs.batches.iterate(0, 1)
    texts = [tokenizer.decode(ids) for micro in batch.micro_batches for ids in micro["input_ids"]]
    assert notes == [
        "note: arguments of tool calls that are null are left out, since a table has a null for every key that only other "
        "rows use; to keep one that is meant, write the arguments as JSON text"
    ]
    assert not any("null" in text for text in texts)
    assert [text.split("<|endoftext|>")[0] for text in texts] == [whole(tokenizer, row) for row in rows]


def test_only_nulls_of_a_table_in_arguments_are_said():
    def talk(arguments: Any, content: Any = None) -> dict[str, Any]:
        call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
        return {"messages": [{"role": "assistant", "content": content, "tool_calls": [call]}]}

    table = datasets.Dataset.from_list
    assert leaves_out_nulls(table([talk({"a": 1}), talk({"a": 1, "b": None})]), 2)
    assert leaves_out_nulls(table([talk({"a": {"c": [{"d": None}, {"d": 1}]}})]).to_iterable_dataset(), 2)
    assert not leaves_out_nulls(table([talk({"a": 1}), talk({"a": None})]), 1)
    assert not leaves_out_nulls(table([talk({"a": 1}), {"messages": [{"role": "user", "content": "x"}]}]), 2)
    assert not leaves_out_nulls(table([talk('{"a": null}')]), 2)
    assert not leaves_out_nulls([talk({"a": None})], 2)  # of a JSON file: kept


def test_nulls_of_text_columns_and_of_lists_stay():
    rows = datasets.Dataset.from_list([{"text": None, "n": [1, None], "s": {"a": None, "b": [{"c": None, "d": 1}]}}])
    assert list(described_rows(rows)) == [{"text": None, "n": [1, None], "s": {"b": [{"d": 1}]}}]
    plain = [{"s": {"a": None}}]
    assert list(described_rows(plain)) == plain


def test_a_second_call_that_the_template_writes_otherwise_is_learned_whole(tokenizers, monkeypatch):
    """As DeepSeek V3 has it: the opening of a list of calls is written once in a conversation."""
    opening = "{%- if ns.first %}{{- '<Assistant><calls>' }}{%- set ns.first = false %}{%- endif %}"
    once = DEEPSEEK.replace("{{- '<Assistant>' }}", opening, 1)  # that of calls; the other one asks for an answer
    once = once.replace("{{- bos_token }}", "{{- bos_token }}{%- set ns = namespace(first=true) %}")
    monkeypatch.setattr(tokenizers["deepseek"], "chat_template", once)
    call, answer = WANTED["deepseek"]
    assert learned(tokenizers["deepseek"], {"messages": TWICE}) == ["<calls>" + call, answer, call, answer]


def test_a_tokenizer_with_a_template_of_its_own_for_tools(tokenizers):
    tokenizer = tokenizers["plain"]
    tokenizer.chat_template = {"default": PLAIN, "tool_use": QWEN}
    try:
        assert learned(tokenizer, {"messages": ASKED, "tools": TOOLS}) == WANTED["qwen"]
        assert whole(tokenizer, {"messages": ASKED, "tools": TOOLS}) == whole(
            tokenizers["qwen"], {"messages": ASKED, "tools": TOOLS}
        )
        assert learned(tokenizer, {"messages": [ASKED[0], ASKED[3]]}) == ["Cold.<|im_end|>"]
    finally:
        tokenizer.chat_template = PLAIN


@pytest.mark.parametrize("name", ["plain", "parts", "qwen"])
def test_parts_of_text_are_joined_and_given_in_the_form_that_the_template_takes(tokenizers, name):
    parts = [{"type": "text", "text": "Cold."}, {"type": "text", "text": "Very."}]
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Oslo?"}]},
        {"role": "assistant", "content": parts},
    ]
    plain = [{"role": "user", "content": "Oslo?"}, {"role": "assistant", "content": "Cold.\nVery."}]
    assert learned(tokenizers[name], {"messages": messages}) == ["Cold.\nVery.<|im_end|>"]
    assert whole(tokenizers[name], {"messages": messages}) == whole(tokenizers[name], {"messages": plain})
    assert template_of(tokenizers[name]).habits.takes_parts == (name == "parts")


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"type": "image_url", "image_url": {"url": "x"}}, "messages[0].content[1] is of the type 'image_url'"),
        ({"type": "image", "text": None}, "messages[0].content[1] is of the type 'image'"),
        ({"type": "text", "text": None}, "messages[0].content[1] is of the type 'text'"),
        (7, "messages[0].content[1] is of the type int"),
    ],
)
def test_parts_that_are_no_text_are_refused_with_their_place(tokenizers, part, said):
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "See:"}, part]},
        {"role": "assistant", "content": "x"},
    ]
    with pytest.raises(DataError) as caught:
        encode(tokenizers["plain"], {"messages": messages})
    assert caught.value.what == said and "read text only" in caught.value.expected


def test_a_template_that_loses_every_text_is_refused(tokenizers, monkeypatch):
    monkeypatch.setattr(
        tokenizers["plain"], "chat_template", PLAIN.replace("message['content']", "message['text']|string")
    )
    with pytest.raises(DataError, match="leaves out the text of every answer"):
        encode(tokenizers["plain"], {"messages": ASKED[:1] + ASKED[3:]})


def test_a_block_template_with_tools(tokenizers, monkeypatch):
    """{% generation %} around words and calls, the end outside: it is learned with them."""
    marked = QWEN.replace(
        "{{- tool_call.arguments | tojson }}", "{%- generation %}{{- tool_call.arguments | tojson }}"
    ).replace("{{- '}\\n</tool_call>' }}", "{{- '}\\n</tool_call>' }}{%- endgeneration %}")
    monkeypatch.setattr(tokenizers["qwen"], "chat_template", marked)
    for tools in (None, TOOLS):
        row = {"messages": ASKED[:2], "tools": tools}
        assert learned(tokenizers["qwen"], row) == ['{"place": "Oslo"}}\n</tool_call><|im_end|>']
    example = encode_conversation(tokenizers["qwen"], in_column(ASKED[:2], "messages"), train_on="all")
    assert (example["labels"][1:] == example["input_ids"][1:]).all()
