"""Whether a name is certainly another one, misspelt."""

from __future__ import annotations

from collections.abc import Iterable

SHORT = 8
"""A name below that many letters may have one wrong; a longer one two."""
LONGEST = 80


def misspelt(name: str, known: Iterable[str]) -> str | None:
    """The one of `known` that `name` was meant to be; None where that is not certain.

    Certain is: one or two letters are wrong, no digit stands for another one (stage2_... is not stage3_...), and no
    other name is nearly as near.
    """
    if not 4 <= len(name) <= LONGEST:
        return None
    allowed = 1 if len(name) < SHORT else 2
    near = sorted(
        (distance(name, other, allowed + 1), other) for other in known if abs(len(other) - len(name)) <= allowed + 1
    )
    near = [(steps, other) for steps, other in near if steps <= allowed + 1]
    if not near or near[0][0] > allowed or (len(near) > 1 and near[1][0] <= near[0][0] + 1):
        return None
    meant = near[0][1]
    return None if _digits(name) and _digits(meant) and _digits(name) != _digits(meant) else meant


def _digits(name: str) -> list[str]:
    return [letter for letter in name if letter.isdigit()]


def distance(one: str, other: str, most: int) -> int:
    """Letters to insert, drop, replace or exchange with their neighbour to make `other` of `one`; more than `most` is `most` + 1."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for line, letter in enumerate(one, start=1):
        before, last, row = row, before, [line]
        for column, wanted in enumerate(other, start=1):
            steps = min(before[column] + 1, row[column - 1] + 1, before[column - 1] + (letter != wanted))
            if line > 1 and column > 1 and letter == other[column - 2] and one[line - 2] == wanted:
                steps = min(steps, last[column - 2] + 1)
            row.append(steps)
        if min(row) > most:
            return most + 1
    return min(row[-1], most + 1)
