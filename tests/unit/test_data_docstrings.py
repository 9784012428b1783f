"""The data sets made of the standard library's docstrings."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from toolkit.data.sets.docstrings import LIBRARY, instructions, packages, standard_library
from toolkit.data.sets.preferences import feedback, preferences, spoilt
from toolkit.data.sets.questions import pairs, questions
from toolkit.data.sets.rows import Splits

SETS = {make.__name__: make for make in (instructions, packages, preferences, feedback, questions, pairs)}


@pytest.fixture(scope="module")
def root() -> Path:
    return LIBRARY.fetch(Console(quiet=True))


@pytest.fixture(scope="module")
def made(root: Path) -> dict[str, Splits]:
    return {name: make(root) for name, make in SETS.items()}


def everything(splits: Splits):
    return [*splits["train"], *splits["test"]]


def test_instructions_are_chats_with_distinct_answers(made):
    assert len(made["instructions"]["train"]) >= 2000 and len(made["instructions"]["test"]) >= 150
    answers = []
    for row in everything(made["instructions"]):
        user, assistant = row["messages"]
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        assert user["content"].startswith(("What does the Python function `", "What is the Python class `"))
        assert 4 <= len(assistant["content"].split()) <= 60 and assistant["content"][-1] in ".!?"
        answers += [assistant["content"].lower()]
    assert len(set(answers)) == len(answers)


def test_whole_modules_are_held_out(made):
    def modules(split: str) -> set[str]:
        chats = {row["messages"][0]["content"].split("`")[1].split(".")[0] for row in made["instructions"][split]}
        judged = {row["prompt"].split("`")[1].split(".")[0] for row in made["preferences"][split]}
        asked = {row["title"].split(".")[0] for row in made["questions"][split]}
        return chats | judged | asked

    assert modules("train").isdisjoint(modules("test")) and len(modules("test")) >= 5


def test_instructions_know_a_function_with_its_signature(made):
    answers = {row["messages"][0]["content"]: row["messages"][1]["content"] for row in everything(made["instructions"])}
    [question] = [q for q in answers if "`json.load(fp, *, cls=None," in q]
    assert answers[question].startswith("Deserialize ``fp``")


def test_packages_are_balanced_and_masked(made):
    rows = everything(made["packages"])
    sizes = Counter(row["label"] for row in rows)
    assert len(sizes) == 10 and max(sizes.values()) <= 1.5 * min(sizes.values()) and min(sizes.values()) > 50
    assert set(sizes) == {row["label"] for row in made["packages"]["test"]}
    assert not [row for row in rows if row["label"].lower() in row["text"].lower()]
    texts = [row["text"].lower() for row in rows]
    assert len(set(texts)) == len(texts)


def test_preferences_spoil_the_answer_in_three_ways(made):
    kinds: Counter[str] = Counter()
    chosen = {row["chosen"] for row in everything(made["preferences"])}
    for row in everything(made["preferences"]):
        assert set(row) == {"prompt", "chosen", "rejected"} and row["chosen"] != row["rejected"]
        good, bad = row["chosen"].split(), row["rejected"].split()
        if row["rejected"] in chosen:
            kinds["another's"] += 1
        elif sorted(good) == sorted(bad):
            kinds["shuffled"] += 1
        else:
            half = len(good) // 2
            assert len(bad) == len(good) and bad[:half] == good[:half]
            assert all(word == bad[place - 3] for place, word in enumerate(bad) if place >= half)
            kinds["repeated"] += 1
    assert len(kinds) == 3 and min(kinds.values()) > 0.25 * kinds.total()
    assert len(chosen) == kinds.total()


def test_a_spoilt_answer_depends_on_the_seed_alone():
    answer = "Return the index where to insert item x."
    made_now = {seed: spoilt(answer, "Another.", seed) for seed in "abcdef"}
    assert made_now == {seed: spoilt(answer, "Another.", seed) for seed in "abcdef"}
    assert "Return the index where the index where the" in made_now.values() and "Another." in made_now.values()


def test_feedback_is_one_answer_of_each_preference(made):
    by_prompt = {row["prompt"]: row for row in everything(made["preferences"])}
    rows = everything(made["feedback"])
    assert len(rows) == len(by_prompt)
    for row in rows:
        assert row["completion"] == by_prompt[row["prompt"]]["chosen" if row["label"] else "rejected"]
    assert 0.45 < sum(row["label"] for row in rows) / len(rows) < 0.55


def test_answers_are_where_they_are_said_to_be(made):
    rows = everything(made["questions"])
    for row in rows:
        [text], [start] = row["answers"]["text"], row["answers"]["answer_start"]
        assert row["context"][start : start + len(text)] == text
        assert len(row["context"].split()) <= 220 and row["context"].count("\n") >= 2
    assert len({row["id"] for row in rows}) == len(rows) >= 2500
    [row] = [row for row in rows if row["id"].startswith("bisect.insort_right-")]
    assert (row["question"], row["answers"]["text"]) == (
        "What does `insort_right` do?",
        ["Insert item x in list a, and keep it sorted assuming a is sorted"],
    )


def test_questions_follow_their_rules(tmp_path):
    text = '''
def load(path, mode="(): "):
    """Read a table. Returns the rows of it, in order. Raises ValueError if the file has no header; see open."""
def save(path):
    """Write. Return True if something was written."""
def drop():
    """Forget everything that was ever read or written."""
'''
    (tmp_path / "tables.py").write_text(text)
    rows = everything(questions(tmp_path))
    assert {(row["question"], row["answers"]["text"][0]) for row in rows} == {
        ("What does `load` do?", "Read a table"),
        ("What does `load` return?", "the rows of it, in order"),
        ("When does `load` raise ValueError?", "the file has no header"),
        ("What does `save` return?", "True if something was written"),
        ("What does `drop` do?", "Forget everything that was ever read or written"),
    }


def test_pairs_are_two_halves_of_a_docstring(made):
    rows = everything(made["pairs"])
    assert len(rows) >= 1000
    assert all(set(row) == {"anchor", "positive"} and 5 <= len(row["positive"].split()) <= 60 for row in rows)
    halves = [text for row in rows for text in row.values()]
    assert len(set(halves)) == len(halves)


def test_the_same_python_gives_the_same_rows(made, root):
    standard_library.cache_clear()
    for name in ("preferences", "questions"):
        assert SETS[name](root) == made[name]
