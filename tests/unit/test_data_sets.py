"""Mails, the Brown corpus and Debian's index: small pieces in their own formats become the rows that each set promises."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest

from toolkit.data.sets import brown, debian, rows, spam, voice_prompts


def archive(path: Path, files: dict[str, str | bytes]) -> Path:
    """An archive as npm makes them."""
    with tarfile.open(path, "w:gz") as stream:
        for name, content in files.items():
            data = content if isinstance(content, bytes) else content.encode()
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            stream.addfile(member, io.BytesIO(data))
    return path


def everything(splits: rows.Splits):
    return [*splits["train"], *splits["test"]]


# Mails


PLAIN = "From: a@example.org\nX-Spam-Flag: YES\nSubject: offer\n\nBuy   this now\nand save a lot.\n"
HTML = (
    "Content-Type: multipart/mixed; boundary=cut\n\n--cut\nContent-Type: text/html; charset=iso-8859-1\n"
    "Content-Transfer-Encoding: quoted-printable\n\n<html><style>p {color: red}</style><p>Fr=FChling &amp; summer in "
    "one\n<b>free</b> offer<!-- hidden --></p></html>\n--cut\nContent-Type: text/plain; name=x\n"
    "Content-Disposition: attachment; filename=x.txt\n\nnot this\n--cut--\n"
)


def test_bodies_of_mails():
    assert spam.body(PLAIN.encode()) == "Buy this now and save a lot."
    assert spam.body(HTML.encode()) == "Fr\u00fchling & summer in one free offer"
    wrong = b"Content-Type: text/plain; charset=no-such\n\ncaf\xe9 \x00 au lait"
    assert spam.body(wrong) == "caf\u00e9 au lait"
    assert len(spam.body(b"\n\n" + b"word " * 5000)) == 8000


def test_mails_without_doubles_and_without_headers(tmp_path):
    mails = {
        "data/spam-1/1.txt": PLAIN,
        "data/spam-1/2.txt": PLAIN.replace("offer", "again").replace("lot.", "lot!! 7"),  # the same letters
        "data/easy-ham-1/1.txt": "Subject: minutes\n\nHere is what we said on Monday.",
        "data/hard-ham-1/1.txt": "Subject: x\n\nThis one bears both of the labels.",
        "data/spam-2/1.txt": "Subject: y\n\nThis one bears both of the labels.",
        "data/easy-ham-2/1.txt": "Subject: z\n\nToo short.",
        "data/easy-ham-2/1.json": "{}",
        "lib/index.js": "ham",
    }
    found = everything(spam.mails(archive(tmp_path / "mails.tgz", mails)))
    assert sorted((row["label"], row["text"]) for row in found) == [
        ("ham", "Here is what we said on Monday."),
        ("spam", "Buy this now and save a lot."),
    ]


# The Brown corpus


CA01 = """

\tThe/at Fulton/np-tl County/nn-tl Grand/jj-tl Jury/nn-tl said/vbd Friday/nr ``/`` he's/pps+bez not/* Pye's/np$ Ivan/np ''/'' ,/, 2/cd ;/. ;/.


\tHowl/fw-nn and/or/cc Mayor/nn-tl didn't/dod* --/---hl
"""


def brown_archive(tmp_path: Path) -> Path:
    files = {"cats.txt": "ca01 news\ncr09 humor\n", "ca01": CA01, "cr09": "Ha/uh !/. !/.\n", "README": "x/nn"}
    return archive(tmp_path / "brown.tgz", files)


def test_sentences_of_the_corpus(tmp_path):
    first, second, third = brown.sentences(brown_archive(tmp_path))
    assert (first.text, first.genre, third.text, third.genre) == ("ca01", "news", "cr09", "humor")
    assert first.words[-6:] == ("Pye's", "Ivan", '"', ",", "2", ";")  # a doubled mark is one
    assert second.words == ("Howl", "and/or", "Mayor", "didn't", "--")
    assert third.words == ("Ha", "!")


def test_word_classes(tmp_path):
    found = {row["words"][0]: row for row in everything(brown.tags(brown_archive(tmp_path)))}
    assert set(found) == {"The", "Howl", "Ha"}
    row = found["The"]
    assert set(row) == {"words", "tags", "genre"} and len(row["words"]) == len(row["tags"])
    assert " ".join(row["tags"]) == "DET NOUN NOUN ADJ NOUN VERB NOUN . PRON ADV NOUN NOUN . . NUM ."
    assert " ".join(found["Howl"]["tags"]) == "X CONJ NOUN VERB ."
    assert found["Ha"]["tags"] == ["X", "."]


def test_names_begin_and_go_on(tmp_path):
    found = {row["words"][0]: row for row in everything(brown.names(brown_archive(tmp_path)))}
    row = found["The"]
    marked = [f"{word}/{tag}" for word, tag in zip(row["words"], row["tags"], strict=True) if tag != "O"]
    # A possessive ends its name: the next one begins anew.
    assert marked == [
        "Fulton/B-NAME",
        "County/I-NAME",
        "Grand/I-NAME",
        "Jury/I-NAME",
        "Pye's/B-NAME",
        "Ivan/B-NAME",
        "2/B-NUMBER",
    ]
    assert found["Howl"]["tags"] == ["O", "O", "B-TITLE", "O", "O"]


def test_passages_are_running_text_of_one_document(tmp_path):
    found = {row["genre"]: row["text"] for row in everything(brown.passages(brown_archive(tmp_path)))}
    assert found == {
        "news": "The Fulton County Grand Jury said Friday \"he's not Pye's Ivan\", 2; Howl and/or Mayor didn't --",
        "humor": "Ha!",
    }
    long = "\n".join("one/cd " * 60 for _ in range(5))
    cut = brown.passages(archive(tmp_path / "long.tgz", {"cats.txt": "ca01 news", "ca01": long}))
    assert sorted(len(row["text"].split()) for row in everything(cut)) == [60, 120, 120]


# Debian


PACKAGES = """Package: alpha
Source: alpha-src (1.2)
Section: games
Description-md5: 1

Package: alpha-dbg
Source: alpha-src
Section: games
Description-md5: 1

Package: beta
Section: net
Description-md5: 2

Package: gamma
Section: net
Description-md5: 9
"""

ENGLISH = """Package: alpha
Description-md5: 1
Description-en: game of chess for one player
 A game of chess
 that one player plays against the
 machine, at any of nine strengths and with a book of openings.
 .
 Features:
  * a board
  * a clock
 .
 See the manual for all of it.

Package: beta
Description-md5: 2
Description-en: GNU
 Something.
"""

GERMAN = """Package: alpha
Description-md5: 1
Description-de: Schachspiel f\u00fcr einen Spieler
 Ein Schachspiel, das ein Spieler gegen die Maschine spielt, in neun St\u00e4rken und mit einem Buch der Er\u00f6ffnungen.
 .
 Alles steht im Handbuch.

Package: beta
Description-md5: 2
Description-de: GNU
 Etwas ganz anderes, das sehr viel l\u00e4nger ist als der Text.
"""


@pytest.fixture
def index(tmp_path: Path) -> Path:
    for name, text in {"Packages": PACKAGES, "Translation-en": ENGLISH, "Translation-de": GERMAN}.items():
        with gzip.open(tmp_path / f"{name}.gz", "wt", encoding="utf-8") as stream:
            stream.write(text)
    return tmp_path


def test_packages_of_an_index(index):
    alpha, beta = debian.packages(index)  # alpha-dbg says the same as alpha, gamma nothing
    assert (alpha.source, alpha.section, beta.source) == ("alpha-src", "games", "beta")
    assert alpha.english.title == "game of chess for one player"
    assert [paragraph.split()[0] for paragraph in alpha.english.paragraphs] == ["A", "See"]  # the list is no text
    assert alpha.german is not None and alpha.german.paragraphs[1] == "Alles steht im Handbuch."


def test_translations_are_titles_and_paragraphs(index):
    found = {row["en"]: row["de"] for row in everything(debian.translations(index))}
    assert list(map(len, found)) and set(found) == {
        "game of chess for one player",
        "A game of chess that one player plays against the machine, at any of nine strengths and with a book of openings.",
        "See the manual for all of it.",
    }
    assert found["See the manual for all of it."] == "Alles steht im Handbuch."


def test_summaries_and_pairs(index):
    [row] = everything(debian.summaries(index))
    assert row["summary"] == "game of chess for one player" and row["text"].endswith("\nSee the manual for all of it.")
    [pair] = everything(debian.pairs(index))
    assert pair["anchor"] == row["summary"] and row["text"].startswith(pair["positive"])


def test_sections_of_enough_packages(tmp_path):
    stanzas = [(f"p{number}", "games" if number < 120 else "net", word(number)) for number in range(140)]
    packages = "\n".join(
        f"Package: {name}\nSection: {section}\nDescription-md5: {name}\n" for name, section, _ in stanzas
    )
    english = "\n".join(
        f"Package: {name}\nDescription-md5: {name}\nDescription-en: {text} it\n The {text} of it.\n"
        for name, _, text in stanzas
    )
    for name, text in {"Packages": packages, "Translation-en": english, "Translation-de": ""}.items():
        with gzip.open(tmp_path / f"{name}.gz", "wt", encoding="utf-8") as stream:
            stream.write(text)
    splits = debian.sections(tmp_path)
    assert {row["label"] for row in everything(splits)} == {"games"} and len(everything(splits)) == 120
    assert {"text": "a it\nThe a of it.", "label": "games"} in everything(splits)
    assert 0 < len(splits["test"]) < 30


def word(number: int) -> str:
    """A different word for each number: digits do not make another text."""
    return "abcdefghij"[number % 10] + ("" if number < 10 else word(number // 10))


# Splits


def test_a_key_is_in_one_split_alone_and_the_order_is_mixed():
    pairs = [(f"document {number // 10}", {"row": number}) for number in range(2000)]
    splits = rows.split(pairs, held_out=0.1)
    documents = {name: {row["row"] // 10 for row in found} for name, found in splits.items()}
    assert documents["train"].isdisjoint(documents["test"]) and 10 <= len(documents["test"]) <= 30
    assert len(everything(splits)) == 2000
    order = [row["row"] for row in splits["train"]]
    assert order != sorted(order) and rows.split(reversed(pairs), held_out=0.1) == splits


# Voice prompts


def test_recordings_and_their_words(tmp_path):
    folder = tmp_path / "usr/share/asterisk/sounds/en_US_f_Allison"
    names = {
        "digits/7": "seven", "digits/14": "fourteen", "digits/70": "seventy", "digits/h-9": "ninth", "digits/h-12": "twelfth",
        "digits/h-14": "fourteenth", "digits/h-70": "seventieth", "digits/h-hundred": "hundredth", "digits/day-0": "sunday",
        "digits/mon-11": "december", "digits/a-m": "a m", "digits/oclock": "o'clock", "letters/b": "b",
        "letters/exclaimation-point": "exclamation point", "phonetic/9_p": "niner", "phonetic/x_p": "x-ray",
    }  # fmt: skip
    for name in [*names, "letters/ascii34", "digits/oh", "beep"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.wav").write_bytes(name.encode())
    found = voice_prompts.prompts(tmp_path)
    texts = {row["audio"]["path"]: row["text"] for row in everything(found)}
    assert texts == {f"{name}.wav": text for name, text in names.items()}
    assert all(row["audio"]["bytes"] == row["audio"]["path"].removesuffix(".wav").encode() for row in everything(found))
    assert not {row["text"] for row in found["train"]} & {row["text"] for row in found["test"]}
