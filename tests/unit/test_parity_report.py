"""What counts as too far, and that every recipe of ours can be compared."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from rich.console import Console

from toolkit.ds_config.check import check_config
from toolkit.ds_config.render import render
from toolkit.errors import InputError
from toolkit.parity import report
from toolkit.parity.problem import LEAST_STEPS, Curves, Wanted, learning_rate, scaled_recipe
from toolkit.parity.report import Report, Row, Tolerance
from toolkit.parity.strategies import DEFAULT, STRATEGIES, choose
from toolkit.parity.walk import cpu_target, key_value_heads, num_layers
from toolkit.recipe import Recipe, Schedule
from toolkit.recipe.load import load_recipe
from toolkit.recipe.mesh import DEGREES
from toolkit.recipe.schedules import factor

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.py"))
REFERENCE = Curves([4.0, 2.0], [1.0, 0.5])


LIMIT = Tolerance(loss=1e-5, grad_norm=1e-5, weights=1e-5)


def row(found: Curves, limit: Tolerance = LIMIT) -> Row:
    """The row of a strategy with these curves."""
    return report.row("zero1", 2, found, REFERENCE, limit, 1.0)


def whole(*rows: Row, spread: float | None = None) -> Report:
    """A report of these rows."""
    return Report("a_recipe", "Model", 10, "fp32", 2, LIMIT, list(rows), spread)


def test_each_of_the_three_is_judged() -> None:
    """Loss, gradient norm, weights: one that is too far is enough."""
    good = row(Curves([4.00001, 2.0], [1.0, 0.500001], 1e-6))
    assert good.verdict == "ok" and good.loss == pytest.approx(2.5e-6) and good.grad_norm == pytest.approx(2e-6)
    assert row(Curves([4.0, 2.001], [1.0, 0.5])).verdict == "deviates"
    assert row(Curves([4.0, 2.0], [1.0, 0.501])).verdict == "deviates"
    assert row(Curves([4.0, 2.0], [1.0, 0.5], 1e-3)).verdict == "deviates"


def test_each_has_its_own_tolerance() -> None:
    """A loss as far off as a norm may be is too far."""
    limit = Tolerance(loss=1e-4, grad_norm=1e-2, weights=1e-3)
    assert row(Curves([4.0, 2.0], [1.0, 0.504], 5e-4), limit).verdict == "ok"
    assert row(Curves([4.0, 2.01], [1.0, 0.5]), limit).verdict == "deviates"
    assert row(Curves([4.0, 2.0], [1.0, 0.51]), limit).verdict == "deviates"
    assert row(Curves([4.0, 2.0], [1.0, 0.5], 2e-3), limit).verdict == "deviates"


def test_steps_that_are_not_there_are_not_equal() -> None:
    """A skipped step, a loss that is not finite, a run that is too short."""
    skipped = row(Curves([4.0, 2.0], [None, 0.5]))
    assert (skipped.verdict, skipped.grad_norm, skipped.message) == ("deviates", math.inf, "1 of 2 steps skipped")
    assert row(Curves([4.0, math.nan], [1.0, 0.5])).loss == math.inf
    assert row(Curves([4.0], [1.0])).verdict == "deviates"
    without_norms = row(Curves([4.0, 2.0], [None, None]))
    assert without_norms.verdict == "ok" and without_norms.grad_norm is None


def test_a_report_holds_when_all_rows_do() -> None:
    """A refusal is an answer; a failure is not; 16-bit strategies must agree with each other."""
    good, refused = row(Curves([4.0, 2.0], [1.0, 0.5])), Row("zero0", 2, "refused", message="rule-id")
    assert whole(good, refused).holds
    assert not whole(good, Row("zero2", 2, "failed", message="rank 1 died")).holds
    assert whole(good, spread=9e-4).holds and not whole(good, spread=2e-3).holds
    values = whole(row(Curves([math.inf, 2.0], [1.0, 0.5]))).to_json()
    assert values["holds"] is False and values["rows"][0]["loss"] is None


def test_the_table_shows_numbers_and_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    """A refused strategy shows its rule, also one that looks like markup."""
    Console(width=120).print(
        report.table(whole(row(Curves([4.0, 2.0], [1.0, 0.5])), Row("x", 4, "refused", message="[a]")))
    )
    printed = capsys.readouterr().out
    assert "0.0e+00" in printed and "refused: [a]" in printed


def test_strategies_are_chosen_by_name() -> None:
    """Dashes as underscores, each once, one of each kind by default; a misspelt one is named."""
    assert list(choose(["zero1-offload", "zero0", "zero0"])) == ["zero1_offload", "zero0"]
    assert tuple(choose([])) == DEFAULT
    assert choose(["all"]) == STRATEGIES
    with pytest.raises(InputError, match=r"unknown strategy 'zero9' \(did you mean"):
        choose(["zero9"])


def test_needs_follow_from_the_strategies() -> None:
    """Layers for each stage, heads for each tensor and sequence rank."""
    from toolkit.parity.strategies import Strategy

    deep = {
        "a": Strategy(4, {"pipeline": 4}),
        "b": Strategy(3, {"tensor": 3}),
        "c": Strategy(8, {"pipeline": 2, "tensor": 4}),
    }
    assert (num_layers(deep), key_value_heads(deep)) == (4, 12)
    assert (num_layers(STRATEGIES) >= 2, key_value_heads(STRATEGIES) % 2) == (True, 0)
    assert deep["c"].ranks_per_replica == 8


COMPARED = [path for path in RECIPES if (task := load_recipe(path).task).has_length and not task.reads_media]
"""Of tasks on texts: for the others `toolkit parity` has no data of its own, and says so."""


@pytest.mark.parametrize("path", COMPARED, ids=lambda path: path.stem)
def test_every_recipe_of_ours_can_be_compared(path: Path, tmp_path: Path) -> None:
    """Its scaled-down form renders without a finding under every strategy that its task can be cut for."""
    wanted = Wanted(6, "fp32", None, 2, 2)
    recipe = scaled_recipe(load_recipe(path), wanted, tmp_path)
    for strategy in STRATEGIES.values():
        if any(getattr(strategy.parallel, cut) > 1 for cut in {*DEGREES} - recipe.task.cuts):
            continue
        run = Recipe(**{**dict(recipe), "parallel": strategy.parallel})
        target = cpu_target(run, strategy.world_size)
        config = render(run, target)
        assert check_config(config, target=target) == []


def test_the_rate_is_the_closed_form() -> None:
    """The reference's own formula is the recipe's schedule."""
    schedule = Schedule(type="linear", warmup_steps=2)
    for steps in (LEAST_STEPS, 6, 20):
        wanted = [0.5 * factor(schedule, step, steps) for step in range(steps)]
        assert [learning_rate(0.5, step, steps) for step in range(steps)] == pytest.approx(wanted)
