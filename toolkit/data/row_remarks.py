"""What is said once about the form of the rows: how they are read, and what of them no token comes from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from toolkit.data.chat import ends_answers
from toolkit.data.chat_template import takes_tools, template_of
from toolkit.data.example import Row
from toolkit.data.formats import Format, find
from toolkit.data.messages import LEARNED_IF_TRUE, MASKS, Conversation
from toolkit.data.row_kind import RowKind
from toolkit.data.tool_calls import tool_columns
from toolkit.errors import DataError, first_few

_ALWAYS_READ = {"role", "content", "tool_calls", "function_call", "weight", "from", "value", *LEARNED_IF_TRUE, *MASKS}


class Seen:
    """What the first rows are like."""

    def __init__(self) -> None:
        self._formats: dict[Format, dict[str, None]] = {}
        self._beside_text: dict[Format, None] = {}
        self._tools: dict[str, None] = {}
        self._keys: dict[str, None] = {}
        self._answers = False

    def add(self, kind: RowKind, row: Row, conversation: Conversation | None) -> None:
        """Take in one row; `conversation` is what it says, None for plain text."""
        if isinstance(kind, Format):
            self._formats.setdefault(kind, {}).update(dict.fromkeys(kind.columns(row)))
        if conversation is None:
            self._look_beside_text(row)
            return
        self._answers = True
        self._tools.update(dict.fromkeys(tool_columns(row)))
        for message in conversation.messages:
            if isinstance(message, Mapping):
                self._keys.update({str(key): None for key, value in message.items() if value is not None})

    def _look_beside_text(self, row: Row) -> None:
        try:
            form = find(row)
        except DataError:
            return
        if form is not None:
            self._beside_text[form] = None

    def remarks(self, tokenizer: Any, *, text_field: str) -> list[str]:
        """Lines to say. `text_field` is the column of plain text."""
        said = [
            f"rows are read as {form.describe(columns)}, since none of the recipe's columns is there"
            for form, columns in self._formats.items()
        ]
        said += [
            f"note: {text_field} is learned as plain text, all of it; to learn the answers of {form.describe(form.needs)} "
            "alone, name a column that is not there: --data.text_field none_of_them"
            for form in self._beside_text
        ]
        if self._answers and tokenizer.chat_template:
            said += self._lost(tokenizer)
        return said

    def _lost(self, tokenizer: Any) -> list[str]:
        said = []
        if self._tools and not takes_tools(tokenizer):
            said.append(
                "note: the tokenizer's chat template does not show the model the tools of the column "
                f"{' and '.join(self._tools)}: they are not read"
            )
        template = template_of(tokenizer, [] if self._tools else None)
        read = _ALWAYS_READ | set(re.findall(r"\w+", template.source))
        reasoning = {"reasoning", "reasoning_content", "thinking"}  # transformers takes them for one another
        read |= reasoning if reasoning & read else set()
        if lost := [key for key in self._keys if key not in read]:
            said.append(f"note: the tokenizer's chat template does not read the messages' {first_few(lost)}")
        if not ends_answers(tokenizer):
            said.append(
                "note: the tokenizer's chat template puts no special token after an answer, so none is learned at which "
                "generation stops"
            )
        return said
