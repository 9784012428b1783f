"""What a run is: frozen, typed sections, readable and checkable without torch."""

from toolkit.recipe.sections import (
    Batch,
    Checkpoint,
    Data,
    Evaluation,
    Launch,
    Model,
    Optimizer,
    Parallel,
    Precision,
    Recipe,
    Schedule,
    Task,
    Tracking,
)

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
