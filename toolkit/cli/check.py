"""The verb `toolkit check`: what DeepSpeed would make of a JSON file, as a report to read or as data."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from toolkit.cli.argument_types import count, file_path
from toolkit.cli.fixing import as_json, fix, report, summary
from toolkit.cli.launcher_config import disagreements
from toolkit.cli.output import reader_may_leave
from toolkit.ds_config.check import check_files
from toolkit.ds_config.config_file import ConfigFile, read_arguments, read_config
from toolkit.ds_config.file_text import STANDARD_INPUT, place_of
from toolkit.ds_config.findings import Finding, Severity, errors_in, sorted_findings
from toolkit.ds_config.fix import Fixed
from toolkit.ds_config.golden import assumed_target
from toolkit.ds_config.other_files import refuse_other_files
from toolkit.ds_config.render import follows_model, render
from toolkit.ds_config.schema_top import DEEPSPEED_VERSION
from toolkit.ds_config.target import Device, Target
from toolkit.errors import InputError, plural
from toolkit.recipe import Recipe
from toolkit.recipe.load import load_recipe

SUMMARY = "check a DeepSpeed JSON, ours or hand-written (exit 2: errors; with --strict, warnings too)"
EXAMPLES = [
    "ds_config.json                                what DeepSpeed would ignore, misread or refuse",
    "ds_config.json --world-size 8                 also the batch arithmetic",
    "ds_config.json --training-args args.json      also what the Trainer would make of it",
    "ds_config.json --recipe recipes/NAME.py       also where it differs from that recipe",
    "ds_config.json --fix                          correct what is certain, show it, name the rest",
    "ds_config.json --strict                       for a CI: warnings count as errors",
    "-                                             from standard input",
]

MOST_PRINTED = 40
"""So many errors, and as many warnings, are printed; --json has them all."""


def add_flags(verb: argparse.ArgumentParser) -> None:
    """Add the flags of `toolkit check`."""
    verb.add_argument("file", type=file_path, help='the DeepSpeed JSON; "-": standard input')
    verb.add_argument("--recipe", type=file_path, help="also compare it with what this recipe renders")
    verb.add_argument("--training-args", type=file_path, help="JSON of Hugging Face TrainingArguments it is used with")
    verb.add_argument("--world-size", type=count, help="processes it is meant for; without it, no arithmetic of ranks")
    verb.add_argument("--device", choices=("cpu", "cuda"), help="device it is meant for (default: cuda)")
    verb.add_argument(
        "--fix", action="store_true", help="write the file with what is certain corrected; show the difference"
    )
    verb.add_argument("--strict", action="store_true", help="exit 2 on warnings, too")
    verb.add_argument("--json", action="store_true", help="findings as one JSON list, each with its severity")
    verb.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the findings; returns 2 where one of them counts, also to a reader that leaves early."""
    try:
        recipe = load_recipe(options.recipe) if options.recipe else None
        given = _given(options, recipe)
        result = fix(given.file, given.findings) if options.fix else Fixed(given.file, (), given.findings(given.file))
    except InputError as error:
        if not options.json:
            raise
        with reader_may_leave():
            print(json.dumps([asdict(_unreadable(error, options.file))], indent=2))
        return 2
    with reader_may_leave():
        if options.json:
            print(as_json(result) if options.fix else json.dumps([asdict(found) for found in result.left], indent=2))
        else:
            _print(given, result, is_fix=options.fix)
    counted = result.left if options.strict else errors_in(result.left)
    return 2 if counted else 0


@dataclass(frozen=True)
class Given:
    """What is checked, and with what."""

    file: ConfigFile
    arguments: ConfigFile | None
    recipe: Recipe | None
    target: Target | None
    device: Device | None

    def findings(self, file: ConfigFile) -> tuple[Finding, ...]:
        """About `file` in the place of the one that was named."""
        found = check_files(file, target=self.target, device=self.device, arguments=self.arguments)
        if self.recipe is not None and self.target is not None:
            differences = [
                Finding(
                    key, "differs-from-recipe", text, "the recipe's value", "correct the file, or the recipe's field"
                )
                for key, text in disagreements(file.data, render(self.recipe, self.target))
                if key not in follows_model(self.recipe)
            ]
            found += file.placed(differences)
        return tuple(sorted_findings(found))

    @property
    def assumed(self) -> str:
        """What the findings hold for."""
        target = self.target
        world = "world size not checked (--world-size N)" if target is None else f"world size {target.world_size}"
        of_recipe = target.device if self.recipe is not None and target is not None else None
        device = self.device or of_recipe or "cuda (--device)"
        trainer = f"the arguments in {self.arguments.name}" if self.arguments else "no Trainer (--training-args FILE)"
        return f"{world}, device {device}, {trainer}, DeepSpeed {DEEPSPEED_VERSION}"


def _given(options: argparse.Namespace, recipe: Recipe | None) -> Given:
    if options.training_args == options.file == STANDARD_INPUT:
        raise InputError(
            "toolkit check: the file and --training-args are both standard input",
            expected="one of the two from a file",
            do="name the other file",
        )
    if options.fix and options.json and options.file == STANDARD_INPUT:
        raise InputError(
            "toolkit check: --fix and --json both write to standard output",
            expected="a file in the place of standard input, or one of the two",
            do="name a file, or leave out --json",
        )
    target = _target(options, recipe)
    file = read_config(options.file)
    refuse_other_files(file.data, options.file)
    arguments = None if options.training_args is None else read_arguments(options.training_args)
    return Given(file, arguments, recipe, target, options.device)


def _unreadable(error: InputError, path: Path) -> Finding:
    line = getattr(error, "line", None)
    return Finding("", "unreadable", error.what, error.expected, error.do, file=place_of(path), line=line)


def _target(options: argparse.Namespace, recipe: Recipe | None) -> Target | None:
    if recipe is not None:
        return assumed_target(recipe, options.world_size)
    return Target(options.world_size, options.device or "cuda") if options.world_size else None


def _print(given: Given, result: Fixed, *, is_fix: bool) -> None:
    # The corrected text of standard input has standard output for itself.
    corrected_goes_out = is_fix and given.file.path == STANDARD_INPUT
    console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False, stderr=corrected_goes_out)
    changes = report(given.file, result)
    if changes:
        console.print(changes)
    errors, warnings = errors_in(result.left), [found for found in result.left if found.severity == "warning"]
    for finding in errors[:MOST_PRINTED]:
        console.print(_place(finding), end="")
        console.print("error", style="bold red", end="")
        console.print(f": {finding.what}  [{finding.rule}]\n  expected: {finding.expected}\n  do this:  {finding.do}\n")
    _print_rest(console, len(errors), "error")
    for finding in warnings[:MOST_PRINTED]:
        console.print(_place(finding), end="")
        console.print("warning", style="bold yellow", end="")
        console.print(f": {finding.what}; {finding.do}  [{finding.rule}]")
    _print_rest(console, len(warnings), "warning")
    console.print(f"{chr(10) if warnings else ''}assumed: {given.assumed}")
    fixable = sum(bool(found.fix) and found.file == given.file.name for found in result.left)
    before = summary(result) if is_fix else ""
    after = f"; --fix corrects {fixable}" if fixable and not is_fix else ""
    console.print(
        f"{given.file.name}: {before}{plural(len(errors), 'error')}, {plural(len(warnings), 'warning')}{after}"
    )


def _place(finding: Finding) -> str:
    """FILE:LINE, the form in which editors jump to it."""
    return f"{finding.file}:{finding.line}: "


def _print_rest(console: Console, total: int, kind: Severity) -> None:
    if total > MOST_PRINTED:
        console.print(f"... and {plural(total - MOST_PRINTED, f'more {kind}')} (--json lists them all)\n")
