"""Reading a recipe file without running it."""

from __future__ import annotations

import runpy
import traceback
from pathlib import Path
from typing import Any

from toolkit.errors import RecipeError, ToolkitError
from toolkit.recipe.recipe import Recipe


def load_recipe(path: str | Path) -> Recipe:
    """The object named `recipe` in the Python file at `path`. Raises RecipeError when there is none."""
    file = Path(path)
    if not file.is_file():
        near = sorted(str(other) for other in file.parent.glob("*.py")) if file.parent.is_dir() else []
        raise RecipeError(
            f"recipe file {str(path)!r} does not exist",
            expected="a Python file that defines `recipe = Recipe(...)`" + (f", such as {near[0]}" if near else ""),
            do="check the path",
        )
    found = _run(file).get("recipe")
    if not isinstance(found, Recipe):
        raise RecipeError(
            f"{path} defines no recipe (found {type(found).__name__})",
            expected="a module-level `recipe = Recipe(...)`",
            do="see recipes/sft_smollm2_zero2.py for the form",
        )
    return found


def _run(file: Path) -> dict[str, Any]:
    """The names that the module `file` defines."""
    try:
        return runpy.run_path(str(file), run_name="toolkit_recipe")
    except ToolkitError:
        raise
    except SystemExit:
        raise RecipeError(
            f"{file} starts a run while it is being read",
            expected="`main(recipe)` only when the file is the program",
            do='write it under `if __name__ == "__main__":`',
        ) from None
    except Exception as error:
        # Whatever a file that is no recipe does; the line is what its author needs.
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        line = getattr(error, "lineno", None) or (lines[-1] if lines else None)
        raise RecipeError(
            f"{file}" + (f", line {line}" if line else "") + f": {type(error).__name__}: {error}",
            expected="a Python file that defines `recipe = Recipe(...)`",
            do="correct the file; recipes/sft_smollm2_zero2.py has the form",
        ) from None
