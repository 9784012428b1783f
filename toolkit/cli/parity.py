"""`toolkit parity RECIPE`: does this recipe compute the same under every strategy?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from toolkit.errors import RecipeError, RunFailed, show
from toolkit.parity.report import Report, headline, table
from toolkit.parity.strategies import choose
from toolkit.parity.walk import compare
from toolkit.recipe.load import load_recipe

NARROWEST = 120
"""Columns of the table where standard output is no terminal."""


def parity(
    path: Path,
    names: Sequence[str],
    *,
    steps: int,
    dtype: str,
    architecture: str | None,
    timeout_s: float,
    as_json: bool,
) -> int:
    """Compare, print the table (or JSON), and return 0 when every strategy is within tolerance, else 3."""
    strategies = choose(names)
    recipe = load_recipe(path)
    if recipe.task.reads_media or not recipe.task.has_length:
        raise RecipeError(
            f"task.name={recipe.task.name!r}: `toolkit parity` has no small model and no data of its own for this task",
            expected="a recipe whose examples are sequences of tokens",
            do="compare a recipe of a task on text; the test suite holds this one against plain PyTorch under ZeRO 0 to 3",
        )
    progress = Console(stderr=True, highlight=False)
    found = compare(
        recipe,
        path.stem,
        strategies,
        steps=steps,
        dtype=dtype,
        architecture=architecture,
        timeout_s=timeout_s,
        watch=progress.status,
    )
    if as_json:
        print(json.dumps(found.to_json(), indent=2))
    else:
        _print(found)
    return 0 if found.holds else show(_failure(found))


def _print(found: Report) -> None:
    terminal = Console(highlight=False)
    # rich takes 80 columns for a pipe, and would break the reasons of refused strategies into many lines.
    console = terminal if terminal.is_terminal else Console(highlight=False, width=NARROWEST)
    console.print(headline(found), markup=False, soft_wrap=True)
    console.print(table(found))


def _failure(found: Report) -> RunFailed:
    apart = [row.name for row in found.rows if row.verdict in ("deviates", "failed")] or ["16-bit losses"]
    return RunFailed(
        f"{', '.join(apart)}: not the curve of plain PyTorch, see the table",
        expected=f"deviations of at most {found.tolerance}, and no strategy that fails",
        do="train with a strategy that is within tolerance; where all of them are apart, something in the model is random or ill-conditioned",
    )
