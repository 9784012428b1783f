"""Show what is trained, before a run is spent on the wrong thing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, TextIO

from rich.console import Console
from rich.text import Text

from toolkit.data.example import Example
from toolkit.errors import plural

_TRAINED = "bold green"
_CONTEXT = "dim"


@dataclass(frozen=True)
class Shown:
    """An example as a reader sees it."""

    heading: str
    """How large it is, and what of it is learned."""
    parts: Sequence[tuple[str, bool]]
    """Stretches of text, each with whether it carries loss."""


class Shows(Protocol):
    """What a task says about its examples to a reader."""

    legend: ClassVar[str | None]
    """What the lines below are; None: text of which some is trained."""
    unit: ClassVar[str]
    """What `size` counts."""

    def size(self, example: Example) -> int: ...

    def show(self, example: Example) -> Shown: ...


class _Console(Console):
    """A console that leaves it to its caller what to do when the reader has left."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def preview(task: Shows, sequences: Sequence[Sequence[Example]], *, stream: TextIO) -> None:
    """Print `sequences`, each a list of the examples packed into it, with what is trained marked.

    Colour on a terminal, [[double brackets]] elsewhere.
    """
    console = _Console(file=stream, highlight=False, soft_wrap=True)
    if task.legend is not None:
        legend = Text(task.legend)
    elif console.is_terminal:
        legend = Text.assemble(("trained", _TRAINED), "  ", ("context only", _CONTEXT))
    else:
        legend = Text("trained tokens stand in [[double brackets]]")
    console.print(legend)
    for number, sequence in enumerate(sequences, start=1):
        size = sum(task.size(example) for example in sequence)
        console.print(Text(f"sequence {number}: {plural(size, task.unit)} in {plural(len(sequence), 'example')}"))
        for place, example in enumerate(sequence, start=1):
            shown = task.show(example)
            console.print(Text(f"--- example {place}: {shown.heading} ---"))
            console.print(_text(shown, marked=not console.is_terminal))


def _text(shown: Shown, *, marked: bool) -> Text:
    text = Text()
    for piece, trained in shown.parts:
        if marked:
            text.append(f"[[{piece}]]" if trained else piece)
        else:
            text.append(piece, style=_TRAINED if trained else _CONTEXT)
    return text
