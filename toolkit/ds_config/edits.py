"""What cures a finding for certain, as data: a key that is renamed, moved, removed or given another value."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from toolkit.ds_config.values import show


@dataclass(frozen=True)
class Edit:
    """One change of a configuration, which asks for nothing but what its author plainly wrote."""

    action: Literal["rename", "move", "remove", "write", "tidy"]
    where: str
    """Dotted key."""
    to: str = ""
    """Of a rename the new name, of a move the new dotted key."""
    value: Any = field(default=None, hash=False)
    """What is written."""
    count: int = 1
    """Of a key that stands several times: so many are removed, the last ones."""

    def below(self, prefix: str) -> Edit:
        """The same of a part of a file, whose dotted key is `prefix` with a dot behind it."""
        to = f"{prefix}{self.to}" if self.action == "move" else self.to
        return replace(self, where=f"{prefix}{self.where}", to=to)

    def __str__(self) -> str:
        if self.action == "rename":
            return f"{self.where} renamed {self.to!r}"
        if self.action == "move":
            return f"{self.where} moved to {self.to}"
        if self.action == "write":
            return f"{self.where}={show(self.value)} written"
        if self.action == "tidy":
            return "commas that nothing follows, and a byte-order mark, removed"
        return f"{self.where} removed" + (f", {self.count} times" if self.count > 1 else "")


def rename(where: str, name: str) -> Edit:
    """The key at `where` under another `name`, in its place."""
    return Edit("rename", where, to=name)


def move(where: str, to: str) -> Edit:
    """The key at `where`, with its value, at the dotted key `to`."""
    path, _, name = to.rpartition(".")
    return rename(where, name) if path == where.rpartition(".")[0] else Edit("move", where, to=to)


def remove(where: str, count: int = 1) -> Edit:
    """No key at `where`."""
    return Edit("remove", where, count=count)


def write(where: str, value: Any) -> Edit:
    """The key at `where` with `value`, whether it was there or not."""
    return Edit("write", where, value=value)


TIDY = Edit("tidy", "")
"""No comma that nothing follows and no byte-order mark: strict JSON, where these alone kept the text from it."""
