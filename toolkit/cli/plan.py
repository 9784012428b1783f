"""The verb `toolkit plan`: memory, time and the best strategy of a recipe, before anything is loaded."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.cli.argument_types import count, file_path, positive
from toolkit.cli.output import reader_may_leave
from toolkit.errors import InputError, RunFailed, plural, show
from toolkit.heavy_imports import as_if_absent, heavy_imports

if TYPE_CHECKING:
    from toolkit.plan.choice import Choice
    from toolkit.plan.speed import Place
    from toolkit.plan.strategy import Planned
    from toolkit.recipe import Recipe

SUMMARY = "what a recipe needs in memory, time and disk, and which strategy is fastest (exit 3: it does not fit)"
EXAMPLES = [
    "recipes/NAME.py                               as the recipe says, on this machine or the one it names",
    "recipes/NAME.py --devices 8 --device H100     which strategy to take on eight of these",
    "recipes/NAME.py --device cpu --devices 2      two ranks on this host's processor",
    "recipes/NAME.py --devices 8 --device A100 --batch.micro_size 4 --html plan.html",
]


def add_flags(verb: argparse.ArgumentParser) -> None:
    """Add the flags of `toolkit plan`."""
    verb.add_argument("recipe", type=file_path, help="a recipe file; of its model only the configuration is read")
    verb.add_argument("--devices", type=count, help="devices over all hosts (default: the recipe's launch section)")
    verb.add_argument("--device", help="H100, H200, B200, A100, L40S, MI300X, RTX-4090, ..., or cpu")
    verb.add_argument("--devices-per-host", type=count, help="default: as the recipe's launch section says, or 8")
    verb.add_argument("--device-memory-gib", type=positive, help="memory of a device, where it is another one")
    verb.add_argument("--host-memory-gib", type=positive, help="memory of a host: strategies that need more do not fit")
    verb.add_argument("--link-gb-s", type=positive, help="GB/s in one direction between devices of a host")
    verb.add_argument(
        "--fabric-gb-s", type=positive, help="GB/s in one direction between hosts, per device (default: 50)"
    )
    verb.add_argument("--price", type=positive, help="of a device for an hour, in any currency")
    verb.add_argument("--html", type=file_path, help="write a page with pictures, in one file")
    verb.add_argument("--json", action="store_true", help="everything as one JSON object")
    verb.set_defaults(run=run, fields=[])


def run(options: argparse.Namespace) -> int:
    """Print the plan; returns 3 where neither the recipe as it is nor any strategy fits."""
    recipe = _recipe(options)
    made = _plan(recipe, options)
    with reader_may_leave():
        if options.json:
            print(json.dumps(made.json(), indent=2))
        else:
            print("\n".join(made.lines()))
    if options.html is not None:
        from toolkit.plan.page import page, write_page

        write_page(options.html, page(made.title, made.given, made.choice, made.recipe, made.as_it_is()))
        if not options.json:
            print(f"{options.html}: written; open it in a browser")
    if made.fits:
        return 0
    return show(_does_not_fit(made)) if not options.json else 3


def _recipe(options: argparse.Namespace) -> Recipe:
    from toolkit.recipe.load import load_recipe

    recipe = load_recipe(options.recipe)
    if options.fields:
        from toolkit.cli.flags import parse

        recipe = parse(recipe, options.fields, output_dir=Path(), description="", prog="toolkit plan").recipe
    return recipe


@dataclass(frozen=True)
class Made:
    """A plan, ready to be shown."""

    recipe: Recipe
    name: str
    place: Place
    world_size: int
    given: Planned | None
    """The recipe as it says; None where it cannot run so on these devices."""
    why_not: InputError | None
    """The reason for that."""
    choice: Choice
    price: float | None
    said: str
    """How far plans were off until now."""

    @property
    def fits(self) -> bool:
        """Whether anything does."""
        return self.choice.best is not None or (self.given is not None and self.given.fits())

    @property
    def all(self) -> list[Planned]:
        """Every strategy that was planned, the recipe's own first."""
        return [*([] if self.given is None else [self.given]), *self.choice.fitting, *self.choice.others]

    @property
    def title(self) -> str:
        """What is planned, in one line."""
        any_plan, batch = self.all[0], self.recipe.batch
        trained = "" if any_plan.trained == any_plan.total else f", {any_plan.trained / 1e6:,.1f} M of them trained"
        length = f" of {batch.sequence_length:,} tokens" if self.recipe.task.has_length else ""
        return (
            f"{self.name}: {any_plan.total / 1e6:,.1f} M parameters{trained}, {plural(batch.global_size, 'sequence')}{length} per step, on "
            f"{self.world_size} x {self.place.hardware.name}"
        )

    def lines(self) -> list[str]:
        """For the screen."""
        from toolkit.plan.report import choice_lines

        return [self.title, "", *self.as_it_is(), "", *choice_lines(self.choice, self.recipe, self.given)]

    def as_it_is(self) -> list[str]:
        """What the recipe needs as it says, or why it cannot run so."""
        from toolkit.plan.choice import describe
        from toolkit.plan.report import memory_lines, time_lines

        if self.given is None:
            assert self.why_not is not None
            return [f"as the recipe says: not possible: {self.why_not.what}", f"  do this:  {self.why_not.do}"]
        needs = [*memory_lines(self.given), *time_lines(self.given, self.recipe.steps, self.price)]
        return [f"as the recipe says: {describe(self.given)}", *needs, f"        {self.said}"]

    def json(self) -> dict[str, Any]:
        """As data."""
        from toolkit.plan.report import choice_json, plan_json, run_json

        given = None
        if self.given is not None:
            given = plan_json(self.given)
            if self.recipe.steps is not None:
                given["run"] = run_json(self.given, self.recipe.steps, self.price)
        found = {"recipe": self.name, "as_given": given, "calibration": self.said}
        if self.why_not is not None:
            found["as_given_refused"] = self.why_not.what
        return {**found, **choice_json(self.recipe, self.choice)}


def _plan(recipe: Recipe, options: argparse.Namespace) -> Made:
    from rich.console import Console

    with Console(stderr=True).status("tracing the model without weights"):
        # For detecting objects and quantizing transformers imports them at once: a second, and no plan needs either.
        with heavy_imports(), as_if_absent("scipy", "torchao"):
            from toolkit.models.quiet import quiet
            from toolkit.plan.choice import Chooser
            from toolkit.plan.side_by_side import usable_cores
            from toolkit.plan.start import calibrated, place_for, refused, subject_or_refused
            from toolkit.plan.trace import Untraceable

        with quiet():
            subject = subject_or_refused(recipe)
            subject.cores = usable_cores()
            place = place_for(recipe, options)
            world = options.devices or recipe.launch.world_size
            place, said = calibrated(recipe, place, world)
            chooser, given, why_not = Chooser(subject, recipe, world, place), None, None
            try:
                try:
                    given = chooser.as_it_is()
                except InputError as error:
                    why_not = error
                choice = chooser.choose()
            except Untraceable as reason:
                raise refused(reason) from None
    if why_not is not None and not (choice.fitting or choice.others):
        raise why_not
    return Made(recipe, options.recipe.stem, place, world, given, why_not, choice, options.price, said)


def _does_not_fit(made: Made) -> RunFailed:
    from toolkit.plan.report import host_memory

    least = min(made.all, key=lambda plan: plan.fullness)
    needs = f"{least.memory.peak / 2**30:.1f} GiB of {least.limit / 2**30:.1f} per device"
    if least.place.host_memory is not None and least.memory.host:
        needs += f" and {host_memory(least)} per host"
    return RunFailed(
        f"{made.name} does not fit on {made.world_size} x {made.place.hardware.name}: the least is {needs}",
        expected="a strategy whose memory is there, and a margin",
        do="plan more devices or larger ones (--devices, --device), a shorter batch.sequence_length, or tuning=LoRA()",
    )
