"""What a file's columns are for: recognised by the reader, told by their names and values, or asked for."""

from __future__ import annotations

import itertools
import math
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from toolkit.data.example import Row
from toolkit.data.forms.conversations import in_column
from toolkit.data.forms.formats import Format
from toolkit.data.forms.row_kind import row_kind
from toolkit.errors import DataError
from toolkit.recipe import Data
from toolkit.tasks.labels.values import is_fraction

Names: TypeAlias = Mapping[str, str]
"""Field of a task that names a column -> that column."""

Kind: TypeAlias = Literal["messages", "prompt_completion", "text", "classification"]

FIELDS_OF: dict[Kind, tuple[str, ...]] = {
    "messages": ("messages_field",),
    "prompt_completion": ("prompt_field", "completion_field"),
    "text": ("text_field",),
    "classification": ("text_field", "label_field"),
}
"""Fields of the task that say where a kind of row has what it needs."""

WORDS: dict[Kind, str] = {
    "messages": "conversations",
    "prompt_completion": "prompts with completions",
    "text": "texts",
    "classification": "texts with a class",
}

NAMES: dict[str, tuple[str, ...]] = {
    "messages_field": ("messages", "conversation", "conversations", "chat", "dialog", "dialogue", "turns"),
    "prompt_field": ("prompt", "question", "query", "instruction", "input", "problem", "source", "src", "user", "q"),
    "completion_field": (
        *("completion", "answer", "response", "output", "reply", "solution", "target", "tgt", "assistant", "a"),
    ),
    "text_field": (
        *("text", "content", "body", "document", "article", "sentence", "story", "passage", "abstract", "review"),
        *("comment", "post", "message", "tweet", "description"),
    ),
    "label_field": (
        *("label", "class", "class_name", "category", "sentiment", "topic", "intent", "emotion", "tag", "target"),
        *("stars", "rating", "language", "y"),
    ),
}
"""Names that columns with a role usually have, in lower case."""

MOST_CLASSES_SHARE = 0.25
"""A column of classes has at most this many distinct values, as a share of the rows looked at."""
LONGEST_CLASS = 60
"""Characters of the longest name of a class."""
BY_NAME, ONLY_TEXT = "by its name", "the only column that holds text"
MOST_SHOWN = 12
"""Columns listed where they do not say what they are."""
LEAST_PROSE = 20
"""Characters, on average, from which on a column without spaces counts as text, too."""


@dataclass(frozen=True)
class Roles:
    """What the rows are, and where."""

    kind: Kind
    fields: dict[str, str] = field(default_factory=dict)
    """Field of the task -> column; only those that the reader does not find by itself."""
    why: dict[str, str] = field(default_factory=dict)
    """What told, for a reader, by the keys of `fields`."""
    form: Format | None = None
    """The format of the field that the reader knows the columns of."""
    labels: tuple[str, ...] = ()
    """Columns of a text that are named like a label, hold what may be one, and are not read."""
    scores: tuple[str, ...] = ()
    """Those of them that no classifier takes."""


def find_roles(rows: Sequence[Row], data: Data, names: Names, given: Collection[str], task: str | None) -> Roles:
    """The kind of `rows` and its columns.

    `names` are the columns that fields of a task name, `given` those of them that the user has set, `task` the task where it
    is settled. Raises
    DataError, with every column and a value of it, where names and values leave it open.
    """
    columns = {name: [row[name] for row in rows if row.get(name) is not None] for row in rows for name in row}
    columns = {name: values for name, values in columns.items() if values}
    wants_classes = task == "sequence_classification" or "label_field" in given
    if not wants_classes:
        known = _known(rows, names, columns)
        if known is not None and not (known.kind == "text" and task is None and _labels(columns, names, given)):
            return _with_labels(known, columns)
    guesses: list[Roles | None] = []
    if not wants_classes:
        guesses.append(_conversations(columns))
        guesses.append(_pairs(columns, names, given))
    if task != "causal_lm":
        guesses.append(_classified(columns, names, given, anyhow=wants_classes))
    if not wants_classes:
        guesses.append(_texts(columns))
    found = next((guess for guess in guesses if guess is not None), None)
    if found is None:
        raise _open(columns, data, task)
    return _with_labels(found, columns)


def _with_labels(roles: Roles, columns: Mapping[str, list[Any]]) -> Roles:
    """`roles`; of texts with the columns that may have been meant as their classes, and which of them cannot be."""
    if roles.kind != "text":
        return roles
    read = roles.fields.values()
    named = [name for name in columns if name.casefold() in NAMES["label_field"] and name not in read]
    labels = tuple(name for name in named if _may_be_labels(columns[name]))
    return replace(roles, labels=labels, scores=tuple(name for name in labels if not _are_classes(columns[name])))


def _may_be_labels(values: list[Any], *, of_any_numbers: bool = True) -> bool:
    """Whether they are numbers, or short texts some of which come again; without `of_any_numbers`, so have the numbers to."""
    if of_any_numbers and all(isinstance(value, int | float) or is_fraction(value) for value in values):
        return True
    short = all(isinstance(value, str | int) and len(str(value)) <= LONGEST_CLASS for value in values)
    return short and 2 <= len(set(map(str, values))) < len(values)


def _known(rows: Sequence[Row], names: Names, columns: Collection[str]) -> Roles | None:
    """What the reader makes of the first row that it takes; None where it finds nothing that it knows.

    A row before that one is refused when it is encoded, which tells what it lacks of the others.
    """
    fields = {name: names[name] for name in ("messages_field", "prompt_field", "completion_field", "text_field")}
    first: DataError | None = None
    for row in rows:
        try:
            kind = row_kind(row, **fields)
        except DataError as error:
            first = first or error
            continue
        if isinstance(kind, Format):
            return Roles("messages" if len(kind.needs) == 1 else "prompt_completion", form=kind)
        return Roles(kind)
    complete = [
        {fields["messages_field"]},
        {fields["prompt_field"], fields["completion_field"]},
        {fields["text_field"]},
    ]
    if first is None or not any(one <= set(columns) for one in complete):
        return None
    raise DataError(f"row 1 of data.train: {first.what}", expected=first.expected, do=first.do)


def _conversations(columns: dict[str, list[Any]]) -> Roles | None:
    found = [name for name, values in columns.items() if all(map(_is_conversation, values))]
    if len(found) > 1:
        found = [name for name in found if name.casefold() in NAMES["messages_field"]]
    if len(found) != 1:
        return None
    return Roles("messages", {"messages_field": found[0]}, {"messages_field": "its values are lists of messages"})


def _is_conversation(value: object) -> bool:
    """Whether it is a list of messages, OpenAI's or ShareGPT's, or JSON text of one."""
    if isinstance(value, str) and not value.lstrip().startswith("["):
        return False
    try:
        messages = in_column(value, "").messages
    except DataError:
        return False
    return all(isinstance(turn, Mapping) and {"role", "from"} & turn.keys() for turn in messages)


def _pairs(columns: dict[str, list[Any]], names: Names, given: Collection[str]) -> Roles | None:
    prompts = _candidates("prompt_field", columns, names, given, _is_text)
    completions = [
        name for name in _candidates("completion_field", columns, names, given, _is_text) if name not in prompts
    ]
    if len(prompts) != 1 or len(completions) != 1:
        return None
    fields = {"prompt_field": prompts[0], "completion_field": completions[0]}
    return Roles("prompt_completion", fields, dict.fromkeys(fields, "by their names"))


def _classified(columns: dict[str, list[Any]], names: Names, given: Collection[str], *, anyhow: bool) -> Roles | None:
    """Texts and classes; with `anyhow` the classes' column need not have a usual name."""
    labels = _labels(columns, names, given)
    if not labels and anyhow:
        labels = [name for name, values in columns.items() if _is_class(values) and not _is_prose(values)]
    texts = [name for name in _candidates("text_field", columns, names, given, _is_text) if name not in labels]
    text_why = BY_NAME
    if not texts:
        text_why = ONLY_TEXT
        texts = [name for name, values in columns.items() if _is_prose(values) and name not in labels]
    if len(labels) != 1 or len(texts) != 1:
        return None
    classes = columns.get(labels[0], [])
    return Roles(
        "classification",
        {"text_field": texts[0], "label_field": labels[0]},
        {
            "text_field": text_why,
            "label_field": f"{len(set(map(str, classes)))} distinct values in {len(classes):,} rows",
        },
    )


def _labels(columns: dict[str, list[Any]], names: Names, given: Collection[str]) -> list[str]:
    return _candidates("label_field", columns, names, given, _is_class)


def _texts(columns: dict[str, list[Any]]) -> Roles | None:
    named = [name for name, values in columns.items() if name.casefold() in NAMES["text_field"] and _is_text(values)]
    prose = [name for name, values in columns.items() if _is_prose(values)]
    if len(named) == 1:
        return Roles("text", {"text_field": named[0]}, {"text_field": BY_NAME})
    return Roles("text", {"text_field": prose[0]}, {"text_field": ONLY_TEXT}) if len(prose) == 1 else None


def _candidates(role: str, columns: dict[str, list[Any]], names: Names, given: Collection[str], test: Any) -> list[str]:
    """The column that the user has named for `role`, or those that have one of its usual names and values that fit."""
    own = names[role]
    if role in given:
        return [own]
    found = [name for name, values in columns.items() if name.casefold() in NAMES[role] and test(values)]
    return [own] if own in found else found


def _is_text(values: list[Any]) -> bool:
    return all(isinstance(value, str) for value in values) and any(value.strip() for value in values)


def _is_prose(values: list[Any]) -> bool:
    """Whether it is something to read and no number, name or date."""
    if not _is_text(values):
        return False
    spaced = sum(" " in value.strip() for value in values)
    return spaced > len(values) / 2 or sum(map(len, values)) / len(values) >= LEAST_PROSE


def _is_class(values: list[Any]) -> bool:
    """Whether few values come again and again; integers that pandas has made fractions of (1.0) are classes gone wrong."""
    values = [float(value) if is_fraction(value) else value for value in values]
    values = [value for value in values if not (isinstance(value, float) and math.isnan(value))]
    if not all(isinstance(value, str | int) or _is_whole(value) for value in values):
        return False
    if any(len(str(value)) > LONGEST_CLASS for value in values):
        return False
    return 2 <= len(set(map(str, values))) <= max(2, MOST_CLASSES_SHARE * len(values))


def _is_whole(value: object) -> bool:
    return isinstance(value, float) and value.is_integer()


def _open(columns: dict[str, list[Any]], data: Data, task: str | None) -> DataError:
    width = max(map(len, itertools.islice(columns, MOST_SHOWN)), default=0)
    shown = [
        f"    {name:<{width}}  {' '.join(str(values[0]).split())[:60]!r}"
        for name, values in itertools.islice(columns.items(), MOST_SHOWN)
    ]
    if len(columns) > MOST_SHOWN:
        shown.append(f"    and {len(columns) - MOST_SHOWN:,} more columns")
    wants_classes = task == "sequence_classification"
    choices = ", or ".join(_choices(columns, task))
    names_first = ", or put a line with the names of the columns first where there is none"
    return DataError(
        f"data.train={data.train!r}: its columns do not say by themselves what is to be learned:\n" + "\n".join(shown),
        expected="a column of texts and a column of classes"
        if wants_classes
        else "conversations, prompts with completions, texts, or texts with a class",
        do=(f"say which column is what: {choices}" if choices else _what_is_missing(wants_classes))
        + (names_first if Path(data.train).suffix.lower() in (".csv", ".tsv") else ""),
    )


def _choices(columns: dict[str, list[Any]], task: str | None) -> list[str]:
    """The flags by which `columns` can be learned, for each way there is: values that would be refused are not offered."""
    rows = max(map(len, columns.values()), default=0)
    whole = {name: values for name, values in columns.items() if len(values) == rows}
    classes = sorted(
        filter(lambda name: _are_classes(whole[name]), whole), key=lambda name: not _is_named(name, "label_field")
    )
    texts = [name for name, values in whole.items() if _is_text(values) and all(value.strip() for value in values)]
    texts = [name for name in texts if name not in classes] or texts
    found = []
    if task != "sequence_classification":
        prompts = sorted(texts, key=lambda name: not _is_named(name, "prompt_field"))[:1]
        # Of preferences, the answers to learn.
        answers = sorted(texts, key=lambda name: not (_is_named(name, "completion_field") or name == "chosen"))
        answers = [name for name in answers if name not in prompts][:1]
        if answers:
            found.append(_flags(prompt_field=prompts[0], completion_field=answers[0]))
        if texts:
            has_label = any(_is_named(name, "label_field") for name in classes)
            found.append(
                _flags(text_field=_longest(texts, whole)) + (" --task.name causal_lm" if has_label and not task else "")
            )
    others = [name for name in texts if name != classes[0]] if classes else []
    if others and task != "causal_lm":
        found.append(_flags(text_field=_longest(others, whole), label_field=classes[0]))
    return found


def _flags(**fields: str) -> str:
    return " ".join(f"--task.{field} {shlex.quote(column)}" for field, column in fields.items())


def _longest(names: Sequence[str], columns: Mapping[str, list[Any]]) -> str:
    return max(names, key=lambda name: sum(map(len, columns[name])))


def _is_named(name: str, role: str) -> bool:
    return name.casefold() in NAMES[role]


def _are_classes(values: list[Any]) -> bool:
    """Whether training takes them for classes: names or integers from 0 on, some of which come again."""
    if not all(isinstance(value, str | int) and len(str(value)) <= LONGEST_CLASS for value in values):
        return False
    if any(is_fraction(value) or (isinstance(value, int) and value < 0) for value in values):
        return False
    return _may_be_labels(values, of_any_numbers=False)


def _what_is_missing(wants_classes: bool) -> str:
    return (
        "give a file with a column of texts and one of classes, names or integers that come again"
        if wants_classes
        else "give a file with a column of texts: none of these holds text in every row"
    )
