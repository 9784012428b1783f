"""argv -> recipe and run options. Every recipe field is a flag; unknown flags are refused with a suggestion."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Annotated

import tyro

from toolkit.cli.flag_errors import OPTIONS, refusal, values_of
from toolkit.cli.following import given_flags, other_length, same_held_out, shortened
from toolkit.cli.section_flags import REGISTRY
from toolkit.cli.tyro_words import laid_over, mappings, switches
from toolkit.errors import InputError, RecipeError, collect, did_you_mean, nearest, together
from toolkit.recipe import Recipe
from toolkit.recipe.dotted import CHOICES, flat
from toolkit.recipe.location import path
from toolkit.recipe.recipe import InconsistentRecipe
from toolkit.recipe.removed import removed_field
from toolkit.recipe.synonyms import synonym

ALSO_CALLED = {
    **dict.fromkeys(("tags", "tags_field", "tag_field", "ner_tags", "labels", "label_field"), "labels_field"),
    **dict.fromkeys(("tokens", "tokens_field", "words"), "words_field"),
}
"""Names that columns of words and their labels have elsewhere -> the field."""


BY_THE_PLAN = {"parallel": "parallel.auto", "batch.micro_size": "batch.auto_micro_size"}
"""What a recipe file may set to "auto" although it is no text -> the switch that says so."""


@dataclass(frozen=True)
class Invocation:
    """One start of a recipe."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="", help="")]
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
    rehearse: tyro.conf.FlagCreatePairsOff[bool] = False
    """Train two steps of the recipe, scaled down, on this host's CPU under its own strategy and on some of its own rows, resume from the checkpoint in new processes and compare one more step, then stop; needs no GPU, no network and no weights, and leaves nothing behind."""
    verbose: tyro.conf.FlagCreatePairsOff[bool] = False
    """Show what DeepSpeed, torch, transformers and datasets log and warn about; without it only their errors, and all of it where a run ends in a traceback. The launcher's own lines: leave out its -q."""
    given: Annotated[frozenset[str], tyro.conf.Suppress] = frozenset()
    """The dotted names on the command line."""
    notes: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()
    """What follows from them, to be said."""


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
            config = config if value is None else value
        else:
            rest += joined
    if local_rank is not None and not local_rank.lstrip("-").isdigit():
        raise RecipeError(f"--local_rank {local_rank}", expected="a number", do="leave this flag to the launcher")
    file = None if config is None else _located("deepspeed_config", config)
    return LauncherFlags(None if local_rank is None else int(local_rank), file), rest


def _located(flag: str, text: str) -> Path:
    """The path behind a flag that is no recipe field."""
    try:
        return path(text)
    except ValueError as error:
        raise RecipeError(f"--{flag} {text or repr(text)}", expected=str(error), do="correct the path") from None


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
    """The invocation that `argv` describes on top of `recipe`. Raises RecipeError for all that it does not understand.

    A shorter run on the command line takes along what the file fitted to its own length.
    """
    recipe, argv, unknown = _of_kind(recipe, _left_to_the_plan(argv))
    if unknown:
        raise together(unknown + collect(lambda: parse(recipe, argv, output_dir=output_dir, description="", prog=prog)))
    _check_names(argv, recipe)
    given = given_flags(argv)
    more, notes = other_length(recipe, argv, given)
    start, words = (
        Invocation(recipe, output_dir, given=given, notes=(*notes, *same_held_out(recipe, given))),
        [*argv, *more],
    )
    try:
        found = _read_with_what_follows(start, words, description, prog)
    except InconsistentRecipe:
        raise
    except RecipeError:
        faults = _section_faults(start, words, description, prog)
        if not faults:
            raise
        raise together(faults) from None
    resume = found.resume if found.resume is None else str(_located("resume", found.resume))
    if resume is not None and (hint := did_you_mean(resume, ["auto"])) and resume != "auto":
        raise RecipeError(f"--resume {resume}{hint}", expected=OPTIONS["resume"], do="write --resume auto")
    # What was written, as no text is the current folder to a Path.
    written = values_of("output_dir", argv)
    output_dir = _located("output_dir", written[0] if written else str(found.output_dir))
    if "preview" in given and found.preview < 1:
        raise RecipeError(
            f"--preview {found.preview}", expected=OPTIONS["preview"], do="pass --preview 2, or leave it out"
        )
    others = [f"--{name}" for name in ("dry_run", "preview", "resume", "resume_changed_data") if name in given]
    if found.rehearse and others:
        raise RecipeError(
            f"--rehearse with {' and '.join(others)}",
            expected="one of them: a rehearsal begins a run of its own, and stops",
            do=f"leave out {' and '.join(others)}, or --rehearse",
        )
    return replace(found, output_dir=output_dir, resume=resume)


def _of_kind(recipe: Recipe, argv: Sequence[str]) -> tuple[Recipe, list[str], list[InputError]]:
    """`recipe` with the kinds of sections that `argv` names (--task.name), the flags for it, and what is wrong with the kinds.

    A kind's fields are its flags; --task.name itself has done its work then.
    """
    faults: list[InputError] = []
    words = list(argv)
    for section in CHOICES:
        names, now = values_of(f"{section}.name", words), getattr(recipe, section)
        if len(names) != 1 or names[0] == now.name:
            continue
        try:
            # What the new kind lacks elsewhere in the recipe is found when all flags are read.
            recipe = recipe.model_copy(update={section: now.switched(names[0])})
        except RecipeError as error:
            faults.append(error)
        words = without(f"{section}.name", words)
    return recipe, words, faults


def _left_to_the_plan(argv: Sequence[str]) -> Sequence[str]:
    """`argv` with the switches that "auto" stands for where a recipe file may say it, too."""
    for name, switch in BY_THE_PLAN.items():
        if values_of(name, argv) == ["auto"]:
            argv = [*without(name, argv), f"--{switch}"]
    return argv


def without(name: str, words: Sequence[str]) -> list[str]:
    """`words` without the flag `name` and its value."""
    kept: list[str] = []
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        flag, equals, _ = word.partition("=")
        if flag.startswith("--") and flag[2:].replace("-", "_") == name:
            if not equals:
                waiting.pop(0)
        else:
            kept.append(word)
    return kept


def _read_with_what_follows(start: Invocation, argv: Sequence[str], description: str, prog: str) -> Invocation:
    try:
        return _read(start, argv, description, prog)
    except InconsistentRecipe as error:
        # What followed before is on the command line by now: each field follows once.
        more, notes = shortened(error, start.recipe, start.given, given_flags(argv) - start.given)
        if not more:
            raise
    return _read_with_what_follows(replace(start, notes=start.notes + tuple(notes)), [*argv, *more], description, prog)


def _section_faults(start: Invocation, argv: Sequence[str], description: str, prog: str) -> list[RecipeError]:
    """What is wrong in each section, read by itself: nobody should correct one flag only to be told of the next."""
    found = []
    for words in _sections(argv):
        try:
            _read(start, words, description, prog)
        except InconsistentRecipe:
            pass  # perhaps only because the flags of other sections are left out here
        except RecipeError as fault:
            found.append(fault)
    return found


def _sections(argv: Sequence[str]) -> list[list[str]]:
    """The words of `argv`, those of one section of the recipe together."""
    found: dict[str, list[str]] = {}
    section = ""
    for word in argv:
        if word.startswith("--") and not _is_number(word):
            section = word.partition("=")[0].rpartition(".")[0].replace("-", "_")
        found.setdefault(section, []).append(word)
    return list(found.values())


def _read(start: Invocation, argv: Sequence[str], description: str, prog: str) -> Invocation:
    """`start` with the values on the command line, or the complaint of the parser in our form."""
    recipe = start.recipe
    printed, complaint = io.StringIO(), io.StringIO()
    before = mappings(argv, recipe)
    try:
        with contextlib.redirect_stderr(complaint), _stdout_unless_help(argv, printed):
            found = tyro.cli(
                Invocation,
                args=switches(argv, recipe),
                # Names that a mapping has already would be flags of their own to tyro.
                default=replace(start, recipe=laid_over({name: {} for name in before}, recipe)),
                description=description,
                prog=prog,
                registry=REGISTRY,
            )
            given = flat(found.recipe)
            more = {name: {**values, **given[name]} for name, values in before.items() if name in given}
            return replace(found, recipe=laid_over(more, found.recipe)) if more else found
    except SystemExit as exit_:
        if exit_.code in (0, None):
            raise
        text = complaint.getvalue() or printed.getvalue()
        raise refusal(text, argv, recipe, prog) from None


@contextlib.contextmanager
def _stdout_unless_help(argv: Sequence[str], printed: io.StringIO) -> Iterator[None]:
    if "-h" in argv or "--help" in argv:
        yield
    else:
        with contextlib.redirect_stdout(printed):
            yield


def _check_names(argv: Sequence[str], recipe: Recipe) -> None:
    known, found = flag_names(recipe), []
    for index, word in enumerate(argv):
        name, _, value = word.partition("=")
        if not name.startswith("--") or name == "--help" or _is_number(name):
            continue
        plain = name[2:].replace("-", "_")
        value = value or " ".join(takewhile(lambda later: not later.startswith("--"), argv[index + 1 :]))
        if (problem := removed_field(plain, value)) is not None:
            found.append(problem)
        elif plain not in known and _without_no(plain) not in known:
            found.append(synonym(plain, value) or _unknown(name, plain, known, recipe))
    if found:
        raise together(found)


def _unknown(name: str, plain: str, known: Sequence[str], recipe: Recipe) -> RecipeError:
    section, _, field = plain.partition(".")
    owners = CHOICES[section].owners(field) if section in CHOICES else []
    kind = getattr(recipe, section).name if section in CHOICES else ""
    near = _same_of_kind(field, list(type(getattr(recipe, section)).model_fields)) if section in CHOICES else None
    if near is not None:
        return RecipeError(
            f"unknown flag {name} for {section}.name={kind!r} (did you mean --{section}.{near}?)",
            expected=f"a field of {kind}: {', '.join(CHOICES[section].kind(kind).model_fields)}",
            do=f"write --{section}.{near}",
        )
    if owners:
        return RecipeError(
            f"unknown flag {name} for {section}.name={kind!r} ({', '.join(owners)} {'has' if len(owners) == 1 else 'have'} it)",
            expected=f"a field of {kind}: {', '.join(CHOICES[section].kind(kind).model_fields)}",
            do=f"leave it out, or choose the other with --{section}.name {_likely_owner(owners, kind)}",
        )
    options = ", ".join(f"--{option}" for option in OPTIONS)
    return RecipeError(
        f"unknown flag {name}{suggest(plain, known)}",
        expected=f"a recipe field or one of {options}",
        do="see --help for every field",
    )


def _same_of_kind(field: str, fields: Sequence[str]) -> str | None:
    """The one of `fields`, a kind's own, that does what `field` does for other kinds or by another custom."""
    if (also := ALSO_CALLED.get(field)) in fields:
        return also
    # Without the ending that they share, which would make any two columns alike.
    stems = {other.removesuffix("_field"): other for other in fields if other.endswith("_field")}
    near = nearest(field.removesuffix("_field"), stems, 0.8) if field.endswith("_field") else []
    return stems[near[0]] if near else None


def _likely_owner(owners: Sequence[str], kind: str) -> str:
    """The kind that is best known for a field that all `owners` have, else the one whose name is most like `kind`."""
    known = [name for name in ("causal_lm", "sequence_classification") if name in owners]
    return (known or nearest(kind, owners) or owners)[0]


def _without_no(name: str) -> str:
    """`data.no_packing` -> `data.packing`, the form of a switched-off flag."""
    section, _, field = name.rpartition(".")
    return f"{section}.{field.removeprefix('no_')}" if section else field.removeprefix("no_")


def suggest(name: str, known: Sequence[str]) -> str:
    """`" (did you mean --optimizer.betas?)"` for the flag `name`, that is none of the dotted names `known`."""
    inside = [other for other in known if other.startswith(f"{name}.")]
    if inside:
        return f" (a section; its fields are flags, such as --{inside[0]})"
    section, dot, field = name.rpartition(".")
    # A section that fits must not lend its likeness to a field that does not.
    siblings = [other.removeprefix(f"{section}.") for other in known if dot and other.startswith(f"{section}.")]
    near = [f"{section}.{other}" for other in nearest(field, siblings)]
    near = near or [other for other in known if other.rpartition(".")[2] == field]
    near = near or ([] if siblings else nearest(name, known))
    return f" (did you mean --{near[0]}?)" if near else ""


def flag_names(recipe: Recipe) -> list[str]:
    """Every dotted field name, and the options of a run."""
    return [*OPTIONS, *flat(recipe)]


def _is_number(word: str) -> bool:
    return bool(re.fullmatch(r"--?\d.*", word))
