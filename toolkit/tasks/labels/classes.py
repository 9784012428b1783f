"""Which output of a classification head stands for which label of the data.

A trained head has an order of its own, and what the checkpoint says about it wins: labels are matched by name, then by
name without regard to case, then by number. As many classes under other names are refused until the recipe says which is
which, or that a new head is wanted; another number of other classes gets a new head, aloud.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from toolkit.errors import DataError, RecipeError, did_you_mean
from toolkit.tasks.base import NO_FIELDS

BOOLEANS = {"False": 0, "True": 1}
INTEGER = r"-?[0-9]{1,18}"
"""Longer ones are names: Python does not even read the longest."""
MOST_CLASSES = 10_000
"""More distinct labels than this are taken for a mistake in the field that names their column."""

SHOWN = 12
"""Most classes listed in a message."""


@dataclass(frozen=True)
class Head:
    """The classification head of a checkpoint."""

    size: int
    names: tuple[str, ...] | None
    """Of its outputs, in order; None where the checkpoint has only LABEL_0, LABEL_1, ..."""


@dataclass(frozen=True)
class Classes:
    """The classes of a run, in the order of the head's outputs."""

    names: tuple[str, ...]
    matched_by: Literal["name", "case", "number"] = "name"
    new_head: bool = True
    remark: str | None = None
    """One line for the user, where the head is not simply the data's."""
    _index: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_index", {name: index for index, name in enumerate(self.names)})
        if self.matched_by == "case":
            self._index.update({fold(name): index for index, name in enumerate(self.names)})

    def index(self, label: str) -> int | None:
        """The output for a label of the data, or None where it is none of the classes."""
        if self.matched_by == "number" and (found := number(label)) is not None:
            return found if 0 <= found < len(self.names) else None
        exact = self._index.get(label)
        return self._index.get(fold(label)) if exact is None and self.matched_by == "case" else exact

    def known(self, label: str, said: str, expected: str = "one of") -> int:
        """The output for a label; DataError, where it is none of the classes, of which `said` says where it stands."""
        index = self.index(label)
        if index is None:
            raise DataError(
                f"{said} does not occur in the training rows{did_you_mean(label, self.names)}",
                expected=f"{expected} {', '.join(self.names[:SHOWN])}",
                do="remove the row, or add the class to the training data; where data.evaluation_examples has held out all rows "
                "of the class, lower it or set another seed",
            )
        return index

    def spellings(self) -> list[str]:
        """A line for each group of classes that may be spellings of one."""
        return [
            f"note: {' and '.join(map(repr, names))} are classes of their own, apart by white space or case alone"
            for names in alike(self.names)
        ]

    def config(self) -> dict[str, Any]:
        """Fields of a model's config, so that the export knows their names."""
        return {
            "num_labels": len(self.names),
            "id2label": dict(enumerate(self.names)),
            "label2id": {name: index for index, name in enumerate(self.names)},
        }

    def describe(self) -> dict[str, Any]:
        """JSON-able, part of the prepared data's identity."""
        return {"classes": list(self.names), "matched_by": self.matched_by}


def head_of(config: Any, kind: str = "ForSequenceClassification") -> Head | None:
    """The classification head of this `kind` that a checkpoint with this config has; None where it has none."""
    architectures = getattr(config, "architectures", None) or []
    if not any(name.endswith(kind) for name in architectures):
        return None
    names = tuple(str(config.id2label.get(index)) for index in range(config.num_labels))
    by_name = sorted(config.label2id, key=lambda name: int(config.label2id[name]))
    if _is_default(names) and len(by_name) == len(names):
        names = tuple(by_name)
    described = len(set(names)) == len(names) and not _is_default(names)
    return Head(len(names), names if described else None)


def _is_default(names: Sequence[str]) -> bool:
    return list(names) == [f"LABEL_{index}" for index in range(len(names))]


def fold(label: str) -> str:
    """What two spellings of one name share."""
    return label.strip().casefold()


def number(label: str) -> int | None:
    """The integer that `label` is ("3", "True"; not "007"), or None."""
    if label in BOOLEANS:
        return BOOLEANS[label]
    return int(label) if re.fullmatch(INTEGER, label) and str(int(label)) == label else None


def in_order(labels: Iterable[str]) -> list[str]:
    """By number where all are numbers, else by name."""
    labels = list(labels)
    return sorted(labels, key=int) if all(_is_integer(label) for label in labels) else sorted(labels)


def _is_integer(label: str) -> bool:
    return label not in BOOLEANS and number(label) is not None


def match(
    labels: Sequence[str], head: Head | None, fields: Mapping[str, Any] = NO_FIELDS, field: str = "label_field"
) -> Classes:
    """The classes of a run whose data has `labels`, in the column that task.`field` names, on a checkpoint with `head`.

    `fields` is model.config: its id2label names the outputs of a head in the place of the checkpoint, its num_labels
    decides which head it is where that is in doubt. Raises DataError where the head may or may not be meant for the
    labels, RecipeError for a num_labels that fits neither.
    """
    wanted: int | None = fields.get("num_labels")
    head = _renamed(head, fields.get("id2label"))
    _check_wanted(labels, head, wanted)
    if head is None:
        return Classes(tuple(labels))
    if wanted is not None and wanted != head.size:
        return _new_head(labels, head)
    kept = _kept(labels, head, keep_size=wanted == head.size)
    if kept is not None:
        return kept
    _check_overlap(labels, head, field)
    if wanted is None and len(labels) == head.size:
        raise DataError(
            f"task.{field} has none of the classes of the checkpoint's head, but as many: {_listed(labels)}",
            expected=f"the classes of the checkpoint: {numbered(head.names or ())}",
            do="write the labels as the checkpoint does, or name its outputs as the data does, in their order, with "
            """model.config={'id2label': '{"0": ..., "1": ...}'}, """
            f"or set num_labels={head.size} in model.config to train a new head",
        )
    if wanted is not None and wanted != len(labels):
        raise RecipeError(
            f"model.config num_labels={wanted} keeps the checkpoint's head ({_listed(head.names or ())}), whose classes are not the data's: {_listed(labels)}",
            expected="labels that the head knows, by name or by number",
            do=f"rename the labels, or set num_labels={len(labels)} for a new head",
        )
    return _new_head(labels, head)


def _renamed(head: Head | None, id2label: Any) -> Head | None:
    """`head` with the names that the recipe gives its outputs, if it gives each of them one."""
    if head is None or not isinstance(id2label, Mapping):
        return head
    numbers = [str(index) for index in range(head.size)]
    if id2label.keys() != {*numbers} or len({*id2label.values()}) < head.size:
        return head
    return replace(head, names=tuple(str(id2label[index]) for index in numbers))


def _check_wanted(labels: Sequence[str], head: Head | None, wanted: int | None) -> None:
    sizes = sorted({len(labels), *([head.size] if head else [])})
    if wanted is not None and wanted not in sizes:
        raise RecipeError(
            f"model.config num_labels={wanted}; the data has {len(labels)} classes: {_listed(labels)}",
            expected=" or ".join(map(str, sizes)),
            do="take num_labels out of model.config: it follows from the data and the checkpoint",
        )


def _kept(labels: Sequence[str], head: Head, *, keep_size: bool) -> Classes | None:
    """The checkpoint's classes, where it is known which label is which of them."""
    names = head.names or tuple(f"LABEL_{index}" for index in range(head.size))
    if set(labels) <= set(names):
        return _keep(names, "name", labels, "")
    folded = {fold(name) for name in names}
    is_clear = len(folded) == len(names) and len({fold(label) for label in labels}) == len(labels)
    if is_clear and {fold(label) for label in labels} <= folded:
        return _keep(names, "case", labels, ", matched without regard to case")
    numbers = {number(label) for label in labels}
    # Numbers that run from 0 without a gap but end early are those of another set of classes, unless it is said.
    are_theirs = keep_size or len(labels) == head.size or numbers != set(range(len(labels)))
    if numbers <= set(range(head.size)) and are_theirs:
        by_number = labels if len(labels) == head.size else map(str, range(head.size))
        return _keep(
            head.names or tuple(by_number), "number", labels, ", the data's numbers taken for the checkpoint's"
        )
    if head.names is None and len(labels) == head.size:
        how = "; the checkpoint does not name its classes, so this order is a guess: name them in its config.json (id2label) if it is another"
        return Classes(tuple(labels), "name", False, f"head kept: {numbered(labels)}{how}")
    return None


def _keep(names: tuple[str, ...], by: Literal["name", "case", "number"], labels: Sequence[str], how: str) -> Classes:
    classes = Classes(names, by, new_head=False)
    present = {classes.index(label) for label in labels}
    absent = [name for index, name in enumerate(names) if index not in present]
    missing = f"; not in the training rows: {_listed(absent)}" if absent else ""
    remark = f"head kept, with the checkpoint's order: {numbered(names)}{how}{missing}"
    return Classes(names, by, False, remark)


def _check_overlap(labels: Sequence[str], head: Head, field: str) -> None:
    known = {fold(name) for name in head.names or ()}
    if head.names is not None and all(map(_is_integer, labels)) and len(labels) == head.size:
        # As many numbers as classes, but not 0, 1, 2, ...: counted from 1, most likely.
        known |= {label for label in labels if 0 <= int(label) < head.size}
    foreign = [label for label in labels if fold(label) not in known]
    if not foreign or len(foreign) == len(labels):
        return
    other = len(labels) != head.size
    raise DataError(
        f"task.{field} has classes that the checkpoint's head does not have: {_listed(foreign)} (all: {_listed(labels)})",
        expected=f"the classes of the checkpoint: {numbered(head.names or ())}",
        do="write the labels as the checkpoint does"
        + (f", or set num_labels={len(labels)} in model.config to train a new head" if other else ""),
    )


def _new_head(labels: Sequence[str], head: Head) -> Classes:
    theirs = f" ({_listed(head.names)})" if head.names else ""
    size = f"{head.size} classes" if len(labels) == head.size else f"{head.size}"
    remark = f"new head: {len(labels)} classes ({_listed(labels)}) instead of the checkpoint's {size}{theirs}"
    return Classes(tuple(labels), "name", True, remark)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def alike(names: Iterable[str]) -> list[list[str]]:
    """Groups of `names` that are spellings of one name."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(fold(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def numbered(names: Sequence[str]) -> str:
    """`names` with their places, the first few of them."""
    return _listed([f"{index} = {name}" for index, name in enumerate(names)])
