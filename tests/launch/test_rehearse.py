"""--rehearse: a recipe, scaled down, through its own start; what it shows, what stands in, what it finds out."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from tests import speech, vision
from tests.launch.runs import write_recipe
from tests.tiny import write_lines
from toolkit.cli.run import main
from toolkit.recipe import (
    Batch,
    CausalLM,
    Checkpoint,
    Custom,
    Data,
    ImageTextToText,
    LoRA,
    Model,
    Optimizer,
    Parallel,
    Precision,
    Recipe,
    SequenceClassification,
    SpeechSeq2Seq,
)
from toolkit.recipe.load import load_recipe

ROOT = Path(__file__).parents[2]

BROKEN = '''"""A module that is another one in every process, or cannot take a step."""

import os

import torch
from torch import nn

from toolkit.tasks.custom import CustomTask


class Lines(CustomTask):
    fault = ""

    def build(self):
        return nn.Linear(4, 1)

    def rows(self, split):
        return [{"x": [float(number % 7), 1.0, 2.0, 3.0], "y": float(number)} for number in range(64)]

    def loss(self, model, batch):
        if self.fault == "raises":
            raise ZeroDivisionError("no step can be taken")
        noise = os.getpid() * 1e-3 if self.fault == "differs" else 0.0
        return (model(batch["x"])[:, 0] + noise - batch["y"]) ** 2


class Differs(Lines):
    fault = "differs"


class Raises(Lines):
    fault = "raises"
'''


@pytest.fixture
def rehearsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """Rehearse a recipe in an empty folder; the exit code and both outputs. Nothing may be left behind."""
    here, scratch = tmp_path / "here", tmp_path / "scratch"
    here.mkdir()
    scratch.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setattr(sys, "argv", ["x.py"])

    def run(recipe: Recipe, *flags: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(recipe, ["--rehearse", *flags])
        assert not list(here.iterdir()) and not list(scratch.glob("rehearsal_*"))
        printed = capfd.readouterr()
        return code, printed.out, printed.err

    return run


def described(model: Path, folder: Path) -> Path:
    """A copy of `model` without its weights."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


def test_a_users_own_model_and_rows(rehearsed: Any, tiny_llama_dir: Path, chat_file: Path, tmp_path: Path) -> None:
    """ZeRO-3 with offload and adapters, no weights at hand: the recipe's tokenizer and rows, and a line for each phase."""
    recipe = Recipe(
        model=Model(path=str(described(tiny_llama_dir, tmp_path / "m")), activation_checkpointing=True, dropout=0.1),
        data=Data(train=str(chat_file), evaluation_examples=20),
        tuning=LoRA(rank=64),
        batch=Batch(global_size=64, micro_size=8, sequence_length=512),
        optimizer=Optimizer(learning_rate=1e-3),
        precision=Precision(dtype="fp32"),
        parallel=Parallel(zero_stage=3, offload_optimizer="cpu", offload_param="cpu"),
        checkpoint=Checkpoint(merge=True),
        steps=1000,
    )
    code, out, err = rehearsed(recipe)
    assert (code, err) == (0, "")
    phases = [line[:12].strip() for line in out.splitlines()]
    assert phases == [
        *("rehearsal", "loading", "model", "data", "step 1", "step 2", "checkpoint", "step 3", "resume", "step 3"),
        *("compare", "shown", "shown", "not shown", "not shown", "not shown", out.splitlines()[-1][:12].strip()),
    ]
    assert "rehearsal   x on 2 CPU ranks (2 data-parallel)\n" in out
    assert f"data        data.train {chat_file}: 200 rows read: 200 as chat messages (messages) (200 kept, " in out
    assert "compare     step 3 is the same to the last bit: its record, and 2 files of weights and states\n" in out
    assert "under ZeRO-3, optimizer to cpu, parameters to cpu, 2 data-parallel, fp32, LoRA, activation checkpointing, packing\n" in out  # fmt: skip
    losses = [line.split("loss ")[1] for line in out.splitlines() if line.startswith("step 3")]
    assert losses[0] == losses[1]
    assert out.splitlines()[-1].endswith("s; nothing is left behind")


def test_a_recipe_for_a_cluster_with_nothing_at_hand(rehearsed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """32 ranks as 4: pipeline and tensor parallelism, and what stands in for model, tokenizer and rows."""
    code, out, err = rehearsed(load_recipe(ROOT / "recipes" / "sft_llama70b_pp4_tp8.py"))
    assert (code, err) == (0, "")
    assert "on 4 CPU ranks (2 pipeline stages x 2 tensor-parallel)\n" in out
    name = "'meta-llama/Llama-3.1-70B-Instruct'"
    for line in (
        f"stand-in    the tokenizer: {name} is not here, so each byte of a text is a token",
        f"stand-in    the architecture: {name} is not here, so a llama of transformers' usual form stands in",
        "stand-in    the rows: data.train='data/train.jsonl' does not exist, so random ones in this task's usual columns stand in",
        "shown       the configuration for 32 x cuda breaks no rule",
        "not shown   the recipe's weights and their loss curve",
        "not shown   model.attention='flash_attention_2' (CUDA)",
        "not shown   32 ranks (4 pipeline stages x 8 tensor-parallel)",
        "not shown   4 hosts and their network",
        "not shown   CUDA kernels, memory and speed of a GPU",
    ):
        assert f"{line}\n" in out


def small(task: Any, model: Model, data: Data, **sections: Any) -> Recipe:
    """A recipe on one rank."""
    batch = Batch(global_size=4, micro_size=2, **({"sequence_length": 128} if task.has_length else {}))
    recipe = Recipe(
        model=model, data=data, task=task, batch=batch, precision=Precision(dtype="fp32"), steps=50, **sections
    )
    return recipe.model_copy(update={"launch": recipe.launch.model_copy(update={"devices": 1})})


def test_two_sources_with_weights_and_held_out_rows_that_are_elsewhere(
    rehearsed: Any, tiny_bert_dir: Path, classification_file: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.csv"
    other.write_text(
        "text,label\n" + "".join(f"number {number},{'class' if number % 2 else 'function'}\n" for number in range(60))
    )
    data = Data(
        train=f"{classification_file}:0.5,{other}:3", evaluation=str(tmp_path / "none" / "x.csv"), packing=False
    )
    code, out, err = rehearsed(small(SequenceClassification(), Model(path=str(tiny_bert_dir)), data))
    assert (code, err) == (0, "")
    assert "BertForSequenceClassification, scaled down to" in out
    assert f"data        data.train {other}: 60 rows read\n" in out
    assert "does not exist, so some of data.train are held out\n" in out


@pytest.mark.parametrize("kind", ["vision", "speech"])
def test_media_by_a_description_alone(kind: str, rehearsed: Any, tmp_path: Path) -> None:
    """Paths in rows begin in the folder of the file that holds them; where there is no file, noise stands in."""
    if kind == "vision":
        recipe = small(
            ImageTextToText(),
            Model(path=str(described(vision.checkpoint("llava", tmp_path / "whole"), tmp_path / "m"))),
            Data(train=str(tmp_path / "elsewhere" / "rows.parquet"), packing=False),
        )
    else:
        model = described(speech.whisper(tmp_path / "whole"), tmp_path / "m")
        rows = speech.recordings(tmp_path / "heard")
        recipe = small(
            SpeechSeq2Seq(max_duration_s=1.0, target_length=20),
            Model(path=str(model)),
            Data(train=str(rows), packing=False, overlong="drop"),
        )
    code, out, err = rehearsed(recipe)
    assert (code, err) == (0, ""), err
    assert ("stand-in    the rows: " in out) == (kind == "vision")
    assert (" rows read\n" in out) == (kind == "speech")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Differs", "error: step 3 of the resumed run is not that of the unbroken one: loss "),
        ("Raises", "error: the run failed: ZeroDivisionError: no step can be taken\n  expected: 3 steps, a checkpoint and a resume\n"),
    ],
)  # fmt: skip
def test_what_fails_and_what_differs_is_exit_3(
    name: str, message: str, rehearsed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_lines.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(str(tmp_path))
    data = Data(train="own", packing=False)
    code, out, err = rehearsed(small(Custom(f"broken_lines:{name}"), Model(), data))
    assert code == 3 and message in err, err
    assert "model       broken_lines:" in out and ", as it is\n" in out
    assert ("Traceback" in err) == (name == "Raises")
    assert "shown" not in out


def test_rows_that_the_run_would_refuse(rehearsed: Any, tiny_llama_dir: Path, tmp_path: Path) -> None:
    """By the name of the user's own file, and by what the row lacks."""
    rows = [{"prompt": "Why?", "completion": "So."}] * 9 + [{"prompt": "Why?"}]
    file = write_lines(tmp_path / "rows.jsonl", rows)
    recipe = small(CausalLM(), Model(path=str(tiny_llama_dir)), Data(train=str(file)))
    code, _, err = rehearsed(recipe)
    assert code == 2
    assert err.startswith(f"error: row 10 of data.train, '{file}': ")
    near = recipe.model_copy(update={"data": Data(train=str(file.with_name("row.jsonl")))})
    code, _, err = rehearsed(near)
    assert code == 2 and "does not exist (did you mean 'rows.jsonl'?)" in err, "a slip is no file that is elsewhere"


@pytest.mark.parametrize(
    ("recipe", "what", "do"),
    [
        (
            small(ImageTextToText(), Model(path="some/llava"), Data(train="rows.parquet", packing=False)),
            "'some/llava' is not on this host, and images or recordings are not read without its processor",
            "once, with a network: hf download some/llava --include '*.json' '*.txt' '*.model'",
        ),
        (
            small(Custom("toolkit.examples.two_tower:TwoTower"), Model(), Data(train="rows.jsonl", packing=False)),
            "no rows can be made up for task.name='custom'",
            "or copy a few rows here and pass --data.train FILE",
        ),
        (
            small(CausalLM(), Model(architecture="mamba", weights="random", tokenizer="some/mamba"), Data(train="x.jsonl")),
            "MambaConfig cannot be scaled down: ",
            "or start the recipe itself with a few --steps",
        ),
    ],
    ids=["processor", "rows", "architecture"],
)  # fmt: skip
def test_what_nothing_can_stand_in_for(recipe: Recipe, what: str, do: str, rehearsed: Any) -> None:
    code, _, err = rehearsed(recipe)
    assert code == 2 and what in err and do in err, err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing(
    number: signal.Signals, tiny_llama_dir: Path, chat_file: Path, tmp_path: Path
) -> None:
    """By Ctrl-C, which all processes get, and by a launcher's SIGTERM; there is a folder by then."""
    file = write_recipe(
        tmp_path / "x.py", small(CausalLM(), Model(path=str(tiny_llama_dir)), Data(train=str(chat_file)))
    )
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    environment = {**os.environ, "TMPDIR": str(scratch), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(file), "--rehearse"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, text=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
    ) as run:  # fmt: skip
        deadline = time.monotonic() + 60
        while not list(scratch.glob("rehearsal_*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert list(scratch.glob("rehearsal_*"))
        (os.killpg if number == signal.SIGINT else os.kill)(run.pid, number)
        _, err = run.communicate(timeout=60)
    assert (run.returncode, err) == (130, "interrupted; nothing is left behind\n")
    assert not list(scratch.glob("rehearsal_*")) and not (tmp_path / "runs").exists()


def test_a_script_that_always_runs(tmp_path: Path, tiny_llama_dir: Path, chat_file: Path) -> None:
    """Each rank imports it: it is told before one does."""
    recipe = small(CausalLM(), Model(path=str(tiny_llama_dir)), Data(train=str(chat_file)))
    file = tmp_path / "bare.py"
    file.write_text(f"from toolkit import *\n\nmain({recipe!r})\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "bare.py", "--rehearse"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(
        "error: bare.py runs its recipe wherever it is imported, ".replace("bare.py", str(file))
    ), done.stderr
    assert "do this:  write that line before main(recipe), and indent main(recipe)" in done.stderr


def test_help_names_it() -> None:
    done = subprocess.run(
        [sys.executable, "recipes/sft_smollm2_zero2.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--rehearse" in done.stdout and json.dumps("leaves nothing behind")[1:-1] in " ".join(done.stdout.split())
