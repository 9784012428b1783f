"""`toolkit new NAME`: a recipe for the user's own model and data, written once it is known to load and to render."""

from __future__ import annotations

import argparse
import importlib.util
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.cli import docs
from toolkit.cli.config import CONFIGS, RECIPES, check_writable
from toolkit.cli.flag_errors import OPTIONS, values_of
from toolkit.cli.following import given_flags
from toolkit.ds_config.check import check_config
from toolkit.ds_config.findings import raise_errors
from toolkit.ds_config.golden import assumed_target, rendering_of
from toolkit.ds_config.render import render
from toolkit.errors import InputError, did_you_mean
from toolkit.recipe import CausalLM, Recipe, SequenceClassification, Task
from toolkit.recipe.dotted import CHOICES, flat, recipe_of, switched, written
from toolkit.recipe.effect import FIELDS
from toolkit.recipe.load import load_recipe
from toolkit.recipe.recipe_file import file_text
from toolkit.recipe.synonyms import answer, synonym
from toolkit.storage import HERE, storage_errors, write_together

if TYPE_CHECKING:
    from toolkit.cli.asked_recipe import Wanted
    from toolkit.cli.new_report import Report
    from toolkit.draft.roles import Roles

SHIPPED = Path(__file__).parents[2] / "recipes"
"""Beside the package, in a clone."""
LANGUAGE, CLASSES = "sft_smollm2_zero2", "classify_minilm_zero1"
"""The recipes to start from where --from names none."""

OWN_FLAGS = ("--from", "--model", "--data", "--evaluation", "--devices", "--steps", "--epochs", "--force")

LONGEST_NAME = 100
"""Characters of the NAME of a recipe: names of files have a limit, and what is made from it has longer ones."""

SAID_ALOUD = {"precision.dtype", "parallel.zero_stage", "launch.devices", "schedule.type"}
SAID_ALOUD |= {"batch.micro_size", "batch.sequence_length"}
"""Fields that a recipe writes out at their default, too, where its source does."""

SUMMARY = "write a recipe for your own language model or classifier and data, and say what was chosen and why"
EXAMPLES = [
    "sft_mine_zero2 --data my.jsonl                the default model on your file: columns and lengths are looked at",
    "sft_mine_zero2 --data my.csv --model PATH     your own model, too: a Hugging Face folder or name",
    "classify_mine_zero1 --data tickets.csv        a column of texts and one of classes: a classifier",
    "sft_mine_zero3 --from sft_smollm2_zero3 --data train.parquet --evaluation held_out.parquet --devices 8",
]
ABOUT_FIELDS = """
Drafted are language models (causal_lm) and classifiers of texts (sequence_classification). For rows of another task, or
--from a recipe of one, it says which recipe to copy and how to start the copy on your data.

Every field of a recipe is a flag as well, for what is not to be chosen by looking:
    --task.prompt_field frage --task.completion_field antwort --optimizer.learning_rate 1e-5"""


def add_flags(verb: argparse.ArgumentParser) -> None:
    """The flags of `toolkit new`; what else is on the command line are fields of the recipe."""
    verb.allow_abbrev = False  # else --launch.device would be taken for --launch.devices
    verb.add_argument("name", metavar="NAME", help="of the recipe and its runs: <task>_<model>_<strategy> by custom")
    verb.add_argument(
        "--from",
        dest="source",
        metavar="RECIPE",
        help=f"the recipe whose settings are taken; default: {LANGUAGE}, or {CLASSES} for texts with a class",
    )
    verb.add_argument(
        "--model", "--model.path", metavar="PATH", help="a Hugging Face folder or name; default: the source's"
    )
    verb.add_argument(
        "--data", "--data.train", metavar="FILE", help="file, folder or name to train on; default: the source's"
    )
    verb.add_argument(
        "--evaluation", "--data.evaluation", metavar="FILE", help="held-out file; default: a part of --data"
    )
    verb.add_argument("--devices", "--launch.devices", metavar="N", help="processes on this host")
    length = verb.add_mutually_exclusive_group()
    length.add_argument("--steps", metavar="N", help="optimizer steps; default: what fits the data")
    length.add_argument("--epochs", metavar="N", help="passes over the data")
    verb.add_argument("--force", action="store_true", help="overwrite a recipe of that name")
    verb.description = f"{verb.description}\n{ABOUT_FIELDS}"
    verb.usage = "toolkit new NAME [options] [--optimizer.learning_rate 1e-5 and any other field of a recipe]"
    verb.set_defaults(run=new, fields=[])


def new(options: argparse.Namespace) -> int:
    """Look at the model and the data, write the recipe and its renderings, say what was chosen and why."""
    name = checked_name(options.name)
    target = RECIPES / f"{name}.py"
    _check_free(target, force=options.force)
    from toolkit.cli.asked_recipe import Wanted

    wanted = Wanted(
        name,
        source=options.source,
        model=options.model,
        data=options.data,
        evaluation=options.evaluation,
        devices=_number("devices", options.devices, int),
        steps=_number("steps", options.steps, int),
        epochs=_number("epochs", options.epochs, float),
        fields=tuple(options.fields),
    )
    _check_fields(wanted.fields)
    # Heavy imports only now: a typo must not wait for torch.
    from toolkit.cli.new_report import Report

    report = Report()
    recipe, text = draft(wanted, report)
    files = _write(recipe, text, target)
    report.written(files, recipe, name, _notes(name, recipe))
    return 0


def checked_name(text: str) -> str:
    """The stem that `text` means. Raises InputError for one that no recipe can have."""
    path = Path(text)
    name = path.name.removesuffix(".py")
    if str(path.parent) not in (".", RECIPES.name):
        raise InputError(
            f"NAME {text!r} names another folder",
            expected=f"a name: the recipe is written to {RECIPES}/ of the current folder",
            do=f"run this where {RECIPES}/ should be, with the name {name!r}",
        )
    if not re.fullmatch(rf"[A-Za-z0-9][A-Za-z0-9_-]{{0,{LONGEST_NAME - 1}}}", name):
        fixed = re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_-")[:40] or "sft_mine_zero2"
        raise InputError(
            f"NAME {text!r}",
            expected=f"up to {LONGEST_NAME} letters, digits, _ and -: it becomes the name of files and folders",
            do=f"call it {fixed!r}, for instance",
        )
    if name in sys.stdlib_module_names or importlib.util.find_spec(name) is not None:
        raise InputError(
            f"NAME {text!r} is the name of a Python module, which {name}.py would hide from the programs in its folder",
            expected="a name of its own, by custom <task>_<model>_<strategy>",
            do=f"call it {f'sft_{name}_zero2'!r}, for instance",
        )
    return name


def _check_free(target: Path, *, force: bool) -> None:
    """Raise InputError where the files of the recipe could not be written: before minutes are spent on what they hold."""
    check_writable(RECIPES, CONFIGS)
    for place in (target, *(CONFIGS / f"{target.stem}.{kind}" for kind in ("json", "yaml", "slurm"))):
        if place.is_dir():
            raise InputError(
                f"{place} is a folder",
                expected=f"{place} to be free for the file",
                do="choose another NAME, or another current folder",
            )
    if (target.exists() or target.is_symlink()) and not force:
        raise InputError(
            f"{target} exists already",
            expected="a new name",
            do="choose another NAME, or overwrite it with --force",
        )


def _number(flag: str, text: str | None, kind: type[int] | type[float]) -> Any:
    if text is None:
        return None
    try:
        value = kind(text.replace("_", ""))
    except ValueError:
        value = kind(0)
    if not 0 < value < 1e12:
        raise InputError(
            f"--{flag} {text}",
            expected="an integer of at least 1" if kind is int else "a number above 0",
            do="see `toolkit new --help`",
        )
    return value


def _check_fields(words: Sequence[str]) -> None:
    """Raise InputError for the flags that are neither of `toolkit new` nor look like a field; fields are checked later."""
    for word in words:
        name = word.partition("=")[0]
        plain = name[2:].replace("-", "_")
        if not name.startswith("--"):
            continue
        meant = answer(plain)
        if {plain, meant[0] if meant else ""} & OPTIONS.keys():
            raise InputError(
                f"{name} with `toolkit new`",
                expected="fields of the recipe: this flag belongs to a start of it",
                do="give it when the recipe is started",
            )
        if "." not in plain and plain not in Recipe.model_fields:
            raise synonym(plain, " ".join(values_of(plain, words))) or _unknown(name, plain)


def _unknown(name: str, plain: str) -> InputError:
    from toolkit.cli.flags import suggest  # with what reads the fields' flags

    return InputError(
        f"unknown flag {name}{suggest(plain, [*(flag[2:] for flag in OWN_FLAGS), *FIELDS, *_fields_of_kinds()])}",
        expected=f"one of {', '.join(OWN_FLAGS)}, or a field of the recipe with its section, such as "
        "--optimizer.learning_rate",
        do="see `toolkit new --help`; docs/fields.md lists the fields",
    )


def _fields_of_kinds() -> list[str]:
    """Dotted names of the fields of sections that are of one of several kinds."""
    kinds = [(section, kind) for section, base in CHOICES.items() for kind in base.kinds.values()]
    return [f"{section}.{field}" for section, kind in kinds for field in kind.model_fields]


def find_source(word: str) -> Path:
    """The file of the recipe `word`, a name or a path. Raises InputError when there is none."""
    if word.endswith(".py") or "/" in word:
        return Path(word)
    folders = [folder for folder in (RECIPES, SHIPPED) if folder.is_dir()]
    for folder in folders:
        if (folder / f"{word}.py").is_file():
            return folder / f"{word}.py"
    known = sorted({path.stem for folder in folders for path in folder.glob("*.py")})
    raise InputError(
        f"--from {word}: no such recipe{did_you_mean(word, known)}",
        expected=f"one of {', '.join(known)}, or the path of a recipe file"
        if known
        else f"the path of a recipe file; neither ./{RECIPES} nor {SHIPPED} is there to look in",
        do="correct the name, or give --from PATH (the toolkit's repository has them in recipes/)",
    )


def draft(wanted: Wanted, report: Report) -> tuple[Recipe, str]:
    """The recipe for what the command line names, and the text of its file."""
    from toolkit.cli.asked_recipe import asked
    from toolkit.cli.new_undrafted import check_rows, check_task
    from toolkit.data.reading.row_names import row_names
    from toolkit.draft import proposal, survey
    from toolkit.draft.roles import find_roles
    from toolkit.draft.sheet import Sheet, comments
    from toolkit.models.positions import check_sequence_length
    from toolkit.train.inputs import load_task

    names_classes = wanted.data is not None and "task.label_field" in given_flags(wanted.fields)
    source = find_source(wanted.source or (CLASSES if names_classes else LANGUAGE))
    check_task(load_recipe(source).task.name, wanted, SHIPPED)
    begun = asked(source, wanted)
    look = survey.look_at(begun.recipe.data)
    check_rows(look, wanted, SHIPPED)
    columns = {name.removeprefix("task.") for name in begun.given if name.startswith("task.")}
    is_settled = wanted.source is not None or wanted.data is None or "task.name" in begun.given
    task_name = begun.recipe.task.name if is_settled else None
    roles = find_roles(
        [row for _, row in look.rows], begun.recipe.data, _columns(begun.recipe.task), columns, task_name
    )
    if roles.kind == "classification" and wanted.source is None and wanted.data is not None:
        source = find_source(CLASSES)
        begun = asked(source, wanted)
    sheet = Sheet(begun.start, begun.given)
    recipe = begun.recipe
    if wanted.data is not None:
        proposal.set_columns(sheet, roles)
        values = switched(flat(recipe), "task", sheet["task.name"])
        recipe = recipe_of(values | {name: sheet[name] for name in values if _is_about_rows(name)})
    task = load_task(recipe)
    survey.fit_task(look, task, recipe)
    model = survey.look_at_model(recipe.model, task)
    with report.measuring(len(look.rows)) as progress:
        measured = survey.measure(look, task, progress)
    split = survey.held_out_split(recipe.data, look) if wanted.data and not wanted.evaluation else None
    if wanted.evaluation is not None or split is not None:
        given = {"evaluation": recipe.data.evaluation or recipe.data.train}
        given |= {} if split is None else {"evaluation_split": split}
        survey.check_held_out(recipe.data.model_copy(update=given), task)
    seen = proposal.Seen(roles, look, measured, model, wanted.data is not None, wanted.model is not None, split)
    remarks = [*look.source.remarks, *task.remarks(look.source.rows, row_names(look.source, "data.train"))]
    if "task.name" not in begun.given:
        remarks += _about_labels(roles, recipe.task, wanted.source)
    report.seen(recipe, source, seen, remarks)
    recipe = proposal.propose(sheet, seen, steps=wanted.steps, epochs=wanted.epochs)
    recipe.task.check_metric(recipe.evaluation.metric)
    check_sequence_length(model.kind, model.config, recipe.batch.sequence_length)
    headline = proposal.headline(roles.kind, recipe)
    note = f"{headline.rstrip('.')}; drafted from {source.stem}."
    recipe = recipe_of({**flat(recipe), "note": begun.given.get("note", note)})
    report.chosen(sheet.reasons)
    keep = begun.given.keys() | (written(load_recipe(source)) & SAID_ALOUD)
    return recipe, file_text(recipe, wanted.name, headline, keep=keep, comments=comments(sheet))


def _about_labels(roles: Roles, task: Task, source: str | None) -> list[str]:
    """A line on each column that may have been meant as classes where texts are learned."""
    start = "" if source is None else f"--from {CLASSES} "
    return [
        f"note: column {label!r} looks like classes or scores; this trains a language model on {getattr(task, 'text_field', 'text')}; "
        + (
            "a classifier takes names, or integers from 0 on, that come again"
            if label in roles.scores
            else f"for a classifier: {start}--task.label_field {shlex.quote(label)}"
        )
        for label in roles.labels
    ]


def _is_about_rows(name: str) -> bool:
    return name in ("task.name", "data.packing", "data.overlong") or (
        name.startswith("task.") and name.endswith("_field")
    )


def _columns(task: Task) -> dict[str, str]:
    """The columns that fields name, of `task` where it has them, else by their default."""
    kinds = (CausalLM(), SequenceClassification(), task)
    return {name: value for kind in kinds for name, value in kind if name.endswith("_field")}


def _notes(name: str, recipe: Recipe) -> list[str]:
    """What may be in the way of the commands that come next."""
    found = []
    if (Path("runs") / name).exists():
        found.append(f"runs/{name} holds an earlier run: start with --output_dir runs/OTHER, or remove it")
    place = recipe.model.path
    if place is not None and not Path(place).is_dir() and "/" in place:
        found.append(f"the weights of {place} are downloaded at the first start")
    return found


def _write(recipe: Recipe, text: str, target: Path) -> list[Path]:
    """Put the recipe and its renderings in place, once the file is known to load as this recipe and to render."""
    aim = assumed_target(recipe)
    raise_errors(check_config(render(recipe, aim), target=aim), f"the configuration of {target.stem}")
    renderings = {CONFIGS / name: content for name, content in rendering_of(recipe, target).items()}
    with storage_errors(f"writing the recipe {target.stem}", Path.cwd(), HERE):
        _check_text(recipe, text, target)
        write_together({target: text, **renderings})
        files = [target, *renderings]
        if docs.in_checkout():  # whose list of recipes would be out of date
            files += [docs.FOLDER / page for page in docs.write()]
    return files


def _check_text(recipe: Recipe, text: str, target: Path) -> None:
    """Load `text` from the folder that it is meant for."""
    RECIPES.mkdir(exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        if load_recipe(temporary) != recipe:
            raise AssertionError(f"{temporary} does not hold the recipe that was drafted")
    finally:
        temporary.unlink(missing_ok=True)
