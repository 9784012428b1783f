"""Questions about the Python library whose answers are spans of a page of docstrings, in the format of SQuAD; and pairs
of sentences about the same thing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from toolkit.data.sets.docstrings import Documented, split_of, standard_library
from toolkit.data.sets.rows import Row, Splits, share

_MOST_WORDS_OF_AN_ENTRY = 60
_MOST_WORDS_OF_A_PAGE = 220
_FEWEST_ENTRIES = 3
_MOST_WORDS_OF_AN_ANSWER = 25

# An answer begins where a sentence begins with the words of the question, and ends with the sentence.
_END = r"(?=[.;](?:\s|$)|$)"
_PATTERNS = (
    (
        "What does `{name}` return?",
        re.compile(rf"(?:^|[.;] )Returns? ((?:an? |the |True|False|None|whether |if ).*?){_END}"),
    ),
    (
        "When does `{name}` raise {0}?",
        re.compile(rf"\b[Rr]aises? (?:an? )?`*(\w+(?:Error|Exception|Warning))`* (?:if|when|unless) (.*?){_END}"),
    ),
)


def questions(root: Path) -> Splits:
    """{"id", "title", "context", "question", "answers"}, as in SQuAD 1.1.

    A context is a page: three or more functions of one class or module that follow one another, each as its name and the
    first 60 words of its docstring, 220 words at most. Asked are, of each function, what it does (answer: its first
    sentence), what it returns (what follows "Return" or "Returns" at the start of a sentence) and when it raises an error
    (what follows "Raise ValueError if"), in answers of 25 words at most. About one top-level module in ten is held out.
    """
    rows: dict[str, list[Row]] = {"train": [], "test": []}
    for page in pages(root):
        context = "\n".join(text for _, text in page)
        start = 0
        for item, text in page:
            for question, begin, answer in asked(item, text):
                rows[split_of(item.package)].append(
                    {
                        "id": f"{item.name}-{start + begin}",
                        "title": item.name.rpartition(".")[0],
                        "context": context,
                        "question": question,
                        "answers": {"text": [answer], "answer_start": [start + begin]},
                    }
                )
            start += len(text) + 1
    return {name: sorted(found, key=lambda row: share(f"order {row['id']}")) for name, found in rows.items()}


def pairs(root: Path) -> Splits:
    """{"anchor", "positive"}: the first paragraph of a docstring, and the rest of it.

    Paragraphs of 5 words or more; of the rest, the first 60 words. Of all docstrings with the same first or second half
    the first counts. About one top-level module in ten is held out.
    """
    rows: dict[str, list[Row]] = {"train": [], "test": []}
    seen: set[str] = set()
    for item in standard_library(root):
        first, _, rest = item.text.partition("\n\n")
        anchor, positive = " ".join(first.split()), " ".join(rest.split()[:_MOST_WORDS_OF_AN_ENTRY])
        if min(len(anchor.split()), len(positive.split())) >= 5 and seen.isdisjoint(both := {anchor, positive}):
            seen |= both
            rows[split_of(item.package)].append({"anchor": anchor, "positive": positive})
    return {name: sorted(found, key=lambda row: share(f"order {row['anchor']}")) for name, found in rows.items()}


def pages(root: Path) -> Iterator[list[tuple[Documented, str]]]:
    """Functions that stand together on a page, each with its text there."""
    functions = (item for item in standard_library(root) if item.signature is not None)
    for _, group in groupby(functions, key=lambda item: item.name.rpartition(".")[0]):
        page: list[tuple[Documented, str]] = []
        words = 0
        for item in {item.name: item for item in group}.values():  # a property and its setter have one name
            text = _head(item) + " ".join(item.text.split()[:_MOST_WORDS_OF_AN_ENTRY])
            length = len(text.split())
            if page and words + length > _MOST_WORDS_OF_A_PAGE:
                if len(page) >= _FEWEST_ENTRIES:
                    yield page
                page, words = [], 0
            page += [(item, text)]
            words += length
        if len(page) >= _FEWEST_ENTRIES:
            yield page


def asked(item: Documented, entry: str) -> Iterator[tuple[str, int, str]]:
    """What can be asked of `entry`, the text of `item` on its page: question, first character of the answer, answer."""
    begin = len(_head(item))
    text = entry[begin:]
    name = item.name.rpartition(".")[2]
    first = re.match(rf".+?{_END}", text)
    if first and 3 <= len(first[0].split()) <= _MOST_WORDS_OF_AN_ANSWER:
        yield f"What does `{name}` do?", begin, first[0]
    for question, pattern in _PATTERNS:
        for found in pattern.finditer(text):
            answer = found.group(pattern.groups)
            if 2 <= len(answer.split()) <= _MOST_WORDS_OF_AN_ANSWER:
                yield question.format(found[1], name=name), begin + found.start(pattern.groups), answer


def _head(item: Documented) -> str:
    """What stands before the docstring of `item` on a page."""
    return f"{item.name.rpartition('.')[2]}({item.signature}): "
