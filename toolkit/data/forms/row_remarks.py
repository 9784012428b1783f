"""What is said once about the form of the rows: how they are read, and what of them no token comes from."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from toolkit.data.example import Row
from toolkit.data.forms.chat import ends_answers
from toolkit.data.forms.chat_template import takes_tools, template_of
from toolkit.data.forms.formats import Format, find
from toolkit.data.forms.messages import FLAGS, LEARNED_IF_TRUE, MASKS, Conversation
from toolkit.data.forms.row_kind import RowKind
from toolkit.data.forms.tool_calls import tool_columns
from toolkit.data.reading.dataset_types import is_table_of_datasets
from toolkit.data.reading.described import described_rows
from toolkit.data.reading.mixture import is_table
from toolkit.data.reading.row_names import RowName
from toolkit.errors import DataError, did_you_mean, first_few

_ALWAYS_READ = {"role", "content", "tool_calls", "function_call", "from", "value", *FLAGS, *LEARNED_IF_TRUE, *MASKS}
_MEANT = ("role", "content", "tool_calls", "weight")
"""Keys of messages that one which nobody reads may be a slip of, unless it is a known one itself."""
_KNOWN = ("tool_call_id", "name", "reasoning", "reasoning_content", "thinking")
LOOK_AT = 100
"""Rows looked at from the first on, and as many more spread over the others where any can be had at once."""


def looked_at(rows: Iterable[Row]) -> Iterator[tuple[int, Row]]:
    """Some of `rows`, as their source describes them, each with its number (1 is the first)."""
    if not is_table(rows):
        yield from zip(range(1, LOOK_AT + 1), described_rows(rows), strict=False)
        return
    table: Any = rows
    count = len(table)
    places = sorted({*range(min(count, LOOK_AT)), *range(0, count, -(-count // LOOK_AT) or 1)})
    chosen = table.select(places) if is_table_of_datasets(table) else (table[place] for place in places)
    for place, row in zip(places, described_rows(chosen), strict=True):
        yield place + 1, row


class Seen:
    """What the rows that were looked at are like."""

    def __init__(self) -> None:
        self._kinds: dict[RowKind, tuple[int, dict[str, None]]] = {}
        self._beside_text: dict[Format, None] = {}
        self._tools: dict[str, None] = {}
        self._keys: dict[str, None] = {}
        self._answers = False

    def add(
        self, number: int, kind: RowKind, columns: Collection[str], row: Row, conversation: Conversation | None
    ) -> None:
        """Take in row `number`, of which `columns` are read; `conversation` is what it says, None for plain text."""
        self._kinds.setdefault(kind, (number, {}))[1].update(dict.fromkeys(columns))
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

    def remarks(self, tokenizer: Any, *, text_field: str, row_name: RowName) -> list[str]:
        """Lines to say. `text_field` is the column of plain text, `row_name` what a row is called."""
        said = self._forms(row_name)
        said += [
            f"note: {text_field} is learned as plain text, all of it; to learn the answers of {form.describe(form.needs)} "
            "alone, name a column that is not there: --task.text_field none_of_them"
            for form in self._beside_text
        ]
        if self._answers and tokenizer.chat_template:
            said += self._lost(tokenizer)
        return said

    def _forms(self, row_name: RowName) -> list[str]:
        """How the rows are read, where that is not what the recipe says alone."""
        named = {
            kind: kind.describe(columns) if isinstance(kind, Format) else " with ".join(columns)
            for kind, (_, columns) in self._kinds.items()
        }
        if len(named) == 1:
            [(kind, name)] = named.items()
            is_format = isinstance(kind, Format)
            return [f"rows are read as {name}, since none of the recipe's columns is there"] if is_format else []
        forms = [f"{name}, as in {row_name(self._kinds[kind][0])}" for kind, name in named.items()]
        return [f"note: rows have different columns, and each is read by its own: {'; '.join(forms)}"] if forms else []

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
            meant = [key + ("" if key in _KNOWN else did_you_mean(key, _MEANT)) for key in lost]
            said.append(f"note: the tokenizer's chat template does not read the messages' {first_few(meant)}")
        if not ends_answers(tokenizer):
            said.append(
                "note: the tokenizer's chat template puts no special token after an answer, so none is learned at which "
                "generation stops"
            )
        return said
