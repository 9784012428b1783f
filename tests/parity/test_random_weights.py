"""A model from scratch starts from the same weights however the ranks are arranged, and nothing of it is on a disk."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from tests.distributed import run_distributed
from tests.parity.strategies import recipe
from toolkit.recipe import Batch, Checkpoint, Model, Optimizer, Parallel, Precision, Recipe

SHAPE = {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
}

TOPOLOGIES: dict[str, tuple[int, dict[str, Any]]] = {
    "one rank": (1, {"zero_stage": 0}),
    "ZeRO-2": (2, {"zero_stage": 2}),
    "ZeRO-3": (2, {"zero_stage": 3, "param_persistence_threshold": 100}),
    "pipeline": (2, {"zero_stage": 1, "pipeline": 2}),
    "tensor": (2, {"zero_stage": 1, "tensor": 2}),
    "sequence, ZeRO-3": (2, {"zero_stage": 3, "sequence": 2}),
}


STEP = 1e-30
"""Learning rate: it moves zeros alone, and those by so much."""


def start(rank: int, world_size: int, recipes: list[tuple[Recipe, str]]) -> None:
    """Train each of `recipes` in turn."""
    from toolkit.train.run import RunOptions, train

    for asked, folder in recipes:
        with contextlib.redirect_stdout(io.StringIO()):
            assert train(asked, RunOptions("random", Path(folder)), keep_group=True) == 0


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder / "export", dtype=torch.float32).state_dict()


@pytest.mark.parametrize("tied", [True, False])
def test_one_start_on_every_topology(tied: bool, tiny_tokenizer_dir: Path, chat_file: Path, tmp_path: Path) -> None:
    """Exported after one step that moves next to nothing."""
    model = Model(
        architecture="llama",
        weights="random",
        tokenizer=str(tiny_tokenizer_dir),
        config={**SHAPE, "tie_word_embeddings": tied},
    )

    def asked(parallel: dict[str, Any], **changes: Any) -> Recipe:
        return recipe(
            "causal_lm",
            Path(),
            chat_file,
            model=model,
            batch=Batch(global_size=2, micro_size=1, sequence_length=128),
            optimizer=Optimizer(learning_rate=STEP, implementation="torch"),
            parallel=Parallel(**parallel),
            checkpoint=Checkpoint(export=True, export_dtype="fp32"),
            steps=1,
            **{"schedule": {"type": "constant"}, **changes},
        )

    folders = {name: tmp_path / name.replace(" ", "_").replace(",", "") for name in TOPOLOGIES}
    for ranks in (1, 2):
        started = [(asked(of), str(folders[name])) for name, (needed, of) in TOPOLOGIES.items() if needed == ranks]
        run_distributed(start, ranks, started)
    other, half = tmp_path / "other_seed", tmp_path / "bf16"
    run_distributed(
        start,
        1,
        [
            (asked({"zero_stage": 1}, seed=1), str(other)),
            (asked({"zero_stage": 1}, precision=Precision(dtype="bf16")), str(half)),
        ],
    )
    wanted = weights_of(folders["one rank"])
    for name, folder in folders.items():
        found = weights_of(folder)
        assert found.keys() == wanted.keys()
        assert [key for key, value in wanted.items() if (found[key] - value).abs().max() > STEP] == [], name
        assert not list(folder.glob(".initial-*"))
    assert not torch.equal(weights_of(other)["model.embed_tokens.weight"], wanted["model.embed_tokens.weight"])
    assert all((value - wanted[key].bfloat16().float()).abs().max() <= STEP for key, value in weights_of(half).items())


@pytest.mark.parametrize("has_head", [False, True])
def test_one_new_head_on_every_topology(
    has_head: bool, tiny_bert_dir: Path, classification_file: Path, tmp_path: Path
) -> None:
    """A checkpoint without a head, and one whose head is for another number of classes: the body is read, the head drawn."""
    source = tiny_bert_dir
    if has_head:
        source = tmp_path / "five"
        AutoModelForSequenceClassification.from_pretrained(tiny_bert_dir, num_labels=5).save_pretrained(source)
        AutoTokenizer.from_pretrained(tiny_bert_dir).save_pretrained(source)
    folders = {}
    for name, (ranks, parallel) in TOPOLOGIES.items():
        if {"pipeline", "tensor", "sequence"} & parallel.keys():
            continue
        asked = recipe(
            "sequence_classification",
            source,
            classification_file,
            batch=Batch(global_size=2, micro_size=1, sequence_length=64),
            optimizer=Optimizer(learning_rate=STEP, implementation="torch"),
            parallel=Parallel(**parallel),
            checkpoint=Checkpoint(export=True, export_dtype="fp32"),
            schedule={"type": "constant"},
            steps=1,
        )
        folders[name] = tmp_path / name.replace(" ", "_")
        run_distributed(start, ranks, [(asked, str(folders[name]))])
    kind = AutoModelForSequenceClassification
    found = {name: kind.from_pretrained(folder / "export").state_dict() for name, folder in folders.items()}
    wanted = found.pop("one rank")
    assert len(found) == 2 and float(wanted["classifier.weight"].std()) > 0.01
    body = kind.from_pretrained(source).state_dict()
    drawn = {
        name
        for name, value in wanted.items()
        if value.shape != body[name].shape or (not has_head and "classifier" in name)
    }
    assert drawn == {"classifier.weight", "classifier.bias"}
    for values in (*found.values(), {name: value for name, value in body.items() if name not in drawn}):
        assert all((value - wanted[name]).abs().max() <= STEP for name, value in values.items())
