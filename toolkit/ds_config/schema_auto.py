"""The value "auto": whose it is, and one finding for all that is left over.

Hugging Face replaces "auto" where its Trainer or accelerate knows the value; accelerate raises ValueError for every
other one in the file (accelerate/utils/dataclasses.py, DeepSpeedPlugin.fill_match), also where "auto" is a word of
DeepSpeed's own. DeepSpeed drops it for the default in some sections and stops at it in others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.ds_config.edits import remove
from toolkit.ds_config.findings import Finding
from toolkit.ds_config.schema_keys import Key
from toolkit.errors import first_few

ID = "leftover-auto"


@dataclass(frozen=True)
class Auto:
    """A key whose value is "auto"."""

    where: str
    key: Key

    @property
    def is_filled(self) -> bool:
        """Whether the Trainer or accelerate puts a value there."""
        return self.key.auto or self.key.accelerate

    @property
    def is_harmless_to_deepspeed(self) -> bool:
        """Whether "auto" is among DeepSpeed's own values here, or stands in a comment."""
        return "auto" in self.key.choices


COMMENT = Key("any", choices=("auto",))
"""A comment key, such as a section that was put out of action: DeepSpeed does not look into it, accelerate does."""


def holds_auto(value: Any) -> bool:
    """Whether `value` is "auto", or an object with "auto" somewhere in it."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if value == "auto":
            return True
        if isinstance(value, Mapping):
            waiting.extend(value.values())
    return False


def leftover(found: Sequence[Auto], *, for_trainer: bool) -> Iterator[Finding]:
    """At most three findings about the keys that are "auto", each naming all of its kind."""
    filled = [auto for auto in found if auto.is_filled]
    if filled and not for_trainer:
        yield _filled_elsewhere(filled)
    unfilled = [auto for auto in found if not auto.is_filled and not auto.is_harmless_to_deepspeed]
    if unfilled:
        yield _filled_by_nobody(unfilled, for_trainer=for_trainer)
    words = [auto for auto in found if auto.is_harmless_to_deepspeed and not auto.is_filled]
    # What else is "auto" shows that the file is meant for Hugging Face, with or without its arguments at hand.
    if words and (for_trainer or filled):
        yield _stops_accelerate(words)


def _filled_elsewhere(found: Sequence[Auto]) -> Finding:
    what = f"{_keys(found)}: only Hugging Face fills that in; DeepSpeed alone stops or takes its defaults"
    expected = found[0].key.describe() if len(found) == 1 else "values, or the arguments that they come from"
    do = "name the Trainer's arguments with --training-args FILE.json, or write the values"
    return Finding(found[0].where, ID, what, expected, do, "warning")


def _filled_by_nobody(found: Sequence[Auto], *, for_trainer: bool) -> Finding:
    reason = "Hugging Face does not fill that in and stops" if for_trainer else "nothing fills that in"
    expected = found[0].key.describe() if len(found) == 1 else "values"
    do = "write the value" if len(found) == 1 else "write the values, or remove the keys: DeepSpeed has defaults"
    # Where DeepSpeed itself takes its default for it, no key says the same.
    fix = tuple(remove(auto.where) for auto in found)
    return Finding(found[0].where, ID, f"{_keys(found)}: {reason}", expected, do, fix=fix)


def _stops_accelerate(found: Sequence[Auto]) -> Finding:
    what = f"{_keys(found)}: DeepSpeed takes that, but accelerate stops at it"
    do = "remove it, or write the value" if len(found) == 1 else "remove them, or write the values"
    fix = tuple(remove(auto.where) for auto in found if auto.key is not COMMENT)
    return Finding(found[0].where, ID, what, "another value; absent is the same", do, fix=fix)


def _keys(found: Sequence[Auto]) -> str:
    if len(found) == 1:
        return f'{found[0].where}="auto"'
    return f'{len(found)} keys are "auto" ({first_few([auto.where for auto in found], 12)})'
