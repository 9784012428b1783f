"""What `toolkit new` refuses: tasks that it does not draft, by their name or by their rows."""

from __future__ import annotations

from pathlib import Path

from toolkit.cli.asked_recipe import Wanted
from toolkit.cli.flag_errors import values_of
from toolkit.cli.flags import without
from toolkit.cli.following import given_flags
from toolkit.draft import survey, undrafted
from toolkit.draft.survey import Look
from toolkit.draft.undrafted import Start
from toolkit.recipe import Data, Task


def check_task(source: str, wanted: Wanted, shipped: Path) -> None:
    """Raise InputError for a task that is not drafted, named by --task.name or else that of the `source`."""
    named = values_of("task.name", wanted.fields)
    task = named[-1] if named else source
    if undrafted.is_drafted(Task.kind(task)):
        return
    look = None if wanted.data is None else survey.look_at(Data(train=wanted.data))
    rows = [] if look is None else [row for _, row in look.rows]
    found = undrafted.Found(task, fields=undrafted.columns_for(task, rows))
    seen = undrafted.recognised(rows)
    if seen is not None and "translation_field" in seen.fields and task == seen.task:
        found = undrafted.Found(task, fields=seen.fields)
    raise undrafted.refusal(found, rows, _start(wanted, shipped, None if look is None else look.total))


def check_rows(look: Look, wanted: Wanted, shipped: Path) -> None:
    """Raise InputError for rows that are meant for a task that is not drafted, unless the user has said what to do with them."""
    said = {name for name in given_flags(wanted.fields) if name == "task.name" or name.endswith("_field")}
    if wanted.data is None or "task.name" in said:
        return
    rows = [row for _, row in look.rows]
    found = undrafted.recognised(rows)
    # Where the answers are does not say that the bad ones are to be learned, too.
    asks_no_task = found is not None and found.task == "kto" and said <= {"task.prompt_field", "task.completion_field"}
    if found is not None and (asks_no_task or not said):
        raise undrafted.refusal(found, rows, _start(wanted, shipped, look.total))


def _start(wanted: Wanted, shipped: Path, total: int | None) -> Start:
    """How a copy of a shipped recipe is started for what is wanted."""
    more = {"--model.path": wanted.model, "--steps": wanted.steps, "--epochs": wanted.epochs}
    flags = [word for flag, value in more.items() if value is not None for word in (flag, str(value))]
    flags += without("task.name", wanted.fields)
    columns = frozenset(name.removeprefix("task.") for name in given_flags(wanted.fields))
    return Start(wanted.name, shipped, wanted.data, total, wanted.evaluation, wanted.devices, tuple(flags), columns)
