"""Which format of the field the columns of a row are nearest to, for the message about a row of none of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from toolkit.data.forms.formats import FORMATS
from toolkit.errors import nearest

_Form: TypeAlias = tuple[str, tuple[str, ...], tuple[str, ...]]
"""Its name, the columns by which it is recognised, and further ones."""

_PREFERENCES: tuple[_Form, ...] = (
    ("preferences, for a task that learns from them", ("prompt", "chosen", "rejected"), ()),
    ("answers with a label, for a task that learns from them", ("prompt", "completion", "label"), ()),
)
ALIKE = 0.75
"""How like the name of a column another one is, 1 for the same, that may be meant for it."""


@dataclass(frozen=True)
class Near:
    """The nearest format."""

    said: str
    """With its columns, and those that are not there."""
    renames: Mapping[str, str]
    """Columns that are like all that a format of the field lacks -> the names that they should have; empty for fewer."""


def nearest_format(columns: Collection[str], fields: Mapping[str, str]) -> Near:
    """The nearest format to a row with these `columns`; `fields` are the columns that the recipe names, by field.

    Nearest: the largest share of its columns is there, by their names or names that are like them; of several the first.
    """
    chat, prompt, completion, text = (
        fields[name] for name in ("messages_field", "prompt_field", "completion_field", "text_field")
    )
    known: list[_Form] = [
        ("plain text", (text,), ()),
        ("chat messages", (chat,), ("tools",)),
        ("prompt and completion", (prompt, completion), ("tools",)),
        *_PREFERENCES,
        *((form.name, form.needs, form.may) for form in FORMATS),
    ]
    name, needs, may = max(known, key=lambda form: _share(columns, form))
    further = f"; it may have {', '.join(may)}" if may else ""
    missing = {column: nearest(column, columns, ALIKE) for column in needs if column not in columns}
    named = [column + (f" ({near[0]} is like it)" if near else "") for column, near in missing.items()]
    lacks = f": {' and '.join(named)} {'is' if len(named) == 1 else 'are'} not there" if named else ""
    renames = {near[0]: column for column, near in missing.items() if near}
    return Near(
        f"the nearest format is {name} ({', '.join(needs)}{further}){lacks}",
        renames if len(renames) == len(missing) and name in {form.name for form in FORMATS} else {},
    )


def _share(columns: Collection[str], form: _Form) -> tuple[float, float]:
    """The share of a format's columns that are there, names that are alike at half of it, and of those it may have."""
    _, needs, may = form
    found = sum(1.0 if name in columns else 0.5 if nearest(name, columns, ALIKE) else 0.0 for name in needs)
    further = sum(name in columns for name in may) / len(may) if may else 0.0
    return found / len(needs), further
