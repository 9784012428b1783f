"""What does not fit into the length of a run: a warm-up that never ends, a drop that never comes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from toolkit.errors import RecipeError, plural

if TYPE_CHECKING:
    from toolkit.recipe.recipe import Recipe


@dataclass(frozen=True)
class Misfit:
    """One field that reaches beyond the run, or never comes to act in it."""

    field: str
    expected: str
    flag: str
    """What cures it on the command line."""
    follows: bool = False
    """Whether a shorter run on the command line takes it along: it trains the recipe's curve, or changes no weight."""

    @property
    def name(self) -> str:
        """The dotted name of the field."""
        return self.field.partition("=")[0]


class LengthError(RecipeError):
    """A run has no room for some fields."""

    misfits: Sequence[Misfit] = ()


def check_length(recipe: Recipe, total_steps: int) -> None:
    """Raise RecipeError for every field of `recipe` that a run of `total_steps` optimizer steps has no room for."""
    misfits = [*_schedule(recipe, total_steps), *_intervals(recipe, total_steps)]
    if misfits:
        error = LengthError(
            f"{', '.join(misfit.field for misfit in misfits)} in a run of {plural(total_steps, 'step')}",
            expected="; ".join(misfit.expected for misfit in misfits),
            do=f"make the run longer, or pass {' '.join(misfit.flag for misfit in misfits)}",
        )
        error.misfits = misfits
        raise error


def _schedule(recipe: Recipe, total: int) -> Iterator[Misfit]:
    schedule = recipe.schedule
    warmup = schedule.warmup_steps
    if warmup >= total:
        yield Misfit(
            f"schedule.warmup_steps={warmup}",
            f"schedule.warmup_steps below {total}: the rate never reaches optimizer.learning_rate",
            f"--schedule.warmup_steps {total - 1}",
            follows=True,
        )
        warmup = total - 1
    after = total - warmup
    if schedule.type == "warmup_stable_decay" and (schedule.decay_steps or 0) > after:
        yield Misfit(
            f"schedule.decay_steps={schedule.decay_steps}",
            f"schedule.decay_steps of at most {after}, the steps after the warm-up",
            f"--schedule.decay_steps {after}",
            follows=True,
        )
    if schedule.type == "step" and (schedule.step_size or 0) >= after:
        yield Misfit(
            f"schedule.step_size={schedule.step_size}",
            f"schedule.step_size below {after}, the steps after the warm-up: the rate never drops",
            f"--schedule.step_size {max(1, after // 2)}",
        )
    late = [mark for mark in schedule.milestones if mark >= total]
    if schedule.type == "multi_step" and late:
        kept = [str(mark) for mark in schedule.milestones if mark < total] or [str(max(1, total // 2))]
        yield Misfit(
            f"schedule.milestones={schedule.milestones}",
            f"milestones below {total}: the rate never drops at {', '.join(map(str, late))}",
            f"--schedule.milestones {' '.join(kept)}",
        )
    if schedule.type == "one_cycle" and schedule.peak_fraction * total <= 1.0:
        yield Misfit(
            f"schedule.peak_fraction={schedule.peak_fraction}",
            f"more than {1 / total:.3g}: the rise to the peak is shorter than one step",
            f"--schedule.peak_fraction {(1 + 1 / total) / 2:.3g}",
        )


def _intervals(recipe: Recipe, total: int) -> Iterator[Misfit]:
    every = recipe.checkpoint.every_steps
    if every > total:
        yield Misfit(
            f"checkpoint.every_steps={every}",
            f"checkpoint.every_steps of at most {total} (0: only the last step)",
            "--checkpoint.every_steps 0",
            follows=True,
        )
    every, watcher = recipe.evaluation.every_steps, _watcher(recipe)
    if not every:
        return
    # Of the evaluations in the run only those before its last step can still change anything.
    before, needed = (total - 1) // every, watcher.needed if watcher else 0
    often = min(total, max(1, (total - 1) // needed)) if needed else 0
    if every > total:
        yield Misfit(
            f"evaluation.every_steps={every}",
            f"evaluation.every_steps of at most {total}"
            + ("" if needed else " (0: before the first and after the last)"),
            f"--evaluation.every_steps {often}",
            follows=True,
        )
        before = (total - 1) // often if often else 0
    if watcher is not None and before < needed:
        cure = f"--evaluation.every_steps {often}" if (total - 1) // often >= needed else watcher.off
        yield Misfit(
            watcher.field,
            f"at least {plural(needed, 'evaluation')} before the last step, of which there "
            f"{'is' if before == 1 else 'are'} {before}: {watcher.why}",
            cure,
            follows=not watcher.trains,
        )


@dataclass(frozen=True)
class _Watcher:
    """What follows the evaluations, and how many it takes before the last step until it can act."""

    field: str
    needed: int
    why: str
    off: str
    trains: bool = False
    """Whether it changes a weight, and not only which of them are kept or when the run ends."""


def _watcher(recipe: Recipe) -> _Watcher | None:
    """The one that needs most evaluations."""
    patience, found = recipe.evaluation.early_stopping_patience, []
    if recipe.checkpoint.keep_best:
        why = "the best checkpoint is always the last"
        found.append(_Watcher("checkpoint.keep_best=True", 1, why, "--checkpoint.keep_best False"))
    if patience:
        field = "evaluation.early_stopping_patience"
        why = "the first is the best so far, the others may be worse"
        found.append(_Watcher(f"{field}={patience}", patience + 1, why, f"--{field} 0"))
    if recipe.schedule.type == "reduce_on_plateau":
        field, patience = "schedule.patience", recipe.schedule.patience
        why = "the first is the best so far, and the rate drops after more than schedule.patience worse ones"
        found.append(_Watcher(f"{field}={patience}", patience + 2, why, "--schedule.type constant", trains=True))
    return max(found, key=lambda watcher: watcher.needed, default=None)
