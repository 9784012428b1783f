"""What a text file says is what is read: its marks, its compression, its separators; and the true cause where it is not read."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import os
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import datasets
import pyarrow
import pytest

from tests.unit.test_data_sources import ROWS, content, opened, refused, write
from toolkit.data.reading.sources import open_source

JSON_ROWS = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
BOTH = pytest.mark.parametrize("streaming", [False, True])


def arrow(codec: str):
    def compress(data: bytes) -> bytes:
        sink = pyarrow.BufferOutputStream()
        with pyarrow.CompressedOutputStream(sink, codec) as stream:
            stream.write(data)
        return sink.getvalue().to_pybytes()

    return compress


COMPRESS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": arrow("zstd"),
    ".lz4": arrow("lz4"),
}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".txt"])
def test_compressed_files_are_read(tmp_path, kind, suffix):
    plain = write(tmp_path / f"rows{kind}", ROWS * 100)
    path = tmp_path / f"new{kind}{suffix}"
    path.write_bytes(COMPRESS[suffix](plain.read_bytes()))
    for streaming in (False, True):
        assert list(opened(path, tmp_path, streaming=streaming)) == ROWS * 100
    if kind == ".jsonl":  # files that were compressed apart and joined, as parallel compressors do
        path.write_bytes(b"".join(COMPRESS[suffix](plain.read_bytes()) for _ in range(3)))
        assert list(opened(path, tmp_path)) == ROWS * 300


def test_a_frame_without_data_before_the_first_one(tmp_path):
    path = tmp_path / "rows.jsonl.zst"
    path.write_bytes(b"\x50\x2a\x4d\x18\x04\0\0\0size" + COMPRESS[".zst"](JSON_ROWS))
    assert list(opened(path, tmp_path)) == ROWS


@BOTH
@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_files_that_break_off(tmp_path, suffix, streaming):
    path = tmp_path / f"rows.jsonl{suffix}"
    whole = COMPRESS[suffix](
        os.urandom(0) + "".join(json.dumps({"text": os.urandom(20).hex()}) + "\n" for _ in range(5000)).encode()
    )
    path.write_bytes(whole[: len(whole) // 2])
    message = refused(path, tmp_path, streaming=streaming)
    assert (
        message.startswith(f"data.train={str(path)!r} breaks off: its end is missing")
        and "download it again" in message
    )
    if suffix in (".lz4", ".zst"):  # without a checksum, as Arrow writes them
        return
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 0xFF] * 8) + whole[middle + 8 :])
    assert "is damaged: " in refused(path, tmp_path, streaming=streaming)


@pytest.mark.parametrize(
    ("name", "written", "said", "do"),
    [
        ("rows.jsonl.gz", COMPRESS[".zst"](JSON_ROWS), "is compressed (zstd), and its name says gzip", "rename it to rows.jsonl.zst"),
        ("rows.jsonl.gz", JSON_ROWS, "is not compressed, or not with gzip", "rename it to rows.jsonl if it is plain"),
        ("rows.csv", COMPRESS[".xz"](b"text\na\n"), "is compressed (xz), and its name does not say so", "rename it to rows.csv.xz"),
        ("rows.jsonl.gz", b"PK\x03\x04more", "is a zip archive by its content", "unpack it: unzip {path} -d {folder}/rows"),
        ("rows.jsonl", b"PK\x03\x04more", "is a zip archive by its content", "unpack it: unzip {path} -d {folder}/rows"),
        ("rows.zip", b"PK\x03\x04more", "is an archive of files", "unpack it, then give the folder or a file in it: unzip {path} -d {folder}/rows"),
        ("rows.tar", b"more", "is an archive of files", "mkdir {folder}/rows && tar -xf {path} -C {folder}/rows"),
        ("rows.tar.gz", gzip.compress(b"more"), "is an archive of files", "mkdir {folder}/rows && tar -xf {path} -C {folder}/rows"),
        ("rows.tgz", gzip.compress(b"more"), "is an archive of files", "mkdir {folder}/rows && tar -xf {path} -C {folder}/rows"),
        ("rows.parquet.gz", gzip.compress(b"more"), "is a Parquet file that was compressed once more (gzip)", "decompress it"),
        ("rows.gz", gzip.compress(JSON_ROWS), "ends in '.gz' without what it holds before it", "for instance rows.jsonl.gz"),
        ("rows.csv.gz", gzip.compress(b""), "has no rows", "check how the file was written"),
    ],
)  # fmt: skip
def test_compression_under_another_name(tmp_path, name, written, said, do):
    path = tmp_path / name
    path.write_bytes(written)
    message = refused(path, tmp_path)
    assert said in message and do.format(path=path, folder=tmp_path) in message
    assert f"data.train={str(path)!r}" in message


def test_compressed_files_of_a_directory_and_of_a_pattern(tmp_path):
    for name, rows in (
        ("train-0.jsonl.gz", ROWS[:1]),
        ("train-1.jsonl.gz", ROWS[1:]),
        ("apples_test.jsonl.gz", ROWS[:2]),
    ):
        plain = write(tmp_path / "plain.jsonl", rows)
        (tmp_path / "set").mkdir(exist_ok=True)
        (tmp_path / "set" / name).write_bytes(gzip.compress(plain.read_bytes()))
    assert list(opened(tmp_path / "set", tmp_path)) == ROWS
    assert list(opened(tmp_path / "set", tmp_path, split="test", field="data.evaluation")) == ROWS[:2]
    assert list(opened(tmp_path / "set" / "train-*.jsonl.gz", tmp_path, streaming=True)) == ROWS
    message = refused(tmp_path / "set", tmp_path, split="dev")
    assert f"data.train='{tmp_path / 'set'}/**/*.jsonl.gz'" in message
    assert "did you mean 'train-0.jsonl.gz'?" in refused(tmp_path / "set" / "train0.jsonl.gz", tmp_path)
    write(tmp_path / "set" / "train-0.jsonl", ROWS[:1])
    message = refused(tmp_path / "set", tmp_path)
    assert "train-0.jsonl' and " in message and "each file once, compressed or not" in message


def test_an_archive_beside_files_is_left_out_and_said_and_alone_is_refused(tmp_path):
    from toolkit.data.reading.sources import open_source

    write(tmp_path / "set" / "train.jsonl")
    (tmp_path / "set" / "more.tar.gz").write_bytes(gzip.compress(b"x"))
    source = open_source(str(tmp_path / "set"), split="train", cache_dir=tmp_path / "cache")
    assert source.left_out == (tmp_path / "set" / "more.tar.gz",) and list(source.rows) == ROWS
    (tmp_path / "set" / "train.jsonl").unlink()
    message = refused(tmp_path / "set", tmp_path)
    assert "holds no data file, but an archive: more.tar.gz" in message and "unpack it: mkdir" in message


@BOTH
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-be", "utf-32-le"])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".txt"])
def test_a_byte_order_mark_is_never_read_as_text(tmp_path, suffix, encoding, streaming):
    plain = write(tmp_path / f"rows{suffix}").read_text()
    marks = "\ufeff" if encoding != "utf-16" else ""  # which writes its own
    (tmp_path / f"rows{suffix}").write_bytes((marks + plain).encode(encoding))
    assert list(opened(tmp_path / f"rows{suffix}", tmp_path, streaming=streaming)) == ROWS
    if suffix != ".json":  # as if `cat` had joined two files, each with its mark
        header = "text\n" if suffix == ".csv" else ""
        joined = "\ufeff" + plain + "\ufeff" + plain.removeprefix(header)
        (tmp_path / f"joined{suffix}").write_bytes(joined.encode())
        assert list(opened(tmp_path / f"joined{suffix}", tmp_path, streaming=streaming)) == ROWS * 2


@BOTH
@pytest.mark.parametrize(
    ("name", "written", "said", "do"),
    [
        ("a.txt", b"one\ntwo \0\0\0\nthree\n", "line 2 holds NUL, a character of no text", "write the file anew"),
        ("a.csv", b"text\na\n" + b"\0" * 512, "line 3 holds NUL", "remove that line"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\0"}\n', "line 2 holds NUL", "remove that line"),
        ("a.txt", "one\nt\u00e9".encode()[:-1], "line 2 ends in the middle of a character: the file was cut off", "copy it again"),
        ("a.txt", b"one\n\x93two\x94\n", "line 2 is not UTF-8 text (byte 0x93)", "iconv -f windows-1252 -t utf-8"),
        ("a.txt", b"one\nt\xe9\n", "line 2 is not UTF-8 text (byte 0xe9)", "iconv -f windows-1252 -t utf-8"),
        ("a.txt", b"\xed\xa0\xbd\n", "line 1 holds half a character, a surrogate", "write the row anew"),
    ],
)  # fmt: skip
def test_bytes_that_are_no_text_are_named(tmp_path, name, written, said, do, streaming):
    (tmp_path / name).write_bytes(written)
    with pytest.raises(Exception) as caught:
        list(opened(tmp_path / name, tmp_path, streaming=streaming))
    assert said in str(caught.value) and do in str(caught.value) and repr(str(tmp_path / name)) in str(caught.value)


@BOTH
def test_other_control_characters_are_text(tmp_path, streaming):
    texts = [
        "bell \x07",
        "\x1b[31mred\x1b[0m",
        "page\x0cbreak",
        "vertical\x0btab",
        "unit\x1fseparator",
        "\x85next",
        "in\ufeffside",
    ]
    rows = [{"text": text} for text in texts]
    (tmp_path / "a.txt").write_text("".join(f"{text}\r\n" for text in texts), newline="")
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])
    for name in ("a.txt", "a.csv"):
        assert list(opened(tmp_path / name, tmp_path, streaming=streaming)) == rows


@BOTH
def test_tables_separated_by_tabs(tmp_path, streaming):
    path = tmp_path / "rows.tsv"
    path.write_text('text\tlabel\nNA\t007\n"two\nlines, ""quoted"""\tNone\nan "inner" one\t\n')
    rows = [
        {"text": "NA", "label": "007"},
        {"text": 'two\nlines, "quoted"', "label": "None"},
        {"text": 'an "inner" one', "label": ""},
    ]
    assert list(opened(path, tmp_path, streaming=streaming)) == rows
    (tmp_path / "rows.tsv.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert list(opened(tmp_path / "rows.tsv.gz", tmp_path, streaming=streaming)) == rows


@BOTH
def test_an_empty_cell_is_the_empty_text_with_quotes_or_without(tmp_path, streaming):
    (tmp_path / "rows.csv").write_text('text,label\n,a\n"",b\n')
    rows = [{"text": "", "label": "a"}, {"text": "", "label": "b"}]
    assert list(opened(tmp_path / "rows.csv", tmp_path, streaming=streaming)) == rows


@BOTH
def test_white_space_around_the_name_of_a_column_is_no_part_of_it(tmp_path, streaming):
    (tmp_path / "rows.csv").write_text("\ufeffprompt, completion \r\nq, a \r\n", encoding="utf-8")
    assert list(opened(tmp_path / "rows.csv", tmp_path, streaming=streaming)) == [{"prompt": "q", "completion": " a "}]


OBJECTS = '{"text": "a", "n": 1}\n{"text": "b", "n": 2}\n'
TABLE = "text,n\na,1\n"


@BOTH
@pytest.mark.parametrize(
    ("name", "written", "said", "do"),
    [
        ("a.csv", OBJECTS, "is JSON, one object per line, by its content", "rename it: a.jsonl"),
        ("a.tsv", OBJECTS, "is JSON, one object per line, by its content", "rename it: a.jsonl"),
        ("a.CSV", f"\ufeff\n{OBJECTS}", "is JSON, one object per line, by its content", "rename it: a.jsonl"),
        ("a.parquet", OBJECTS, "is JSON, one object per line, by its content", "rename it: a.jsonl"),
        ("a.csv", '[\n {"text": "a"},\n {"text": "b"}]', "is JSON, by its content", "rename it: a.json"),
        ("a.csv", '[{"text": "a"}, {"text": "b"}]', "is JSON, by its content", "rename it: a.json"),
        ("a.csv", '{\n "rows": [{"text": "a"}]}', "is JSON, by its content", "rename it: a.json"),
        ("a.jsonl", TABLE, "is a table with commas between its columns, by its content", "rename it: a.csv"),
        ("a.json", TABLE.replace(",", "\t"), "is a table with tabs between its columns, by its content", "rename it: a.tsv"),
        ("a.jsonl", 'text,n\n"a, ""b""",1\n', "is a table with commas between its columns", "rename it: a.csv"),
    ],
)  # fmt: skip
def test_another_kind_of_rows_than_the_name_says_is_named(tmp_path, name, written, said, do, streaming):
    path = tmp_path / name
    path.write_text(written, encoding="utf-8")
    message = refused(path, tmp_path, streaming=streaming)
    assert f"{str(path)!r} {said}" in message and f"do this:  {do}" in message
    assert opened(path.rename(tmp_path / do.removeprefix("rename it: ")), tmp_path)
    if not name.endswith("parquet"):
        packed = tmp_path / f"{name}.gz"
        packed.write_bytes(gzip.compress(written.encode()))
        assert f"do this:  {do}.gz" in refused(packed, tmp_path, streaming=streaming)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json", "a.txt"])
def test_a_parquet_file_under_the_name_of_text_is_named(tmp_path, name):
    path = write(tmp_path / "rows.parquet").rename(tmp_path / name)
    message = refused(path, tmp_path)
    assert "is a Parquet file, by its content" in message and "rename it: a.parquet" in message


@BOTH
def test_json_in_a_text_file_is_learned_as_it_stands_and_said(tmp_path, streaming):
    for written, is_said in ((OBJECTS, True), ("{} braces\n{\n", False), (TABLE, False), ("", False)):
        (tmp_path / "a.txt").write_text(f"{written}more\n")
        place, cache = str(tmp_path / "a.txt"), tmp_path / "cache"
        source = open_source(place, split="train", cache_dir=cache, streaming=streaming)
        assert [row["text"] for row in source.rows] == [*written.splitlines(), "more"]
        said = "the lines of a.txt are JSON objects, and learned as they stand, braces and all; "
        assert [remark.startswith(said) for remark in source.remarks] == [True] * is_said


@BOTH
@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("text\nwords\n", "line 1 is not JSON"),
        ("text, n\n", "line 1 is not JSON"),
        ("one, two\nthree\n", "line 1 is not JSON"),
        ('{"text": 1,\n{"text": 2,\n', "line 2 is not JSON"),
    ],
)
def test_what_is_no_table_either_is_json_gone_wrong(tmp_path, written, said, streaming):
    (tmp_path / "a.jsonl").write_text(written)
    assert said in refused(tmp_path / "a.jsonl", tmp_path, streaming=streaming)


@BOTH
@pytest.mark.parametrize(
    ("header", "row", "is_said"),
    [(",text", "0,a", True), (" ,text", ",a", True), ("text,", "a,", False), ("text", "a", False)],
)
def test_numbers_of_rows_without_a_name_are_said_to_be_left_out(tmp_path, header, row, is_said, streaming):
    path = tmp_path / "rows.csv"
    path.write_text(f"{header}\n{row}\n")
    source = open_source(str(path), split="train", cache_dir=tmp_path / "cache", streaming=streaming)
    assert list(source.rows) == [{"text": "a"}]
    said = "not read: the first column of rows.csv, which has no name (pandas writes the numbers of rows there)"
    assert source.remarks == ((said,) if is_said else ())


@pytest.mark.parametrize(
    ("name", "written", "said", "do"),
    [
        ("a.csv", "text;label\na;b\n", "is separated by semicolons, by its first line: 'text;label'", "write it anew with commas"),
        ("a.csv", "text\tlabel\na\tb\n", "is separated by tabs, by its first line", "rename it: a.tsv"),
        ("a.csv", "text|label\n", "is separated by bars (|)", "write it anew with commas"),
        ("a.tsv", "text;label\n", "is separated by semicolons", "write it anew with tabs: python -c"),
        ("a.tsv", "text,label\na,b\n", "is separated by commas", "rename it: a.csv"),
        ("a.csv", "sep=;\ntext;label\n", "begins with 'sep=;', which spreadsheets write", "remove that line"),
        ("a.csv", 'text, "label"\na, "b, c"\n', 'line 1 has white space before the quote of "label"', "remove the white space"),
        ("a.csv", "text, text\na,b\n", "has the column 'text' 2 times", "rename the columns"),
        ("a.csv", ",text\nx1,a\n", "line 2 has 'x1' in column 1, which has no name", "name the column"),
        ("a.csv", 'text,label\na,b\n"x,y\nc,d\n', "line 3 is not CSV: a quote that opens there is never closed", "repair the file there"),
        ("a.csv", 'a,b\n1,"2\n3" x\n', "line 3, in the row that begins in line 2, is not CSV", "repair the file there"),
    ],
)  # fmt: skip
def test_tables_of_another_form_are_named_for_what_they_are(tmp_path, name, written, said, do):
    (tmp_path / name).write_text(written)
    message = refused(tmp_path / name, tmp_path)
    assert message.startswith(f"data.train={str(tmp_path / name)!r}") and said in message and do in message


@BOTH
@pytest.mark.parametrize(
    ("name", "written", "rows"),
    [
        ("a.json", '{"data": [{"text": "one"}, {"text": "two"}]}', ROWS[:2]),
        ("a.json", '{\n "version": "1.0", "tags": ["x"],\n "rows": [{"text": "one"},\n {"text": "two"}]}', ROWS[:2]),
        ("a.jsonl", '{"train": [{"text": "one"}]}\n', ROWS[:1]),
        ("a.json", '{"text": "one"}\n{"text": "two"}\n', ROWS[:2]),
        ("a.jsonl", '[{"text": "one"}, {"text": "two"}]\n', ROWS[:2]),
        ("a.jsonl", '{"text": "one"}{"text": "two"}\n{"text": "three"} \n', ROWS),
        ("a.json", '{\n "text": "one"\n}\n{\n "text": "two"\n}\n', ROWS[:2]),
        ("a.json", '{\n "text": "one"\n}\n', ROWS[:1]),
        ("a.ndjson", '{"text": "one"}\n', ROWS[:1]),
        ("a.json", '{"messages": [{"role": "user", "content": "q"}], "tools": [{"type": "function"}]}',
         [{"messages": [{"role": "user", "content": "q"}], "tools": [{"type": "function"}]}]),
        ("a.json", '{"text": "Paris.", "entities": [{"text": "Paris"}]}', [{"text": "Paris.", "entities": [{"text": "Paris"}]}]),
        ("a.json", '{"prompt": "q", "tools": [{"type": "function"}]}', [{"prompt": "q", "tools": [{"type": "function"}]}]),
    ],
)  # fmt: skip
def test_json_in_the_forms_that_people_have(tmp_path, name, written, rows, streaming):
    (tmp_path / name).write_text(written)
    assert list(opened(tmp_path / name, tmp_path, streaming=streaming)) == rows


DEEP = '{"a":' * 5000 + "1" + "}" * 5000
LESS_DEEP = '{"a": ' + "[" * 150 + "]" * 150 + "}"


@BOTH
@pytest.mark.parametrize(
    ("name", "written", "said", "do"),
    [
        ("a.json", '{"train": [{"text": "a"}], "test": [{"text": "b"}]}', "is one object with several lists of objects: train, test", "jq '.[\"train\"]' {path} > NEW.json"),
        ("a.json", '{"text": ["a", "b"], "label": [0, 1]}', "is one object of columns (label, text)", "to_json(FILE, orient='records', lines=True)"),
        ("a.json", '{"k0": {"text": "a", "label": 0}, "k1": {"text": "b"}}', "is an object of 2 rows keyed by k0, k1", "write its values as a list: python -c"),
        ("a.json", '{"0": {"text": "a"},\n"1": {"text": "b"},\n"2": {"text": "b"}, "3": {"text": "b"}}', "is an object of 4 rows keyed by 0, 1, 2 and 1 more", "< {path} > NEW.json"),
        ("a.jsonl", '{"data": {"k0": {"text": "a"}, "k1": {"text": "b"}}}', "is an object of 2 rows keyed by k0, k1", "json.load(sys.stdin)"),
        ("a.json", '{"text": {"0": "a", "1": "b"}}', "is one object of columns (text)", "orient='records'"),
        ("a.jsonl", '{"text": "x"}\n{"text": "\\ud83d"}\n', 'line 2 holds half a character in "text"', "write the row anew"),
        ("a.json", '[{"messages": [{"role": "user", "content": "\\ud83d"}]}]', 'element 1 of the list holds half a character in "messages"', "write the row anew"),
        ("a.jsonl", '{"text": "x"}\n' + DEEP, "line 2 has lists and objects nested more than 100 levels deep", "write what is that deep as text"),
        ("a.jsonl", '{"text": "x"}\n' + LESS_DEEP, "line 2 has lists and objects nested more than 100 levels deep", "remove the row"),
        ("a.json", f"[{DEEP}]", "has lists and objects nested more than 100 levels deep", "remove the row"),
        ("a.jsonl", '{"a": Infinity}', "line 1 is not JSON: Infinity is not a JSON value", "repair or remove the line"),
        ("a.json", '[\n{"a": NaN}]', "is not JSON: NaN is not a JSON value", "repair the file there"),
        ("a.jsonl", '{"a": 1e999}', "line 1 is not JSON: the number 1e999 is larger than any that can be held", "repair"),
        ("a.jsonl", '{"a": ' + "7" * 5000 + "}", "line 1 is not JSON: a number of more than 4,300 digits", "repair"),
        ("a.jsonl", '{"text": "a", "text": "b"}', "line 1 is not JSON: the key 'text' is twice in one object", "repair"),
        ("a.jsonl", '{"text": "a"},\n{"text": "b"},\n', "line 1 is not JSON: Expecting value at column 14 (a comma after the object", "repair"),
        ("a.jsonl", '{"text": "a",}\n{"text": "b"}\n', "comma before", "repair"),
        ("a.jsonl", "{'text': 'a'}\n{'text': 'b'}\n", "(JSON has double quotes; single ones are Python's notation)", "repair"),
        ("a.jsonl", '{"text": None}\n', "(None is Python's notation, JSON has null)", "repair"),
        ("a.jsonl", '{"text": "a\tb"}\n', "(the control character U+0009 itself; in a string JSON has \\u0009)", "repair"),
        ("a.jsonl", '{"text": "a"}\n{"text": "b', "line 2 is not JSON: Unterminated string starting at at column 10", "repair"),
        ("a.jsonl", '{"text": "a"}\n{"text":', "line 2 is not JSON: Expecting value at column 9 (it ends there, in the middle of a value)", "repair"),
        ("a.json", '[{"text": "a"},\n{"text": "b"', "line 2 is not JSON: Expecting ',' delimiter at column 13 (it ends there", "repair the file there"),
        ("a.jsonl", '[{"role": "user", "content": "q"}]\n[{"role": "user", "content": "q"}]\n', "line 1 is of type list", '{{"messages": [...]}} for a conversation'),
    ],
)  # fmt: skip
def test_json_that_is_not_read_is_named_for_what_it_is(tmp_path, name, written, said, do, streaming):
    path = tmp_path / name
    path.write_text(written)
    message = refused(path, tmp_path, streaming=streaming)
    assert message.startswith(f"data.train={str(path)!r}") and said in message and do.format(path=path) in message


def test_the_command_for_semicolons_makes_what_is_read(tmp_path):
    path = tmp_path / "it's mine.csv"
    rows = [{"text": 'one; two, "three"', "label": "a"}, {"text": "Ü\nline", "label": ""}]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["text", "label"], delimiter=";")
        writer.writeheader()
        writer.writerows(rows)
    command = refused(path, tmp_path).partition("write it anew with commas: ")[2].splitlines()[0]
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    assert list(opened(tmp_path / "NEW.csv", tmp_path)) == rows


@pytest.mark.parametrize("around", [None, "the data"])
def test_the_command_for_rows_by_key_makes_what_is_read(tmp_path, around):
    path = tmp_path / "keyed by id.json"
    rows = [{"prompt": f"P{n}?", "completion": "Ü"} for n in range(3000)]
    keyed = {f"id{n}": row for n, row in enumerate(rows)}
    path.write_text(json.dumps({around: keyed} if around else keyed))
    message = refused(path, tmp_path)
    assert len(message) < 1000
    command = message.partition("write its values as a list: ")[2].splitlines()[0]
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    assert list(opened(tmp_path / "NEW.json", tmp_path)) == rows


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": {"text": "a"}, "completion": {"text": "b"}},
        {"x": {"role": "user", "content": "a"}, "y": {"role": "assistant", "content": "b"}},
        {"text": "a", "meta": {"x": {"n": 1}, "y": {"n": 2}}},
        {"text": "a", "meta": {"n": 1}},
        {"x": {"n": 1}, "y": {"m": 2}},
    ],
)
def test_a_row_of_objects_is_a_row(tmp_path, row):
    (tmp_path / "a.json").write_text(json.dumps(row))
    assert list(opened(tmp_path / "a.json", tmp_path)) == [row]


def test_an_object_around_the_rows_does_not_hide_a_change_of_them(tmp_path):
    (tmp_path / "a.json").write_text('{"data": [{"text": "one"}]}')
    before = content(tmp_path / "a.json", tmp_path)
    (tmp_path / "a.json").write_text('{"data": [{"text": "six"}]}')
    assert content(tmp_path / "a.json", tmp_path) != before


@pytest.fixture
def odd(tmp_path) -> dict[str, Path]:
    """Places that have no content to read twice."""
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "folder" / "train.jsonl")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(tmp_path / "socket"))
    return {name: tmp_path / name for name in ("pipe", "pipe.jsonl", "folder", "folder/*", "socket")} | {
        "zero": Path("/dev/zero"),
        "null": Path("/dev/null"),
    }


@BOTH
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pipe", "is a pipe, not a file"),
        ("pipe.jsonl", "is a pipe, not a file"),
        ("folder", "train.jsonl' is a pipe, not a file"),
        ("folder/*", "train.jsonl' is a pipe, not a file"),
        ("socket", "is a socket, not a file"),
        ("zero", "is a device, not a file"),
        ("null", "is a device, not a file"),
    ],
)
def test_what_is_no_file_is_not_waited_for(tmp_path, odd, name, said, streaming):
    began = time.monotonic()
    message = refused(odd[name], tmp_path, streaming=streaming)
    assert time.monotonic() - began < 5
    assert message.startswith(f"data.train={str(odd[name])!r}") and said in message
    assert "write what comes from it to a file first" in message


def test_a_folder_in_a_directory_that_may_not_be_listed(tmp_path):
    user = os.geteuid()
    # Not in tmp_path, which another user may not enter.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        write(Path(folder) / "set" / "a.jsonl")
        write(Path(folder) / "set" / "more" / "b.jsonl")
        for place in (Path(folder) / "set" / "more", Path(folder) / "set"):
            place.chmod(0o711 if user == 0 else 0o300)
            try:
                if user == 0:  # who may read everything
                    os.seteuid(65534)
                messages = [refused(Path(folder) / "set" / rest, tmp_path) for rest in ("", "**/*.jsonl")]
            finally:
                if user == 0:
                    os.seteuid(0)
                place.chmod(0o755 if user == 0 else 0o700)
            for message in messages:
                assert f": {place}: Permission denied" in message and "change the permissions" in message


def test_links_in_a_directory_are_followed_and_those_that_lead_nowhere_are_named(tmp_path):
    write(tmp_path / "far" / "b.jsonl", ROWS[1:])
    write(tmp_path / "set" / "a.jsonl", ROWS[:1])
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "back").symlink_to(tmp_path / "set")
    write(tmp_path / "set" / "._a.jsonl")  # what another system leaves beside each file of an archive
    for location in (tmp_path / "set", tmp_path / "set" / "**" / "*.jsonl"):
        assert list(opened(location, tmp_path)) == ROWS
    (tmp_path / "set" / "lost.jsonl").symlink_to("nowhere.jsonl")
    for location in (tmp_path / "set", tmp_path / "set" / "*.jsonl"):
        assert "lost.jsonl' is a link to nowhere.jsonl, which does not exist" in refused(location, tmp_path)
    assert "is a link to nowhere.jsonl, which does not exist" in refused(tmp_path / "set" / "lost.jsonl", tmp_path)
