"""Tools that a model may call and the calls it makes, in the one form that chat templates are written for.

That is transformers' form: a tool is {"type": "function", "function": {"name": ..., "parameters": ...}}, a call has the
same frame around {"name": ..., "arguments": {...}}. JSON text of either, the bare inner object, and OpenAI's older
`functions` and `function_call` say the same and are taken as well.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

from toolkit.data.example import Row
from toolkit.errors import DataError

Schema: TypeAlias = dict[str, Any]

TOOL_COLUMNS = ("tools", "functions")
"""Where a row says which tools there are; the second is the older name."""

_TOOL = '{"type": "function", "function": {"name": "...", "parameters": {...}}}'
_CALL = '{"type": "function", "function": {"name": "...", "arguments": {...}}}'


def tool_columns(row: Row) -> list[str]:
    """The columns in which `row` has tools."""
    return [column for column in TOOL_COLUMNS if not _is_empty(row.get(column))]


def tools_of(row: Row) -> list[Schema] | None:
    """The tools of `row`, None where it has none. Raises DataError for what is no list of function schemas."""
    filled = tool_columns(row)
    if not filled:
        return None
    if len(filled) > 1:
        raise DataError(
            f"the columns {' and '.join(filled)} both hold tools",
            expected="the tools of a row in one column",
            do=f"remove one of them, or move all tools to {filled[0]}",
        )
    column = filled[0]
    given: Any = parsed(row[column], column, f"[{_TOOL}, ...]")
    tools: Any = [given] if isinstance(given, Mapping) else given
    if not isinstance(tools, list | tuple):
        raise _misshapen(column, given, f"a list of function schemas, [{_TOOL}, ...]")
    return [_framed(tool, f"{column}[{index}]", _TOOL) for index, tool in enumerate(tools)] or None


def calls_of(turn: Mapping[str, Any], where: str, key: str = "tool_calls") -> list[Schema]:
    """The tool calls of a message, with their arguments as objects. Raises DataError for another shape.

    `where` names the message, and `key` what of it holds the calls, in messages.
    """
    if turn.get("function_call"):
        given = [parsed(turn["function_call"], f"{where}.function_call", _CALL)]
        names = [f"{where}.function_call"]
    else:
        given = parsed(turn.get("tool_calls") or [], f"{where}.{key}", f"[{_CALL}, ...]")
        if not isinstance(given, list | tuple):
            raise _misshapen(f"{where}.{key}", given, f"a list of calls, [{_CALL}, ...]")
        names = [f"{where}.{key}[{index}]" for index in range(len(given))]
    return [_call(call, name) for call, name in zip(given, names, strict=True)]


def as_list(calls: Any) -> Any:
    """JSON text of one call, or of several, as the text of a list."""
    text = calls.strip() if isinstance(calls, str) else calls
    return f"[{text}]" if isinstance(text, str) and text.startswith("{") else text


def parsed(value: Any, where: str, form: str) -> Any:
    """`value`, or what it says if it is JSON text. Raises DataError for other text; `form` shows what is expected."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        printed = "[{'" in value or value.lstrip().startswith("{'")
        raise DataError(
            f"{where} is text, but no JSON ({error}): {value[:60]!r}",
            expected=f"{form}, or JSON text of it",
            do="write it with json.dumps: this is how Python prints it"
            if printed
            else "repair it, or remove the row (or the column, if it is meant for something else)",
        ) from None


def _call(call: Any, where: str) -> Schema:
    framed = _framed(call, where, _CALL)
    function = framed["function"]
    given = function.get("arguments")
    arguments = {} if _is_empty(given) else parsed(given, f"{where}.function.arguments", '{"name": value, ...}')
    if not isinstance(arguments, Mapping):
        raise _misshapen(f"{where}.function.arguments", arguments, 'an object, {"name": value, ...}')
    return {**framed, "function": {**function, "arguments": dict(arguments)}}


def _framed(given: Any, where: str, form: str) -> Schema:
    """`given` as {"type": "function", "function": {"name": ...}}, without the nulls of its outer two objects."""
    value = parsed(given, where, form)
    if not isinstance(value, Mapping):
        raise _misshapen(where, value, form)
    outer = {key: inner for key, inner in value.items() if inner is not None}
    if "function" in outer:
        inner = parsed(outer["function"], f"{where}.function", '{"name": "...", ...}')
        if not isinstance(inner, Mapping):
            raise _misshapen(f"{where}.function", inner, form)
        outer = {"type": "function", **outer}
    else:
        inner, outer = outer, {"type": "function"}
    function = {key: part for key, part in inner.items() if part is not None}
    if not isinstance(function.get("name"), str) or not function["name"]:
        raise DataError(
            f"{where} names no function; its keys are {sorted(map(str, value))}",
            expected=form,
            do="write the name of the function, or remove the row",
        )
    return {**outer, "function": function}


def _misshapen(where: str, value: object, form: str) -> DataError:
    return DataError(
        f"{where} is {kind_of(value)}: {str(value)[:60]}",
        expected=form,
        do="write it in that form, or remove the row (or the column, if it is meant for something else)",
    )


def kind_of(value: object) -> str:
    """The type of a value of a row in words."""
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, str):
        return "text"
    return f"of the type {type(value).__name__}"


def _is_empty(value: Any) -> bool:
    """Whether a field says nothing: null, "", [], {}, and their JSON texts."""
    return (
        value is None
        or (hasattr(value, "__len__") and len(value) == 0)
        or (isinstance(value, str) and value.strip() in ("", "null", "[]", "{}"))
    )
