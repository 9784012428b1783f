"""The verb `toolkit check`: what DeepSpeed would make of a JSON file, as a report to read or as data."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console

from toolkit.cli.argument_types import count, file_path
from toolkit.cli.launcher_config import disagreements
from toolkit.cli.output import reader_may_leave
from toolkit.ds_config.check import check_files
from toolkit.ds_config.config_file import read_arguments, read_config
from toolkit.ds_config.file_text import STANDARD_INPUT, place_of
from toolkit.ds_config.findings import Finding, Severity, errors_in, sorted_findings
from toolkit.ds_config.golden import assumed_target
from toolkit.ds_config.other_files import refuse_other_files
from toolkit.ds_config.render import follows_model, render
from toolkit.ds_config.schema_top import DEEPSPEED_VERSION
from toolkit.ds_config.target import Target
from toolkit.errors import InputError, plural
from toolkit.recipe import Recipe
from toolkit.recipe.load import load_recipe

SUMMARY = "check a DeepSpeed JSON, ours or hand-written (exit 2: errors; with --strict, warnings too)"
EXAMPLES = [
    "ds_config.json                                what DeepSpeed would ignore, misread or refuse",
    "ds_config.json --world-size 8                 also the batch arithmetic",
    "ds_config.json --training-args args.json      also what the Trainer would make of it",
    "ds_config.json --recipe recipes/NAME.py       also where it differs from that recipe",
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
    verb.add_argument("--strict", action="store_true", help="exit 2 on warnings, too")
    verb.add_argument("--json", action="store_true", help="findings as one JSON list, each with its severity")
    verb.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the findings; returns 2 where one of them counts, also to a reader that leaves early."""
    try:
        recipe = load_recipe(options.recipe) if options.recipe else None
        target = _target(options, recipe)
        findings = _findings(options, recipe, target)
    except InputError as error:
        if not options.json:
            raise
        line = getattr(error, "line", None)
        recipe, target = None, None
        findings = [Finding("", "unreadable", error.what, error.expected, error.do, file=str(options.file), line=line)]
    with reader_may_leave():
        if options.json:
            print(json.dumps([asdict(finding) for finding in findings], indent=2))
        else:
            _print(findings, place_of(options.file), _assumed(options, recipe, target))
    counted = findings if options.strict else errors_in(findings)
    return 2 if counted else 0


def _findings(options: argparse.Namespace, recipe: Recipe | None, target: Target | None) -> list[Finding]:
    if options.training_args == options.file == STANDARD_INPUT:
        raise InputError(
            "toolkit check: the file and --training-args are both standard input",
            expected="one of the two from a file",
            do="name the other file",
        )
    file = read_config(options.file)
    refuse_other_files(file.data, options.file)
    arguments = None if options.training_args is None else read_arguments(options.training_args)
    found = check_files(file, target=target, device=options.device, arguments=arguments)
    if recipe is not None and target is not None:
        differences = [
            Finding(key, "differs-from-recipe", text, "the recipe's value", "correct the file, or the recipe's field")
            for key, text in disagreements(file.data, render(recipe, target))
            if key not in follows_model(recipe)
        ]
        found += file.placed(differences)
    return sorted_findings(found)


def _target(options: argparse.Namespace, recipe: Recipe | None) -> Target | None:
    if recipe is not None:
        return assumed_target(recipe, options.world_size)
    return Target(options.world_size, options.device or "cuda") if options.world_size else None


def _assumed(options: argparse.Namespace, recipe: Recipe | None, target: Target | None) -> str:
    world = "world size not checked (--world-size N)" if target is None else f"world size {target.world_size}"
    device = options.device or (target.device if recipe is not None and target is not None else "cuda (--device)")
    trainer = (
        f"the arguments in {place_of(options.training_args)}"
        if options.training_args
        else "no Trainer (--training-args FILE)"
    )
    return f"{world}, device {device}, {trainer}, DeepSpeed {DEEPSPEED_VERSION}"


def _print(findings: Sequence[Finding], source: str, assumed: str) -> None:
    console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
    errors, warnings = errors_in(findings), [finding for finding in findings if finding.severity == "warning"]
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
    console.print(f"{chr(10) if warnings else ''}assumed: {assumed}")
    console.print(f"{source}: {plural(len(errors), 'error')}, {plural(len(warnings), 'warning')}")


def _place(finding: Finding) -> str:
    """FILE:LINE, the form in which editors jump to it."""
    return f"{finding.file}:{finding.line}: "


def _print_rest(console: Console, total: int, kind: Severity) -> None:
    if total > MOST_PRINTED:
        console.print(f"... and {plural(total - MOST_PRINTED, f'more {kind}')} (--json lists them all)\n")
