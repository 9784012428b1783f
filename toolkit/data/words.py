"""Random words: a tokenizer without a language, and rows of very different lengths. Nothing is read from anywhere."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<mask>")
"""The first tokens; scaled-down configurations name them by these ids."""

CLASSES = ("left", "middle", "right")


def write_tokenizer(folder: Path, size: int) -> None:
    """A tokenizer of `size` tokens, one for each word of `rows`, as a Hugging Face directory."""
    vocabulary = {
        word: index for index, word in enumerate([*SPECIAL, *(f"w{index}" for index in range(len(SPECIAL), size))])
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
    ).save_pretrained(folder)


def write_rows(
    path: Path, task: str, *, split: bool, count: int, longest: int, size: int, seed: int, kind: str = ""
) -> None:
    """`count` rows for `task` as jsonl, each of at most `longest` tokens, over a vocabulary of `size`.

    Prompts with completions, so that part of the tokens carries loss; plain text where the recipe may `split` it;
    what other tasks read. `kind` is its problem_type or scheme, where the task has one.
    """
    source = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            file.write(json.dumps(_row(source, task, kind, split, longest, size)) + "\n")


def _row(source: random.Random, task: str, kind: str, split: bool, longest: int, size: int) -> dict[str, Any]:
    # One place is left for the end token.
    length = 4 + int((longest - 5) * source.random() ** 2)
    words = list(_words(source, length, size))
    if task == "sequence_classification":
        return {"text": " ".join(words), "label": _label(source, kind)}
    if task == "token_classification":
        return {"words": words, "labels": [_tag(word, kind) for word in words]}
    if task == "question_answering":
        return _asked(source, words)
    if task == "sentence_embedding":
        return _compared(source, words, size)
    if task == "seq2seq":
        cut = source.randint(1, length - 2)
        return {"source": " ".join(words[:cut]), "target": " ".join(words[cut:])}
    if split or task == "masked_lm":
        return {"text": " ".join(words)}
    if task in ("dpo", "orpo", "simpo", "reward_model"):
        return _pair(source, words, size)
    cut = source.randint(1, length - 2)
    row = {"prompt": " ".join(words[:cut]) + " ", "completion": " ".join(words[cut:])}
    return row | {"label": source.random() < 0.5} if task == "kto" else row


def _pair(source: random.Random, words: list[str], size: int) -> dict[str, Any]:
    """A prompt with two answers, which differ in their first word at least; with it twice, not longer than twice `words`."""
    half = words[: max(2, len(words) // 2 - 1)]
    cut = source.randint(1, len(half) - 1)
    prompt, chosen = half[:cut], half[cut:]
    rejected = [word for word in _words(source, len(chosen) + 1, size) if word != chosen[0]] or [f"w{len(SPECIAL)}"]
    if rejected[0] == chosen[0]:
        rejected[0] = f"w{len(SPECIAL) + 1}"
    return {"prompt": " ".join(prompt) + " ", "chosen": " ".join(chosen), "rejected": " ".join(rejected)}


def _label(source: random.Random, kind: str) -> Any:
    if kind == "regression":
        return source.random()
    if kind == "multi_label_classification":
        return source.sample(CLASSES, source.randint(0, len(CLASSES)))
    return source.choice(CLASSES)


def _tag(word: str, kind: str) -> str:
    """Decided by the word, so that there is something to learn."""
    number = int(word[1:]) % 3
    return CLASSES[number] if kind == "tags" else ("O", "B-PLACE", "I-PLACE")[number]


def _asked(source: random.Random, words: list[str]) -> dict[str, Any]:
    """A question of two words, and an answer of at most three in the others."""
    question, context = words[:2], words[2:]
    first = source.randrange(len(context))
    answer = " ".join(context[first : first + source.randint(1, 3)])
    start = sum(len(word) + 1 for word in context[:first])
    answers = {"text": [answer], "answer_start": [start]}
    return {"question": " ".join(question), "context": " ".join(context), "answers": answers}


def _compared(source: random.Random, words: list[str], size: int) -> dict[str, Any]:
    """A text, one that has half of its words, another one, and how alike the first two are said to be."""
    positive = [*words[::2], *_words(source, 2, size)]
    texts = {"anchor": words, "positive": positive, "negative": list(_words(source, len(words), size))}
    return {**{name: " ".join(text) for name, text in texts.items()}, "score": source.random()}


def _words(source: random.Random, length: int, size: int) -> Iterator[str]:
    # Some words are far more frequent than others: there is something to learn, and gradients are not all noise.
    for _ in range(length):
        yield f"w{len(SPECIAL) + int((size - len(SPECIAL)) * source.random() ** 3)}"
