"""Apply the edits that findings carry to the text of the file, one by one, each proven by reading the text again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from toolkit.ds_config.config_file import ConfigFile
from toolkit.ds_config.edits import Edit
from toolkit.ds_config.findings import Finding
from toolkit.ds_config.places import NoMap, map_of_yaml
from toolkit.ds_config.rewrite import CannotEdit, Rewriter, applied
from toolkit.errors import ConfigError

MOST_ROUNDS = 8
"""A cure may uncover another fault: so often the file is checked anew."""
MOST_EDITS = 200
"""At a time: a file with more faults was written by no hand."""


@dataclass(frozen=True)
class Fixed:
    """A corrected file, what was done to it, and what remains to be done by hand."""

    file: ConfigFile
    done: tuple[Finding, ...]
    left: tuple[Finding, ...]


def fixed(file: ConfigFile, check: Callable[[ConfigFile], Sequence[Finding]]) -> Fixed:
    """`file` with what is certain among the findings of `check` corrected; those about other files stay as they are."""
    done: list[Finding] = []
    for _ in range(MOST_ROUNDS):
        made = len(done)
        for finding in check(file):
            if finding.file == file.name and finding.fix and len(done) < MOST_EDITS:
                better = _cured(file, finding.fix)
                if better is not None:
                    file, done = better, [*done, finding]
        if len(done) == made:
            break
    return Fixed(file, tuple(done), tuple(check(file)))


def _cured(file: ConfigFile, edits: Sequence[Edit]) -> ConfigFile | None:
    """`file` after `edits`; None where its text has no certain place for them, or would not mean what it shall."""
    rewriter = Rewriter(map_of_yaml, is_yaml=True) if file.is_yaml else Rewriter()
    for edit in edits:
        try:
            wanted = applied(file.data, file.map, edit)
            file = file.again(rewriter.edited(file.text, edit))
        except (CannotEdit, NoMap, ConfigError, KeyError, IndexError):
            return None
        if file.data != wanted:
            return None
    return file
