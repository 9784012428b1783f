"""Reading a recipe file without running it."""

from __future__ import annotations

import runpy
from pathlib import Path

from toolkit.errors import RecipeError
from toolkit.recipe.sections import Recipe


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
    found = runpy.run_path(str(file), run_name="toolkit_recipe").get("recipe")
    if not isinstance(found, Recipe):
        raise RecipeError(
            f"{path} defines no recipe (found {type(found).__name__})",
            expected="a module-level `recipe = Recipe(...)`",
            do="see recipes/sft_smollm2_zero2.py for the form",
        )
    return found
