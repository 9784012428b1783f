"""Where a training step waits for the device: a list that is to stay as short as it is."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed import run_distributed
from tests.parity.strategies import recipe
from tests.waits import Waits
from toolkit.recipe import Batch, Model, Parallel, Precision, Recipe

READS = {
    "toolkit/engine/base.py:_read": "the loss, once per step",
    "toolkit/engine/norm.py:_begin": "the norm, begun before the update",
    "toolkit/engine/norm.py:read": "the norm, on the host by then",
    "toolkit/engine/tensor.py:gradient_norm": "the norm of stage 0 in fp32, which DeepSpeed does not tell",
    "deepspeed/runtime/utils.py:is_invalid_grad_norm": "DeepSpeed asks whether the norm is finite",
    "deepspeed/runtime/zero/stage_1_and_2.py:has_overflow": "and whether gradients are",
    "deepspeed/runtime/zero/stage3.py:has_overflow": "the same",
}
"""What a step reads once, and why. DeepSpeed's own reads lie between the last backward pass and the update."""

ON_THE_HOST = {
    "toolkit/engine/process.py:sum_over_ranks": "the number of targets, counted on the CPU",
    "toolkit/models/attention.py:tell_documents": "lengths of documents, which stay on the CPU",
}
"""What reads tensors that no device has ever seen."""

ON_A_CPU = {
    "toolkit/models/cross_entropy.py:_is_another": "whether the gradients are scaled right, looked at on a CPU only"
}
"""What is not done where there is another device."""

STEPS = 4


def waits_of(rank: int, world_size: int, recipe: Recipe, folder: str) -> dict[str, int]:
    """What the last step of `recipe` waited for."""
    from toolkit.engine.base import DeepSpeedRun
    from toolkit.engine.pipeline import PipelineEngine
    from toolkit.engine.zero import ZeroEngine
    from toolkit.train.run import RunOptions, train

    found: Counter[str] = Counter()
    kind: type[DeepSpeedRun] = PipelineEngine if recipe.parallel.pipeline > 1 else ZeroEngine
    plain: Any = kind.train_step  # type: ignore[attr-defined]

    def watched(engine: Any, *arguments: Any) -> Any:
        found.clear()
        with Waits() as waits:
            result = plain(engine, *arguments)
        found.update(waits.found)
        return result

    kind.train_step = watched  # type: ignore[attr-defined]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            assert train(recipe, RunOptions("waits", Path(folder)), keep_group=True) == 0
    finally:
        kind.train_step = plain  # type: ignore[attr-defined]
    return dict(found)


CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "stage 0": (1, {"parallel": Parallel(zero_stage=0)}),
    "stage 2, bf16": (2, {"parallel": Parallel(zero_stage=2), "precision": Precision(dtype="bf16")}),
    "stage 3, checkpoints": (2, {"parallel": Parallel(zero_stage=3)}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_step_waits_where_it_must(case: str, tiny_llama_dir: Path, chat_file: Path, tmp_path: Path) -> None:
    """Two micro-batches: what is read once per step is read once; whatever else appears is a new wait."""
    ranks, changes = CASES[case]
    model = Model(path=str(tiny_llama_dir), activation_checkpointing="checkpoints" in case)
    batch = Batch(global_size=4 * ranks, micro_size=2, sequence_length=128)
    asked = recipe("causal_lm", tiny_llama_dir, chat_file, model=model, batch=batch, steps=STEPS, **changes)
    for found in run_distributed(waits_of, ranks, asked, str(tmp_path / "run")):
        assert set(found) <= {*READS, *ON_THE_HOST, *ON_A_CPU}, found
        assert (
            found["toolkit/engine/base.py:_read"] == 1 and found.get("toolkit/engine/tensor.py:gradient_norm", 0) <= 2
        )
        assert found["toolkit/models/attention.py:tell_documents"] == 2


def test_a_new_wait_is_found() -> None:
    """The kinds of calls that the test above looks for."""
    values = torch.tensor([1.0, -1.0])
    with Waits() as waits:
        float(values[0])
        values[values > 0]
        values.tolist()
        values.to("cpu", non_blocking=True)
        torch.nonzero(values)
        bool((values > 5).any())
        values + 1
    assert sum(waits.found.values()) >= 6
