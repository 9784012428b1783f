"""How each task is computed: examples, batches, loss, metrics. Importing this package imports no torch.

What a task's section of the recipe is stands in `toolkit.recipe.tasks`; it names the class here.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from toolkit.errors import RecipeError
from toolkit.recipe.tasks import Task as Options

if TYPE_CHECKING:
    from toolkit.tasks.base import Task


def task_class(options: Options | type[Options]) -> type[Task]:
    """The class that computes the task of a recipe's section. Raises RecipeError where it cannot be imported."""
    module, _, attribute = options.implementation.partition(":")
    try:
        found: type[Task] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        if module.startswith("toolkit."):
            raise
        kind = options if isinstance(options, type) else type(options)
        raise RecipeError(
            f"{kind.__name__}.implementation={options.implementation!r}: {error}",
            expected="module:Class, where the module can be imported",
            do="correct it, or put the module's folder on PYTHONPATH",
        ) from None
    return found
