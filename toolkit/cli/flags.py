"""argv -> recipe and run options. Every recipe field is a flag; unknown flags are refused with a suggestion."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from pydantic import BaseModel

from toolkit.cli.flag_errors import OPTIONS, field_of, refusal
from toolkit.errors import RecipeError, did_you_mean
from toolkit.recipe import Recipe
from toolkit.recipe.field_type import is_switch
from toolkit.recipe.location import path
from toolkit.recipe.removed import removed_field

TRUTH = {"true": True, "false": False}


@dataclass(frozen=True)
class Invocation:
    """One start of a recipe."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    output_dir: Path
    """Folder of this run."""
    resume: str | None = None
    """"auto" continues the newest checkpoint in output_dir (or starts, if there is none); a checkpoint folder continues that one."""
    resume_changed_data: tyro.conf.FlagCreatePairsOff[bool] = False
    """With --resume: go on although the training data, the tokenizer or the order of the examples has changed; the steps to come are drawn from what is there now."""
    dry_run: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print the resolved recipe, the DeepSpeed configuration and the learning-rate curve, then stop."""
    preview: int = 0
    """Show this many training sequences with the trained tokens marked, then stop."""


@dataclass(frozen=True)
class LauncherFlags:
    """Flags that launchers and Hugging Face scripts add to a command line."""

    local_rank: int | None
    deepspeed_config: Path | None


def split_launcher_flags(argv: Sequence[str]) -> tuple[LauncherFlags, list[str]]:
    """Take --local_rank, --deepspeed [FILE] and --deepspeed_config FILE out of `argv`."""
    rest: list[str] = []
    local_rank, config = None, None
    words = iter(_pairs(argv))
    for flag, value, joined in words:
        name = flag.replace("-", "_").lstrip("_")
        if name == "local_rank":
            local_rank = value
        elif name in ("deepspeed", "deepspeed_config"):
            config = value or config
        else:
            rest += joined
    if local_rank is not None and not local_rank.lstrip("-").isdigit():
        raise RecipeError(f"--local_rank {local_rank}", expected="a number", do="leave this flag to the launcher")
    file = _located("deepspeed_config", config) if config else None
    return LauncherFlags(None if local_rank is None else int(local_rank), file), rest


def _located(flag: str, text: str) -> Path:
    """The path behind a flag that is no recipe field."""
    try:
        return path(text)
    except ValueError as error:
        raise RecipeError(f"--{flag} {text}", expected=str(error), do="correct the path") from None


def _pairs(argv: Sequence[str]) -> Iterator[tuple[str, str | None, list[str]]]:
    """(flag, value, the words) for launcher flags; every other word by itself."""
    index = 0
    while index < len(argv):
        word = argv[index]
        flag, equals, value = word.partition("=")
        if flag.replace("-", "_").lstrip("_") not in (
            "local_rank",
            "deepspeed",
            "deepspeed_config",
        ) or not flag.startswith("--"):
            yield word, None, [word]
        elif equals:
            yield flag, value, [word]
        elif index + 1 < len(argv) and not argv[index + 1].startswith("--"):
            yield flag, argv[index + 1], [word, argv[index + 1]]
            index += 1
        else:
            yield flag, None, [word]
        index += 1


def parse(recipe: Recipe, argv: Sequence[str], *, output_dir: Path, description: str, prog: str) -> Invocation:
    """The invocation that `argv` describes on top of `recipe`. Raises RecipeError for anything it does not understand."""
    _check_names(argv, recipe)
    printed, complaint = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint), _stdout_unless_help(argv, printed):
            found = tyro.cli(
                Invocation,
                args=_switches(argv, recipe),
                default=Invocation(recipe, output_dir),
                description=description,
                prog=prog,
            )
    except SystemExit as exit_:
        if exit_.code in (0, None):
            raise
        text = complaint.getvalue() or printed.getvalue()
        raise refusal(text, argv, recipe, prog) from None
    resume = found.resume if found.resume is None else str(_located("resume", found.resume))
    return replace(found, output_dir=_located("output_dir", str(found.output_dir)), resume=resume)


def _switches(argv: Sequence[str], recipe: Recipe) -> list[str]:
    """`--data.packing False` as `--data.no-packing`, the form that tyro knows; everything else as it is."""
    words: list[str] = []
    waiting = list(argv)
    while waiting:
        word = waiting.pop(0)
        name, equals, value = word.partition("=")
        dotted = name.removeprefix("--").replace("-", "_")
        field = field_of(dotted, recipe) if name.startswith("--") else None
        if field is None or not is_switch(field):
            words.append(word)
            continue
        if not equals:
            value = waiting.pop(0) if waiting and waiting[0].lower() in TRUTH else "true"
        if value.lower() not in TRUTH:
            raise RecipeError(f"{name} {value}", expected="True or False", do="see --help for every field")
        section, dot, last = dotted.rpartition(".")
        words.append(f"--{section}{dot}{'' if TRUTH[value.lower()] else 'no-'}{last}")
    return words


@contextlib.contextmanager
def _stdout_unless_help(argv: Sequence[str], printed: io.StringIO) -> Iterator[None]:
    if "-h" in argv or "--help" in argv:
        yield
    else:
        with contextlib.redirect_stdout(printed):
            yield


def _check_names(argv: Sequence[str], recipe: Recipe) -> None:
    known = flag_names(recipe)
    for index, word in enumerate(argv):
        name, _, value = word.partition("=")
        if not name.startswith("--") or name == "--help" or _is_number(name):
            continue
        plain = name[2:].replace("-", "_")
        removed = removed_field(plain, value or next(iter(argv[index + 1 : index + 2]), ""))
        if removed is not None:
            raise removed
        if plain not in known and _without_no(plain) not in known:
            raise RecipeError(
                f"unknown flag {name}{_suggest(plain, known)}",
                expected="a recipe field or one of --output_dir, --resume, --resume_changed_data, --dry_run, --preview",
                do="see --help for every field",
            )


def _without_no(name: str) -> str:
    """`data.no_packing` -> `data.packing`, the form of a switched-off flag."""
    section, _, field = name.rpartition(".")
    return f"{section}.{field.removeprefix('no_')}" if section else field.removeprefix("no_")


def _suggest(name: str, known: Sequence[str]) -> str:
    inside = [other for other in known if other.startswith(f"{name}.")]
    if inside:
        return f" (a section; its fields are flags, such as --{inside[0]})"
    nearest = did_you_mean(name, known)
    if nearest:
        return nearest.replace("'", "--", 1).replace("'", "", 1)
    same_field = [other for other in known if other.rpartition(".")[2] == name.rpartition(".")[2]]
    return f" (did you mean --{same_field[0]}?)" if same_field else ""


def flag_names(recipe: Recipe) -> list[str]:
    """Every dotted field name, and the options of a run."""
    names = list(OPTIONS)
    for name in type(recipe).model_fields:
        value: Any = getattr(recipe, name)
        if isinstance(value, BaseModel):
            names += [f"{name}.{inner}" for inner in type(value).model_fields]
        else:
            names.append(name)
    return names


def _is_number(word: str) -> bool:
    return bool(re.fullmatch(r"--?\d.*", word))
