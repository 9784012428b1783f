"""What follows from a flag: the fields that a recipe's file fitted to its own length or batch, in a start with another.

Only fields that the command line leaves alone, only where nothing is trained but what it asks for, and each change is said.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from toolkit.cli.flag_errors import values_of
from toolkit.recipe import Recipe
from toolkit.recipe.effect import EffectError, value_of
from toolkit.recipe.length import LengthError, Misfit
from toolkit.recipe.recipe import InconsistentRecipe

LENGTHS = {"steps": "epochs", "epochs": "steps"}
"""A recipe has one of the two."""


def given_flags(argv: Sequence[str]) -> frozenset[str]:
    """The dotted names on the command line."""
    words = (word.partition("=")[0] for word in argv if word.startswith("--"))
    return frozenset(word[2:].replace("-", "_") for word in words)


def other_length(file: Recipe, argv: Sequence[str], given: Collection[str]) -> tuple[list[str], list[str]]:
    """(flags to add, what to say): a length on the command line takes the place of the file's, whatever its unit."""
    for name, other in LENGTHS.items():
        length, old = " ".join(values_of(name, argv)), getattr(file, other)
        if name in given and other not in given and old is not None and length != "None":
            return [f"--{other}", "None"], [
                f"length: --{name} {length} takes the place of the recipe's {other}={old:g}"
            ]
    return [], []


def same_held_out(file: Recipe, given: Collection[str]) -> list[str]:
    """What to say where other data is trained and the file's own is still held out."""
    held_out = file.data.evaluation
    if held_out is None or "data.train" not in given or "data.evaluation" in given:
        return []
    return [
        f"data: the recipe's data.evaluation={held_out} is still what is held out; instead, some of --data.train: "
        "--data.evaluation None --data.evaluation_examples N"
    ]


def shortened(
    error: InconsistentRecipe, file: Recipe, given: Collection[str], followed: Collection[str]
) -> tuple[list[str], list[str]]:
    """(flags to add, what to say) for the fields that a run of the length on the command line has no room for.

    `given` is what the user has written, `followed` what followed from it before.
    """
    if not LENGTHS.keys() & set(given):
        return [], []
    misfits = [misfit for part in error.parts if isinstance(part, LengthError) for misfit in part.misfits]
    cures = {misfit.name: _cure(misfit, error.recipe, file) for misfit in misfits if misfit.follows}
    idle = [field for part in error.parts if isinstance(part, EffectError) for field in part.idle]
    cures |= {field.name: field.flag for field in idle if set(field.depends) & set(followed)}
    settled = {*given, *followed}
    cures = {name: cure for name, cure in cures.items() if not {name, cure.split()[0][2:]} & settled}
    if not cures:
        return [], []
    fields = ", ".join(f"{name}={value_of(error.recipe, name)}" for name in cures)
    flags = " ".join(dict.fromkeys(cures.values()))
    return flags.split(), [
        f"length: --steps {error.recipe.steps} leaves no room for the recipe's {fields}; taken instead: {flags}"
    ]


def _cure(misfit: Misfit, recipe: Recipe, file: Recipe) -> str:
    section, _, field = misfit.name.partition(".")
    if section != "schedule" or not file.steps or not recipe.steps:
        return misfit.flag
    # The same share of the run as in the file, so that the curve keeps its shape.
    share = getattr(recipe.schedule, field) * recipe.steps // file.steps
    return f"--{misfit.name} {share if field == 'warmup_steps' else max(1, share)}"


def smaller_micro_batch(recipe: Recipe, given: Collection[str], world_size: int) -> tuple[Recipe, list[str]]:
    """(the recipe, what to say) with a batch.micro_size that divides the batch.global_size of the command line."""
    batch, parallel = recipe.batch, recipe.parallel
    if "batch.global_size" not in given or "batch.micro_size" in given:
        return recipe, []
    replicas, rest = divmod(world_size, parallel.pipeline * parallel.tensor * parallel.sequence)
    fitting = batch.dividing_micro_size(replicas) if replicas and not rest else None
    if fitting in (None, batch.micro_size):
        return recipe, []
    note = f"batch: --batch.global_size {batch.global_size} takes batch.micro_size={fitting} instead of the recipe's {batch.micro_size}"
    return recipe.model_copy(update={"batch": batch.model_copy(update={"micro_size": fitting})}), [note]
