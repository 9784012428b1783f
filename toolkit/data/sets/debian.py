"""What Debian's package index says of 60,000 packages: titles, descriptions, their German translation and sections."""

from __future__ import annotations

import gzip
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from toolkit.data.sets.apt import DebianIndex
from toolkit.data.sets.rows import Row, Splits, split

INDEX = DebianIndex(languages=("en", "de"), download_bytes=17_000_000)
LICENCE = "not stated by the index: for use on this host"
_HELD_OUT = 0.1
_FEWEST_OF_A_SECTION = 100


@dataclass(frozen=True)
class Description:
    """What one package says of itself, in one language."""

    title: str
    """One line, without a period at its end."""
    paragraphs: tuple[str, ...]
    """Running text; lists and verbatim lines are in none of them."""


@dataclass(frozen=True)
class Package:
    """A package with a description that no package before it has."""

    source: str
    """The source package that it is built from, which its -dev, -doc and -common share."""
    section: str
    english: Description
    german: Description | None


def translations(index: Path) -> Splits:
    """{"en", "de"}: titles of packages, and paragraphs of their descriptions, in both languages.

    Paragraphs are pairs where both descriptions have the same number of them. Left out: what is longer than 80 words or
    more than twice as long as its counterpart, what is the same in both languages, and every English text but the first of
    the same words. A tenth of the source packages is held out, with all that is built from them.
    """
    rows: dict[str, tuple[str, Row]] = {}
    for package in packages(index):
        if package.german is None:
            continue
        pairs = [(package.english.title, package.german.title)]
        if len(package.english.paragraphs) == len(package.german.paragraphs):
            pairs += zip(package.english.paragraphs, package.german.paragraphs, strict=True)
        for english, german in pairs:
            if _is_translation(english, german):
                rows.setdefault(_key(english), (package.source, {"en": english, "de": german}))
    return split(rows.values(), _HELD_OUT)


def summaries(index: Path) -> Splits:
    """{"text", "summary"}: the description of a package, and its title.

    Descriptions of 20 to 300 words and titles of 3 words or more; of all descriptions with the same first paragraph or
    the same title, the first. A tenth of the source packages is held out, with all that is built from them.
    """
    rows: list[tuple[str, Row]] = []
    seen: set[str] = set()
    for package in packages(index):
        title, paragraphs = package.english.title, package.english.paragraphs
        text = "\n".join(paragraphs)
        fits = 20 <= len(text.split()) <= 300 and len(title.split()) >= 3
        if fits and seen.isdisjoint(keys := {_key(title), _key(paragraphs[0])}):
            seen |= keys
            rows += [(package.source, {"text": text, "summary": title})]
    return split(rows, _HELD_OUT)


def sections(index: Path) -> Splits:
    """{"text", "label"}: title and description of a package, and the section of Debian it is in.

    Sections of 100 texts or more; of all packages with the same title or the same first paragraph, the first. A
    tenth of the source packages is held out, with all that is built from them.
    """
    rows: list[tuple[str, Row]] = []
    seen: set[str] = set()
    for package in packages(index):
        title, paragraphs = package.english.title, package.english.paragraphs
        keys = {_key(title), *map(_key, paragraphs[:1])}
        if package.section and seen.isdisjoint(keys):
            seen |= keys
            rows += [(package.source, {"text": "\n".join((title, *paragraphs)), "label": package.section})]
    sizes = Counter(row["label"] for _, row in rows)
    return split((pair for pair in rows if sizes[pair[1]["label"]] >= _FEWEST_OF_A_SECTION), _HELD_OUT)


def pairs(index: Path) -> Splits:
    """{"anchor", "positive"}: the title of a package, and the first paragraph of its description.

    Paragraphs of 8 words or more and titles of 3 or more; of all packages with the same title or the same
    paragraph, the first. A tenth of the source packages is held out, with all that is built from them.
    """
    rows: list[tuple[str, Row]] = []
    seen: set[str] = set()
    for package in packages(index):
        title, first = package.english.title, next(iter(package.english.paragraphs), "")
        keys = {_key(title), _key(first)}
        if len(first.split()) >= 8 and len(title.split()) >= 3 and seen.isdisjoint(keys):
            seen |= keys
            rows += [(package.source, {"anchor": title, "positive": first})]
    return split(rows, _HELD_OUT)


def packages(index: Path) -> Iterator[Package]:
    """The packages of the `index` that DebianIndex.fetch left, by name, each description once."""
    english = {fields["Description-md5"]: fields["Description-en"] for fields in _stanzas(index / "Translation-en.gz")}
    german = {fields["Description-md5"]: fields["Description-de"] for fields in _stanzas(index / "Translation-de.gz")}
    seen = set()
    for fields in sorted(_stanzas(index / "Packages.gz"), key=lambda fields: fields["Package"]):
        digest = fields.get("Description-md5", "")
        if digest in english and digest not in seen:
            seen.add(digest)
            yield Package(
                source=fields.get("Source", fields["Package"]).split()[0],
                section=fields.get("Section", ""),
                english=description(english[digest]),
                german=description(german[digest]) if digest in german else None,
            )


def description(field: str) -> Description:
    """A description field: its first line is the title; " ." parts paragraphs, and lines with more blanks stay as set."""
    title, *lines = field.split("\n")
    paragraphs = []
    for block in re.split(r"\n \.(?=\n|$)", "\n" + "\n".join(lines)):
        kept = [line for line in block.split("\n") if line.strip()]
        # Two blanks at the start mean that a line is not to be filled; a dash or a star begins a list.
        if kept and not any(re.match(r"  |\s*[-*+o\u2022]\s", line) for line in kept):
            paragraphs += [" ".join(" ".join(kept).split())]
    return Description(" ".join(title.split()), tuple(paragraphs))


def _stanzas(file: Path) -> Iterator[dict[str, str]]:
    """The stanzas of an index: fields by name, with the lines that continue them."""
    with gzip.open(file, "rt", encoding="utf-8", errors="replace") as stream:
        fields: dict[str, str] = {}
        name = ""
        for line in stream:
            line = line.rstrip("\n")
            if not line:
                if fields:
                    yield fields
                fields = {}
            elif line[0] in " \t":
                fields[name] += "\n" + line
            else:
                name, _, value = line.partition(":")
                fields[name] = value.strip()
        if fields:
            yield fields


def _is_translation(english: str, german: str) -> bool:
    lengths = sorted((len(english.split()), len(german.split())))
    return 2 <= lengths[1] <= 80 and lengths[1] <= 2 * lengths[0] and _key(english) != _key(german)


def _key(text: str) -> str:
    """`text` without what does not make another text of it: case, digits, marks."""
    return " ".join(re.findall(r"[^\W\d_]+", text.lower()))
