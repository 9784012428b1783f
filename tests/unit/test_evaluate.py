"""What a task's records must be, seen on one rank with the real store of a task's examples."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from toolkit.data.batches import EvaluationBatch
from toolkit.train.evaluate import _predicted

BATCH = EvaluationBatch({"input_ids": torch.zeros(3, 1)}, [{}, {}, {}], [4, 9, None])


def predicted(records: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    class Task:
        def predict(self, *_: Any) -> list[dict[str, Any]]:
            return records

    return _predicted(cast("Any", Task()), BATCH, cast("Any", SimpleNamespace()), {}, cast("Any", None))[1]


def test_fillers_are_dropped() -> None:
    assert predicted([{"prediction": 1}, {"prediction": 2}, {"prediction": 3}]) == {
        4: {"prediction": 1},
        9: {"prediction": 2},
    }


def test_a_task_has_one_record_per_example() -> None:
    with pytest.raises(ValueError, match=r"Task has 2 records for 3 examples"):
        predicted([{}, {}])
