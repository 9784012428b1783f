"""Any torch module, with its own loss and, if need be, its own data set: subclass `CustomTask` (docs/adding.md)."""

from toolkit.tasks.custom.base import Arrays, Batch, CustomTask, Figure, Row

__all__ = ["Arrays", "Batch", "CustomTask", "Figure", "Row"]
