"""What is changed when a run is resumed takes effect: measured in its metrics, its checkpoints and its words."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import run_distributed
from tests.parity.topologies import rewind
from tests.tiny import openings, write_lines
from toolkit.checkpoint.export import find_checkpoint
from toolkit.checkpoint.manifest import complete_steps, folder_name, read_manifest
from toolkit.errors import CheckpointError, ToolkitError
from toolkit.recipe import Recipe
from toolkit.recipe.schedules import factor

PEAK = 1e-12
"""So small that no weight and no metric ever changes: the first evaluation in training is the best for ever."""


@dataclass(frozen=True)
class Begin:
    """One start: the base recipe below with `changed`, in `folder`."""

    changed: dict[str, Any]
    folder: Path
    resume: str | None = "auto"
    changed_data: bool = False


def make_recipe(model: Path, data: Path, changed: dict[str, Any]) -> Recipe:
    """Classes of short texts, four steps, an evaluation and a checkpoint after each."""
    values: dict[str, Any] = {
        "model.path": str(model), "data.train": str(data), "data.packing": False, "data.evaluation_examples": 16,
        "data.max_examples": 48, "task.name": "sequence_classification", "batch.global_size": 2,
        "batch.sequence_length": 16, "optimizer.learning_rate": PEAK, "precision.dtype": "fp32",
        "parallel.zero_stage": 0, "tracking.tensorboard": False, "evaluation.every_steps": 1,
        "checkpoint.every_steps": 1, "checkpoint.keep": 9, "checkpoint.keep_best": True, "checkpoint.export": False, "steps": 4,
    }  # fmt: skip
    nested: dict[str, Any] = {}
    for name, value in (values | changed).items():
        section, _, last = name.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[last] = value
    return Recipe(**nested)


def train_all(rank: int, world_size: int, starts: list[tuple[Recipe, Begin]]) -> list[tuple[int, str]]:
    """(exit code, what was said) of each start, one after the other in this process."""
    from toolkit.train.run import RunOptions, train

    found = []
    for recipe, begin in starts:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            try:
                options = RunOptions("test", begin.folder, begin.resume, begin.changed_data)
                code = train(recipe, options, keep_group=True)
            except ToolkitError as error:
                code = error.exit_code
                print(error)
        found.append((code, printed.getvalue()))
    return found


Train = Callable[..., list[str]]


@pytest.fixture(scope="module")
def train(tiny_bert_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Make the given starts, all of which must end well; what each said."""
    data = write_lines(tmp_path_factory.mktemp("data") / "openings.jsonl", openings())

    def run(*starts: Begin, code: int = 0) -> list[str]:
        recipes = [(make_recipe(tiny_bert_dir, data, begin.changed), begin) for begin in starts]
        ends = run_distributed(train_all, 1, recipes)[0]
        assert all(end == code for end, _ in ends), "\n".join(said for _, said in ends)
        return [said for _, said in ends]

    return run


@pytest.fixture(scope="module")
def finished(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps that keeps its best one."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(Begin({}, folder, None))
    return folder


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def rates(folder: Path) -> list[float]:
    return [record["learning_rate"] for record in lines(folder) if "loss" in record]


def evaluations(folder: Path) -> dict[int, dict[str, float]]:
    return {record["step"]: record["eval"] for record in lines(folder) if "eval" in record}


def copied(run: Path, folder: Path) -> Path:
    return Path(shutil.copytree(run, folder))


def test_length_rate_and_schedule_take_effect(train: Train, finished: Path, tmp_path: Path) -> None:
    """The curve goes on as the new recipe's own, one line says from what to what, and the card tells both peaks."""
    changes: dict[str, dict[str, Any]] = {
        "longer": {"steps": 6},
        "faster": {"steps": 6, "optimizer.learning_rate": 2 * PEAK},
        "cosine": {"steps": 6, "schedule.type": "cosine"},
        "plateau": {"steps": 6, "schedule.type": "reduce_on_plateau"},
    }
    said = train(*(Begin(changed, copied(finished, tmp_path / name)) for name, changed in changes.items()))
    for (name, changed), spoken in zip(changes.items(), said, strict=True):
        recipe = make_recipe(Path("m"), Path("d"), changed)
        peak = recipe.optimizer.learning_rate
        wanted = [peak * factor(recipe.schedule, step, 6) for step in (4, 5)]
        if name == "plateau":
            assert rates(tmp_path / name)[4] == peak
        else:
            assert rates(tmp_path / name)[4:] == pytest.approx(wanted, rel=1e-6, abs=0)
        assert f"learning rate at step 5: 0.0e+00 -> {wanted[0]:.1e}\n" in spoken
        assert "changed after step 4: " in spoken and "steps 4 -> 6" in spoken
        first, last = evaluations(tmp_path / name)[0], evaluations(tmp_path / name)[6]
        assert f"held-out: loss {first['loss']:.4f} -> {last['loss']:.4f}" in spoken
    card = read_manifest(tmp_path / "faster" / "checkpoints" / folder_name(6)).run["card"]
    assert card["peak learning rate"] == "1e-12, from step 5 2e-12"
    assert card["data"] == str(json.loads((tmp_path / "faster" / "recipe.json").read_text())["data"]["train"])


def test_a_plateau_keeps_its_drops_and_follows_a_new_peak(train: Train, tmp_path: Path) -> None:
    """A metric that never improves: the rate has been halved when the run is resumed with ten times the peak."""
    constant = {"schedule.type": "reduce_on_plateau", "schedule.patience": 0, "schedule.gamma": 0.5}
    train(Begin(constant, tmp_path / "straight", None))
    straight = rates(tmp_path / "straight")
    assert straight == pytest.approx([PEAK, PEAK, PEAK / 2, PEAK / 4], rel=1e-6, abs=0)
    half = {name: rewind(tmp_path / "straight", tmp_path / name, 3) for name in ("same", "higher", "linear", "metric")}
    said = train(
        Begin(constant, half["same"]),
        Begin(constant | {"optimizer.learning_rate": 10 * PEAK}, half["higher"]),
        Begin({"schedule.type": "linear"}, half["linear"]),
        Begin(constant | {"evaluation.metric": "accuracy"}, half["metric"]),
    )
    assert rates(half["same"]) == straight and "learning rate at" not in said[0]
    assert rates(half["higher"])[3] == pytest.approx(10 * PEAK / 4, rel=1e-6, abs=0)
    assert "learning rate at step 4: 2.5e-13 -> 2.5e-12\n" in said[1]
    assert rates(half["linear"])[3] == pytest.approx(PEAK / 4, rel=1e-6, abs=0)  # a step before the end of four
    assert (
        read_manifest(half["metric"] / "checkpoints" / folder_name(4)).run["engine"]["schedule"]["num_bad_epochs"] == 0
    )
    assert "evaluation.metric changed: best so far was loss " in said[3]


def test_a_best_belongs_to_its_metric_and_its_folder(train: Train, finished: Path, tmp_path: Path) -> None:
    value = f"loss {evaluations(finished)[1]['loss']:.4g} at step 1"
    assert find_checkpoint(finished).name == folder_name(1)
    assert not (finished / "checkpoints" / "best.json").exists()
    other, none, moved = (tmp_path / name for name in ("other", "none", "moved"))
    source = finished / "checkpoints" / folder_name(4)
    keeps = {"checkpoint.keep": 1, "steps": 5}
    said = train(
        Begin(keeps | {"evaluation.metric": "accuracy"}, copied(finished, other)),
        # The same metric as before, now for stopping only: the next evaluation is the fourth that is no better.
        Begin(
            keeps | {"checkpoint.keep_best": False, "evaluation.early_stopping_patience": 4, "steps": 6},
            copied(finished, none),
        ),
        Begin(keeps, moved, str(source)),
    )
    # The first evaluation of the new metric is its best; the old metric's is not kept for ever.
    assert f"evaluation.metric changed: best so far was {value}; accuracy starts anew\n" in said[0]
    assert complete_steps(other / "checkpoints") == [5] and find_checkpoint(other).name == folder_name(5)
    # A run that no longer keeps its best exports its last, by itself and by `toolkit export` of the folder.
    assert complete_steps(none / "checkpoints") == [5] and find_checkpoint(none).name == folder_name(5)
    # In another folder nothing is better than the best so far, which has come along.
    assert f"continuing from {source} (written by 1 rank)" in said[2]
    assert complete_steps(moved / "checkpoints") == [1, 5] and find_checkpoint(moved).name == folder_name(1)
    watch = read_manifest(moved / "checkpoints" / folder_name(5)).run["watch"]
    assert (watch["best_step"], watch["bad_evaluations"]) == (1, 4)
    assert [record["step"] for record in lines(moved) if "loss" in record] == [1, 2, 3, 4, 5]
    assert watch["first"]["loss"] == evaluations(finished)[0]["loss"]
    assert complete_steps(finished / "checkpoints") == [1, 2, 3, 4]  # the old folder keeps what it had


def test_a_new_folder_is_whole_before_its_first_save(train: Train, finished: Path, tmp_path: Path) -> None:
    """Resumed elsewhere with nothing left to do: the new folder holds what it needs to be exported and continued."""
    source, moved = finished / "checkpoints" / folder_name(4), tmp_path / "moved"
    said = train(Begin({"checkpoint.export": True}, moved, str(source)))[0]
    assert f"{moved} is complete: 4 of 4 steps are done" in said
    assert complete_steps(moved / "checkpoints") == [1, 4]
    assert "after 1 optimizer steps" in (moved / "export" / "README.md").read_text()
    # By another metric the finished run has no best one: the last is exported.
    shutil.rmtree(moved / "export")
    other = {"checkpoint.export": True, "evaluation.metric": "accuracy"}
    assert "evaluation.metric changed: best so far was" in train(Begin(other, moved))[0]
    assert "after 4 optimizer steps" in (moved / "export" / "README.md").read_text()


def test_the_end_of_a_run_says_why_and_more_patience_goes_on(train: Train, finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stopped"
    stops = {"evaluation.early_stopping_patience": 1, "steps": 6}
    first, again, more = train(
        Begin(stops, folder, None),
        Begin(stops, folder),
        Begin(stops | {"evaluation.early_stopping_patience": 3}, folder),
    )
    assert "stopping early at step 2" in first
    assert re.search(
        r"is complete: 2 of 6 steps are done, and it stopped early: loss had not improved for 1 evaluations "
        r"\(best \d\.\d{4} at step 1\); a larger evaluation.early_stopping_patience continues it",
        again,
    )
    assert "evaluation.early_stopping_patience 1 -> 3" in more and "stopping early at step 4" in more
    assert [record["step"] for record in lines(folder) if "loss" in record] == [1, 2, 3, 4]

    shorter = copied(finished, tmp_path / "shorter")
    before = (shorter / "recipe.json").read_bytes()
    said = train(Begin({"steps": 2}, shorter))[0]
    assert f"{shorter} is complete: 4 steps are done, more than the 2 asked for" in said
    assert (shorter / "recipe.json").read_bytes() == before  # it describes the run as it was trained


def test_a_run_without_a_checkpoint_begins_anew(train: Train, finished: Path, tmp_path: Path) -> None:
    """Killed in its third step before the first save: nothing of it is recorded twice."""
    folder = tmp_path / "killed"
    folder.mkdir()
    kept = [record for record in lines(finished) if record["step"] <= 3]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in kept))
    said = train(Begin({}, folder))[0]
    assert f"{folder} holds no checkpoint yet: the run begins at step 0" in said
    steps = [(record["step"], "eval" in record, "time_s" in record) for record in lines(folder)]
    assert len(set(steps)) == len(steps) == len(lines(finished))


def test_changed_data_is_refused_or_said(train: Train, finished: Path, tmp_path: Path) -> None:
    folder = copied(finished, tmp_path / "run")
    data = write_lines(tmp_path / "more.jsonl", openings()[::-1])
    changed = {"data.train": str(data), "steps": 5}
    said = train(Begin(changed, folder), code=2)[0]
    assert (
        f"cannot continue {folder / 'checkpoints' / folder_name(4)}: the training examples have other content" in said
    )
    assert f"data.train={str(data)!r} (the run has " in said
    said = train(Begin(changed, folder, changed_data=True))[0]
    assert "the training examples have other content; steps from 5 on are drawn from what is there now" in said
    assert "the held-out set changed: best so far was loss" in said
    card = read_manifest(folder / "checkpoints" / folder_name(5)).run["card"]
    assert str(card["data"]).endswith(f", from step 5 {data}")


def ask_main(rank: int, world_size: int) -> tuple[Any, str]:
    """What every rank gets when rank 0 finds something, and when it raises."""
    from toolkit.engine import process

    def fail() -> int:
        raise CheckpointError(f"rank {rank} looked", expected="x", do="y")

    try:
        process.from_main(fail)
    except CheckpointError as error:
        return process.from_main(lambda: ("seen by", rank)), error.what
    return None, ""


def test_ranks_do_not_look_for_themselves() -> None:
    assert run_distributed(ask_main, 2) == [(("seen by", 0), "rank 0 looked")] * 2
