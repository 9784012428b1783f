"""What is trained of a conversation: the answers and the token that ends each, under templates as models have them."""

from __future__ import annotations

import re

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.unit.test_data_tokens import trained_runs
from toolkit.data.forms.chat import encode_conversation, ends_answers
from toolkit.data.forms.conversations import in_column
from toolkit.errors import DataError

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ '<|begin_of_text|>' }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
QWEN3 = """
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if (message.role == "user") or (message.role == "system") %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}
            {{- '<|im_start|>' + message.role + '\n<think>\n' + reasoning_content.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\n' + content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls or [] %}
            {%- if (loop.first and content) or (not loop.first) %}{{- '\n' }}{%- endif %}
            {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '<tool_call>\n{"name": "' + tool_call.name + '", "arguments": ' }}{{- tool_call.arguments | tojson }}{{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\n<tool_response>\n' + content + '\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""
QWEN3_THINKING = QWEN3.replace("{{- '<|im_start|>assistant\n' }}", "{{- '<|im_start|>assistant\n<think>\n' }}")
DEEPSEEK_R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '<User>' + m['content'] }}"
    "{% elif m['role'] == 'system' %}{{ m['content'] }}"
    "{% else %}{% set content = m['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}"
    "{% endif %}{{ '<Assistant>' + content + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<Assistant><think>\n' }}{% endif %}"
)
GLM = (  # no token ends an answer: generation stops at the header of the next user
    "{{ '[gMASK]<sop>' }}{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{% set parts = m['content'].split('</think>') %}{{ '<|assistant|>\n' }}"
    "{% if loop.last %}{{ '<think>' + (parts[0].split('<think>')[-1] if parts | length > 1 else '') + '</think>\n' }}{% endif %}"
    "{{ parts[-1].strip() }}{% else %}{{ '<|' + m['role'] + '|>\n' + m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
# The block holds the words alone.
BLOCK = CHATML.replace(
    "m['content'] + '<|im_end|>' + '\n' }}",
    "'' }}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{% endgeneration %}"
    "{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>\n' }}",
)

# The answers before the last are left out, or are there and not marked; conversations that end with a user are refused.
LAST_ONLY = (
    "{% if messages[-1]['role'] == 'user' and not add_generation_prompt %}{{ raise_exception('no answer') }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] != 'assistant' %}{{ m['content'] }}"
    "{% elif loop.last %}{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}"
    "{% else %}EARLIER{% endif %}{{ '<|im_end|>\n' if not (loop.last and m['role'] == 'assistant') else '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

ENDS = {
    "chatml": (CHATML, "{0}<|im_end|>"),
    "block": (BLOCK, "{0}<|im_end|>"),
    "llama3": (LLAMA3, "{0}<|eot_id|>"),
    "gemma": (GEMMA, "{0}<end_of_turn>"),
    "mistral": (MISTRAL, " {0}</s>"),
    "qwen3": (QWEN3, "{0}<|im_end|>"),
    "qwen3-thinking": (QWEN3_THINKING, "{0}<|im_end|>"),
    "deepseek-r1": (DEEPSEEK_R1, "{0}</s>"),
    "glm": (GLM, "{0}"),
}
LAST_START = {"qwen3": "<think>\n\n</think>\n\n", "qwen3-thinking": "\n</think>\n\n", "glm": "<think></think>\n"}
"""What the template writes before the last answer, after the generation prompt."""
SPECIAL = re.findall(
    r"<\|[a-z_]+\|>|<(?:start|end)_of_turn>|\[/?INST\]|<User>|<Assistant>|<sop>", "".join(t for t, _ in ENDS.values())
)
SHORT = [
    "d",
    "b",
    ">",
    "<",
    "|",
    "e",
    "n",
    "assistant",
    "user",
    "im_end",
    "im_end|>",
    "[",
    "]",
    "think",
    "Q",
    "model",
    "\\n",
]


@pytest.fixture(scope="module")
def tokenizers():
    """By name of the template: one token a byte, the templates' own tokens special."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={byte: index for index, byte in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    made = {}
    for name, (template, _) in ENDS.items():
        special = {
            "bos_token": "<s>",
            "eos_token": "</s>",
            "extra_special_tokens": sorted({*SPECIAL, "<|user|>", "<|end|>", "<|return|>"}),
        }
        made[name] = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
        made[name].chat_template = template
    return made


def talk(*answers, system=False):
    messages = [{"role": "system", "content": "d"}] if system else []
    for number, answer in enumerate(answers):
        messages += [{"role": "user", "content": SHORT[number % len(SHORT)]}, {"role": "assistant", "content": answer}]
    return messages


def runs(tokenizer, messages, **options):
    example = encode_conversation(tokenizer, in_column(messages, "messages"), **({"train_on": "assistant"} | options))
    return trained_runs(tokenizer, example)


@pytest.mark.parametrize("name", ENDS)
def test_the_answers_and_their_ends_are_trained_and_nothing_else(tokenizers, name):
    _, end = ENDS[name]
    for system in (False, True) if name not in ("gemma", "mistral") else (False,):
        for number, answer in enumerate(SHORT):
            answers = [answer, SHORT[number - 1], "A longer one, with a d.", answer]
            wanted = [end.format(text) for text in answers]
            wanted[-1] = LAST_START.get(name, "") + wanted[-1]
            assert runs(tokenizers[name], talk(*answers, system=system)) == wanted
            assert runs(tokenizers[name], talk(answer, system=system)) == [wanted[-1]]


@pytest.mark.parametrize(
    ("name", "earlier", "last"),
    [
        ("chatml", "<think>\nd\n</think>\n\nd<|im_end|>", "<think>\nd\n</think>\n\n4<|im_end|>"),
        ("qwen3", "d<|im_end|>", "<think>\nd\n</think>\n\n4<|im_end|>"),
        ("qwen3-thinking", "d<|im_end|>", "d\n</think>\n\n4<|im_end|>"),
        ("deepseek-r1", "\n\nd</s>", "\n\n4</s>"),
        ("glm", "d", "<think>\nd\n</think>\n4"),
    ],
)
def test_reasoning_in_the_text_of_an_answer_is_trained_where_the_template_keeps_it(tokenizers, name, earlier, last):
    thought = "<think>\nd\n</think>\n\n"
    assert runs(tokenizers[name], talk(thought + "d", thought + "4")) == [earlier, last]


def test_reasoning_beside_the_text_and_tool_calls(tokenizers):
    call = {
        "role": "assistant",
        "reasoning_content": "call d",
        "tool_calls": [{"function": {"name": "d", "arguments": {"d": 1}}}],
    }
    step = [
        call,
        {"role": "tool", "content": "d"},
        {"role": "assistant", "content": "d", "reasoning_content": "seen d"},
    ]
    said = '<tool_call>\n{"name": "d", "arguments": {"d": 1}}\n</tool_call><|im_end|>'
    question = {"role": "user", "content": "d"}
    kept = ["<think>\ncall d\n</think>\n\n" + said, "<think>\nseen d\n</think>\n\nd<|im_end|>"]
    for name, opening in (("qwen3", ""), ("qwen3-thinking", "<think>\n")):
        last = [text.removeprefix(opening) for text in kept]
        assert runs(tokenizers[name], [question, *step]) == last
        assert runs(tokenizers[name], [question, *step, question, *step]) == [said, "d<|im_end|>", *last]


def test_an_answer_that_opens_the_conversation(tokenizers):
    for name in ("chatml", "llama3", "qwen3"):
        messages = talk("d", "e")[1:]
        wanted = [ENDS[name][1].format(text) for text in "de"]
        assert runs(tokenizers[name], messages) == [wanted[0], LAST_START.get(name, "") + wanted[1]]


@pytest.mark.parametrize("name", ["chatml", "block", "qwen3"])
@pytest.mark.parametrize("train_on", ["assistant", "all"])
def test_an_answer_of_weight_0_is_context_and_one_of_weight_1_is_trained(tokenizers, name, train_on):
    messages = talk("Paris d", "London.", "d")
    messages[1]["weight"], messages[3]["weight"], messages[0]["weight"] = 1, 0, 0 if train_on == "assistant" else None
    found = runs(tokenizers[name], messages, train_on=train_on)
    plain = talk("Paris d", "London.", "d")
    everything = runs(tokenizers[name], plain, train_on=train_on)
    if train_on == "assistant":
        assert found == [everything[0], everything[2]]
    else:
        assert found == everything[0].split("London.<|im_end|>")


@pytest.mark.parametrize("key", ["weight", "train", "training"])
def test_every_flag_of_a_message_is_followed(tokenizers, key):
    messages = talk("d", "e")
    messages[1][key], messages[3][key] = False, True
    assert runs(tokenizers["chatml"], messages) == ["e<|im_end|>"]
    messages[1]["weight"] = 1
    if key != "weight":
        with pytest.raises(DataError, match=rf"^messages\[1\] says weight=1 and {key}=False"):
            runs(tokenizers["chatml"], messages)


@pytest.mark.parametrize("earlier", ["", "{{ m['content'] }}"], ids=["left out", "not marked"])
def test_a_template_with_blocks_may_leave_out_or_not_mark_earlier_answers(tokenizers, monkeypatch, earlier):
    monkeypatch.setattr(tokenizers["block"], "chat_template", LAST_ONLY.replace("EARLIER", earlier))
    assert runs(tokenizers["block"], talk("one", "two", "d")) == ["d<|im_end|>"]
    assert runs(tokenizers["block"], talk("d")) == ["d<|im_end|>"]
    messages = talk("one", "d")
    messages[1]["weight"] = 0
    assert runs(tokenizers["block"], messages) == ["d<|im_end|>"]


# As Phi 3: the end token follows the last message alone. As gpt-oss: the last answer has another end.
PHI3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
GPT_OSS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '<sop>' + m['content'] }}"
    "{{ '<|return|>' if loop.last and m['role'] == 'assistant' else '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "start", "last"),
    [(PHI3, "", "d<|end|>\n</s>"), (GPT_OSS, "<sop>", "d<|return|>")],
    ids=["phi3", "gpt-oss"],
)
def test_an_earlier_answer_may_end_otherwise_than_the_last_one(tokenizers, monkeypatch, template, start, last):
    monkeypatch.setattr(tokenizers["glm"], "chat_template", template)
    assert runs(tokenizers["glm"], talk("d", "e", "d")) == [f"{start}d<|end|>", f"{start}e<|end|>", f"{start}{last}"]


@pytest.mark.parametrize(
    ("index", "key", "value", "said"),
    [
        (1, "weight", 0.5, "messages[1].weight=0.5 of a message with the role 'assistant'"),
        (1, "weight", "0", "messages[1].weight='0'"),
        (0, "weight", 1, "messages[0].weight=1 of a message with the role 'user'"),
        (0, "train", True, "messages[0].train=True of a message with the role 'user'"),
        (1, "training", "no", "messages[1].training='no' of a message with the role 'assistant'"),
        (1, "loss", 0, "messages[1].loss=0: this key is not read"),
        (1, "trainable", False, "messages[1].trainable=False: this key is not read"),
        (1, "wieght", 0, "messages[1].wieght=0: this key is not read, and the message would be learned"),
        (1, "Weights", False, "messages[1].Weights=False: this key is not read"),
        (0, "wight", 1, "messages[0].wight=1: this key is not read, and the message would not be learned"),
        (1, "loss_mask", 1, "messages[1].loss_mask=1: this key is not read"),
        (1, "training_detail", [{"begin_offset": 0}], "messages[1].training_detail="),
    ],
)
def test_other_words_about_what_is_learned_are_refused_where_they_would_not_be_followed(
    tokenizers, index, key, value, said
):
    messages = talk("d")
    messages[index][key] = value
    with pytest.raises(DataError) as caught:
        runs(tokenizers["chatml"], messages)
    assert said in str(caught.value)


def test_other_words_that_say_what_is_done_anyway_are_taken(tokenizers):
    messages = talk("d")
    messages[0] |= {"train": False, "weight": 0}
    messages[1] |= {"train": True, "loss": 1, "name": None, "wieght": 1, "freight": 0, "height": 180}
    assert runs(tokenizers["chatml"], messages) == ["d<|im_end|>"]


def test_whether_a_token_ends_an_answer(tokenizers):
    assert {name for name in ENDS if not ends_answers(tokenizers[name])} == {"glm"}
