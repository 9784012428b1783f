"""What a run is: frozen, typed sections, readable and checkable without torch."""

from toolkit.recipe.inputs import Batch, Data, Model, Task
from toolkit.recipe.outputs import Checkpoint, Evaluation, Launch, Tracking
from toolkit.recipe.recipe import Recipe
from toolkit.recipe.update import Optimizer, Parallel, Precision, Schedule

__all__ = [
    "Batch",
    "Checkpoint",
    "Data",
    "Evaluation",
    "Launch",
    "Model",
    "Optimizer",
    "Parallel",
    "Precision",
    "Recipe",
    "Schedule",
    "Task",
    "Tracking",
]
