"""A class of the user's own, named `module:Class`, and what its constructor is given."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

import pydantic
import pydantic_core

from toolkit.errors import RecipeError, did_you_mean


def split_target(target: str) -> tuple[str, str]:
    """The module and the class of `target`. Raises RecipeError for text that has not both."""
    module, colon, attribute = target.partition(":")
    if not (colon and module and attribute):
        raise RecipeError(
            f"task.target={target!r}",
            expected="module:Class, for instance mypackage.module:MyTask",
            do="name the module as an import does, and the class in it after a colon",
        )
    return module, attribute


def load_target(target: str) -> Any:
    """What `target`, "module:Class", names. Raises RecipeError where it cannot be imported."""
    module, attribute = split_target(target)
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise RecipeError(
            f"task.target={target!r}: {error}",
            expected="a module that Python can import",
            do=_how_to_find(module)
            if getattr(error, "name", None) in (module, module.partition(".")[0])
            else "install what it imports, or correct its imports",
        ) from None
    if not hasattr(found, attribute):
        raise RecipeError(
            f"task.target={target!r}: {module} has no {attribute!r}{did_you_mean(attribute, list(vars(found)))}",
            expected="a class of that module",
            do="correct task.target",
        )
    return getattr(found, attribute)


def _how_to_find(module: str) -> str:
    """Where the module perhaps lies."""
    path = Path(*module.split("."))
    is_here = path.with_suffix(".py").is_file() or path.is_dir()
    return "put its folder on PYTHONPATH" + (", here with PYTHONPATH=." if is_here else ", or correct task.target")


def read_arguments(target: str, found: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the constructor of `found`, which `target` names, is given: `given`, read as its annotations say, and its defaults.

    Raises RecipeError for an argument that it does not have, one that is missing, and a value of another type.
    """
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(found).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    for name, value in given.items():
        if name not in parameters:
            raise RecipeError(
                f"task.arguments has {name}={value!r}, which {target} does not take{did_you_mean(name, list(parameters))}",
                expected=f"arguments of its constructor: {', '.join(parameters)}" if parameters else "no argument",
                do="correct task.arguments, or add it to the constructor",
            )
    missing = [name for name, other in parameters.items() if other.default is other.empty and name not in given]
    if missing:
        raise RecipeError(
            f"task.arguments has no {', '.join(missing)}",
            expected=f"a value for each argument of {target} that has no default",
            do="add it to task.arguments",
        )
    hints = _hints(found)
    read = {name: _read(name, value, hints.get(name, Any)) for name, value in given.items()}
    defaults = {name: other.default for name, other in parameters.items() if name not in given}
    return {**{name: value for name, value in defaults.items() if _is_json(value)}, **read}


def as_json(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """`arguments` as a file holds them; `read_arguments` makes the same of it again."""
    return {name: pydantic_core.to_jsonable_python(value) for name, value in arguments.items()}


def _hints(found: Any) -> dict[str, Any]:
    """The annotations of the constructor, as far as they can be read."""
    try:
        return get_type_hints(found.__init__)
    except (NameError, TypeError):
        return {}


def _read(name: str, value: Any, hint: Any) -> Any:
    if isinstance(value, str) and hint is not str and (value[:1] in "{[" or value == "null"):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise RecipeError(
                f"task.arguments[{name!r}]={value!r} is not JSON: {error}",
                expected="JSON text of a list or an object",
                do="correct task.arguments",
            ) from None
    try:
        return pydantic.TypeAdapter(hint).validate_python(value)
    except pydantic.ValidationError as error:
        raise RecipeError(
            f"task.arguments[{name!r}]={value!r}",
            expected=f"{getattr(hint, '__name__', hint)}, as its annotation says ({error.errors()[0]['msg']})",
            do="correct task.arguments",
        ) from None
    except pydantic.errors.PydanticUserError:  # an annotation of which only the class itself knows what it means
        return value


def _is_json(value: Any) -> bool:
    try:
        return bool(json.loads(json.dumps(value)) == value)
    except (TypeError, ValueError):
        return False
