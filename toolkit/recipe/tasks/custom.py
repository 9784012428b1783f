"""The section of a task whose module, data and loss are the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from toolkit.errors import RecipeError, collect, together
from toolkit.recipe.numbers import Scalar, json_text
from toolkit.recipe.target import load_target, split_target
from toolkit.recipe.tasks.base import Direction, Task

if TYPE_CHECKING:
    from toolkit.recipe.recipe import Recipe

OWN = "own"
"""What data.train and data.evaluation say where the rows are those of the target's `rows`."""


class Custom(Task):
    """Train any torch module: the class that `target` names brings it, its loss and, if need be, its data set."""

    implementation: ClassVar[str] = "toolkit.tasks.custom.task:ModuleTask"
    has_length: ClassVar[bool] = False
    needs_processor: ClassVar[bool] = False
    brings_model: ClassVar[bool] = True
    identity: ClassVar[frozenset[str]] = frozenset({"target", "arguments"})

    name: Literal["custom"] = "custom"
    """A module of one's own."""
    target: str = ""
    """`module:Class`, a subclass of toolkit.tasks.custom.CustomTask in a module that Python can import (PYTHONPATH)."""
    arguments: dict[str, Scalar] = Field(default_factory=dict)
    """What its constructor is given, by name. A list or an object is kept as JSON text, the form it has on the command line."""

    def __init__(self, target: str | None = None, /, **values: Any) -> None:
        super().__init__(**values if target is None else {"target": target, **values})

    @field_validator("arguments", mode="before")
    @classmethod
    def _json_text(cls, fields: object) -> object:
        return json_text(fields)

    @property
    def metrics(self) -> Mapping[str, Direction]:
        """The mean loss of the targets, and what the class declares. Imports it."""
        return {"loss": "falls", **getattr(load_target(self.target), "metrics", {})}

    def check_with(self, recipe: Recipe) -> None:
        """What is said of transformers' models says nothing of a module of one's own."""
        checks = [partial(self._check_default, recipe, name) for name in _OF_TRANSFORMERS]
        found = collect(partial(split_target, self.target), partial(super().check_with, recipe), *checks)
        if recipe.tuning.name != "full":
            found.append(
                RecipeError(
                    f"tuning.name={recipe.tuning.name!r} with task.name='custom'",
                    expected="'full': adapters are built into transformers' models alone",
                    do="leave out tuning",
                )
            )
        if recipe.precision.dtype == "fp8":
            found.append(
                RecipeError(
                    "precision.dtype='fp8' with task.name='custom'",
                    expected="'bf16', 'fp16' or 'fp32': fp8 replaces the layers of transformers' models alone",
                    do="set precision.dtype='bf16'",
                )
            )
        if recipe.data.streaming and OWN in (recipe.data.train, recipe.data.evaluation):
            found.append(
                RecipeError(
                    f"data.streaming=True with data.train={recipe.data.train!r}",
                    expected="False: rows of one's own can be had in any order",
                    do="set data.streaming=False",
                )
            )
        if found:
            raise together(found)

    def _check_default(self, recipe: Recipe, name: str) -> None:
        value = getattr(recipe.model, name)
        if value != type(recipe.model).model_fields[name].get_default(call_default_factory=True):
            raise RecipeError(
                f"model.{name}={value!r} with task.name='custom'",
                expected="no such field: the target builds the module, and task.arguments are what it is given",
                do=f"remove model.{name}",
            )


_OF_TRANSFORMERS = (
    "architecture",
    "config",
    "tokenizer",
    "dropout",
    "attention",
    "kernels",
    "compile",
    "activation_checkpointing",
    "mlp_tiles",
)
"""Fields of the model that act on transformers' models alone."""
