"""A question of the user's own data, to ask the model before and after training."""

from __future__ import annotations

from toolkit.data.example import Row
from toolkit.data.forms.conversations import completion_of, in_column
from toolkit.data.forms.messages import check_messages
from toolkit.draft.roles import FIELDS_OF, Roles
from toolkit.draft.sheet import Sheet

LONGEST_PROMPT = 200
"""Characters of a question of the data that is worth asking the model before and after training."""


def first_question(sheet: Sheet, roles: Roles, row: Row) -> str | None:
    """What `row` asks, where it is short and the columns of `sheet` hold something that can be asked."""
    kind, form = roles.kind, roles.form
    columns: dict[str, str] = {name: sheet[f"task.{name}"] for name in FIELDS_OF[kind]}
    if kind == "text":
        return None
    if kind == "classification":
        found = row.get(columns["text_field"])
    else:
        if form is not None:
            said = form.read(row)
        elif kind == "messages":
            said = in_column(row[columns["messages_field"]], columns["messages_field"])
        else:
            said = completion_of(row, columns["prompt_field"], columns["completion_field"])
        turns, _ = check_messages(said, train_on=sheet["task.train_on"])
        found = next((turn["content"] for turn in turns if turn["role"] == "user"), None)
    is_short = isinstance(found, str) and 0 < len(found.strip()) <= LONGEST_PROMPT and found.isprintable()
    return found if is_short else None
