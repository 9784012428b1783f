"""Starting in a folder that is not empty, and bringing a checkpoint over from another one."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from toolkit.checkpoint import export
from toolkit.checkpoint.durable import write_json
from toolkit.checkpoint.manifest import Manifest, RankFile, complete_steps, folder_name
from toolkit.cli import run as start
from toolkit.errors import LaunchError, StorageError
from toolkit.recipe import Batch, Data, Model, Recipe
from toolkit.storage import storage_errors
from toolkit.train import run_folder
from toolkit.train.resume import Start, adopt
from toolkit.train.run_folder import RunFolder


@pytest.fixture
def recipe() -> Recipe:
    return Recipe(model=Model(path="m"), data=Data(train="d"), batch=Batch(global_size=1), steps=9)


def a_run(path: Path, steps: tuple[int, ...] = (2, 4), best: int = 2) -> Path:
    """Checkpoints of `steps` with a file each, a line of metrics per step, and a model."""
    for step in steps:
        folder = path / "checkpoints" / folder_name(step)
        folder.mkdir(parents=True)
        (folder / "rank-00000.bin").write_bytes(bytes(8))
        run = {"recipe": {"checkpoint.keep_best": True}, "watch": {"best": 1.0, "best_step": best}}
        files = [RankFile("rank-00000.bin", 8, "", [], {})]
        write_json(folder / "manifest.json", Manifest(step, 1, {}, files, run).to_json())
    (path / "model").mkdir()
    (path / "model" / "config.json").write_text("{}")
    (path / "metrics.jsonl").write_text("".join(json.dumps({"step": step}) + "\n" for step in range(1, 7)))
    return path


@pytest.mark.parametrize("left", ["metrics.jsonl", "checkpoints/step-00000004", "export"])
def test_a_new_run_beside_what_an_old_one_left_is_refused(recipe: Recipe, tmp_path: Path, left: str) -> None:
    run = a_run(tmp_path / "run")
    (run / "export").mkdir()
    (run / "export" / "model.safetensors").touch()
    for name in ("metrics.jsonl", "checkpoints", "export"):
        if not left.startswith(name):
            shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()
    with pytest.raises(LaunchError, match="already holds a run") as refused:
        run_folder.check(run, None, recipe)
    assert refused.value.what.endswith(f"({left})")


def test_a_start_that_failed_may_be_repeated(recipe: Recipe, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for name in ("model", "export", "checkpoints/.writing-step-00000002"):
        (run / name).mkdir(parents=True)
    write_json(run / "recipe.json", recipe.model_dump(mode="json"))
    run_folder.check(run, None, recipe)


def test_a_folder_of_logs_may_become_a_run_and_one_of_strangers_not(recipe: Recipe, tmp_path: Path) -> None:
    for name in ("train.log", "slurm-1.out", ".gitignore"):
        (tmp_path / name).write_text("x")
    run_folder.check(tmp_path, None, recipe)
    (tmp_path / "thesis.tex").write_text("x")
    for resume in (None, "auto"):
        with pytest.raises(LaunchError, match=r"1 file or folder, and nothing of a run: thesis\.tex"):
            run_folder.check(tmp_path, resume, recipe)
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.model_dump(mode="json")))  # of a start that failed
    run_folder.check(tmp_path, None, recipe)


@pytest.mark.parametrize(
    ("has_steps", "flags", "said"),
    [
        (False, [], "interrupted; {0} has no checkpoint yet: --resume auto --output_dir {0} begins again\n"),
        (True, ["--resume", "auto"], "interrupted; --resume auto --output_dir {0} continues from its last checkpoint, of step 4\n"),
        (False, ["--resume", "elsewhere"], "interrupted; {0} has no checkpoint yet: the same command begins again from elsewhere\n"),
        (False, ["--preview", "1"], "interrupted\n"),
    ],
)  # fmt: skip
def test_an_interrupted_start_says_what_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    has_steps: bool, flags: list[str], said: str,
) -> None:  # fmt: skip
    """What there is to continue, and nothing where there is no run."""

    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(start, "_train", interrupted)
    monkeypatch.setattr("toolkit.cli.preview.print_preview", interrupted)
    folder = tmp_path / "run"
    (tmp_path / "x.jsonl").write_text('{"text": "A."}\n')
    recipe = Recipe(
        model=Model(path="m"), data=Data(train=str(tmp_path / "x.jsonl")), batch=Batch(global_size=2), steps=1
    )
    if has_steps:
        a_run(folder)
    monkeypatch.setattr(run_folder, "check", lambda *_, **__: None)
    before = signal.getsignal(signal.SIGINT)
    try:
        assert start.main(recipe, ["--output_dir", str(folder), *flags]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == said.format(folder)


def test_an_export_is_the_best_where_the_best_was_there(tmp_path: Path) -> None:
    there, gone = a_run(tmp_path / "there"), a_run(tmp_path / "gone", best=3)
    assert export._choose(there, True) == (there / "checkpoints" / folder_name(2), True)
    assert export._choose(there, None)[1] and not export._choose(there, False)[1]
    assert export._choose(gone, True) == (gone / "checkpoints" / folder_name(4), False)
    assert export._choose(there / "checkpoints" / folder_name(2), True)[1] is False


def bring(source: Path, target: Path) -> list[str]:
    said: list[str] = []
    start = Start(step=4, checkpoint=source / "checkpoints" / folder_name(4), watch={"best": 1.0, "best_step": 2})
    adopt(start, RunFolder(target), keep_best=True, say=said.append)
    return said


@pytest.mark.parametrize("can_link", [True, False])
def test_a_checkpoint_of_another_folder(tmp_path: Path, can_link: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    source, target = a_run(tmp_path / "source"), tmp_path / "target"
    if not can_link:
        monkeypatch.setattr(os, "link", link)
    said = bring(source, target)
    folders = [source / "checkpoints" / folder_name(step) for step in (2, 4)]
    where = target / "checkpoints"
    assert said == (
        [] if can_link else [f"copying {one} (0.0 GiB) to {where}: it cannot be linked there" for one in folders]
    )
    assert complete_steps(where) == [2, 4] and len(list(where.iterdir())) == 2
    for path in (source / "checkpoints").rglob("*.*"):
        copied = where / path.relative_to(source / "checkpoints")
        assert copied.read_bytes() == path.read_bytes() and copied.samefile(path) == can_link
    assert len((target / "metrics.jsonl").read_text().splitlines()) == 4 and (target / "model" / "config.json").exists()


def test_a_disk_that_fills_up_on_the_way(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No half of a checkpoint is left, and what is there is known as a run's."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    source, target = a_run(tmp_path / "source"), tmp_path / "target"
    copy = shutil.copy2

    def small_ones(source: Path, target: Path, **more: bool) -> object:
        return full() if source.suffix == ".bin" else copy(source, target, **more)

    with monkeypatch.context() as disk:
        disk.setattr(os, "link", full)
        disk.setattr(shutil, "copy2", small_ones)
        with pytest.raises(StorageError, match="bringing the checkpoint over in"):
            bring(source, target)
        with pytest.raises(StorageError, match="No space left"), storage_errors("copying", target):
            shutil.copytree(source, target / "whole", copy_function=full)
    assert list((target / "checkpoints").iterdir()) == []
    with pytest.raises(LaunchError, match="already holds a run"):
        run_folder.check(target, None, recipe)
