"""Checkpoints of every topology continue under another kind; all 64 pairs are in benchmarks/topology_table.py."""

from __future__ import annotations

import hashlib
import itertools
import signal
from pathlib import Path

import pytest

from tests.distributed import RankFailed, run_distributed
from tests.launch.strike import Strike, train_until_killed
from tests.parity.topologies import TOPOLOGIES, Run, numbers, resumable, rewind, train_all, train_pairs, worst
from tests.parity.worker import read_metrics
from toolkit.checkpoint.manifest import folder_name, read_manifest, verify_hashes
from toolkit.recipe import Recipe

HALF, FULL = 3, 5
RING = ("zero0", "pp2", "zero3", "tp2", "zero2_offload", "sp2_zero3", "pp2_dp2", "pp2_tp2")
"""Each is read by the next, the last by the first."""

PAIRS = [*itertools.pairwise([*RING, RING[0]]), *((name, name) for name in ("pp2", "tp2", "sp2_zero3"))]


@pytest.fixture(scope="module")
def recipes(tiny_llama_dir: Path, chat_file: Path) -> dict[str, Recipe]:
    """Name of a topology -> its recipe."""
    return {
        name: resumable(tiny_llama_dir, chat_file, strategy, steps=FULL, half=HALF)
        for name, strategy in TOPOLOGIES.items()
    }


@pytest.fixture(scope="module")
def runs(recipes: dict[str, Recipe], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of all uninterrupted runs (NAME) and of all pairs (WRITER--READER)."""
    folder = tmp_path_factory.mktemp("topologies")
    train_pairs(TOPOLOGIES, recipes, PAIRS, HALF, folder)
    return folder


def test_the_ring_is_closed() -> None:
    assert sorted(RING) == sorted(TOPOLOGIES)


@pytest.mark.parametrize(("writer", "reader"), PAIRS, ids=lambda name: name)
def test_a_resumed_run_is_the_unbroken_run(writer: str, reader: str, runs: Path) -> None:
    """Losses within 1e-5, on the same topology not a bit apart."""
    straight, found = read_metrics(runs / writer), read_metrics(runs / f"{writer}--{reader}")
    assert len(found) == FULL
    assert worst(found, straight) < 1e-5
    if writer == reader:
        assert numbers(found) == numbers(straight)


def contents(checkpoint: Path) -> dict[str, str]:
    """SHA-256 of every file."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(checkpoint.iterdir())}


@pytest.mark.parametrize("operation", [1, 2], ids=["hashing", "reading"])
def test_killed_while_reading_what_another_topology_wrote(
    operation: int, recipes: dict[str, Recipe], runs: Path, tmp_path: Path
) -> None:
    """Reading changes nothing: the checkpoint is whole, and the same command continues from it."""
    folder = rewind(runs / "pp2", tmp_path / "run", HALF)
    checkpoint = folder / "checkpoints" / folder_name(HALF)
    before = contents(checkpoint)
    # Rank 0 opens its file twice: for its hash, then to map it and take from it what its half of the matrices needs.
    strike = Strike(signal.SIGKILL, (1, 0), operation, below=f"checkpoints/{checkpoint.name}/rank-00000.bin")
    with pytest.raises(RankFailed, match=r"rank 0 died with exit code -9"):
        run_distributed(train_until_killed, 2, recipes["tp2"], str(folder), str(tmp_path / "cache"), strike)
    assert [path.name for path in checkpoint.parent.iterdir()] == [checkpoint.name]
    assert contents(checkpoint) == before
    verify_hashes(checkpoint, read_manifest(checkpoint).files)
    train_all([Run(recipes["tp2"], 2, folder, "auto")])
    assert worst(read_metrics(folder), read_metrics(runs / "pp2")) < 1e-5
