"""Where each key and each value of a configuration stands in its text: JSON, Hjson or YAML.

The values themselves are read by the libraries that DeepSpeed and accelerate read them with; this is only a map of the text.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import hjson
import yaml

Kind = Literal["object", "list", "value"]


@dataclass
class Node:
    """A value: `text[start:end]`, brackets and quotes included."""

    start: int
    end: int
    kind: Kind = "value"
    members: list[Member] = field(default_factory=list)

    @cached_property
    def by_name(self) -> dict[str, Member]:
        """Of a name that stands twice the last."""
        return {member.name: member for member in self.members}


@dataclass(slots=True)
class Member:
    """One pair of an object, or one item of a list, whose key is then its own first character."""

    name: str
    start: int
    """Where its key begins, or the item."""
    key_end: int
    node: Node
    comma: int = -1
    """Where the comma behind it stands; -1 where there is none."""


SPACE = re.compile(r"(?:[ \t\n\r]+|\#[^\r\n]*|//[^\r\n]*|/\*.*?\*/)*", re.DOTALL)
"""What may stand between two tokens: white space and Hjson's comments."""
QUOTED = re.compile(r"'''.*?'''|\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'", re.DOTALL)
# A word that ends at a bracket, a comma or a comment is a number or a name; every other runs to the end of its line.
WORD = re.compile(r"(?:true|false|null|-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d+)?)(?=[ \t]*(?:[,}\]#\r\n]|//|/\*|\Z))")
SIMPLE = re.compile(
    r'[ \t\n\r]*("[^"\\\n]*")[ \t]*:[ \t]*'
    r'("[^"\\\n]*"|true|false|null|-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d+)?)[ \t\n\r]*(,)'
)
"""A pair of JSON as almost all are, up to its comma: read at once, it takes a tenth of the time."""
LINE = re.compile(r"[^\r\n]*")
BARE_KEY = re.compile(r"[^\s:{}\[\],]+")
CUT = re.compile(r"[.\[]")
ITEM = re.compile(r"\[(\d+)\]\.?")

DEEPEST = 200
"""So many levels of a YAML text are followed; its anchors can make it endless."""


class NoMap(ValueError):
    """The text cannot be followed; its findings have no place."""


def map_of(text: str) -> Node:
    """The root of `text`, JSON or Hjson, that could be read. Raises NoMap where it cannot be followed."""
    at = SPACE.match(text, 1 if text.startswith("\ufeff") else 0).end()  # type: ignore[union-attr]  # matches always
    braced = text[at : at + 1] in ("{", "[")
    root = Node(at, len(text), "list" if text[at : at + 1] == "[" else "object")
    opened, at = [root], at + braced
    while opened:
        at = _one_more(text, at, opened, braced)
    return root


def _one_more(text: str, at: int, opened: list[Node], braced: bool) -> int:
    """Read one member of the innermost of `opened`, or its end; returns where to go on."""
    node = opened[-1]
    if node.kind == "object":
        at = _simple_pairs(text, at, node)
    at = _skip(text, at)
    if text[at : at + 1] == "," and node.members:
        node.members[-1].comma = at
        at = _skip(text, at + 1)
    mark = text[at : at + 1]
    if mark in ("}", "]") or (mark == "" and len(opened) == 1 and not braced):
        node.end = at + len(mark)
        opened.pop()
        return node.end
    name, start, key_end = str(len(node.members)), at, at
    if node.kind == "object":
        name, key_end = _key(text, at)
        at = _skip(text, key_end)
        if text[at : at + 1] != ":":
            raise NoMap(f"no colon at {at}")
        at = _skip(text, at + 1)
    if text[at : at + 1] in ("{", "["):
        inner = Node(at, at, "object" if text[at] == "{" else "list")
        opened.append(inner)
        node.members.append(Member(name, start, key_end, inner))
        return at + 1
    end = _value_end(text, at)
    node.members.append(Member(name, start, key_end, Node(at, end)))
    return end


def _simple_pairs(text: str, at: int, node: Node) -> int:
    while (pair := SIMPLE.match(text, at)) is not None:
        value = Node(pair.start(2), pair.end(2))
        node.members.append(Member(pair[1][1:-1], pair.start(1), pair.end(1), value, pair.start(3)))
        at = pair.end()
    return at


def _skip(text: str, at: int) -> int:
    return SPACE.match(text, at).end()  # type: ignore[union-attr]  # matches always


def _key(text: str, at: int) -> tuple[str, int]:
    quoted = QUOTED.match(text, at)
    if quoted is not None:
        return _unquoted(quoted.group()), quoted.end()
    bare = BARE_KEY.match(text, at)
    if bare is None:
        raise NoMap(f"no key at {at}")
    return bare.group(), bare.end()


def _unquoted(text: str) -> str:
    if "\\" not in text and text[:3] != "'''":
        return text[1:-1]
    try:
        return str(json.loads(text) if text[0] == '"' else hjson.loads(text))
    except ValueError as error:
        raise NoMap(str(error)) from None


def _value_end(text: str, at: int) -> int:
    found = QUOTED.match(text, at) or WORD.match(text, at)
    if found is not None:
        return found.end()
    line = LINE.match(text, at)
    assert line is not None  # matches always
    if not line.group():
        raise NoMap(f"no value at {at}")
    return at + len(line.group().rstrip())


def map_of_yaml(text: str) -> Node:
    """The root of the YAML `text`, that could be read. Raises NoMap where it cannot be followed."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise NoMap(str(error)) from None
    return Node(0, len(text), "object") if root is None else _of_yaml(root, 0)


def _of_yaml(node: Any, depth: int) -> Node:
    if depth > DEEPEST:
        raise NoMap("nested too deeply")
    start, end = node.start_mark.index, node.end_mark.index
    if isinstance(node, yaml.MappingNode):
        members = [
            Member(str(key.value), key.start_mark.index, key.end_mark.index, _of_yaml(value, depth + 1))
            for key, value in node.value
        ]
        return Node(start, end, "object", members)
    if isinstance(node, yaml.SequenceNode):
        items = [_of_yaml(item, depth + 1) for item in node.value]
        return Node(start, end, "list", [Member(str(n), i.start, i.start, i) for n, i in enumerate(items)])
    return Node(start, end)


def chain_to(root: Node, path: str) -> list[Member]:
    """The members that lead to the dotted `path`, as far as they are there; of a key that stands twice the last one."""
    chain: list[Member] = []
    node, rest = root, path
    while rest:
        found = _step(node, rest)
        if found is None:
            return chain
        member, rest = found
        chain.append(member)
        node = member.node
    return chain


def _step(node: Node, rest: str) -> tuple[Member, str] | None:
    if node.kind == "list":
        item = ITEM.match(rest)
        if item is None or int(item[1]) >= len(node.members):
            return None
        return node.members[int(item[1])], rest[item.end() :]
    # A key may have dots of its own: the longest that fits is meant.
    for end in [len(rest), *(cut.start() for cut in reversed(list(CUT.finditer(rest))))]:
        if rest[:end] in node.by_name:
            return node.by_name[rest[:end]], rest[end:].removeprefix(".")
    return None


def objects(root: Node, path: str = "") -> Iterator[tuple[str, Node]]:
    """Every object with its dotted path, in the order of the text."""
    waiting = [(path, root)]
    while waiting:
        where, node = waiting.pop()
        if node.kind == "object":
            yield where, node
        inner = [
            (
                f"{where}[{member.name}]"
                if node.kind == "list"
                else f"{where}.{member.name}"
                if where
                else member.name,
                member.node,
            )
            for member in node.members
            if member.node.kind != "value"
        ]
        waiting.extend(reversed(inner))


class Lines:
    """Offsets of a text as lines and columns, both counted from 1."""

    def __init__(self, text: str) -> None:
        self._starts = [0, *(found.end() for found in re.finditer(r"\n", text))]

    def of(self, offset: int) -> tuple[int, int]:
        """(line, column) of `offset`."""
        line = bisect_right(self._starts, offset)
        return line, offset - self._starts[line - 1] + 1
