"""TFLOPS and time shares that a run records: the same work whichever strategy does it, all of the time told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from tests.distributed import run_distributed
from tests.parity.strategies import recipe
from tests.parity.worker import global_batches, run_recipe
from toolkit.models.attention import DOCUMENT_LENGTHS
from toolkit.parity.strategies import STRATEGIES
from toolkit.recipe import Recipe

STEPS = 4
KINDS = ("zero2", "pp2")


def expected(rank: int, world_size: int, run: Recipe) -> list[float]:
    """FLOPs of each step by the closed form of a Llama, from the tensors of its global batch."""
    config = LlamaConfig.from_pretrained(str(run.model.path))
    hidden, heads = config.hidden_size, config.num_attention_heads
    width = getattr(config, "head_dim", None) or hidden // heads
    wide, narrow = heads * width, config.num_key_value_heads * width
    weights = config.num_hidden_layers * (
        2 * hidden * wide + 2 * hidden * narrow + 3 * hidden * config.intermediate_size
    )
    inputs, steps = global_batches(run, STEPS)
    found = []
    for micro_batches in steps:
        documents, targets = [], 0
        for batch in micro_batches:
            for row, tokens in zip(batch[DOCUMENT_LENGTHS].tolist(), batch["input_ids"], strict=True):
                documents += [length for length in row if length]
                # The last one of a row that is not full is padding.
                if set(tokens.tolist()[-documents[-1] :]) == {inputs.task.tokenizer.pad_token_id}:
                    documents.pop()
            targets += int((batch["targets"] != -100).sum())
        pairs = sum(length * (length + 1) // 2 for length in documents)
        attention = config.num_hidden_layers * 4 * wide * pairs
        head = 2 * hidden * config.vocab_size * targets
        found.append(3.0 * (2 * weights * sum(documents) + attention + head))
    return found


def read(folder: Path) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The records of the steps, and the seconds of each part."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    (parts,) = (line["time_s"] for line in lines if "time_s" in line)
    return [line for line in lines if "loss" in line], parts


def test_every_strategy_records_the_same_flops(tiny_llama_dir: Path, chat_file: Path, tmp_path: Path) -> None:
    base = recipe("causal_lm", tiny_llama_dir, chat_file, steps=STEPS)
    runs = [
        (base.model_copy(update={"parallel": STRATEGIES[kind].parallel}), str(tmp_path / kind), None) for kind in KINDS
    ]
    run_distributed(run_recipe, 2, runs)
    run_distributed(run_recipe, 1, [(base, str(tmp_path / "alone"), None)])
    (wanted,) = run_distributed(expected, 1, base)
    for kind, ranks in {**dict.fromkeys(KINDS, 2), "alone": 1}.items():
        records, parts = read(tmp_path / kind)
        flops = [record["tflops_per_device"] * record["step_time_s"] * ranks * 1e12 for record in records]
        assert flops == pytest.approx(wanted, rel=1e-9), kind
        assert not any("mfu" in record or "memory_reserved_gib" in record for record in records), "a CPU has no peak"
        assert parts["forward+backward"] > 0 and parts["optimizer"] > 0 and parts["saving"] > 0, (kind, parts)
        steps = sum(seconds for part, seconds in parts.items() if part != "saving")
        # What lies between two steps, such as writing their records, is not in their times.
        assert steps == pytest.approx(sum(record["step_time_s"] for record in records), rel=0.25), kind
