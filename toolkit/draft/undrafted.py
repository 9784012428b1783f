"""Tasks that `toolkit new` does not draft: how their rows are recognised, and the shipped recipe to copy for each."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.data.example import Row
from toolkit.data.reading.file_names import MEDIA
from toolkit.draft import sizes
from toolkit.draft.roles import NAMES
from toolkit.errors import InputError, RecipeError, first_few
from toolkit.recipe import CausalLM, SequenceClassification, Task
from toolkit.recipe.load import load_recipe
from toolkit.recipe.recipe_file import launch_commands

COPIES = {
    **dict.fromkeys(("dpo", "simpo"), "dpo_smollm2_zero2"),
    "image_classification": "images_efficientnet_fashion_zero1",
    "image_text_to_text": "vlm_smolvlm_tiny_zero2",
    "kto": "kto_smollm2_zero2",
    "orpo": "orpo_smollm2_zero1",
    "reward_model": "reward_smollm2_zero3",
    "masked_lm": "mlm_minilm_brown_zero1",
    "question_answering": "qa_minilm_docstrings_zero3",
    "sentence_embedding": "embed_minilm_debian_zero1",
    "seq2seq": "translate_bert2bert_debian_zero2",
    "token_classification": "tag_minilm_brown_zero1",
}
"""Task -> the shipped recipe that is nearest to it."""


def _text(value: object) -> bool:
    return isinstance(value, str)


def _answer(value: object) -> bool:
    """A text, or a list of messages."""
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(turn, Mapping) for turn in value))


def _verdict(value: object) -> bool:
    return isinstance(value, bool) or (value in (0, 1)) or (isinstance(value, str) and value.lower() in TRUTH)


def _answers(value: object) -> bool:
    """SQuAD's texts and where they start, or a list of such."""
    found = value if isinstance(value, list) else [value]
    return bool(found) and all(isinstance(one, Mapping) and {"text", "answer_start"} <= one.keys() for one in found)


def _words(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


def _labels(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(label, str | int) for label in value)


def _translation(value: object) -> bool:
    return isinstance(value, Mapping) and len(value) > 1 and all(text is None or _text(text) for text in value.values())


def _image(value: object) -> bool:
    """A file as datasets keeps it, or the name of one."""
    if isinstance(value, Mapping):
        return {"bytes", "path"} <= value.keys() and (value["bytes"] is not None or _image(value["path"]))
    return isinstance(value, str) and MEDIA.get(Path(value).suffix.lower()) == "image"


def _class(value: object) -> bool:
    return isinstance(value, str | int)


def _images(value: object) -> bool:
    """A list of files, or of their bytes as datasets keeps them."""
    return isinstance(value, list) and all(
        isinstance(image, str | bytes) or (isinstance(image, Mapping) and {"bytes", "path"} >= image.keys())
        for image in value
    )


TRUTH = ("true", "false")
Column = tuple[tuple[str, ...], Callable[[object], bool]]

_PROMPT: Column = (NAMES["prompt_field"], _answer)
_PAIR: dict[str, Column] = {"chosen_field": (("chosen",), _answer), "rejected_field": (("rejected",), _answer)}
_PAIRS = {"prompt_field": _PROMPT, **_PAIR}
COLUMNS: dict[str, dict[str, Column]] = {
    **dict.fromkeys(("dpo", "orpo", "simpo", "reward_model"), _PAIRS),
    "image_classification": {
        "image_field": (("image", "img", "picture", "photo", "file", "path"), _image),
        "label_field": (("label", "class", "category", "target"), _class),
    },
    "kto": {
        "prompt_field": _PROMPT,
        "completion_field": (NAMES["completion_field"], _answer),
        "label_field": (("label", "desirable", "is_good", "is_desirable", "thumbs_up"), _verdict),
    },
    "image_text_to_text": {"images_field": (("images",), _images)},
    "masked_lm": {"text_field": (NAMES["text_field"], _text)},
    "question_answering": {
        "question_field": (("question", "query", "q"), _text),
        "context_field": (("context", "passage", "paragraph", "text", "document"), _text),
        "answers_field": (("answers", "answer"), _answers),
    },
    "sentence_embedding": {
        "anchor_field": (("anchor", "query", "question", "sentence1", "title"), _text),
        "positive_field": (("positive", "answer", "sentence2", "document", "passage", "description"), _text),
    },
    "seq2seq": {
        "source_field": (("source", "src", "input", "document", "article", "en"), _text),
        "target_field": (("target", "tgt", "output", "summary", "highlights", "translation"), _text),
    },
    "token_classification": {
        "words_field": (("words", "tokens"), _words),
        "labels_field": (("labels", "tags", "ner_tags", "pos_tags"), _labels),
    },
}
"""Task -> field of it that names a column -> (usual names of that column, whether a value may be of it)."""

OPTIONAL = {"dpo": ("prompt_field",), "image_text_to_text": ("images_field",)}
"""Columns that rows may do without: whole conversations have their prompt, or their images, inside."""

TELLING = {
    "dpo": "preferences: a better and a worse answer",
    "image_classification": "images with a class for each",
    "kto": "prompts with answers that are marked good or bad",
    "token_classification": "lists of words with a label for each",
    "question_answering": "questions with a context and the answers in it",
}
"""Tasks that rows say by themselves -> what such rows are."""


@dataclass(frozen=True)
class Found:
    """Rows of a task that is not drafted."""

    task: str
    what: str = ""
    """What the rows are, where they say it."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Field of the task -> column, those that were found."""


def is_drafted(task: type[Task]) -> bool:
    """Whether `toolkit new` drafts recipes of that section."""
    return issubclass(task, CausalLM | SequenceClassification)


def recognised(rows: Sequence[Row]) -> Found | None:
    """What `rows` are where they can only be meant for a task that is not drafted."""
    columns = _columns(rows)
    for name, values in columns.items():
        if name == "translation" and all(map(_translation, values)):
            return Found("seq2seq", "translations: a text in each of several languages", {"translation_field": name})
        if name == "images" and all(map(_images, values)):
            return Found("image_text_to_text", "conversations with images", {"images_field": name})
    for task, what in TELLING.items():
        found = columns_for(task, rows)
        if COLUMNS[task].keys() - OPTIONAL.get(task, ()) <= found.keys():
            return Found(task, what, found)
    return None


def columns_for(task: str, rows: Sequence[Row]) -> dict[str, str]:
    """Field of `task` -> the column of `rows` that has a usual name for it and values that fit."""
    columns = _columns(rows)
    taken: dict[str, str] = {}
    for name, (usual, fits) in COLUMNS.get(task, {}).items():
        able = [column for column, values in columns.items() if all(map(fits, values))]
        near = sorted((c for c in able if c.casefold() in usual), key=lambda column: usual.index(column.casefold()))
        near = [column for column in near if column not in taken.values()]
        if near:
            taken[name] = near[0]
    return taken


def _columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    columns = {name: [row[name] for row in rows if row.get(name) is not None] for row in rows for name in row}
    return {name: values for name, values in columns.items() if values}


@dataclass(frozen=True)
class Start:
    """What the command line has besides the task and its columns."""

    name: str
    folder: Path
    """Of the shipped recipes."""
    data: str | None = None
    total: int | None = None
    """Rows of the data, where it is known."""
    evaluation: str | None = None
    devices: int | None = None
    flags: tuple[str, ...] = ()
    """More flags of a start, as they are to be written."""
    columns: frozenset[str] = frozenset()
    """Fields of the task that are among them."""


def refusal(found: Found, rows: Sequence[Row], start: Start) -> InputError:
    """What is said in place of a draft: what to copy, and how to start the copy on the user's data."""
    rows_are = f"data.train={start.data!r} holds {found.what}" if found.what else f"task.name={found.task!r}"
    return RecipeError(
        f"{rows_are}: `toolkit new` does not draft {_named(found)} yet",
        expected="a language model (task.name causal_lm) or a classifier of texts (sequence_classification)",
        do=_to_do(found, rows, start) + _instead(found),
    )


def _named(found: Found) -> str:
    if not found.what:
        return "this task"
    return {
        "dpo": "the tasks for them (dpo, orpo, simpo, reward_model)",
        "kto": "the task for them, KTO (task.name kto),",
    }.get(found.task, f"the task for them ({found.task})")


def _to_do(found: Found, rows: Sequence[Row], start: Start) -> str:
    stem = COPIES.get(found.task)
    if stem is None:
        return f"copy a recipe that has the task {found.task}, and change its data"
    source = start.folder / f"{stem}.py"
    if not source.is_file():
        return f"copy the recipe {stem} of the toolkit's repository, and change its data and task"
    shown = os.path.relpath(source) if source.is_relative_to(Path.cwd()) else str(source)
    recipe = load_recipe(source)
    begin = "" if Path("recipes").is_dir() else "mkdir recipes && "
    copy = f"{begin}cp {shlex.quote(shown)} recipes/{start.name}.py"
    task = [] if found.task == recipe.task.name else ["--task.name", found.task]
    launch = recipe.launch if start.devices is None else recipe.launch.model_copy(update={"devices": start.devices})
    words = [*_data(start), *task, *_fields(found, recipe.task, rows, start.columns), *start.flags]
    return f"copy the recipe {stem} ({copy}), and start it: " + " ".join(
        [launch_commands(launch, start.name)[0], *map(shlex.quote, words)]
        + ([] if start.devices is None else [f"--launch.devices {start.devices}"])
        + ([f"(COLUMN: one of {first_few(list(_columns(rows)))})"] if "COLUMN" in words else [])
    )


def _data(start: Start) -> list[str]:
    if start.data is None:
        return []
    if start.evaluation is not None:
        return ["--data.train", start.data, "--data.evaluation", start.evaluation]
    held_out = max(1, sizes.choose_held_out(10**6 if start.total is None else start.total))
    none_of_its_own = ["--data.evaluation", "None", "--data.evaluation_examples", str(held_out)]
    return ["--data.train", start.data, *none_of_its_own]


def _fields(found: Found, source: Task, rows: Sequence[Row], given: Collection[str]) -> list[str]:
    """Flags for the columns, those that the copy names otherwise; COLUMN stands for what was not found."""
    if not rows:
        return []
    section = Task.kind(found.task)
    flags: list[str] = []
    if "translation_field" in found.fields:
        sample = next(row for row in rows if row.get("translation"))["translation"]
        first, second = list(sample)[:2]
        return ["--task.source_language", first, "--task.target_language", second]
    for name in COLUMNS[found.task]:
        now = getattr(source, name, None) if isinstance(source, section) else None
        now = section.model_fields[name].default if now is None else now
        column = found.fields.get(name)
        if name in given or (column is None and name in OPTIONAL.get(found.task, ())):
            continue
        if column != now and not (column is None and now in rows[0]):
            flags += [f"--task.{name}", column or "COLUMN"]
    return flags


def _instead(found: Found) -> str:
    """How the rows are learned by a task that is drafted, where one could be meant."""
    if not found.what:
        return ""
    if found.task == "kto":
        label = found.fields["label_field"]
        return (
            f"; to learn only the good answers, keep the rows whose {label} is true and give that file with "
            "--task.name causal_lm, which learns every answer that it is given"
        )
    if found.task == "dpo" and "prompt_field" in found.fields:
        columns = {"prompt_field": found.fields["prompt_field"], "completion_field": found.fields["chosen_field"]}
        flags = " ".join(f"--task.{name} {shlex.quote(column)}" for name, column in columns.items())
        return f"; or learn the better answers alone with `toolkit new` and {flags}"
    return ""
