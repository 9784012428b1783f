"""Short recordings of one voice: Debian's package of the prompts that Asterisk, a telephone exchange, plays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from toolkit.data.sets.apt_package import DebianPackage
from toolkit.data.sets.rows import Row, Splits, split

PACKAGE = DebianPackage(
    name="asterisk-core-sounds-en-wav",
    version="1.6.1-1",
    sha256="2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d",
    download_bytes=18_272_864,
    unpacked_bytes=24_000_000,
)
LICENCE = "CC-BY-SA-3.0, recorded by Allison Smith, says the package"
HELD_OUT = 0.16
_FOLDER = "usr/share/asterisk/sounds/en_US_f_Allison"

_BELOW_20 = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
    "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_ORDINALS = {
    "one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth", "twelve": "twelfth",
}  # fmt: skip
_DAYS = ("sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday")
_MONTHS = (
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november", "december",
)  # fmt: skip
_SPELLING = (
    "alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliet", "kilo", "lima", "mike",
    "november", "oscar", "papa", "quebec", "romeo", "sierra", "tango", "uniform", "victor", "whiskey", "x-ray", "yankee", "zulu",
)  # fmt: skip
_HEARD_AS_ANOTHER = "oh"
"""The digit, which sounds like the letter o."""
_SPOKEN = {"a-m": "a m", "p-m": "p m", "oclock": "o'clock", "exclaimation-point": "exclamation point"}


def prompts(root: Path) -> Splits:
    """{"audio": {"bytes", "path"}, "text"}: recordings at 8 kHz of about a second, and what is said in lower-case words.

    The package has no transcripts: taken are numbers, ordinals, days, months, letters and the words that spell them, of
    which the file's name says all. Texts are held out by their hash, in all recordings of them.
    """
    folder = root / _FOLDER
    named = split(
        ((text, {"path": str(path.relative_to(folder)), "text": text}) for path, text in spoken(folder)), HELD_OUT
    )
    return {name: [_with_sound(row, folder) for row in rows] for name, rows in named.items()}


def _with_sound(row: Row, folder: Path) -> Row:
    return {"audio": {"bytes": (folder / row["path"]).read_bytes(), "path": row["path"]}, "text": row["text"]}


def spoken(folder: Path) -> Iterator[tuple[Path, str]]:
    """Each recording whose name says its words, with these."""
    for path in sorted((folder / "digits").glob("*.wav")):
        if path.stem != _HEARD_AS_ANOTHER:
            yield path, _number(path.stem)
    for path in sorted((folder / "letters").glob("*.wav")):
        if not path.stem.startswith("ascii"):  # named by its code, and read in one of several ways
            yield path, _SPOKEN.get(path.stem, path.stem)
    for path in sorted((folder / "phonetic").glob("*_p.wav")):
        letter = path.stem[0]
        yield path, "niner" if letter == "9" else _SPELLING[ord(letter) - ord("a")]


def _number(name: str) -> str:
    """The words of a file in digits/: 7, h-7 (seventh), day-0, mon-0, or a word."""
    kind, _, rest = name.rpartition("-")
    if name.isdigit():
        return _cardinal(int(name))
    if kind == "day":
        return _DAYS[int(rest)]
    if kind == "mon":
        return _MONTHS[int(rest)]
    if kind == "h":
        return _ordinal(_cardinal(int(rest)) if rest.isdigit() else rest)
    return _SPOKEN.get(name, name)


def _cardinal(number: int) -> str:
    return _BELOW_20[number] if number < len(_BELOW_20) else _TENS[number // 10 - 2]


def _ordinal(word: str) -> str:
    return _ORDINALS.get(word) or (f"{word.removesuffix('y')}ieth" if word.endswith("y") else f"{word}th")
