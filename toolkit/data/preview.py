"""Show which tokens are trained, before a run is spent on the wrong ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from toolkit.data.example import IGNORED, Example, num_targets
from toolkit.errors import plural

_TRAINED = "bold green"
_CONTEXT = "dim"


class _Console(Console):
    """A console that leaves it to its caller what to do when the reader has left."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def preview(tokenizer: Any, sequences: Sequence[Sequence[Example]], *, stream: TextIO) -> None:
    """Print `sequences`, each a list of the examples packed into it, with the trained tokens marked.

    Colour on a terminal, [[double brackets]] elsewhere. Examples whose labels are not per token show their label.
    """
    console = _Console(file=stream, highlight=False, soft_wrap=True)
    if not all(_per_token(example) for sequence in sequences for example in sequence):
        legend = Text("each text as the model reads it; label: the number of its class")
    elif console.is_terminal:
        legend = Text.assemble(("trained", _TRAINED), "  ", ("context only", _CONTEXT))
    else:
        legend = Text("trained tokens stand in [[double brackets]]")
    console.print(legend)
    for number, sequence in enumerate(sequences, start=1):
        tokens = sum(len(example["input_ids"]) for example in sequence)
        console.print(Text(f"sequence {number}: {plural(tokens, 'token')} in {plural(len(sequence), 'example')}"))
        for place, example in enumerate(sequence, start=1):
            console.print(_heading(place, example))
            console.print(_text(tokenizer, example, marked=not console.is_terminal))


def _heading(place: int, example: Example) -> Text:
    length = len(example["input_ids"])
    if not _per_token(example):
        labels = ", ".join(str(label) for label in example["labels"].tolist())
        return Text(f"--- example {place}: {plural(length, 'token')}, label {labels} ---")
    return Text(f"--- example {place}: {plural(length, 'token')}, {num_targets(example):,} trained ---")


def _text(tokenizer: Any, example: Example, *, marked: bool) -> Text:
    text = Text()
    for trained, ids in _runs(example):
        piece = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if marked:
            text.append(f"[[{piece}]]" if trained else piece)
        else:
            text.append(piece, style=_TRAINED if trained else _CONTEXT)
    return text


def _runs(example: Example) -> Iterator[tuple[bool, list[int]]]:
    """Stretches of tokens with and without loss; whole stretches, since single tokens may be parts of characters."""
    ids = example["input_ids"].tolist()
    trained = (example["labels"] != IGNORED).tolist() if _per_token(example) else [False] * len(ids)
    for flag, run in groupby(zip(trained, ids, strict=True), key=lambda pair: pair[0]):
        yield flag, [token for _, token in run]


def _per_token(example: Example) -> bool:
    return len(example["labels"]) == len(example["input_ids"])
