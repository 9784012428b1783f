"""Metrics of records against the formulas of the papers, counted by hand, and against the libraries' own calls."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from typing import Any

import pytest

from toolkit.tasks.metrics.answers import answer_scores, normalized, token_f1
from toolkit.tasks.metrics.entities import entity_scores
from toolkit.tasks.metrics.labels import class_scores, class_set_scores, number_scores
from toolkit.tasks.metrics.summaries import summary_scores
from toolkit.tasks.metrics.translation import translation_scores


def pairs(*found: tuple[Any, Any]) -> list[dict[str, Any]]:
    return [{"prediction": prediction, "reference": reference} for prediction, reference in found]


def ngrams(items: Any, n: int) -> Counter[Any]:
    return Counter(tuple(items[start : start + n]) for start in range(len(items) - n + 1))


TRANSLATIONS = pairs(
    ("the cat sat on the mat today", "the cat sat on a mat today"),
    ("he reads the small book in bed", "she reads the small book in bed every night"),
)


def test_bleu_is_the_formula_over_the_whole_corpus() -> None:
    """Papineni et al. 2002: clipped counts summed over sentences, geometric mean to 4, brevity of the corpus."""
    right, all_, ours, theirs = [0] * 4, [0] * 4, 0, 0
    for record in TRANSLATIONS:
        words, reference = record["prediction"].split(), record["reference"].split()
        ours, theirs = ours + len(words), theirs + len(reference)
        for n in range(4):
            found = ngrams(words, n + 1)
            right[n] += (found & ngrams(reference, n + 1)).total()
            all_[n] += found.total()
    brevity = min(1.0, math.exp(1 - theirs / ours))
    wanted = 100 * brevity * math.exp(sum(math.log(a / b) for a, b in zip(right, all_, strict=True)) / 4)
    assert translation_scores(TRANSLATIONS)["bleu"] == pytest.approx(wanted)


def test_chrf_is_the_formula_over_the_whole_corpus() -> None:
    """Popovic 2015: F2 of mean precision and mean recall of character n-grams to 6, without spaces."""
    precisions, recalls = [], []
    for n in range(1, 7):
        right = found = wanted = 0
        for record in TRANSLATIONS:
            ours, theirs = (ngrams(record[name].replace(" ", ""), n) for name in ("prediction", "reference"))
            right, found, wanted = right + (ours & theirs).total(), found + ours.total(), wanted + theirs.total()
        precisions.append(right / found)
        recalls.append(right / wanted)
    precision, recall = sum(precisions) / 6, sum(recalls) / 6
    assert translation_scores(TRANSLATIONS)["chrf"] == pytest.approx(
        100 * 5 * precision * recall / (4 * precision + recall)
    )


def test_several_references_and_other_tokenizers() -> None:
    import sacrebleu

    several = pairs(("a b c d e", ["x b c d e", "a b c d y"]), ("f g h i j", "f g h i j"))
    wanted = sacrebleu.corpus_bleu(["a b c d e", "f g h i j"], [["x b c d e", "f g h i j"], ["a b c d y", None]]).score
    assert translation_scores(several)["bleu"] == pytest.approx(wanted)
    one = pairs(("a b c d e", "x b c d e"), ("f g h i j", "f g h i j"))
    assert translation_scores(several)["bleu"] > translation_scores(one)["bleu"]
    chinese = pairs(("我喜欢这本很好的书", "我喜欢那本很好的书"))
    assert translation_scores(chinese, tokenizer="zh")["bleu"] > translation_scores(chinese)["bleu"] + 10
    assert translation_scores(pairs(("", "nothing was said")))["bleu"] == 0.0


def longest_common(one: list[str], other: list[str]) -> int:
    if not one or not other:
        return 0
    if one[-1] == other[-1]:
        return longest_common(one[:-1], other[:-1]) + 1
    return max(longest_common(one[:-1], other), longest_common(one, other[:-1]))


def test_rouge_is_the_formula() -> None:
    """Lin 2004, as F-measures, averaged over texts."""
    records = pairs(("police kill the gunman", "police killed the gunman"), ("a dog ran home fast", "a dog went home"))
    wanted = {"rouge1": 0.0, "rouge2": 0.0, "rougeL": 0.0}
    for record in records:
        ours, theirs = record["prediction"].split(), record["reference"].split()
        for name, n in (("rouge1", 1), ("rouge2", 2)):
            found, there = ngrams(ours, n), ngrams(theirs, n)
            wanted[name] += 2 * (found & there).total() / (found.total() + there.total()) / 2
        wanted["rougeL"] += 2 * longest_common(ours, theirs) / (len(ours) + len(theirs)) / 2
    assert summary_scores(records, stem=False) == pytest.approx(wanted)
    assert summary_scores(records)["rouge1"] > wanted["rouge1"], "kill and killed have one stem"
    best = pairs(("a b c", ["x y z", "a b c"]))
    assert summary_scores(best) == {"rouge1": 1.0, "rouge2": 1.0, "rougeL": 1.0}
    assert summary_scores(pairs(("", "a b")))["rouge1"] == 0.0


def test_entities_are_right_as_wholes() -> None:
    records = pairs(
        (["B-PER", "I-PER", "O", "B-LOC"], ["B-PER", "I-PER", "O", "B-LOC"]),
        (["B-PER", "O", "B-ORG"], ["B-PER", "I-PER", "B-LOC"]),
        ([], []),
        (["O"], ["O"]),
    )
    # Found: PER, LOC, PER (too short), ORG (LOC was right): 2 of 4. There: PER, LOC, PER, LOC: 2 of 4.
    assert entity_scores(records) == pytest.approx({"precision": 0.5, "recall": 0.5, "f1": 0.5, "accuracy": 6 / 8})
    nothing = entity_scores(pairs((["O", "O"], ["B-PER", "O"])))
    assert nothing == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "accuracy": 0.5}
    more = pairs((["B-PER", "B-LOC"], ["B-PER", "O"]))
    assert entity_scores(more) == pytest.approx({"precision": 0.5, "recall": 1.0, "f1": 2 / 3, "accuracy": 0.5})


@pytest.mark.parametrize(
    ("prediction", "references", "exact", "f1"),
    [
        ("The Beatles!", ["beatles"], 1, 1),
        ("in the year 1969", ["1969", "year 1969"], 0, 2 * (2 / 3) * 1 / (2 / 3 + 1)),
        ("a cat cat", ["cat dog"], 0, 2 * (1 / 2) * (1 / 2) / 1),
        ("", [], 1, 1),
        ("something", [], 0, 0),
        ("", ["something"], 0, 0),
        ("", ["the", "."], 1, 1),
        ("Denver Broncos", ["Carolina Panthers", "denver   BRONCOS."], 1, 1),
    ],
)
def test_answers_as_the_official_script_judges_them(
    prediction: str, references: list[str], exact: float, f1: float
) -> None:
    found = answer_scores(pairs((prediction, references), ("x", ["x"])))
    assert found == pytest.approx({"exact_match": 50 * (exact + 1), "f1": 50 * (f1 + 1)})


def test_texts_are_compared_as_the_official_script_does() -> None:
    assert normalized("The cat, an Apple-pie; a U.S.A.!") == "cat applepie usa"
    assert normalized("theory of a\tthe  thing") == "theory of thing"
    assert normalized("\u00dcber \u201cquotes\u201d") == "\u00fcber \u201cquotes\u201d", "ASCII punctuation only"
    assert token_f1("a b b c", "b b d") == token_f1("b b d", "a b b c") == pytest.approx(2 * 2 / (3 + 3))


def test_classes_by_the_formulas() -> None:
    records = pairs(("a", "a"), ("a", "a"), ("a", "b"), ("b", "b"), ("b", "a"), ("a", "a"))
    # As to a: 3 right, 1 too many, 1 missed; as to b: 1 right, 1 too many, 1 missed.
    found = class_scores(records, positive="b")
    mcc = (3 * 1 - 1 * 1) / math.sqrt((3 + 1) * (3 + 1) * (1 + 1) * (1 + 1))
    assert found == pytest.approx({"accuracy": 4 / 6, "f1_macro": (3 / 4 + 1 / 2) / 2, "mcc": mcc, "f1": 0.5})
    assert class_scores(pairs(("a", "a"), ("a", "b")))["mcc"] == 0.0, "always the same class"
    assert "f1" not in class_scores(records)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert class_scores(pairs(("a", "a")), positive="b")["f1"] == 0.0


def test_sets_of_classes_by_the_formulas() -> None:
    records = pairs((["a", "b"], ["a"]), (["c"], ["c"]), ([], ["b"]))
    # a: 1 right; b: 1 too many, 1 missed; c: 1 right; d: never.
    found = class_set_scores(records, classes=["a", "b", "c", "d"])
    assert found == pytest.approx(
        {"accuracy": 1 / 3, "f1_micro": 2 * 2 / (2 * 2 + 1 + 1), "f1_macro": (1 + 0 + 1 + 0) / 4}
    )


def test_numbers_by_the_formulas() -> None:
    records = pairs((1.0, 1.0), (2.0, 3.0), (4.0, 2.0), (8.0, 9.0))
    ours, theirs = ([record[name] for record in records] for name in ("prediction", "reference"))

    def correlation(one: list[float], other: list[float]) -> float:
        means = sum(one) / len(one), sum(other) / len(other)
        both = sum((a - means[0]) * (b - means[1]) for a, b in zip(one, other, strict=True))
        spread = (sum((a - mean) ** 2 for a in values) for values, mean in zip((one, other), means, strict=True))
        return both / math.sqrt(math.prod(spread))

    def ranks(values: list[float]) -> list[float]:
        return [float(sorted(values).index(value)) for value in values]

    wanted = {"mse": 6 / 4, "pearson": correlation(ours, theirs), "spearman": correlation(ranks(ours), ranks(theirs))}
    assert number_scores(records) == pytest.approx(wanted)
    same = number_scores(pairs((1.0, 1.0), (1.0, 2.0)))
    assert math.isnan(same["pearson"]) and math.isnan(same["spearman"]) and same["mse"] == 0.5
    assert math.isnan(number_scores(pairs((1.0, 1.0)))["pearson"])
