"""The recipe of a rehearsal: small, of the same kinds of parallelism, and with what is left out said. Needs no torch."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toolkit.checkpoint.manifest import Manifest, Piece, RankFile, folder_name
from toolkit.cli.flags import parse
from toolkit.cli.rehearse import rehearse
from toolkit.ds_config.golden import assumed_target
from toolkit.ds_config.render import render
from toolkit.ds_config.target import Target
from toolkit.errors import RecipeError, RunFailed
from toolkit.recipe import Batch, Checkpoint, Data, Evaluation, Model, Optimizer, Parallel, Precision, Recipe, Schedule
from toolkit.recipe.load import load_recipe
from toolkit.recipe.mesh import DEGREES, Mesh
from toolkit.rehearsal.compare import compare
from toolkit.rehearsal.smaller import MOST_RANKS, STEPS, small_mesh, smaller

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.py"))


def plain(**sections: Any) -> Recipe:
    """A recipe with `sections` of its own."""
    given = {"model": Model(path="m"), "data": Data(train="d"), "batch": Batch(global_size=64), "steps": 1000}
    return Recipe(**{**given, **sections})


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_becomes_small_and_keeps_its_strategy(path: Path) -> None:
    recipe = load_recipe(path)
    found = smaller(recipe, recipe.launch.world_size)
    assert found.mesh.world_size <= MOST_RANKS
    for name in DEGREES:
        assert found.mesh.size(name) == min(2, getattr(recipe.parallel, name)), "each kind of parallelism stays"
    for name in ("zero_stage", "offload_optimizer", "offload_param"):
        assert getattr(found.recipe.parallel, name) == getattr(recipe.parallel, name)
    assert found.recipe.steps == STEPS and found.recipe.tuning.name == recipe.tuning.name
    assert found.recipe.precision.dtype == recipe.precision.dtype
    config = render(found.recipe, Target(found.mesh.world_size, "cpu"))
    assert config["train_batch_size"] <= 2 * 2 * MOST_RANKS


@pytest.mark.parametrize(
    ("full", "small"),
    [
        (Mesh(data=64), Mesh(data=2)),
        (Mesh(pipeline=16, tensor=8, data=4), Mesh(pipeline=2, tensor=2)),
        (Mesh(pipeline=4, data=8), Mesh(pipeline=2, data=2)),
        (Mesh(sequence=3, data=2), Mesh(sequence=2, data=2)),
        (Mesh(tensor=2), Mesh(tensor=2)),
        (Mesh(), Mesh()),
    ],
)
def test_meshes_shrink_to_four_ranks(full: Mesh, small: Mesh) -> None:
    assert small_mesh(full) == small


def test_what_is_left_out_is_said() -> None:
    recipe = plain(
        model=Model(path="m", attention="flash_attention_2", kernels="liger", activation_checkpointing=True, activation_offload=True),
        optimizer=Optimizer(implementation="auto"),
        precision=Precision(dtype="fp8"),
        parallel=Parallel(zero_stage=1, offload_optimizer="cpu", pipeline=4, tensor=4),
    )  # fmt: skip
    hosts = recipe.launch.model_copy(update={"hosts": 4, "devices": 8, "device": "cuda"})
    trackers = recipe.tracking.model_copy(update={"trackers": ("wandb",)})
    found = smaller(recipe.model_copy(update={"launch": hosts, "tracking": trackers}), 32)
    assert found.not_shown == [
        "model.attention='flash_attention_2' (CUDA)",
        "model.kernels='liger' (CUDA)",
        "model.activation_offload (a CPU has one memory)",
        "DeepSpeed's CPU optimizer kernel (torch's takes its place)",
        "precision.dtype='fp8' (CUDA; bf16 takes its place)",
        "32 ranks (4 pipeline stages x 2 data-parallel x 4 tensor-parallel)",
        "data parallelism and what ZeRO shares among replicas (the ranks hold no second replica)",
        "4 hosts and their network",
        "tracking.trackers=('wandb',)",
        "CUDA kernels, memory and speed of a GPU",
    ]
    assert (found.recipe.model.attention, found.recipe.model.kernels) == ("auto", "auto")
    assert found.recipe.launch.device == "cpu" and found.recipe.tracking.trackers == ()
    compiled = smaller(plain(model=Model(path="m", compile=True), precision=Precision(dtype="fp32", tf32=True)), 2)
    assert compiled.not_shown[:2] == ["model.compile (minutes of compiling)", "precision.tf32 (CUDA)"]
    assert not compiled.recipe.model.compile


SCHEDULES = [
    Schedule(type="warmup_stable_decay", warmup_steps=100, decay_steps=300),
    Schedule(type="step", step_size=100),
    Schedule(type="multi_step", milestones=(100, 200)),
    Schedule(type="one_cycle", peak_fraction=0.1),
    Schedule(type="cosine", warmup_steps=400),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.type)
def test_every_shape_of_schedule_has_room(schedule: Schedule) -> None:
    assert smaller(plain(schedule=schedule), 2).recipe.schedule.type == schedule.type


def test_what_watches_evaluations_has_room() -> None:
    """A plateau and a best checkpoint watch on; patience to stop has nothing to act on in three steps."""
    data = Data(train="d", evaluation_examples=100)
    plateau = smaller(
        plain(data=data, schedule=Schedule(type="reduce_on_plateau"), evaluation=Evaluation(every_steps=50)), 2
    )
    assert plateau.recipe.schedule.patience == 0 and plateau.recipe.evaluation.every_steps == 1
    best = plain(
        data=data,
        checkpoint=Checkpoint(every_steps=50, keep_best=True),
        evaluation=Evaluation(every_steps=50, metric="perplexity", early_stopping_patience=3),
    )
    found = smaller(best, 2).recipe
    assert found.checkpoint.keep_best and found.evaluation.metric == "perplexity"
    assert found.evaluation.early_stopping_patience == 0
    stopping = best.model_copy(update={"checkpoint": Checkpoint(every_steps=50)})
    assert smaller(stopping, 2).recipe.evaluation.metric == "loss"


def test_accumulation_stays_accumulation() -> None:
    found = smaller(plain(batch=Batch(global_size=256, micro_size=8, sequence_length=4096)), 8)
    batch = found.recipe.batch
    assert (batch.micro_size, batch.global_size) == (2, 2 * 2 * 2) and math.prod([found.mesh.data]) == 2
    assert smaller(plain(batch=Batch(global_size=8)), 8).recipe.batch.global_size == 2


@pytest.mark.parametrize("other", ["--dry_run", "--preview 2", "--resume auto", "--resume_changed_data"])
def test_a_rehearsal_stands_alone(other: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as failure:
        parse(plain(), ["--rehearse", *other.split()], output_dir=tmp_path, description="", prog="x.py")
    flag = other.split()[0]
    assert failure.value.what == f"--rehearse with {flag}"
    assert failure.value.do == f"leave out {flag}, or --rehearse"


def test_one_process_of_a_launcher_rehearses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    target = assumed_target(plain())
    assert rehearse(plain(), target, render(plain(), target), "x") == 0
    assert capsys.readouterr().out == ""


def write_run(folder: Path, loss: float, weights: list[float]) -> Path:
    """The records and the checkpoint of step 3 as a run leaves them."""
    content = np.array([*weights, 0.5], "<f4").tobytes()
    pieces = [Piece("w", "weight", 0, len(weights), 0), Piece("w", "moment", 0, 1, 4 * len(weights))]
    file = RankFile("rank-00000.bin", len(content), hashlib.sha256(content).hexdigest(), pieces, {})
    manifest = Manifest(STEPS, 1, {"w": [len(weights)]}, [file])
    checkpoint = folder / "checkpoints" / folder_name(STEPS)
    checkpoint.mkdir(parents=True)
    (checkpoint / file.name).write_bytes(content)
    (checkpoint / "manifest.json").write_text(json.dumps(manifest.to_json()))
    record = {"step": STEPS, "loss": loss, "step_time_s": loss}
    (folder / "metrics.jsonl").write_text(
        f'{json.dumps({"step": 0, "eval_loss": 1.0})}\n{json.dumps(record)}\n{{"step": 4, "lo'
    )
    return folder


def test_a_resumed_step_is_the_same_to_the_last_bit(tmp_path: Path) -> None:
    """Records and files; where a kernel may round, states by less than 1e-6 of their norm."""
    straight = write_run(tmp_path / "straight", 2.0, [3.0, 4.0])
    same = write_run(tmp_path / "same", 2.0, [3.0, 4.0])
    assert compare(straight, same, STEPS, may_round=False) == (1, 0.0)
    near = write_run(tmp_path / "near", 2.0, [3.0, float(np.nextafter(np.float32(4.0), np.float32(5.0)))])
    files, distance = compare(straight, near, STEPS, may_round=True)
    assert files == 1 and 0 < distance < 1e-6
    with pytest.raises(RunFailed) as failure:
        compare(straight, near, STEPS, may_round=False)
    assert failure.value.what == (
        "step 3 of the resumed run is not that of the unbroken one: "
        f"the weights and optimizer states after it, by {distance:.1e} of their norm"
    )
    assert failure.value.expected == "the same to the last bit"
    far = write_run(tmp_path / "far", 2.5, [3.0, 4.1])
    with pytest.raises(RunFailed, match=r"loss 2.5, not 2.0, the weights .* by 2.0e-02 of their norm") as failure:
        compare(straight, far, STEPS, may_round=True)
    assert failure.value.expected == "the same within 1e-06"
