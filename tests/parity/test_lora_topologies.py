"""Checkpoints of adapters: each topology continues another's (all 64 pairs are in benchmarks/topology_table.py --adapters),
the same one to the bit, and none another base model's."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.distributed import run_distributed
from tests.parity.topologies import ADAPTERS, TOPOLOGIES, numbers, resumable, rewind, train_pairs, worst
from tests.parity.worker import read_metrics, run_recipe
from toolkit.checkpoint.manifest import folder_name, read_manifest
from toolkit.errors import CheckpointError
from toolkit.recipe import Recipe
from toolkit.train.ranks import RankFailed

HALF, FULL = 2, 4
RING = ("zero0", "pp2", "zero3", "tp2", "sp2_zero3")
"""Each is read by the next, the last by the first: every kind of a topology writes for another and reads another's."""
SAME = ("zero3", "pp2")
PAIRS = [*itertools.pairwise([*RING, RING[0]]), *((name, name) for name in SAME)]


@pytest.fixture(scope="module")
def recipes(tiny_llama_dir: Path, chat_file: Path) -> dict[str, Recipe]:
    """Name of a topology -> its recipe."""
    return {
        name: resumable(tiny_llama_dir, chat_file, strategy, steps=FULL, half=HALF, **ADAPTERS)
        for name, strategy in TOPOLOGIES.items()
    }


@pytest.fixture(scope="module")
def runs(recipes: dict[str, Recipe], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of all uninterrupted runs (NAME) and of all pairs (WRITER--READER)."""
    folder = tmp_path_factory.mktemp("lora_topologies")
    train_pairs({name: TOPOLOGIES[name] for name in RING}, recipes, PAIRS, HALF, folder)
    return folder


@pytest.mark.parametrize(("writer", "reader"), PAIRS, ids=lambda name: name)
def test_adapters_continue_under_another_topology(writer: str, reader: str, runs: Path) -> None:
    """Losses within 1e-5, on the same topology not a bit apart."""
    straight, found = read_metrics(runs / writer), read_metrics(runs / f"{writer}--{reader}")
    assert worst(found, straight) < 1e-5
    assert straight[-1]["loss"] != straight[0]["loss"]
    if writer == reader:
        assert numbers(found) == numbers(straight)


@pytest.mark.parametrize("name", RING)
def test_a_checkpoint_holds_what_is_trained_and_nothing_else(name: str, runs: Path) -> None:
    manifest = read_manifest(runs / name / "checkpoints" / folder_name(FULL))
    whole = [key for key in manifest.shapes if ".lora_" not in key]
    assert whole == [f"model.layers.{index}.input_layernorm.weight" for index in range(2)]
    assert len(manifest.shapes) == 2 + 2 * 7 * 2
    count = sum(
        rows * columns for rows, columns in (shape for key, shape in manifest.shapes.items() if key not in whole)
    )
    # Weight, two moments, four bytes each.
    assert sum(file.num_bytes for file in manifest.files) == 12 * (count + 2 * 64)


def test_another_base_model_is_refused(runs: Path, recipes: dict[str, Recipe], tmp_path: Path) -> None:
    recipe = recipes["zero0"]
    model = AutoModelForCausalLM.from_pretrained(str(recipe.model.path))
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1.01)
    other = tmp_path / "other"
    model.save_pretrained(other)
    changed = recipe.model.model_copy(update={"path": str(other), "tokenizer": recipe.model.path})
    folder = rewind(runs / "zero0", tmp_path / "run", HALF)
    with pytest.raises(RankFailed) as failed:
        run_distributed(run_recipe, 1, [(recipe.model_copy(update={"model": changed}), str(folder), "auto")])
    assert isinstance(failed.value.error, CheckpointError)
    assert failed.value.error.exit_code == 2
    assert "the weights that the run started from have other content" in failed.value.error.what
