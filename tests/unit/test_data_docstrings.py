"""The two data sets built from the standard library."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from toolkit.data.reading.docstrings import build_instructions, build_packages


def rows(path: Path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    directory = tmp_path_factory.mktemp("built")
    return directory, build_instructions(directory / "chat"), build_packages(directory / "packages")


def test_instructions_are_chats_with_distinct_answers(built):
    directory, counts, _ = built
    train, test = rows(directory / "chat" / "train.jsonl"), rows(directory / "chat" / "test.jsonl")
    assert counts == {"train": len(train), "test": len(test)}
    assert len(train) >= 2000 and len(test) >= 150
    for row in train + test:
        user, assistant = row["messages"]
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        assert user["content"].startswith(("What does the Python function `", "What is the Python class `"))
        assert 4 <= len(assistant["content"].split()) <= 60 and assistant["content"][-1] in ".!?"
    answers = [row["messages"][1]["content"].lower() for row in train + test]
    assert len(set(answers)) == len(answers)


def test_instructions_hold_out_whole_modules(built):
    directory = built[0] / "chat"
    packages = [
        {row["messages"][0]["content"].split("`")[1].split(".")[0] for row in rows(directory / f"{split}.jsonl")}
        for split in ("train", "test")
    ]
    assert packages[0].isdisjoint(packages[1]) and len(packages[1]) >= 5


def test_instructions_know_a_function_with_its_signature(built):
    everything = rows(built[0] / "chat" / "train.jsonl") + rows(built[0] / "chat" / "test.jsonl")
    answers = {row["messages"][0]["content"]: row["messages"][1]["content"] for row in everything}
    [question] = [q for q in answers if "`json.load(fp, *, cls=None," in q]
    assert answers[question].startswith("Deserialize ``fp``")


def test_packages_are_balanced_and_masked(built):
    directory, _, counts = built
    train, test = rows(directory / "packages" / "train.jsonl"), rows(directory / "packages" / "test.jsonl")
    assert counts == {"train": len(train), "test": len(test)}
    sizes = Counter(row["label"] for row in train + test)
    assert len(sizes) == 10 and max(sizes.values()) <= 1.5 * min(sizes.values()) and min(sizes.values()) > 50
    assert set(sizes) == {row["label"] for row in test}
    for row in train + test:
        assert row["label"].lower() not in row["text"].lower()
    texts = [row["text"].lower() for row in train + test]
    assert len(set(texts)) == len(texts)


def test_the_same_python_gives_the_same_bytes_and_leaves_nothing_else(built, tmp_path):
    build_instructions(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test.jsonl", "train.jsonl"]
    for name in ("train.jsonl", "test.jsonl"):
        assert (tmp_path / name).read_bytes() == (built[0] / "chat" / name).read_bytes()
