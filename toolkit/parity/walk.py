"""From a recipe to a report: the reference in one rank, then each strategy in ranks of its own. Imports no torch."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from toolkit.ds_config.check import check_config
from toolkit.ds_config.findings import errors_in
from toolkit.ds_config.render import render
from toolkit.ds_config.target import Target
from toolkit.errors import InputError, RecipeError, RunFailed, ToolkitError
from toolkit.parity import report
from toolkit.parity.problem import Curves, Problem, Wanted
from toolkit.parity.report import Report, Row, Tolerance
from toolkit.parity.strategies import Strategy
from toolkit.recipe import Recipe
from toolkit.recipe.mesh import model_ranks
from toolkit.train import ranks

# By name: this process would need ten seconds to import what only the ranks use.
PREPARE, TRAIN = "toolkit.parity.work:prepare", "toolkit.parity.work:train_strategy"

REFERENCE_TIMEOUT_S = 300.0

Watch = Callable[[str], AbstractContextManager[object]]
"""Shows, for as long as the context is open, what is going on."""


def compare(
    recipe: Recipe,
    name: str,
    strategies: Mapping[str, Strategy],
    *,
    steps: int,
    dtype: str,
    architecture: str | None,
    timeout_s: float,
    watch: Watch,
) -> Report:
    """Train `recipe`, scaled down, for `steps` steps under each of `strategies`, on this machine's CPU.

    A strategy that does not fit the recipe is a row that says so, and so is one that crashes or is not done after
    `timeout_s` seconds. Raises InputError for a recipe or an architecture that cannot be compared at all, RunFailed
    when the reference itself fails.
    """
    if recipe.task.reads_media:
        raise RecipeError(
            f"task.name={recipe.task.name!r} reads images or sound, and the comparison makes up rows of text alone",
            expected="a recipe of a task that reads text",
            do="compare a recipe of task.name='causal_lm' with the same optimizer, precision and parallel sections",
        )
    wanted = Wanted(steps, dtype, architecture, num_layers(strategies), key_value_heads(strategies))
    with tempfile.TemporaryDirectory(prefix="parity_") as folder:
        with watch("plain PyTorch"):
            if recipe.task.brings_model:
                raise RecipeError(
                    f"task.name={recipe.task.name!r}: there is no second module to compare it with",
                    expected="a task whose model is one of transformers'",
                    do="compare a loop of your own on the same batches, as tests/parity/test_custom.py does",
                )
            problem = _prepare(recipe, wanted, folder)
        limit = report.tolerance(dtype, recipe.optimizer.type)
        rows: list[Row] = []
        curves: list[Curves] = []
        for number, (key, strategy) in enumerate(strategies.items(), start=1):
            with watch(f"{key}, {number} of {len(strategies)}"):
                row, found = _measure(problem, key, strategy, Path(folder), limit, timeout_s)
            rows.append(row)
            curves += [found] if found is not None else []
    return Report(
        recipe=name,
        architecture=problem.architecture,
        num_parameters=problem.num_parameters,
        dtype=dtype,
        steps=steps,
        tolerance=limit,
        rows=rows,
        spread=report.spread(curves) if dtype != "fp32" else None,
    )


def num_layers(strategies: Mapping[str, Strategy]) -> int:
    """Layers that give each stage of each pipeline one, and at least two."""
    return max([2, *(strategy.degree("pipeline") for strategy in strategies.values())])


def key_value_heads(strategies: Mapping[str, Strategy]) -> int:
    """Key-value heads that every tensor and sequence degree divides, and at least two."""
    degrees = [strategy.degree(name) for strategy in strategies.values() for name in ("tensor", "sequence")]
    return math.lcm(2, *degrees)


def _prepare(recipe: Recipe, wanted: Wanted, folder: str) -> Problem:
    try:
        (problem,) = ranks.run(PREPARE, 1, recipe, wanted, folder, timeout_s=REFERENCE_TIMEOUT_S)
    except ranks.RankFailed as failed:
        if failed.error is not None:
            raise failed.error from None
        raise RunFailed(
            f"plain PyTorch could not train the scaled-down model: {failed.headline}",
            expected="a reference to compare with",
            do="compare another model with --architecture; if its configuration is sound, it is scaled down wrongly in toolkit/models/scale.py",
        ) from None
    found: Problem = problem
    return found


def _measure(
    problem: Problem, name: str, strategy: Strategy, folder: Path, limit: Tolerance, timeout_s: float
) -> tuple[Row, Curves | None]:
    began = time.monotonic()
    try:
        recipe = Recipe(**{**dict(problem.recipe), "parallel": strategy.parallel})
        refusal = _refusal(recipe, strategy.world_size)
        if refusal:
            return Row(name, strategy.world_size, "refused", message=refusal), None
        found = ranks.run(TRAIN, strategy.world_size, recipe, str(folder), name, timeout_s=timeout_s)[0]
    except ToolkitError as error:
        return Row(name, strategy.world_size, "refused", message=_first_line(error)), None
    except ranks.RankFailed as failed:
        seconds = time.monotonic() - began
        if isinstance(failed.error, InputError):
            return Row(name, strategy.world_size, "refused", message=_first_line(failed.error), seconds=seconds), None
        failure = Row(name, strategy.world_size, "failed", message=failed.headline, seconds=seconds, detail=str(failed))
        return failure, None
    seconds = time.monotonic() - began
    return report.row(name, strategy.world_size, found, problem.curves, limit, seconds), found


def cpu_target(recipe: Recipe, world_size: int) -> Target:
    """So many CPU ranks, arranged as `recipe` asks."""
    return Target(world_size, "cpu", model_ranks=model_ranks(recipe.parallel))


def _refusal(recipe: Recipe, world_size: int) -> str:
    """Ids of the rules that refuse `recipe` on so many CPU ranks. Raises RecipeError where it cannot be rendered."""
    target = cpu_target(recipe, world_size)
    findings = check_config(render(recipe, target), target=target)
    return ", ".join(dict.fromkeys(finding.rule for finding in errors_in(findings)))


def _first_line(error: ToolkitError) -> str:
    return error.what.splitlines()[0]
