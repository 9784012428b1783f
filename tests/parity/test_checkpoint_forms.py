"""Checkpoints in the forms that other tools write them in: one model under every strategy, in training and in the export."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from tests.distributed import run_distributed
from tests.parity.worker import global_batches, run_recipe
from tests.unit.test_hub import NAME, put
from toolkit.errors import ToolkitError
from toolkit.models.weights_digest import weights_digest
from toolkit.recipe import Batch, Checkpoint, Data, Model, Optimizer, Parallel, Precision, Recipe, Schedule, Tracking
from toolkit.train.run import RunOptions, train

STRATEGIES = {
    "zero0": Parallel(zero_stage=0),
    "zero3": Parallel(zero_stage=3),
    "pipeline": Parallel(zero_stage=1, pipeline=2),
    "tensor": Parallel(zero_stage=1, tensor=2),
}

TOLERANCE = 2e-6
"""Relative, fp32: sums of a few hundred token losses, by another path."""


def recipe(path: Path, rows: Path, **changes: Any) -> Recipe:
    fields: dict[str, Any] = {
        "model": Model(path=str(path)),
        "data": Data(train=str(rows), max_examples=20, packing=False),
        "batch": Batch(global_size=4, micro_size=2, sequence_length=64),
        # Too small to move a weight: the export is the start.
        "optimizer": Optimizer(learning_rate=1e-30, weight_decay=0.0),
        "schedule": Schedule(type="constant", warmup_steps=0),
        "precision": Precision(dtype="fp32"),
        "checkpoint": Checkpoint(export_dtype="fp32"),
        "tracking": Tracking(tensorboard=False),
        "steps": 1,
    }
    return Recipe(**(fields | changes))


def loss_of(directory: Path, batches: list[dict[str, torch.Tensor]]) -> float:
    """What stock transformers computes."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in batches:
            logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"]).logits.double()
            targets = batch["targets"].flatten()
            total += float(nn.functional.cross_entropy(logits.flatten(0, 1), targets, reduction="sum"))
            count += int((targets != -100).sum())
    return total / count


def stored_head(directory: Path) -> None:
    """A head of its own, under tie_word_embeddings=true."""
    held = load_file(directory / "model.safetensors")
    torch.manual_seed(1)
    held["lm_head.weight"] = torch.randn_like(held["model.embed_tokens.weight"]) * 0.5
    save_file(held, directory / "model.safetensors", {"format": "pt"})


def head_alone(directory: Path) -> None:
    """The tied weight under the head's name."""
    held = load_file(directory / "model.safetensors")
    held["lm_head.weight"] = held.pop("model.embed_tokens.weight") * 20
    save_file(held, directory / "model.safetensors", {"format": "pt"})


def test_one_model_under_every_strategy(
    tiny_llama_dir: Path, chat_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    runs, wanted = [], {}
    for edit in (stored_head, head_alone):
        source = tmp_path / edit.__name__
        shutil.copytree(tiny_llama_dir, source)
        edit(source)
        _, (batches,) = global_batches(recipe(source, chat_file), 1)
        wanted[source] = batches
        for name in STRATEGIES if edit is stored_head else ("zero3", "pipeline"):
            parallel = STRATEGIES[name]
            runs.append((recipe(source, chat_file, parallel=parallel), str(tmp_path / f"{edit.__name__}-{name}"), None))
    records = run_distributed(run_recipe, 2, runs, timeout_s=240)[0]
    for (trained, out, _), steps in zip(runs, records, strict=True):
        source = Path(str(trained.model.path))
        right = loss_of(source, wanted[source])
        assert steps[0]["loss"] == pytest.approx(right, rel=TOLERANCE), out
        assert loss_of(Path(out) / "export", wanted[source]) == pytest.approx(right, rel=TOLERANCE), out
        tied = AutoConfig.from_pretrained(Path(out) / "export").tie_word_embeddings
        assert tied is (source.name == "head_alone")


def from_the_hub(
    rank: int, world_size: int, cache: str, runs: list[tuple[Recipe, str, str | None]]
) -> list[list[dict[str, Any]]]:
    """`run_recipe` with the hub's cache at `cache`."""
    from huggingface_hub import constants

    constants.HF_HUB_CACHE = cache
    return run_recipe(rank, world_size, runs)


def test_a_hub_checkpoint_is_one_model_too(
    tiny_llama_dir: Path, chat_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained as stock transformers reads it, and continued: from a checkpoint that did not know its weights, too."""
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    source = put(tiny_llama_dir, tmp_path / "hub")
    stored_head(source)
    _, (batches,) = global_batches(recipe(source, chat_file), 1)
    right = loss_of(source, batches)
    named = {
        name: recipe(source, chat_file, model=Model(path=NAME), parallel=STRATEGIES[name])
        for name in ("zero3", "tensor")
    }
    first = [(trained, str(tmp_path / name), None) for name, trained in named.items()]
    for (step,) in run_distributed(from_the_hub, 2, str(tmp_path / "hub"), first)[0]:
        assert step["loss"] == pytest.approx(right, rel=TOLERANCE)
    manifest = tmp_path / "zero3" / "checkpoints" / "step-00000001" / "manifest.json"
    known = json.loads(manifest.read_text())
    assert known["run"]["facts"]["weights"] == weights_digest(str(source))
    known["run"]["facts"]["weights"] = None
    manifest.write_text(json.dumps(known))
    again = [(named["zero3"].model_copy(update={"steps": 2}), str(tmp_path / "zero3"), "auto")]
    (steps,) = run_distributed(from_the_hub, 2, str(tmp_path / "hub"), again)[0]
    assert [step["step"] for step in steps] == [1, 2]


def starts(rank: int, world_size: int, cases: list[tuple[Recipe, str]], cache: str) -> list[tuple[int, str, str]]:
    """Exit code, what was printed and the error, of one start after the other."""
    os.environ["TOOLKIT_CACHE"] = cache
    found = []
    for case, output_dir in cases:
        code, said, printed = 0, "", io.StringIO()
        with contextlib.redirect_stdout(printed):
            try:
                code = train(case, RunOptions("test", Path(output_dir)), keep_group=True)
            except ToolkitError as error:
                code, said = error.exit_code, str(error)
        found.append((code, printed.getvalue(), said))
    return found


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def scratch(architecture: str, tokenizer: Path, rows: Path, config: dict[str, Any], **changes: Any) -> Recipe:
    model = Model(architecture=architecture, weights="random", tokenizer=str(tokenizer), config=SMALL | config)
    return recipe(tokenizer, rows, model=model, **changes)


def test_starts(tiny_tokenizer_dir: Path, tiny_llama_dir: Path, chat_file: Path, tmp_path: Path) -> None:
    """Eager attention by itself; an attention that is not causal; a start that failed, repeated with another seed."""
    places = [tmp_path / name for name in ("eager", "blind", "failed", "failed", "fresh")]
    llama = scratch("llama", tiny_tokenizer_dir, chat_file, {})
    packed = Data(train=str(chat_file), max_examples=20)
    bloom = scratch("bloom", tiny_tokenizer_dir, chat_file, {}, data=packed)
    cases = [
        (scratch("gemma2", tiny_tokenizer_dir, chat_file, {"head_dim": 8, "num_key_value_heads": 2}), str(places[0])),
        (scratch("bert", tiny_tokenizer_dir, chat_file, {}), str(places[1])),
        (bloom, str(places[2])),
        (bloom.model_copy(update={"seed": 5, "data": llama.data}), str(places[3])),
        (bloom.model_copy(update={"seed": 5, "data": llama.data}), str(places[4])),
    ]
    eager, blind, failed, again, fresh = run_distributed(starts, 1, cases, str(tmp_path / "cache"))[0]
    assert eager[0] == 0, eager
    assert "attention: eager, the only implementation that transformers has for gemma2" in eager[1]
    assert blind[0] == 2 and blind[2].startswith("BertLMHeadModel lets a token see those after it"), blind
    assert "do this:  set model.config is_decoder to True, or choose a decoder" in blind[2]
    assert failed[0] == 2 and "takes no positions, and so cannot be told where a packed document begins" in failed[2], (
        failed
    )
    assert again[0] == fresh[0] == 0, again
    one, other = (load_file(place / "export" / "model.safetensors") for place in (places[3], places[4]))
    assert all(torch.equal(one[name], other[name]) for name in other)
