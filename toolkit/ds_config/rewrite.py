"""Edits of a configuration as edits of its text: whatever they do not speak of stays as it stands, comments and layout too."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from toolkit.ds_config.edits import Edit
from toolkit.ds_config.places import QUOTED, SPACE, WORD, Member, Node, chain_to, map_of

BARE = re.compile(r"[A-Za-z_][\w.-]*")
"""A key that needs no quotes where the format asks for none."""


class CannotEdit(ValueError):
    """The text has a form in which the edit has no certain place."""


class Rewriter:
    """Edits texts of one format: `map_text` finds its keys, and YAML has no commas."""

    def __init__(self, map_text: Callable[[str], Node] = map_of, *, is_yaml: bool = False) -> None:
        self._map, self._is_yaml = map_text, is_yaml

    def edited(self, text: str, edit: Edit) -> str:
        """`text` after `edit`. Raises CannotEdit, or NoMap."""
        root = self._map(text)
        if edit.action == "write":
            return self._write(text, root, edit.where, json.dumps(edit.value, ensure_ascii=False))
        if edit.action == "tidy":
            return tidied(text, root)
        member, parent = _find(root, edit.where)
        if edit.action == "rename":
            if edit.to in parent.by_name:
                raise CannotEdit(f"{edit.to} is there already")
            return text[: member.start] + _named_like(text, member, edit.to) + text[member.key_end :]
        if edit.action == "move":
            value = text[member.node.start : member.node.end]
            if chain_to(root, edit.to)[-1:] and chain_to(root, edit.to)[-1].name == edit.to.rpartition(".")[2]:
                raise CannotEdit(f"{edit.to} is there already")
            text = self._write(text, root, edit.to, value, _comment_behind(text, member))
            return self.edited(text, Edit("remove", edit.where))
        for _ in range(edit.count):
            member, parent = _find(self._map(text), edit.where)
            text = self._remove(text, parent, member)
        return text

    def _write(self, text: str, root: Node, where: str, value: str, comment: str = "") -> str:
        path, _, name = where.rpartition(".")
        chain = chain_to(root, path) if path else []
        parent = chain[-1].node if chain else root
        if _joined(chain) != path:
            raise CannotEdit(f"there is no {path}")
        if parent.kind != "object":
            raise CannotEdit(f"{path} is no object")
        member = parent.by_name.get(name)
        if member is not None:
            old = text[member.node.start : member.node.end]
            return text[: member.node.start] + _as_written(old, value) + text[member.node.end :]
        return self._insert(text, parent, name, value, comment)

    def _insert(self, text: str, parent: Node, name: str, value: str, comment: str) -> str:
        line = "\r\n" if "\r\n" in text else "\n"
        if not parent.members:
            if text[parent.start : parent.end][:1] != "{" or text[parent.start + 1 : parent.end - 1].strip():
                raise CannotEdit("an object that holds comments alone, or nothing")
            return f'{text[: parent.start]}{{"{name}": {value}}}{text[parent.end :]}'
        last = parent.members[-1]
        pair = f"{_named_like(text, last, name)}: {value}"
        own_line = text[text.rfind("\n", 0, last.start) + 1 : last.start]
        is_flow = text[parent.start] == "{" if self._is_yaml else True
        if not is_flow:
            end = _end_of_line(text, max(last.node.start, _stripped_end(text, last.node)))
            return f"{text[:end]}{line}{' ' * len(own_line)}{pair}{comment}{text[end:]}"
        end, comma = last.node.end, "" if last.comma >= 0 or self._runs_to_its_line_end(text, last) else ","
        if own_line.strip() and not self._runs_to_its_line_end(text, last):
            after = last.comma + 1 if last.comma >= 0 else end
            return f"{text[:end]}{text[end:after]}{comma} {pair}{text[after:]}"
        after = last.comma + 1 if last.comma >= 0 else end
        rest = _end_of_line(text, after)
        if SPACE.fullmatch(text, after, rest) is None:  # the closing bracket stands on the same line
            rest, comment = after, ""
        return f"{text[:end]}{comma}{text[end:rest]}{line}{_blank(own_line)}{pair}{comment}{text[rest:]}"

    def _runs_to_its_line_end(self, text: str, member: Member) -> bool:
        """Whether the value is a Hjson text without quotes, to which a comma would belong."""
        node = member.node
        return node.kind == "value" and not QUOTED.match(text, node.start) and not WORD.match(text, node.start)

    def _remove(self, text: str, parent: Node, member: Member) -> str:
        if parent.kind != "object":
            raise CannotEdit("an item of a list")
        index = next(n for n, other in enumerate(parent.members) if other is member)
        before = parent.members[index - 1] if index else None
        after = parent.members[index + 1] if index + 1 < len(parent.members) else None
        end = _stripped_end(text, member.node) if self._is_yaml else member.node.end
        end = max(end, member.comma + 1)
        start, stop = text.rfind("\n", 0, member.start) + 1, _end_of_line(text, end)
        alone = not text[start : member.start].strip() and SPACE.fullmatch(text, end, stop) is not None
        if alone:
            cut = (start, stop + len(re.match(r"\r?\n?", text[stop:]).group()))  # type: ignore[union-attr]
        elif self._is_yaml and text[parent.start] != "{":
            raise CannotEdit("a key that shares its line")
        elif after is not None and (before is None or "\n" not in text[end : after.start]):
            cut = (member.start, after.start)
        else:
            cut = (_start_after(text, before, member), end)
        shortened = text[: cut[0]] + text[cut[1] :]
        if after is None and before is not None and before.comma >= 0 and member.comma < 0:
            shortened = shortened[: before.comma] + shortened[before.comma + 1 :]
        return shortened


def tidied(text: str, root: Node) -> str:
    """`text` without commas that nothing follows and without byte-order mark."""
    waiting, commas = [root], []
    while waiting:
        node = waiting.pop()
        if node.members and node.members[-1].comma >= 0:
            commas.append(node.members[-1].comma)
        waiting.extend(member.node for member in node.members)
    for comma in sorted(commas, reverse=True):
        text = text[:comma] + text[comma + 1 :]
    return text.removeprefix("\ufeff")


def _find(root: Node, where: str) -> tuple[Member, Node]:
    """The member at `where` and the object that holds it."""
    chain = chain_to(root, where)
    if not chain or _joined(chain) != where:
        raise CannotEdit(f"there is no {where}")
    return chain[-1], chain[-2].node if len(chain) > 1 else root


def _joined(chain: list[Member]) -> str:
    """The dotted key of the last of `chain`."""
    path = ""
    for member in chain:
        is_item = member.key_end == member.start  # a key has at least one character, an item of a list none
        path += f"[{member.name}]" if is_item else f".{member.name}" if path else member.name
    return path


def _named_like(text: str, member: Member, name: str) -> str:
    """`name` as a key, in quotes where the key of `member` has them or `name` needs them."""
    quoted = text[member.start] in "\"'" or not BARE.fullmatch(name)
    return json.dumps(name) if quoted else name


def _comment_behind(text: str, member: Member) -> str:
    """The comment that ends the line of `member`, with the space before it; it belongs to the key and moves with it."""
    end = max(_stripped_end(text, member.node), member.comma + 1)
    rest = text[end : _end_of_line(text, end)].rstrip()
    return rest if rest.strip() and SPACE.fullmatch(rest) else ""


def _as_written(old: str, value: str) -> str:
    """`value`, as its author wrote it where only quotes were too many: 3e-5, not 3e-05."""
    inner = old.strip("\"'").strip()
    try:
        same = inner != old and json.dumps(json.loads(inner)) == value
    except ValueError:
        return value
    return inner if same else value


def _end_of_line(text: str, at: int) -> int:
    found = re.compile(r"\r?\n|\Z").search(text, at)
    assert found is not None  # the end of the text is one
    return found.start()


def _stripped_end(text: str, node: Node) -> int:
    """A block of YAML ends where the next one begins."""
    return node.start + len(text[node.start : node.end].rstrip())


def _start_after(text: str, before: Member | None, member: Member) -> int:
    """Where to cut so that no white space is left in front of the bracket or key that follows."""
    if before is None:
        return member.start
    least = max(before.node.end, before.comma + 1)
    return least + len(text[least : member.start].rstrip(" \t")) if text[least : member.start].strip(" \t") else least


def _blank(own_line: str) -> str:
    """The indentation of a line."""
    return own_line[: len(own_line) - len(own_line.lstrip())]


def applied(data: Any, root: Node, edit: Edit) -> Any:
    """`data`, the value of the text whose map is `root`, as it shall be after `edit`; the proof of a rewritten text."""
    if edit.action == "tidy":
        return data
    names = [member.name for member in chain_to(root, edit.where)]
    if edit.action == "write":
        path = edit.where.rpartition(".")[0]
        chain = chain_to(root, path) if path else []
        return _changed(data, [m.name for m in chain], lambda o: {**o, edit.where.rpartition(".")[2]: edit.value})
    name = names[-1]
    held = _at(data, names)
    if edit.action == "rename":
        renamed = {name: edit.to}
        return _changed(data, names[:-1], lambda o: {renamed.get(key, key): value for key, value in o.items()})
    stays = sum(member.name == name for member in _find(root, edit.where)[1].members) > edit.count
    if edit.action in ("remove", "move") and not stays:
        data = _changed(data, names[:-1], lambda o: {key: value for key, value in o.items() if key != name})
    if edit.action == "move":
        path, _, new = edit.to.rpartition(".")
        return _changed(data, [m.name for m in chain_to(root, path)] if path else [], lambda o: {**o, new: held})
    return data


def _at(data: Any, names: list[str]) -> Any:
    for name in names:
        data = data[int(name)] if isinstance(data, list) else data[name]
    return data


def _changed(data: Any, names: list[str], change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    if not names:
        return change(data)
    if isinstance(data, list):
        return [_changed(item, names[1:], change) if n == int(names[0]) else item for n, item in enumerate(data)]
    return {key: _changed(value, names[1:], change) if key == names[0] else value for key, value in data.items()}
