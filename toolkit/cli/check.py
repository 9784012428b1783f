"""The verb `toolkit check`: what DeepSpeed would make of a JSON file, as a report to read or as data."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from toolkit.cli.argument_types import count, file_path
from toolkit.cli.explaining import as_data, explained, print_meanings
from toolkit.cli.fixing import as_json, fix, report, summary
from toolkit.cli.launcher_config import disagreements
from toolkit.cli.output import reader_may_leave
from toolkit.ds_config.accelerate_file import processes
from toolkit.ds_config.check import check_files
from toolkit.ds_config.config_file import ConfigFile, read_config, read_other
from toolkit.ds_config.file_text import STANDARD_INPUT, place_of
from toolkit.ds_config.files import Files, together
from toolkit.ds_config.findings import Finding, Severity, errors_in, sorted_findings
from toolkit.ds_config.fix import Fixed
from toolkit.ds_config.golden import assumed_target
from toolkit.ds_config.other_files import FLAGS, NAMES, role_of
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
    "args.json                                     TrainingArguments, and the JSON that they name",
    "accelerate.yaml                               accelerate's file, and the JSON that it names or makes",
    "ds_config.json --training-args args.json --accelerate accelerate.yaml    all three together",
    "ds_config.json --recipe recipes/NAME.py       also where it differs from that recipe",
    "ds_config.json --explain                      what DeepSpeed does with each key",
    "ds_config.json --fix                          correct what is certain, show it, name the rest",
    "ds_config.json --strict                       for a CI: warnings count as errors",
    "-                                             from standard input",
]

MOST_PRINTED = 40
"""So many errors, and as many warnings, are printed; --json has them all."""


def add_flags(verb: argparse.ArgumentParser) -> None:
    """Add the flags of `toolkit check`."""
    verb.add_argument(
        "file",
        type=file_path,
        help="the DeepSpeed JSON, the Trainer's arguments or accelerate's YAML; \"-\": standard input",
    )
    verb.add_argument("--recipe", type=file_path, help="also compare it with what this recipe renders")
    verb.add_argument("--training-args", type=file_path, help="JSON of Hugging Face TrainingArguments it is used with")
    verb.add_argument("--accelerate", type=file_path, help="the file of `accelerate config` it is used with")
    verb.add_argument("--world-size", type=count, help="processes it is meant for; without it, no arithmetic of ranks")
    verb.add_argument("--device", choices=("cpu", "cuda"), help="device it is meant for (default: cuda)")
    instead = verb.add_mutually_exclusive_group()
    instead.add_argument(
        "--explain",
        action="store_true",
        help="first say what each key does, and what those do that are missing and matter",
    )
    instead.add_argument(
        "--fix", action="store_true", help="write the file with what is certain corrected; show the difference"
    )
    verb.add_argument("--strict", action="store_true", help="exit 2 on warnings, too")
    verb.add_argument(
        "--json",
        action="store_true",
        help="findings as one JSON list, each with its place and severity; with --explain or --fix, an object",
    )
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
            print(_as_json(given, result, options))
        else:
            _explain(given, options)
            _print(given, result, is_fix=options.fix)
    counted = result.left if options.strict else errors_in(result.left)
    return 2 if counted else 0


@dataclass(frozen=True)
class Given:
    """What is checked, and with what."""

    file: ConfigFile
    arguments: ConfigFile | None
    accelerate: ConfigFile | None
    recipe: Recipe | None
    target: Target | None
    device: Device | None

    def files(self, file: ConfigFile) -> Files:
        """All of them, with `file` in the place of the one that was named."""
        return together(file, arguments=self.arguments, accelerate=self.accelerate)

    def findings(self, file: ConfigFile) -> tuple[Finding, ...]:
        """About `file` in the place of the one that was named."""
        files = self.files(file)
        found = check_files(files, target=self.aim(files), device=self.device)
        if self.recipe is not None and self.target is not None and files.config is not None:
            found += files.config.placed(self._differences(self.recipe, self.target, files.config.data))
        return tuple(sorted_findings(found))

    def _differences(self, recipe: Recipe, target: Target, config: Mapping[str, Any]) -> Iterator[Finding]:
        for key, text in disagreements(config, render(recipe, target)):
            if key not in follows_model(recipe):
                do = "correct the file, or the recipe's field"
                yield Finding(key, "differs-from-recipe", text, "the recipe's value", do)

    def aim(self, files: Files) -> Target | None:
        """The machines it is meant for: those of the flags, of the recipe, or of accelerate's file."""
        number = None if files.accelerate is None else processes(files.accelerate.data)
        if self.target is not None or number is None or files.accelerate is None:
            return self.target
        on_cpu = files.accelerate.data.get("use_cpu") is True
        return Target(number, self.device or ("cpu" if on_cpu else "cuda"))

    @property
    def assumed(self) -> str:
        """What the findings hold for."""
        files = self.files(self.file)
        target = self.aim(files)
        world = "world size not checked (--world-size N)" if target is None else f"world size {target.world_size}"
        is_known = target is not None and (self.recipe is not None or self.target is None)
        device = self.device or (target.device if is_known and target is not None else "cuda (--device)")
        parts = [world, f"device {device}", self._configuration(files)]
        parts.append(
            f"the arguments in {files.arguments.name}" if files.arguments else "no Trainer (--training-args FILE)"
        )
        if files.accelerate is not None:
            parts.append(f"accelerate's file {files.accelerate.name}")
        return ", ".join([*filter(None, parts), f"DeepSpeed {DEEPSPEED_VERSION}"])

    def _configuration(self, files: Files) -> str:
        """Where it comes from, where that is another file than the one that was named."""
        if files.config is None:
            return "no DeepSpeed configuration (nothing names one that can be read)"
        if files.is_made:
            return "the DeepSpeed configuration that accelerate makes"
        return "" if files.config.path == self.file.path else f"the DeepSpeed JSON {files.config.name}"


def _given(options: argparse.Namespace, recipe: Recipe | None) -> Given:
    _one_standard_input(options)
    target = _target(options, recipe)
    file = read_config(options.file, "a DeepSpeed JSON, the Trainer's arguments or accelerate's file")
    arguments = None if options.training_args is None else read_other(options.training_args, "arguments")
    accelerate = None if options.accelerate is None else read_other(options.accelerate, "accelerate")
    role = role_of(file.data)
    if {"arguments": arguments, "accelerate": accelerate}.get(role) is not None:
        raise InputError(
            f"{file.name} is {NAMES[role]}, and so is what stands behind {FLAGS[role].strip()}",
            expected="a DeepSpeed JSON in the first place, or each kind of file once",
            do="leave out one of the two",
        )
    return Given(file, arguments, accelerate, recipe, target, options.device)


def _one_standard_input(options: argparse.Namespace) -> None:
    named = {"the file": options.file, "--training-args": options.training_args, "--accelerate": options.accelerate}
    same = [name for name, path in named.items() if path == STANDARD_INPUT]
    if len(same) > 1:
        raise InputError(
            f"toolkit check: {' and '.join(same)} are both standard input",
            expected="one of them from a file",
            do="name the other file",
        )
    if options.fix and options.json and options.file == STANDARD_INPUT:
        raise InputError(
            "toolkit check: --fix and --json both write to standard output",
            expected="a file in the place of standard input, or one of the two",
            do="name a file, or leave out --json",
        )


def _unreadable(error: InputError, path: Path) -> Finding:
    line = getattr(error, "line", None)
    return Finding("", "unreadable", error.what, error.expected, error.do, file=place_of(path), line=line)


def _target(options: argparse.Namespace, recipe: Recipe | None) -> Target | None:
    if recipe is not None:
        return assumed_target(recipe, options.world_size)
    return Target(options.world_size, options.device or "cuda") if options.world_size else None


def _as_json(given: Given, result: Fixed, options: argparse.Namespace) -> str:
    found = [asdict(finding) for finding in result.left]
    if options.explain:
        files = given.files(given.file)
        meanings = as_data(explained(files, given.aim(files)), files.config)
        return json.dumps({"explained": meanings, "findings": found}, indent=2)
    return as_json(result) if options.fix else json.dumps(found, indent=2)


def _explain(given: Given, options: argparse.Namespace) -> None:
    files = given.files(given.file)
    if options.explain and files.config is not None:
        print_meanings(explained(files, given.aim(files)), files.config)


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
