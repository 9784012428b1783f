"""Images in conversations: where they stand in the messages, and which they are.

A message stays one text in which a mark stands for each image, so that all that is known of texts (roles, masks, where an
answer begins) holds for it; for the chat template the marks become parts again (`as_parts`).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from toolkit.data.forms.messages import TEXTS, Conversation
from toolkit.errors import DataError, plural

IMAGE = "\ue0a4\ue0a5\ue0a6"
"""Stands for an image in a message. Characters for private use: no text of a data set has them in this order."""
BETWEEN = "\ue0a4\ue0a6\ue0a5"
"""Between two parts of text, which a template may part by more than nothing."""
PLACEHOLDER = "<image>"
"""What LLaVA's files, and many since, write in a text where an image stands."""
KINDS = ("image", "image_url", "input_image")
"""Types of parts that are images: the usual one, and OpenAI's two."""
VALUES = ("image", "path", "url", "image_url", "bytes")
"""Keys under which such a part may have its image."""
SENDER = ("user", "human")

_MARKS = re.compile(f"({IMAGE}|{BETWEEN})")


@dataclass(frozen=True)
class Placed:
    """An image as a row has it."""

    where: str
    """In the words of an error."""
    value: Any


@dataclass(frozen=True)
class Illustrated:
    """A conversation with marks, and the images that they stand for, in their order."""

    conversation: Conversation
    images: list[Placed]
    names_no_place: bool = False
    """Whether the row does not say where its images stand: they are before its first question."""


def as_parts(text: str) -> list[dict[str, str]] | None:
    """The parts of a message with marks, as templates take them; None for a text without any."""
    pieces = _MARKS.split(text)
    if len(pieces) == 1:
        return None
    return [
        {"type": "image"} if piece == IMAGE else {"type": "text", "text": piece}
        for piece in pieces
        if piece and piece != BETWEEN
    ]


def illustrated(conversation: Conversation, images: Sequence[Placed]) -> Illustrated:
    """`conversation`, whose row has `images` in columns of their own, in their order.

    Raises DataError where there are more places than images or fewer. Where no message names a place, the images stand
    before the first question, as in TRL.
    """
    marker = _Marker()
    labelled = zip(conversation.messages, conversation.labels, strict=True)
    messages = [marker.message(message, label) for message, label in labelled]
    count = marker.found.count(None)
    if not marker.found and images:
        messages = _before_the_first_question(messages, len(images))
        return Illustrated(replace(conversation, messages=messages), list(images), names_no_place=True)
    if count != len(images):
        own = len(marker.found) - count
        raise DataError(
            f"{conversation.where} has {plural(count, 'place')} for images of the row's own columns"
            f"{f' (and {own} with an image in the message)' if own else ''}, and there {'is' if len(images) == 1 else 'are'} "
            f"{plural(len(images), 'image')}",
            expected="as many images as places, in the same order",
            do=f"correct the row: {PLACEHOLDER} in a text, or a part of the type 'image', is the place of one image",
        )
    rest = iter(images)
    placed = [next(rest) if own is None else own for own in marker.found]
    return Illustrated(replace(conversation, messages=messages), placed)


class _Marker:
    """Puts marks into messages, one after the other."""

    def __init__(self) -> None:
        self.found: list[Placed | None] = []
        """The images of the places so far; None for one of the row's own columns."""

    def message(self, message: object, label: str) -> object:
        """`message` with one text as its content; as it is where it has none, for others to say so."""
        if not isinstance(message, Mapping):
            return message
        key = "value" if message.get("role") is None and isinstance(message.get("value"), str) else "content"
        content = message.get(key)
        if isinstance(content, str):
            return {**message, key: self._text(content)}
        if not isinstance(content, list | tuple) or not all(map(_is_known, content)):
            return message
        return {**message, key: self._parts(content, f"{label}.{key}")}

    def _text(self, text: str) -> str:
        pieces = text.split(PLACEHOLDER)
        self.found += [None] * (len(pieces) - 1)
        return IMAGE.join(_without_edges(pieces))

    def _parts(self, parts: Sequence[Any], where: str) -> str:
        said = ""
        for index, part in enumerate(parts):
            if isinstance(part, Mapping) and part.get("type") in KINDS:
                value = _value(part)
                self.found.append(None if value is None else Placed(f"{where}[{index}]", value))
                said += IMAGE
                continue
            text = self._text(part if isinstance(part, str) else part["text"])
            said += (BETWEEN if said and not said.endswith(IMAGE) else "") + text
        return said


def _is_known(part: object) -> bool:
    if isinstance(part, str):
        return True
    if not isinstance(part, Mapping):
        return False
    kind = part.get("type", "text")
    return kind in KINDS or (kind in TEXTS and isinstance(part.get("text"), str))


def _without_edges(pieces: list[str]) -> Iterator[str]:
    """`pieces` between placeholders, without the white space that parts text from images at both ends of a message.

    "<image>\\nWhat is this?" is an image and a question; the template decides what stands between them.
    """
    if len(pieces) == 1:
        yield from pieces
        return
    texts = [index for index, piece in enumerate(pieces) if piece.strip()]
    first, last = (texts[0], texts[-1]) if texts else (len(pieces), -1)
    for index, piece in enumerate(pieces):
        if not piece.strip() and (index < first or index > last):
            yield ""
            continue
        piece = piece.lstrip() if index == first and index > 0 else piece
        yield piece.rstrip() if index == last and index < len(pieces) - 1 else piece


def _value(part: Mapping[str, Any]) -> Any:
    """The image in `part`; None where it only marks a place."""
    if part.get("bytes") is not None:
        return {"bytes": part["bytes"], "path": part.get("path")}
    value = next((part[key] for key in VALUES if part.get(key) not in (None, "")), None)
    if isinstance(value, Mapping) and "url" in value:
        value = value["url"]
    return value


def _before_the_first_question(messages: list[object], count: int) -> list[object]:
    for index, message in enumerate(messages):
        if isinstance(message, Mapping):
            for role, key in (("role", "content"), ("from", "value")):
                if message.get(role) in SENDER and isinstance(message.get(key), str):
                    asked = {**message, key: IMAGE * count + message[key]}
                    return [*messages[:index], asked, *messages[index + 1 :]]
    raise DataError(
        f"there {'is' if count == 1 else 'are'} {plural(count, 'image')}, and no message names a place for images",
        expected="a message of the user, before whose text they stand, or their places in the messages",
        do=f"write {PLACEHOLDER}, or a part of the type 'image', where each image stands",
    )


def encoded(value: Any, where: str) -> Any:
    """`value` with what an address of the kinds data: and file: stands for in its place."""
    if not isinstance(value, str):
        return value
    if value.startswith("file://"):
        return value.removeprefix("file://")
    if not value.startswith("data:"):
        return value
    head, _, content = value.partition(",")
    try:
        if not head.endswith(";base64"):
            raise ValueError("it is not base64")
        return base64.b64decode(content, validate=True)
    except (ValueError, binascii.Error) as error:
        raise DataError(
            f"{where} is {value[:40]!r}...: {error}",
            expected="data:image/...;base64, and the bytes of the image",
            do="write it in that form, or the path of a file",
        ) from None
