"""Which form of training text a row has: one of the three that the recipe names columns for, or one of the field's own."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from toolkit.data.example import Row
from toolkit.data.forms.formats import Format, find, is_filled
from toolkit.data.forms.messages import EmptyAnswer
from toolkit.data.forms.nearest_format import Near, nearest_format
from toolkit.data.reading.column_names import ColumnMissing
from toolkit.errors import DataError, first_few
from toolkit.recipe import CausalLM

_FIELDS_OF = {
    "messages": ("messages_field",),
    "prompt_completion": ("completion_field", "prompt_field"),
    "text": ("text_field",),
}
"""The fields that name the columns of a form; the first of them alone can leave it out."""

RowKind: TypeAlias = Literal["messages", "prompt_completion", "text"] | Format


def row_kind(row: Row, *, messages_field: str, prompt_field: str, completion_field: str, text_field: str) -> RowKind:
    """The form of `row` by the columns that hold something. Raises DataError for none of the forms, or several.

    The recipe's columns win: a format of the field counts only for a row that fills none of those forms. Of several such
    forms the one wins for which the recipe names another column than the default: the others are merely there. An empty
    text counts only where no column of another form holds something: in CSV a field cannot be left out.
    """
    fields = {
        "messages_field": messages_field,
        "prompt_field": prompt_field,
        "completion_field": completion_field,
        "text_field": text_field,
    }
    found = _forms({name for name, value in row.items() if value is not None}, **fields)
    told = _forms({name for name, value in row.items() if is_filled(value)}, **fields)
    if len(told) > 1:
        told = [form for form in told if _is_named(form, fields)] or told
    if len(told) == 1:
        return told[0]
    if told:
        names = {"messages": messages_field, "prompt_completion": f"{prompt_field} with {completion_field}"}
        raise DataError(
            f"the columns {first_few(sorted(row))} hold several forms of training text: "
            f"{', '.join(names.get(form, text_field) for form in told)}",
            expected=f"one of {_wanted(fields)}",
            do="remove the columns that are not meant, or name one that is not there in their place: "
            + ", ".join(
                f"--task.{_FIELDS_OF[form][0]} none_of_them leaves {names.get(form, f'the plain text of {text_field}')} out"
                for form in told
            ),
        )
    form = find(row)
    if form is not None:
        return form
    return found[-1] if found else _refuse(row, fields)


def _forms(
    filled: set[str], messages_field: str, prompt_field: str, completion_field: str, text_field: str
) -> list[Literal["messages", "prompt_completion", "text"]]:
    found: list[Literal["messages", "prompt_completion", "text"]] = []
    if messages_field in filled:
        found.append("messages")
    if {prompt_field, completion_field} <= filled:
        found.append("prompt_completion")
    if text_field in filled:
        found.append("text")
    return found


def _is_named(form: str, fields: Mapping[str, str]) -> bool:
    """Whether the recipe names a column of `form` by another name than the default."""
    return any(fields[name] != CausalLM.model_fields[name].default for name in _FIELDS_OF[form])


def _wanted(fields: Mapping[str, str]) -> str:
    named = {name: f"task.{name}={column!r}" for name, column in fields.items()}
    return f"{named['messages_field']}, or {named['prompt_field']} with {named['completion_field']}, or {named['text_field']}"


def _refuse(row: Row, fields: Mapping[str, str]) -> Any:
    """Raise the error for a row of no form, with the true cause: what is null, what lacks its other half, what it holds."""
    wanted, near = _wanted(fields), nearest_format(row, fields)
    filled = {name for name, value in row.items() if value is not None}
    empty = [column for column in fields.values() if column in row and row[column] is None]
    halves = {fields["prompt_field"]: fields["completion_field"], fields["completion_field"]: fields["prompt_field"]}
    for half, other in halves.items():
        if half in filled:
            state = "is null" if other in row else "is not there"
            is_empty_answer = other == fields["completion_field"] and other in row
            raise (EmptyAnswer if is_empty_answer else DataError if other in row else ColumnMissing)(
                f"{half} holds something, but {other} {state} (the columns are {first_few(sorted(row))})",
                expected=wanted + ("" if other in row else f"; {near.said}"),
                do=_other_half(row, half, other, {name: column for column, name in fields.items()}),
            )
    if empty:
        raise DataError(
            f"{' and '.join(empty)} {'is' if len(empty) == 1 else 'are'} null, and no other column holds training text",
            expected=wanted,
            do="remove the row, or fill it in; if another column holds the text, set the field of data to it",
        )
    raise ColumnMissing(
        f"the columns {first_few(sorted(row)) if row else '(none)'} hold no training text under the names that are looked for",
        expected=f"{wanted}; or the columns of a format of the field: {near.said}",
        do=_what_to_write(row, fields, near),
    )


def _other_half(row: Row, half: str, other: str, name_of: Mapping[str, str]) -> str:
    if {"chosen", "rejected"} <= row.keys():
        return (
            f"these are preferences; to learn the chosen answers alone, set task.{name_of[other]}='chosen'"
            if isinstance(row["chosen"], str)
            else "these are preferences; to learn the chosen answers alone, set task.messages_field='chosen'"
        )
    if other in row:
        return "fill it in, or remove the row"
    texts = [name for name, value in row.items() if isinstance(value, str) and value.strip() and name != half]
    return f"set task.{name_of[other]} to the column that holds it" + (
        f", for instance task.{name_of[other]}={_longest(row, texts)!r}" if texts else ""
    )


def _what_to_write(row: Row, fields: Mapping[str, str], nearest: Near) -> str:
    """What to set for the columns that there are, by their values."""
    if {"chosen", "rejected"} <= row.keys():
        field = "text_field" if isinstance(row["chosen"], str) else "messages_field"
        return f"these are preferences; to learn the chosen answers alone, set task.{field}='chosen'"
    for name, value in row.items():
        first = value[0] if isinstance(value, list | tuple) and value else None
        if isinstance(first, Mapping) and ({"role", "content"} <= first.keys() or {"from", "value"} <= first.keys()):
            return f"{name} holds a list of messages: set task.messages_field={name!r}"
    for field, column in fields.items():
        fitting = [name for name, value in row.items() if isinstance(value, list if field == "messages_field" else str)]
        if near := difflib.get_close_matches(column, fitting, n=1, cutoff=0.75):
            return f"set task.{field}={near[0]!r} if {near[0]!r} is meant for it, or rename the column to {column!r}"
    if nearest.renames and all(isinstance(row[name], str | list) for name in nearest.renames):
        return "rename the columns: " + ", ".join(f"{name!r} to {other!r}" for name, other in nearest.renames.items())
    texts = [name for name, value in row.items() if isinstance(value, str) and value.strip()]
    if not texts:
        return "give a file with text in it: no column of this row holds any"
    longest = _longest(row, texts)
    pair = [name for name in texts if name != longest]
    plain = f"set task.text_field={longest!r} if it is plain text to learn"
    if not pair:
        return plain
    return f"{plain}, or task.prompt_field and task.completion_field to the columns of question and answer ({', '.join(texts[:6])})"


def _longest(row: Row, names: list[str]) -> str:
    return max(names, key=lambda name: len(row[name]))
