"""Killed at any moment, a run loses nothing: it continues where the last save ended, and ends as if nothing had been."""

from __future__ import annotations

import random
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed import RankFailed, run_distributed
from tests.launch.runs import hashes, records, tiny_recipe, train_in_rank
from tests.launch.strike import Strike, train_until_killed, train_until_stopped
from toolkit.checkpoint.export_folder import is_current, read_stamp
from toolkit.checkpoint.manifest import complete_steps
from toolkit.cli.output import exit_code_of
from toolkit.recipe import Checkpoint, Data, Evaluation, Recipe, SequenceClassification
from toolkit.train.interrupts import ONE_PRESS_S, caught

KILLS = 20
LONG, SHORT = 60, 6


@pytest.fixture
def foreground() -> Iterator[None]:
    """SIGINT as a terminal's foreground has it: shells start background jobs with SIGINT ignored, and tests inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


def undisturbed(recipe: Recipe, cache: str, folder: Path) -> Path:
    (code, _), _ = run_distributed(train_in_rank, 2, recipe, str(folder), cache, None)
    assert code == 0
    assert [record["step"] for record in records(folder)] == list(range(1, (recipe.steps or 0) + 1))
    return folder


@pytest.fixture(scope="module")
def short(tiny_llama_dir: Path, chat_file: Path) -> Recipe:
    """Saves at the end only, and exports."""
    return tiny_recipe(tiny_llama_dir, chat_file, steps=SHORT, checkpoint=Checkpoint())


@pytest.fixture(scope="module")
def short_run(short: Recipe, cache: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return undisturbed(short, cache, tmp_path_factory.mktemp("undisturbed") / "run")


def kill(recipe: Recipe, folder: Path, cache: str, strike: Strike) -> str:
    """Run until `strike` has killed both ranks; what the ranks printed."""
    with pytest.raises(RankFailed, match=r"rank 0 died with exit code -9(?s:.*)rank 0 printed") as failure:
        run_distributed(train_until_killed, 2, recipe, str(folder), cache, strike)
    assert "rank 1 died with exit code -9" in str(failure.value)
    assert "Traceback" not in str(failure.value)
    return str(failure.value)


def last_logged(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    found = re.findall(r'^{"step": (\d+), "loss"', path.read_text() if path.exists() else "", re.MULTILINE)
    return int(found[-1]) if found else 0


def test_twenty_kills_in_a_row(tiny_llama_dir: Path, chat_file: Path, cache: str, tmp_path: Path) -> None:
    recipe = tiny_recipe(tiny_llama_dir, chat_file, steps=LONG, checkpoint=Checkpoint(every_steps=1, export=False))
    whole = undisturbed(recipe, cache, tmp_path / "whole")
    folder, chance = tmp_path / "run", random.Random(7)
    resumed = 0
    for _ in range(KILLS):
        before = [0, *complete_steps(folder / "checkpoints")]
        # Half of them exactly between two file operations of preparing, saving or deleting, half a random time later.
        delay_s = chance.choice([0.0, chance.uniform(0.0, 0.1)])
        printed = kill(
            recipe, folder, cache, Strike(signal.SIGKILL, (1, 0), operation=chance.randrange(1, 100), delay_s=delay_s)
        )
        start = re.search(r"continuing from \S+/step-(\d+) ", printed)
        assert start is None or int(start[1]) == before[-1] > 0
        resumed += start is not None
        after = [0, *complete_steps(folder / "checkpoints")]
        # Step N is logged after N - 1 was saved: nothing that was saved is lost, whatever was cut short.
        assert after[-1] >= max(before[-1], last_logged(folder) - 1)
    assert resumed >= KILLS / 2
    assert 0 < after[-1] < LONG, "the kills did not spread over the run"
    (code, printed), _ = run_distributed(train_in_rank, 2, recipe, str(folder), cache)
    assert code == 0
    assert f"continuing from {folder}/checkpoints/step-{after[-1]:08d} (written by 2 ranks)" in printed
    assert records(folder) == records(whole)
    assert hashes(folder, LONG) == hashes(whole, LONG)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [f"step-{LONG - 1:08d}", f"step-{LONG:08d}"]  # fmt: skip


@pytest.mark.parametrize(
    ("number", "victims", "code"),
    [
        (signal.SIGTERM, (0, 1), 143),
        (signal.SIGTERM, (1,), 143),
        (signal.SIGINT, (0, 1), 130),
        (signal.SIGINT, (0, 1) * 3, 130),
    ],
    ids=["sigterm", "sigterm-one-rank", "sigint", "sigint-and-passed-on-by-launchers"],
)
def test_a_stop_signal_saves_and_leaves(
    number: int, victims: tuple[int, ...], code: int, short: Recipe, short_run: Path, cache: str, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    strike = Strike(number, victims, operation=1, below="metrics.jsonl")
    (first, printed), (second, silence) = run_distributed(train_until_stopped, 2, short, str(folder), cache, strike)
    message = re.search(r"interrupted: step (\d+) of (\d+) is saved; continue with (.*)", printed)
    assert message is not None, printed
    assert (int(message[2]), message[3]) == (SHORT, f"--resume auto --output_dir {folder}")
    assert int(message[1]) in (1, 2)
    assert complete_steps(folder / "checkpoints") == [int(message[1])]
    # A signal that only one rank saw is obeyed by all; each ends with the code of what it saw.
    assert {first, second} == {code}
    assert silence == ""
    assert not (folder / "export").exists()
    (again, _), _ = run_distributed(train_in_rank, 2, short, str(folder), cache)
    assert again == 0
    assert records(folder) == records(short_run)
    assert hashes(folder, SHORT) == hashes(short_run, SHORT)


def test_a_new_head_is_the_same_when_the_run_is_resumed(
    tiny_bert_dir: Path, classification_file: Path, cache: str, tmp_path: Path
) -> None:
    """Of a checkpoint that has none: it is drawn anew, and nothing of it is in the run's folder before the first checkpoint."""
    new_head = tiny_recipe(tiny_bert_dir, classification_file, steps=SHORT, checkpoint=Checkpoint()).model_copy(
        update={
            "task": SequenceClassification(),
            "data": Data(train=str(classification_file), packing=False),
        }
    )
    whole = undisturbed(new_head, cache, tmp_path / "whole")
    folder = tmp_path / "run"
    strike = Strike(signal.SIGTERM, (0, 1), operation=1, below="metrics.jsonl")
    (code, _), _ = run_distributed(train_until_stopped, 2, new_head, str(folder), cache, strike)
    assert code == 143 and complete_steps(folder / "checkpoints")
    (code, _), _ = run_distributed(train_in_rank, 2, new_head, str(folder), cache)
    assert code == 0 and hashes(folder, SHORT) == hashes(whole, SHORT)


def test_a_second_ctrl_c_ends_at_once(foreground: None) -> None:
    with caught() as interrupt:
        signal.raise_signal(signal.SIGINT)
        assert (interrupt.signal, interrupt.exit_code) == (signal.SIGINT, 130)
        # From the terminal, and from a launcher that passes it on: one key press.
        signal.raise_signal(signal.SIGINT)
        assert (interrupt.signal, interrupt.exit_code) == (signal.SIGINT, 130)
        time.sleep(ONE_PRESS_S)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_before_the_loop(
    foreground: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def action() -> int:
        signal.raise_signal(signal.SIGINT)
        return 0

    for rank, spoken in (("0", "interrupted\n"), ("1", "")):
        monkeypatch.setenv("LOCAL_RANK", rank)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        assert exit_code_of(action) == 130
        assert capsys.readouterr() == ("", spoken)
        signal.raise_signal(signal.SIGINT)  # passed on by a launcher, while the process leaves


def test_a_run_that_stopped_early_is_complete(short: Recipe, cache: str, tmp_path: Path) -> None:
    # A rate that changes no weight: the loss stays as it is, and the third evaluation is the second bad one.
    watched = short.model_copy(
        update={
            "optimizer": short.optimizer.model_copy(update={"learning_rate": 1e-30}),
            "data": short.data.model_copy(update={"evaluation_examples": 8}),
            "evaluation": Evaluation(every_steps=1, early_stopping_patience=2),
        }
    )
    folder = tmp_path / "run"
    (code, printed), _ = run_distributed(train_in_rank, 2, watched, str(folder), cache, None)
    assert code == 0
    stopped = re.search(r"stopping early at step (\d+): loss has not improved for 2 evaluations", printed)
    assert stopped is not None and 2 <= int(stopped[1]) < SHORT
    before = records(folder)
    (code, printed), _ = run_distributed(train_in_rank, 2, watched, str(folder), cache)
    assert code == 0
    assert f"{folder} is complete: {stopped[1]} of {SHORT} steps are done" in printed
    assert records(folder) == before


def test_killed_while_exporting_then_started_over_and_over(
    short: Recipe, short_run: Path, cache: str, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    for operation in (1, 4, 9):
        kill(short, folder, cache, Strike(signal.SIGKILL, (1, 0), operation=operation, below=".export.writing"))
        assert not (folder / "export").exists()
    assert complete_steps(folder / "checkpoints") == [SHORT]
    for _ in range(2):
        (code, printed), _ = run_distributed(train_in_rank, 2, short, str(folder), cache)
        assert code == 0
        assert f"{folder} is complete: {SHORT} of {SHORT} steps are done" in printed
        assert f"model in {folder}/export" in printed
        assert records(folder) == records(short_run)
        weights = (folder / "export" / "model.safetensors").read_bytes()
        assert weights == (short_run / "export" / "model.safetensors").read_bytes()
        assert not (folder / ".export.writing").exists()
        (folder / "export" / "README.md").write_text("kept")  # the same export is not made again
    assert (folder / "export" / "README.md").read_text() == "kept"


def test_killed_while_an_export_takes_the_place_of_another(
    short: Recipe, short_run: Path, cache: str, tmp_path: Path
) -> None:
    folder = shutil.copytree(short_run, tmp_path / "run")
    wider = short.model_copy(update={"checkpoint": Checkpoint(export_dtype="fp32")})
    formats = []
    # While the new one is written; and later and later, until it is after the exchange, while the old one is removed.
    for operation in (16, *range(28, 60, 2)):
        shutil.rmtree(folder / ".export.writing", ignore_errors=True)  # removing it would count as well
        kill(wider, folder, cache, Strike(signal.SIGKILL, (1, 0), operation=operation, below=".export.writing"))
        assert (folder / ".export.writing").exists()
        stamp, _ = read_stamp(folder / "export") or (None, {})
        assert stamp is not None and is_current(folder / "export", stamp)
        header = (folder / "export" / "model.safetensors").read_bytes()[:4096]
        assert {"bf16": b'"BF16"', "fp32": b'"F32"'}[stamp.dtype] in header
        formats.append(stamp.dtype)
        if stamp.dtype == "fp32":
            break
    assert formats[0] == "bf16" and formats[-1] == "fp32", "the kills lie on both sides of the exchange"
    (code, printed), _ = run_distributed(train_in_rank, 2, wider, str(folder), cache)
    assert code == 0 and f"model in {folder}/export (step {SHORT}, fp32)" in printed
    assert not (folder / ".export.writing").exists()
