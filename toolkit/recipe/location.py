"""Places on disk as users write them: "~" is the home folder, in every field and behind every flag."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator


def at_home(place: str) -> str:
    """`place` with a leading "~" or "~user" as the home folder; anything else, such as a hub name, as it is.

    A shell does this only where a word begins: `--output_dir=~/x` reaches us as it was typed. Raises ValueError when there
    is no such user, and for no text, which the shell makes of a variable that is not set and which would be the current folder.
    """
    if not place.strip():
        raise ValueError("a path: this one is empty, as of a shell variable that is not set")
    if not place.startswith("~"):
        return place
    try:
        return str(Path(place).expanduser())
    except RuntimeError:
        name = place.partition("/")[0]
        raise ValueError(f"a path: there is no user {name[1:]!r} here; a folder of that name is ./{name}") from None


def path(text: str) -> Path:
    """The path that `text` on a command line means. Raises ValueError as `at_home` does."""
    return Path(at_home(text))


Location = Annotated[str, AfterValidator(at_home)]
"""The type of a recipe field that may hold a path."""
