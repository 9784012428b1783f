"""`toolkit check --fix`: the corrected file in the place of the old one, and a report of what was changed and what was not."""

from __future__ import annotations

import difflib
import json
import stat
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict

from toolkit.ds_config.config_file import ConfigFile
from toolkit.ds_config.file_text import STANDARD_INPUT, read_text
from toolkit.ds_config.findings import Finding
from toolkit.ds_config.fix import Fixed, fixed
from toolkit.errors import InputError, plural
from toolkit.storage import Remedy, storage_errors, write_together

KEPT = Remedy(
    "free space, then run it again: the file is as it was", "make it writable, then run it again: the file is as it was"
)
"""What to do where the corrected file cannot be written."""


def fix(file: ConfigFile, check: Callable[[ConfigFile], Sequence[Finding]]) -> Fixed:
    """Correct what is certain in `file`, and write it; standard input goes to standard output, corrected or not."""
    if file.path != STANDARD_INPUT:
        _must_be_writable(file)
    result = fixed(file, check)
    if file.path == STANDARD_INPUT:
        sys.stdout.write(result.file.text)
    elif result.done:
        if read_text(file.path, "the file as it was checked") != file.text:
            raise InputError(
                f"{file.path} was changed while it was checked: nothing was written",
                expected="a file that nobody writes to meanwhile",
                do="run the command again",
            )
        with storage_errors("writing the corrected file", file.path, KEPT):
            write_together({file.path: result.file.text})
    return result


def _must_be_writable(file: ConfigFile) -> None:
    mode = file.path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise InputError(
            f"{file.path} is no file that could be written: --fix",
            expected="a regular file, or - for standard input, whose corrected text goes to standard output",
            do="name the file itself",
        )
    # root may write to it all the same; whoever made it read-only did not want that.
    if not mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH):
        raise InputError(
            f"{file.path} is read-only: --fix",
            expected="a file that may be written",
            do=f"chmod u+w {file.path}, or: toolkit check - --fix < {file.path}",
        )


def report(before: ConfigFile, result: Fixed) -> str:
    """What was changed and why, as lines and as a unified diff; empty where nothing was."""
    if not result.done:
        return ""
    lines = [
        f"{found.file}:{found.line}: fixed: {'; '.join(map(str, found.fix))}, since {found.what}  [{found.rule}]"
        for found in result.done
    ]
    difference = difflib.unified_diff(
        before.text.splitlines(keepends=True),
        result.file.text.splitlines(keepends=True),
        before.name,
        f"{before.name} (fixed)",
    )
    text = "".join(line if line.endswith("\n") else f"{line}\n" for line in difference)
    return "\n".join([*lines, "", text])


def summary(result: Fixed) -> str:
    """The start of the last line."""
    return f"{plural(len(result.done), 'finding')} fixed, by hand: " if result.done else "nothing to fix, by hand: "


def as_json(result: Fixed) -> str:
    """What was fixed and what is left, as one object."""
    parts = {"fixed": result.done, "left": result.left}
    return json.dumps({name: [asdict(found) for found in of] for name, of in parts.items()}, indent=2)
