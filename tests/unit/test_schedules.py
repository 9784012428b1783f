"""Every schedule in closed form against torch.optim.lr_scheduler and transformers.optimization, step by step."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
import transformers.optimization as hf
from torch.optim import lr_scheduler

from toolkit.recipe import Schedule
from toolkit.recipe.schedules import SHAPES, factor
from toolkit.recipe.update import ScheduleType

TOTAL = 60

Build = Callable[[torch.optim.Optimizer], Any]


def curve(build: Build, steps: int) -> list[float]:
    """Learning rate that an optimizer with peak 1 uses at each step under the scheduler that `build` makes."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with warnings.catch_warnings():
        # SequentialLR calls its schedulers with an argument that torch itself deprecates.
        warnings.simplefilter("ignore", UserWarning)
        scheduler = build(optimizer)
        rates = []
        for step in range(steps):
            if step:
                optimizer.step()
                scheduler.step()
            rates.append(optimizer.param_groups[0]["lr"])
    return rates


def assert_same(schedule: Schedule, build: Build, total: int = TOTAL, start: int = 0) -> None:
    expected = curve(build, total)
    ours = [factor(schedule, step, total) for step in range(total)]
    assert max(ours) > min(ours) or schedule.type in ("constant", "reduce_on_plateau")
    # abs: torch's recursive forms leave 1e-17 where the closed form is 0.
    assert ours[start:] == pytest.approx(expected[start:], rel=1e-12, abs=1e-15)


TRANSFORMERS: dict[str, tuple[dict[str, Any], Callable[[Any, int], Any]]] = {
    "constant": ({}, hf.get_constant_schedule_with_warmup),
    "linear": ({}, lambda o, w: hf.get_linear_schedule_with_warmup(o, w, TOTAL)),
    "cosine": ({}, lambda o, w: hf.get_cosine_schedule_with_warmup(o, w, TOTAL)),
    "cosine to a floor": (
        {"min_ratio": 0.1},
        lambda o, w: hf.get_cosine_with_min_lr_schedule_with_warmup(o, w, TOTAL, min_lr_rate=0.1),
    ),
    "polynomial": (
        {"power": 2.5, "min_ratio": 0.05},
        lambda o, w: hf.get_polynomial_decay_schedule_with_warmup(o, w, TOTAL, lr_end=0.05, power=2.5),
    ),
    "inverse_sqrt": ({}, hf.get_inverse_sqrt_schedule),
    "warmup_stable_decay": (
        {"decay_steps": 20},
        lambda o, w: hf.get_wsd_schedule(o, w, num_decay_steps=20, num_training_steps=TOTAL, decay_type="linear"),
    ),
}


@pytest.mark.parametrize("warmup_steps", [0, 1, 7])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers(name: str, warmup_steps: int) -> None:
    fields, build = TRANSFORMERS[name]
    schedule = Schedule(type=name.split()[0], warmup_steps=warmup_steps, **fields)
    assert_same(schedule, lambda optimizer: build(optimizer, warmup_steps))


TORCH: dict[str, tuple[dict[str, Any], Callable[[Any, int], Any]]] = {
    "constant": ({}, lambda o, n: lr_scheduler.ConstantLR(o, factor=1.0, total_iters=n)),
    "linear": ({"min_ratio": 0.2}, lambda o, n: lr_scheduler.LinearLR(o, 1.0, 0.2, total_iters=n)),
    "cosine": ({}, lambda o, n: lr_scheduler.CosineAnnealingLR(o, T_max=n)),
    "cosine to a floor": ({"min_ratio": 0.1}, lambda o, n: lr_scheduler.CosineAnnealingLR(o, n, eta_min=0.1)),
    "polynomial": ({"power": 1.7}, lambda o, n: lr_scheduler.PolynomialLR(o, total_iters=n, power=1.7)),
    "exponential": ({"gamma": 0.97}, lambda o, _: lr_scheduler.ExponentialLR(o, gamma=0.97)),
    "step": ({"gamma": 0.5, "step_size": 9}, lambda o, _: lr_scheduler.StepLR(o, step_size=9, gamma=0.5)),
    "multi_step": (
        {"gamma": 0.3, "milestones": (20, 21, 45)},
        # Milestones count from the start of the run, torch's from the start of its scheduler.
        lambda o, n: lr_scheduler.MultiStepLR(o, [m - (TOTAL - n) for m in (20, 21, 45)], gamma=0.3),
    ),
}


def warm_up(optimizer: Any, steps: int, after: Build) -> Any:
    """`after`, preceded by a linear rise from 0 over `steps` steps."""
    if not steps:
        return after(optimizer)
    rise = lr_scheduler.LambdaLR(optimizer, lambda step: step / steps)
    return lr_scheduler.SequentialLR(optimizer, [rise, after(optimizer)], milestones=[steps])


@pytest.mark.parametrize("warmup_steps", [0, 1, 7])
@pytest.mark.parametrize("name", TORCH)
def test_torch(name: str, warmup_steps: int) -> None:
    fields, build = TORCH[name]
    schedule = Schedule(type=name.split()[0], warmup_steps=warmup_steps, **fields)
    length = TOTAL - warmup_steps
    assert_same(schedule, lambda optimizer: warm_up(optimizer, warmup_steps, lambda o: build(o, length)))


@pytest.mark.parametrize(("total", "peak_fraction"), [(60, 0.3), (61, 0.3), (100, 0.25), (10, 0.5), (7, 0.9), (5, 0.3)])
@pytest.mark.parametrize(("start_ratio", "min_ratio"), [(0.04, 0.0), (0.1, 0.001), (1.0, 0.5)])
def test_one_cycle(total: int, peak_fraction: float, start_ratio: float, min_ratio: float) -> None:
    schedule = Schedule(type="one_cycle", peak_fraction=peak_fraction, start_ratio=start_ratio, min_ratio=min_ratio)
    assert_same(
        schedule,
        lambda optimizer: lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=1.0,
            total_steps=total,
            pct_start=peak_fraction,
            div_factor=1 / start_ratio,
            final_div_factor=start_ratio / min_ratio if min_ratio else float("inf"),
            cycle_momentum=False,
        ),
        total,
    )


def test_reduce_on_plateau_is_the_curve_without_a_drop() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=2)
    for step in range(TOTAL):
        assert factor(Schedule(type="reduce_on_plateau"), step, TOTAL) == optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step(1.0 / (step + 1))


@pytest.mark.parametrize("min_ratio", [0.0, 0.3])
def test_stable_decay_reaches_its_floor_from_any_warm_up(min_ratio: float) -> None:
    # transformers raises the start of its warm-up by the floor; ours starts at 0, so the curves meet after it.
    schedule = Schedule(type="warmup_stable_decay", warmup_steps=5, decay_steps=15, min_ratio=min_ratio)
    assert_same(
        schedule,
        lambda o: hf.get_wsd_schedule(o, 5, 15, TOTAL, decay_type="linear", min_lr_ratio=min_ratio),
        start=5,
    )


def test_stable_decay_takes_a_fifth_by_default() -> None:
    schedule = Schedule(type="warmup_stable_decay", warmup_steps=10)
    assert_same(schedule, lambda o: hf.get_wsd_schedule(o, 10, 10, TOTAL, decay_type="linear"))


def test_every_type_has_a_reference_here() -> None:
    names = {name.split()[0] for name in [*TRANSFORMERS, *TORCH]} | {"one_cycle", "reduce_on_plateau"}
    assert names == set(get_args(ScheduleType)) == set(SHAPES)


@pytest.mark.parametrize("kind", ["linear", "cosine", "polynomial", "warmup_stable_decay", "one_cycle"])
def test_after_the_last_step_the_floor_holds(kind: str) -> None:
    schedule = Schedule(type=kind, min_ratio=0.25)
    assert [factor(schedule, step, TOTAL) for step in (TOTAL, TOTAL + 1, 10 * TOTAL)] == pytest.approx([0.25] * 3)


@pytest.mark.parametrize("kind", get_args(ScheduleType))
@pytest.mark.parametrize("total", [1, 2, 3])
def test_short_runs_stay_between_zero_and_the_peak(kind: str, total: int) -> None:
    fields = {"step": {"step_size": 1}, "multi_step": {"milestones": (1,)}}.get(kind, {})
    warmups = (0,) if kind in ("one_cycle", "reduce_on_plateau") else (0, 1, 5)
    for warmup_steps in warmups:
        schedule = Schedule(type=kind, warmup_steps=warmup_steps, **fields)
        rates = [factor(schedule, step, total) for step in range(total + 2)]
        assert all(0.0 <= rate <= 1.0 for rate in rates)
        assert rates[0] == 0.0 if warmup_steps else rates[0] > 0.0
