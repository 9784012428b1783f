"""A "~" is the home folder in every field and behind every flag that may hold a path, however it is written."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import AfterValidator, BaseModel

from toolkit.cli import verbs
from toolkit.cli.argument_types import file_path
from toolkit.cli.flags import Invocation, parse, split_launcher_flags
from toolkit.errors import RecipeError
from toolkit.recipe import Batch, Data, Model, Parallel, Recipe
from toolkit.recipe.load import load_recipe
from toolkit.recipe.location import at_home
from toolkit.recipe.meanings import meanings

# An NVMe path has to be of use.
SWAPPING = Parallel(zero_stage=3, offload_optimizer="nvme", nvme_path="/n")
RECIPE = Recipe(model=Model(path="m"), data=Data(train="d"), batch=Batch(global_size=1), parallel=SWAPPING, steps=1)
FIELDS = {"model.path", "model.tokenizer", "data.train", "data.evaluation", "parallel.nvme_path"}

SPLITS = {"data.split", "data.evaluation_split"}
"""They speak of folders and are names."""


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")


def parsed(*argv: str) -> Invocation:
    return parse(RECIPE, argv, output_dir=Path("runs/x"), description="", prog="x.py")


def value(owner: Any, name: str) -> Any:
    for part in name.split("."):
        owner = getattr(owner, part)
    return owner


def expanded(annotation: Any) -> bool:
    return any(
        (isinstance(part, AfterValidator) and part.func is at_home) or expanded(part) for part in get_args(annotation)
    )


def text_fields() -> Iterator[tuple[str, bool, str]]:
    """Name, whether "~" is expanded, and meaning of every recipe field that takes free text."""
    for section, field in Recipe.model_fields.items():
        kind = field.annotation
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            continue
        for name, inner in kind.model_fields.items():
            if inner.annotation is str or str in get_args(inner.annotation) or expanded(inner.annotation):
                is_location = any(isinstance(item, AfterValidator) for item in inner.metadata)
                yield f"{section}.{name}", is_location or expanded(inner.annotation), meanings(kind)[name]


def test_every_field_that_may_hold_a_path_is_known() -> None:
    """A new field whose description speaks of a place has to be one of them."""
    fields = list(text_fields())
    assert {name for name, expands, _ in fields if expands} == FIELDS
    places = ("directory", "folder", "checkpoint:", "where the tokenizer is", "kinds of source")
    assert {name for name, _, about in fields if any(word in about.lower() for word in places)} <= (FIELDS | SPLITS)


@pytest.mark.parametrize("joined", [True, False], ids=["equals", "space"])
@pytest.mark.parametrize("name", [*sorted(FIELDS), "output_dir", "resume"])
def test_on_the_command_line(name: str, joined: bool) -> None:
    found = parsed(f"--{name}=~/x") if joined else parsed(f"--{name}", "~/x")
    owner = found if name in ("output_dir", "resume") else found.recipe
    assert str(value(owner, name)) == "/home/me/x"


def test_in_a_recipe_file(tmp_path: Path) -> None:
    file = tmp_path / "tilde.py"
    file.write_text(
        "from toolkit import *\nrecipe = Recipe(model=Model(path='~/m', tokenizer='~/t'), batch=Batch(global_size=1), steps=1,\n"
        "    data=Data(train='~/d', evaluation='~/e'), parallel=Parallel(zero_stage=3, offload_optimizer='nvme', nvme_path='~/n'))\n"
    )
    recipe = load_recipe(file)
    assert [value(recipe, name) for name in sorted(FIELDS)] == [f"/home/me/{letter}" for letter in "edmtn"]


def test_what_is_no_home_stays() -> None:
    """Names of a hub, relative paths, the words of --resume."""
    for text in ("owner/name", "./~x", "/a/~/b", "auto"):
        assert at_home(text) == text
    assert parsed("--resume", "auto").resume == "auto"
    assert parsed().output_dir == Path("runs/x") and parsed().resume is None


def test_the_launchers_file() -> None:
    flags, rest = split_launcher_flags(["--deepspeed=~/d.json", "--steps", "3"])
    assert flags.deepspeed_config == Path("/home/me/d.json") and rest == ["--steps", "3"]


def test_every_path_of_a_verb() -> None:
    """No verb takes a path past the one place."""
    subparsers = next(a for a in verbs.parser()._actions if isinstance(a, argparse._SubParsersAction))
    kinds = {action.type for verb in subparsers.choices.values() for action in verb._actions}
    assert Path not in kinds and file_path in kinds
    options = verbs.parser().parse_args(["export", "~/run", "~/out"])
    assert (options.source, options.out) == (Path("/home/me/run"), Path("/home/me/out"))


@pytest.mark.parametrize("name", ["model.path", "output_dir"])
def test_a_user_that_is_not_there(name: str) -> None:
    with pytest.raises(RecipeError) as failure:
        parsed(f"--{name}=~nobody_at_all/x")
    assert failure.value.what.replace("'", "") in (f"{name}=~nobody_at_all/x", f"--{name} ~nobody_at_all/x")
    assert (
        failure.value.expected
        == "a path: there is no user 'nobody_at_all' here; a folder of that name is ./~nobody_at_all"
    )
    with pytest.raises(RecipeError, match="nvme_path"):
        Parallel(nvme_path="~nobody_at_all")
