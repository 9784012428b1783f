"""Whatever a row holds, it is learned or refused by a message of ours: rows made up from right and wrong values."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.unit.test_data_tokens import make_tokenizer
from tests.unit.test_tools import DEEPSEEK, HERMES, LLAMA, MISTRAL, PARTS, QWEN
from toolkit.data.example import IGNORED
from toolkit.errors import DataError
from toolkit.recipe import CausalLM
from toolkit.tasks.language.causal_lm import CausalLMTask

NO_VALUE = [
    None,
    "",
    0,
    -1,
    1.5,
    float("nan"),
    True,
    "a",
    " ",
    "[1]",
    "{}",
    "[",
    "null",
    [],
    {},
    [None],
    [[]],
    [{}],
    b"x",
]
TEXTS = ("prompt", "completion", "text", "instruction", "input", "output", "question", "answer", "system", "history")


class Rows:
    """Rows of which one value in twenty is not what belongs there."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def likely(self, value: Any) -> Any:
        return self.random.choice(NO_VALUE) if self.random.random() < 0.05 else value

    def call(self) -> Any:
        arguments = self.random.choice([{"a": 1, "b": None}, '{"a": 1}', {}])
        function = {"name": self.likely("f"), "arguments": self.likely(arguments)}
        return self.random.choice(
            [function, {"id": "abcdefghi", "type": "function", "function": self.likely(function)}]
        )

    def message(self) -> Any:
        if self.random.random() < 0.2:
            role = self.random.choice(["human", "gpt", "system", "function_call", "observation"])
            return {"from": self.likely(role), "value": self.likely("said")}
        role = self.random.choice(["user", "assistant", "assistant", "system", "tool"])
        text = self.random.choice(["hi", "<think>a</think>b", [{"type": "text", "text": "t"}]])
        message = {"role": self.likely(role), "content": self.likely(text)}
        if role == "assistant" and self.random.random() < 0.3:
            message |= {"content": None, "tool_calls": self.likely([self.call()])}
        for key in ("weight", "name", "train", "reasoning_content", "tool_call_id"):
            if self.random.random() < 0.05:
                message[key] = self.random.choice([*NO_VALUE, "abcdefghi"])
        return message

    def row(self) -> dict[str, Any]:
        row: dict[str, Any] = {}
        column = self.random.choice(["messages", "conversations", None])
        if column:
            talk = [self.likely(self.message()) for _ in range(self.random.randint(0, 4))]
            row[column] = self.likely([{"role": "user", "content": "q"}, *talk, {"role": "assistant", "content": "a"}])
        for name in TEXTS:
            if self.random.random() < (0.03 if column else 0.3):
                row[name] = self.likely("words")
        if self.random.random() < 0.3:
            row["tools"] = self.likely(
                [{"type": "function", "function": self.likely({"name": "f", "description": "d"})}]
            )
        return row


@pytest.mark.parametrize(
    "template",
    [QWEN, HERMES, LLAMA, MISTRAL, DEEPSEEK, PARTS, None],
    ids=["qwen", "hermes", "llama", "mistral", "deepseek", "parts", "none"],
)
def test_a_row_is_learned_or_refused(template: str | None) -> None:
    tokenizer, rows = make_tokenizer(template), Rows(seed=0)
    learned = refused = 0
    for number in range(150):
        row = rows.row()
        task = CausalLMTask(CausalLM(train_on="all" if number % 3 == 0 else "assistant"), tokenizer)
        assert all(line for line in task.remarks([row]))
        try:
            [example] = task.encode(row)
        except DataError as error:
            refused += 1
            assert error.what and error.expected and error.do
            continue
        learned += 1
        labels, ids = example["labels"], example["input_ids"]
        assert len(labels) == len(ids) and ((labels == IGNORED) | (labels == ids)).all()
        assert set(task.columns(row)) & set(row)
    assert learned > 5 and refused > 5
