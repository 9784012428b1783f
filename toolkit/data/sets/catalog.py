"""Data sets by name: what each is, what it is made of, and where its files are once `toolkit fetch NAME` has made them."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Protocol

from rich.console import Console

from toolkit.cache import cache_dir
from toolkit.data.sets import (
    brown,
    captions,
    debian,
    docstrings,
    fashion,
    preferences,
    questions,
    rows,
    spam,
    voice_prompts,
)
from toolkit.data.sets.rows import Splits
from toolkit.errors import SourceAbsent, plural
from toolkit.install import install, is_installed


class Source(Protocol):
    """What rows are made of."""

    @property
    def pin(self) -> str:
        """Name and version."""

    @property
    def download_bytes(self) -> int:
        """What comes over the network, once for all data sets that are made of it; 0 for what is here."""

    @property
    def facts(self) -> tuple[str, ...]:
        """Lines for the README: hashes and dates. Known after `fetch`."""

    def fetch(self, console: Console) -> Path:
        """Put it into the cache, unless it is there, and return where."""


def _digest(*modules: ModuleType) -> str:
    contents = [Path(str(module.__file__)).read_bytes() for module in (*modules, rows)]
    return hashlib.sha256(b"\0".join(contents)).hexdigest()


_OF_DOCSTRINGS = (docstrings.LIBRARY, docstrings.LICENCE)
_OF_SPAM = (spam.PACKAGE, spam.LICENCE, _digest(spam))
_OF_BROWN = (brown.PACKAGE, brown.LICENCE, _digest(brown))
_OF_FASHION = (fashion.PACKAGE, fashion.LICENCE, _digest(fashion))
_OF_PROMPTS = (voice_prompts.PACKAGE, voice_prompts.LICENCE, _digest(voice_prompts))
_OF_CAPTIONS = (captions.PROGRAM, captions.LICENCE, _digest(captions))
_OF_DEBIAN = (debian.INDEX, debian.LICENCE, _digest(debian))


@dataclass(frozen=True)
class DataSet:
    """A data set with train.jsonl and test.jsonl."""

    about: str
    """One line for lists."""
    make: Callable[[Path], Splits]
    """From where the source is to the rows; its docstring says what the rows are and by which rule they are made."""
    source: Source
    licence: str
    code_sha256: str
    """Of the modules that make rows of the source, as they were when this program started: files may be replaced while it runs."""

    def stamp(self) -> dict[str, object]:
        """What SOURCE beside the files must say: the bytes follow from what is read and the code that reads it."""
        return {"about": self.about, "from": self.source.pin, "code_sha256": self.code_sha256}


DATA_SETS = {
    "python-docstrings": DataSet(
        "questions about the Python library and their answers, as chat messages",
        docstrings.instructions,
        *_OF_DOCSTRINGS,
        _digest(docstrings),
    ),
    "python-packages": DataSet(
        "docstrings of the Python library, labelled with their package",
        docstrings.packages,
        *_OF_DOCSTRINGS,
        _digest(docstrings),
    ),
    "docstring-preferences": DataSet(
        "questions about the Python library, each with a good and a spoilt answer",
        preferences.preferences,
        *_OF_DOCSTRINGS,
        _digest(docstrings, preferences),
    ),
    "docstring-feedback": DataSet(
        "questions about the Python library, each with one answer, labelled as good or bad",
        preferences.feedback,
        *_OF_DOCSTRINGS,
        _digest(docstrings, preferences),
    ),
    "docstring-questions": DataSet(
        "questions answered by a span of a page of docstrings, in the format of SQuAD",
        questions.questions,
        *_OF_DOCSTRINGS,
        _digest(docstrings, questions),
    ),
    "docstring-pairs": DataSet(
        "first paragraphs of docstrings and what follows them, as pairs for sentence embeddings",
        questions.pairs,
        *_OF_DOCSTRINGS,
        _digest(docstrings, questions),
    ),
    "spamassassin": DataSet("mails of 2002 to 2005, spam or ham, without their headers", spam.mails, *_OF_SPAM),
    "brown-corpus": DataSet(
        "passages of the Brown corpus, American English of 1961 in 15 genres, plain text", brown.passages, *_OF_BROWN
    ),
    "brown-tags": DataSet("sentences of the Brown corpus, each word with its class", brown.tags, *_OF_BROWN),
    "brown-names": DataSet(
        "sentences of the Brown corpus, with names, titles and numbers marked as B- and I-", brown.names, *_OF_BROWN
    ),
    "debian-en-de": DataSet(
        "titles and paragraphs about Debian's packages in English and German", debian.translations, *_OF_DEBIAN
    ),
    "debian-summaries": DataSet("descriptions of Debian's packages and their titles", debian.summaries, *_OF_DEBIAN),
    "debian-sections": DataSet(
        "titles and descriptions of Debian's packages, labelled with their section", debian.sections, *_OF_DEBIAN
    ),
    "debian-pairs": DataSet(
        "titles and first paragraphs of Debian's packages, as pairs for sentence embeddings", debian.pairs, *_OF_DEBIAN
    ),
    "fashion-mnist": DataSet("pictures of clothes in ten classes, 28 x 28 grey pixels", fashion.clothes, *_OF_FASHION),
    "voice-prompts": DataSet(
        "spoken numbers, days, months and letters in one voice, with their words", voice_prompts.prompts, *_OF_PROMPTS
    ),
    "rendered-captions": DataSet(
        "pictures of coloured shapes with questions about them, 48 x 48 pixels", captions.pictures, *_OF_CAPTIONS
    ),
}


def resolve(location: str) -> str:
    """Where the data `location` is: a name in DATA_SETS becomes its directory; a path and a hub name stay.

    Raises DataError for a name in DATA_SETS that this toolkit has not made of its source.
    """
    if location not in DATA_SETS or Path(location).exists():
        return location
    target = _directory(location)
    if not is_installed(target, DATA_SETS[location].stamp()):
        raise SourceAbsent(
            f"data set {location!r} is not fetched yet",
            expected=f"its files in {target}",
            do=f"run `toolkit fetch {location}`",
        )
    return str(target)


def fetch(name: str, console: Console) -> Path:
    """Make the data set `name`, one of DATA_SETS, unless it is there, and return its directory. Progress goes to `console`.

    Raises DataError for a source that cannot be had or has another hash, StorageError for a full disk.
    """
    data_set = DATA_SETS[name]
    install(_directory(name), data_set.stamp(), lambda out: _make(name, data_set, out, console))
    return _directory(name)


def _make(name: str, data_set: DataSet, out: Path, console: Console) -> None:
    source = data_set.source.fetch(console)
    with console.status(f"making {name}"):
        counts = rows.write(out, data_set.make(source))
    (out / "README.md").write_text(readme(name, data_set, counts), encoding="utf-8")


def readme(name: str, data_set: DataSet, counts: dict[str, int]) -> str:
    """What stands beside the rows: what they are, how many in each file, by which rule they are made, from what, and its licence."""
    parts = [
        f"# {name}",
        data_set.about[0].upper() + data_set.about[1:] + ".",
        f"Licence: {data_set.licence}.",
        *data_set.source.facts,
        "Rows: " + ", ".join(f"{file} {plural(count, 'row')}" for file, count in counts.items()) + ".",
        inspect.getdoc(data_set.make) or "",
    ]
    return "\n\n".join(parts) + "\n"


def _directory(name: str) -> Path:
    return cache_dir() / "data" / name
