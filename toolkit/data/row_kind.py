"""Which of the three forms of training text a row has."""

from __future__ import annotations

from typing import Literal, TypeAlias

from toolkit.data.example import Row
from toolkit.errors import DataError, did_you_mean

RowKind: TypeAlias = Literal["messages", "prompt_completion", "text"]


def row_kind(row: Row, *, messages_field: str, prompt_field: str, completion_field: str, text_field: str) -> RowKind:
    """The form of `row` by the columns that hold something. Raises DataError for none of the forms, or several.

    An empty text counts only where no column of another form holds something: in CSV a field cannot be left out.
    """
    filled = {name for name, value in row.items() if value is not None}
    found = _forms(filled, messages_field, prompt_field, completion_field, text_field)
    if len(found) > 1:
        filled = {name for name in filled if row[name] != ""}
        found = _forms(filled, messages_field, prompt_field, completion_field, text_field) or found[-1:]
    if len(found) == 1:
        return found[0]
    wanted = (
        f"data.messages_field={messages_field!r}, or data.prompt_field={prompt_field!r} with "
        f"data.completion_field={completion_field!r}, or data.text_field={text_field!r}"
    )
    if found:
        raise DataError(
            f"the columns {', '.join(sorted(filled))} hold several forms of training text: {', '.join(found)}",
            expected=f"one of {wanted}",
            do="remove the columns that are not meant, or set the field of the others to a name that is not there",
        )
    fields = (messages_field, prompt_field, completion_field, text_field)
    empty = [name for name in fields if name in row and row[name] is None]
    if empty:
        raise DataError(
            f"{' and '.join(empty)} {'is' if len(empty) == 1 else 'are'} null, and no other column holds training text",
            expected=wanted,
            do="remove the row, or fill it in; if another column holds the text, set the field of data to it",
        )
    hints = "".join(dict.fromkeys(did_you_mean(name, fields) for name in sorted(row)))
    raise DataError(
        f"the columns {', '.join(sorted(row)) or '(none)'} hold no training text{hints}",
        expected=wanted,
        do="set the field of data to the column that holds it, for instance data.text_field='content'",
    )


def _forms(
    filled: set[str], messages_field: str, prompt_field: str, completion_field: str, text_field: str
) -> list[RowKind]:
    found: list[RowKind] = []
    if messages_field in filled:
        found.append("messages")
    if {prompt_field, completion_field} <= filled:
        found.append("prompt_completion")
    if text_field in filled:
        found.append("text")
    return found
