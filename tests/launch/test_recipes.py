"""Every recipe of recipes/: rendered, shown by a dry run, and trained at a tiny size with its own strategy."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.async_io import require_async_io
from tests.distributed import run_distributed
from tests.launch.media import write_media
from tests.launch.runs import FOREIGN, records, train
from tests.launch.shrink import RECIPES, ROOT, STEPS, Inputs, shrink
from tests.parity import text_tasks
from tests.processor import require_number_format
from tests.tiny import byte_tokenizer, encoder_decoder, openings, save, summaries, text_pairs, write_lines
from toolkit.cli.run import main
from toolkit.ds_config.golden import verify, write
from toolkit.errors import ConfigError
from toolkit.recipe import Recipe
from toolkit.recipe.load import load_recipe

NUM_FILES = 2 * len(RECIPES) + sum(load_recipe(path).launch.hosts > 1 for path in RECIPES)
"""A JSON and a YAML each, and a SLURM script for several hosts."""

names = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


def test_rendered_files_are_those_of_the_recipes() -> None:
    assert len(RECIPES) >= 12
    assert verify(ROOT / "recipes", ROOT / "ds_configs") == NUM_FILES > 2 * len(RECIPES)


@pytest.mark.parametrize("name", ["sft_smollm2_zero2.json", "sft_smollm2_zero2.yaml"])
def test_a_stray_a_missing_and_a_stale_rendering_are_named(name: str, tmp_path: Path) -> None:
    configs = tmp_path / "ds_configs"
    shutil.copytree(ROOT / "ds_configs", configs)
    (configs / "left_over.json").write_text("{}")
    (configs / "sft_llama8b_zero3.yaml").unlink()
    (configs / name).write_text((configs / name).read_text() + " ")
    with pytest.raises(ConfigError) as failure:
        verify(ROOT / "recipes", configs)
    assert failure.value.what == (
        f"{configs}/: left_over.json belongs to no recipe; sft_llama8b_zero3.yaml is missing; {name} is out of date"
    )
    assert write(ROOT / "recipes", configs) == ["left_over.json", "sft_llama8b_zero3.yaml", name]
    assert verify(ROOT / "recipes", configs) == NUM_FILES


@names
def test_docstring_and_tail(path: Path) -> None:
    """Both launch commands stand on top and name this very file; the tail runs the recipe."""
    text = path.read_text(encoding="utf-8")
    recipe = load_recipe(path)
    hosts = f"--hostfile hostfile --num_nodes {recipe.launch.hosts} " if recipe.launch.hosts > 1 else ""
    devices = "" if hosts else f"--num_gpus {recipe.launch.devices} "
    assert f"\ndeepspeed -q {hosts}{devices}recipes/{path.name}\n" in text
    assert f"\naccelerate launch --config_file ds_configs/{path.stem}.yaml " in text
    assert text.endswith('\n\nif __name__ == "__main__":\n    main(recipe)\n')
    assert recipe.note


@names
def test_dry_run(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [str(path)])
    for variable in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("toolkit.cli.dry_run.multiplies_bf16", lambda: True)  # as the rendering assumes
    recipe = load_recipe(path)
    assert main(recipe, ["--dry_run"]) == 0
    printed = capsys.readouterr().out
    # What it prints is the checked-in rendering, for the machines the recipe is meant for.
    assert (ROOT / "ds_configs" / f"{path.stem}.json").read_text() in printed
    assert f"\n# DeepSpeed configuration for {recipe.launch.world_size} x " in printed
    assert f"\noptimizer.learning_rate = {recipe.optimizer.learning_rate!r}\n" in printed
    assert bool(re.search(r"^step +1  lr ", printed, re.MULTILINE)) == (recipe.steps is not None)


def test_dry_run_needs_no_torch() -> None:
    program = (
        "import runpy, sys\nsys.argv = ['recipes/sft_smollm2_zero2.py', '--dry_run']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end: code = end.code\n"
        "print('loaded:', [name for name in ('torch', 'transformers', 'deepspeed', 'datasets') if name in sys.modules], code)"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.endswith("loaded: [] 0\n"), done.stderr
    assert time.monotonic() - began < 15, "about a second on an idle machine"


@pytest.fixture(scope="module")
def inputs(
    tiny_llama_dir: Path,
    tiny_bert_dir: Path,
    chat_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Inputs:
    texts = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    rows = map(json.loads, chat_file.read_text(encoding="utf-8").splitlines())
    texts.write_text("".join(json.dumps({"text": row["messages"][-1]["content"]}) + "\n" for row in rows))
    pairs = [row | {"second": row["text"][:20]} for row in openings()]
    classes = write_lines(texts.parent / "classes.jsonl", pairs)
    for task, found in (("token_classification", text_tasks.entities()), ("question_answering", text_tasks.answered())):
        write_lines(texts.parent / f"{task}.jsonl", found[1:])
    languages = [row | {"translation": {"en": row["source"], "de": row["target"]}} for row in summaries()]
    write_lines(texts.parent / "seq2seq.jsonl", languages)
    write_lines(texts.parent / "sentence_embedding.jsonl", text_pairs())
    short = [{"prompt": "Why?", "chosen": f"Because {number}.", "rejected": f"{number}?"} for number in range(32)]
    write_lines(texts.parent / "preferences.jsonl", short)
    judged = [
        {"prompt": row["prompt"], "completion": row[answer], "label": answer == "chosen"}
        for row in short
        for answer in ("chosen", "rejected")
    ]
    write_lines(texts.parent / "kto.jsonl", judged)
    tokenizer = byte_tokenizer()
    t5 = save(encoder_decoder("t5", tokenizer), tokenizer, texts.parent / "t5")
    heard = write_media(texts.parent)
    return Inputs(tiny_llama_dir, tiny_bert_dir, t5, chat_file, classes, texts, texts.parent, heard)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


def train_and_look(rank: int, world_size: int, recipe: Recipe, output_dir: str, cache: str) -> tuple[int, str, str]:
    """(exit code, what reached the screen, whoever wrote it, what the dry run of rank 0 prints)."""
    shown = io.StringIO()
    with screen(Path(f"{output_dir}-screen{rank}")) as written:
        code = train(recipe, output_dir, cache, None)
    if rank == 0:
        with contextlib.redirect_stdout(shown):
            _dry_run(recipe, world_size)
    return code, written.read_text(encoding="utf-8"), shown.getvalue()


@contextlib.contextmanager
def screen(file: Path) -> Iterator[Path]:
    """Both outputs of this process and of all that it starts go to `file`: loggers that hold a stream, compilers, libraries in C."""
    sys.stdout.flush()
    sys.stderr.flush()
    before = os.dup(1), os.dup(2)
    target = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(target, 1)
    os.dup2(target, 2)
    try:
        yield file
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(before[0], 1)
        os.dup2(before[1], 2)


def _dry_run(recipe: Recipe, world_size: int) -> None:
    from toolkit.cli.dry_run import print_dry_run
    from toolkit.ds_config.golden import assumed_target
    from toolkit.ds_config.render import render

    target = assumed_target(recipe, world_size)
    print_dry_run(recipe, target, render(recipe, target), "tiny")


def curve(shown: str) -> list[str]:
    """The learning rates of a dry run, as printed."""
    return re.findall(r"^step +\d+  lr (\S+) ", shown, re.MULTILINE)


@names
def test_trains_tiny(path: Path, inputs: Inputs, cache: str, tmp_path: Path) -> None:
    original, scratch = load_recipe(path), tmp_path / "not" / "there" / "yet"
    if "nvme" in (original.parallel.offload_optimizer, original.parallel.offload_param):
        require_async_io()
    require_number_format(original.precision.dtype)
    recipe = shrink(path, inputs, scratch)
    folder = tmp_path / "run"
    # Offload builds DeepSpeed's CPU kernels at first use, once per machine.
    (code, printed, shown), *others = run_distributed(
        train_and_look, recipe.launch.devices, recipe, str(folder), cache, timeout_s=280
    )
    assert code == 0
    assert others and all((other, silence) == (0, "") for other, silence, _ in others)
    found = records(folder)
    assert [record["step"] for record in found] == list(range(1, STEPS + 1))
    assert [f"{record['learning_rate']:.12g}" for record in found] == curve(shown)
    assert "done: 4 steps" in printed
    assert FOREIGN.findall(printed) == []
    _keeps_its_strategy(original, json.loads((folder / "ds_config.json").read_text()), found)
    is_adapter = original.tuning.name == "lora" and not original.checkpoint.merge
    assert (folder / "export" / f"{'adapter_' if is_adapter else ''}model.safetensors").is_file()
    assert not list(scratch.rglob("*.swp")), "what was swapped to disk is of no use after the run"


def _keeps_its_strategy(original: Recipe, config: dict[str, Any], found: list[dict[str, Any]]) -> None:
    """What was run is what the recipe of full size asks for."""
    zero, parallel = config["zero_optimization"], original.parallel
    assert zero["stage"] == parallel.zero_stage
    for block in ("offload_optimizer", "offload_param"):
        assert zero.get(block, {}).get("device", "none") == getattr(parallel, block)
    dtype = next((name for name in ("bf16", "fp16") if name in config), "fp32")
    assert original.precision.dtype in (dtype, "auto")
    assert ("loss_scale" in found[0]) == (dtype == "fp16")
    assert config["gradient_clipping"] == original.optimizer.max_grad_norm
    assert all(0 < record["loss"] < 20 for record in found)
