"""Learning-rate schedules in closed form: the curve a dry run prints and the one every run must log.

`factor(schedule, step, total)` is the multiple of the peak learning rate that optimizer step `step` (0-based) uses.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from toolkit.recipe.update import Schedule

Shape = Callable[[Schedule, int, int], float]


def factor(schedule: Schedule, step: int, total: int) -> float:
    """Multiple of the peak at 0-based optimizer step `step` of `total`.

    Linear warm-up is `step / warmup_steps`, as in Hugging Face's schedules (transformers/optimization.py). For
    reduce_on_plateau this is the curve without any drop: drops depend on the evaluations.
    """
    if step < schedule.warmup_steps:
        return step / schedule.warmup_steps
    return SHAPES[schedule.type](schedule, step - schedule.warmup_steps, max(1, total - schedule.warmup_steps))


def _constant(schedule: Schedule, step: int, length: int) -> float:
    return 1.0


def _towards_end(schedule: Schedule, share: float) -> float:
    return schedule.min_ratio + (1.0 - schedule.min_ratio) * share


def _linear(schedule: Schedule, step: int, length: int) -> float:
    return _towards_end(schedule, max(0.0, 1.0 - step / length))


def _cosine(schedule: Schedule, step: int, length: int) -> float:
    # Loshchilov and Hutter 2017, arXiv 1608.03983, without restarts.
    return _towards_end(schedule, 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / length))))


def _warmup_stable_decay(schedule: Schedule, step: int, length: int) -> float:
    # Hu et al. 2024, arXiv 2404.06395: constant, then linear decay.
    decay = min(length, schedule.decay_steps or max(1, length // 5))
    return _towards_end(schedule, min(1.0, max(0.0, (length - step) / decay)))


def _polynomial(schedule: Schedule, step: int, length: int) -> float:
    return _towards_end(schedule, max(0.0, 1.0 - step / length) ** schedule.power)


def _exponential(schedule: Schedule, step: int, length: int) -> float:
    return float(schedule.gamma**step)


def _step(schedule: Schedule, step: int, length: int) -> float:
    return float(schedule.gamma ** (step // (schedule.step_size or 1)))


def _multi_step(schedule: Schedule, step: int, length: int) -> float:
    # Milestones are steps of the run, as a reader of the recipe takes them, not of the part after the warm-up.
    return float(schedule.gamma ** sum(step + schedule.warmup_steps >= mark for mark in schedule.milestones))


def _inverse_sqrt(schedule: Schedule, step: int, length: int) -> float:
    # Vaswani et al. 2017, arXiv 1706.03762, section 5.3, scaled to peak at the end of the warm-up. Without one the time
    # scale is 10,000 steps, as in transformers and big_vision: a scale of 1 would halve the rate within three steps.
    anchor = schedule.warmup_steps or 10_000
    return math.sqrt(anchor / (step + anchor))


def _one_cycle(schedule: Schedule, step: int, length: int) -> float:
    # Smith and Topin 2018, arXiv 1708.07120, with cosine slopes as in torch.optim.lr_scheduler.OneCycleLR.
    # The peak may lie between two steps; a rise shorter than one step is left out.
    peak = max(0.0, schedule.peak_fraction * length - 1.0)
    if step < peak:
        return _cosine_slope(schedule.start_ratio, 1.0, step / peak)
    if step > peak and step >= length - 1:
        return schedule.min_ratio
    return _cosine_slope(1.0, schedule.min_ratio, (step - peak) / max(1.0, length - 1.0 - peak))


def _cosine_slope(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2.0 * (1.0 + math.cos(math.pi * share))


SHAPES: dict[str, Shape] = {
    "constant": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "warmup_stable_decay": _warmup_stable_decay,
    "polynomial": _polynomial,
    "exponential": _exponential,
    "step": _step,
    "multi_step": _multi_step,
    "inverse_sqrt": _inverse_sqrt,
    "one_cycle": _one_cycle,
    "reduce_on_plateau": _constant,
}
