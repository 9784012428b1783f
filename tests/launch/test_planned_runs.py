"""A run is planned before its weights are loaded, measured while it trains, and teaches the plans after it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.distributed import run_distributed
from tests.launch.test_run_ends import starts
from toolkit.recipe import Batch, Checkpoint, Data, Model, Parallel, Precision, Recipe, Tracking

WIDE = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 120_000,
    "tie_word_embeddings": True,
}
"""The smallest kind of model that is planned: its words alone are 30 million parameters."""


def _recipe(tokenizer: Path, data: Path, **config: Any) -> Recipe:
    return Recipe(
        model=Model(architecture="llama", weights="random", config={**WIDE, **config}, tokenizer=str(tokenizer)),
        data=Data(train=str(data)),
        batch=Batch(global_size=2, micro_size=1, sequence_length=64),
        precision=Precision(dtype="fp32"),
        parallel=Parallel(zero_stage=1),
        checkpoint=Checkpoint(export=False),
        tracking=Tracking(tensorboard=False),
        steps=4,
    )


def test_a_run_is_planned_and_measured_and_teaches(tiny_tokenizer_dir: Path, chat_file: Path, tmp_path: Path) -> None:
    recipe, cache = _recipe(tiny_tokenizer_dir, chat_file), tmp_path / "cache"
    runs = [tmp_path / "first", tmp_path / "second"]
    ended = run_distributed(starts, 1, str(cache), [(recipe, str(run), None) for run in runs])[0]
    for run, (code, said, _) in zip(runs, ended, strict=True):
        assert code == 0, said
        plan = json.loads((run / "plan.json").read_text())
        assert f"plan: {plan['memory']['peak_bytes'] / 2**30:.1f} GiB of " in said
        assert "plan and run: " in said
        assert plan["fits"] and plan["memory"]["peak_bytes"] == sum(plan["memory"]["device_bytes"].values())
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        times = [record["step_time_s"] for record in records if "step_time_s" in record]
        assert min(times[2:]) <= plan["measured"]["step_time_s"] <= max(times[2:])
    noted = [json.loads(line) for line in (cache / "finished_runs.jsonl").read_text().splitlines()]
    first, second = noted
    assert first["flops"] == second["flops"] > 0 and first["moved"] == second["moved"] > 0
    # The second plan is the first run's own time, whatever its processor seemed to reach.
    assert abs(second["planned_s"] / first["measured_s"] - 1.0) < 0.01


def test_what_cannot_fit_is_refused_before_there_are_weights(
    tiny_tokenizer_dir: Path, chat_file: Path, tmp_path: Path
) -> None:
    huge = _recipe(tiny_tokenizer_dir, chat_file, hidden_size=16384, intermediate_size=65536, num_hidden_layers=200)
    ((code, said, _),) = run_distributed(starts, 1, str(tmp_path / "cache"), [(huge, str(tmp_path / "run"), None)])[0]
    assert code == 2
    assert "this run needs " in said and " GiB per rank (" in said
    assert "expected: a run that fits" in said and "--launch.memory_check off starts it all the same" in said
