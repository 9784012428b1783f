"""What goes wrong around a real run: recipe files as programs, full disks, damaged checkpoints."""

from __future__ import annotations

import contextlib
import io
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.disks import read_only, small_disk
from tests.distributed import run_distributed
from toolkit.checkpoint.manifest import complete_steps, folder_name, read_manifest, verify_hashes
from toolkit.cli import run, verbs
from toolkit.recipe import Batch, Checkpoint, Data, Model, Optimizer, Precision, Recipe, Tracking

ROOT = Path(__file__).parents[2]
QUICK_START = "recipes/sft_smollm2_zero2.py"
FORM = """
from toolkit import *
recipe = Recipe(model=Model(path="m"), data=Data(train="d"), batch=Batch(global_size=4{batch}), steps={steps})
{more}
if __name__ == "__main__":
    main(recipe)
"""


def program(*argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    return subprocess.run(
        [sys.executable, *argv], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, **options
    )


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"batch": ", micro=2"}, (
            "unknown field batch.micro (did you mean 'micro_size'?)",
            "one of global_size, micro_size, auto_micro_size, sequence_length",
        )),
        ({"batch": ", micro_size='two'"}, ("batch.micro_size='two'", "input should be a valid integer")),
        ({"batch": ", micro_size=True"}, ("batch.micro_size=True", "an integer greater than 0")),
        ({"steps": "-3"}, ("steps=-3", "input should be greater than 0")),
        ({"more": "recipe.steps = 5"}, ("steps cannot be set to 5: a recipe does not change", "the value where the recipe is made")),
    ],
)  # fmt: skip
def test_a_wrong_recipe_file(tmp_path: Path, parts: dict[str, str], message: tuple[str, str]) -> None:
    file = tmp_path / "wrong.py"
    file.write_text(FORM.format(**({"batch": "", "steps": "3", "more": ""} | parts)))
    done = program(str(file), "--dry_run")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {message[0]}\n  expected: {message[1]}")
    assert "  do this:  " in done.stderr and "Traceback" not in done.stderr


def test_a_typo_costs_no_torch_and_no_time() -> None:
    def children_s() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = children_s()
    done = program("-X", "importtime", QUICK_START, "--stepz", "5")
    assert children_s() - before < 5
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "toolkit.cli.run" in imported
    assert not imported & {"torch", "transformers", "datasets", "deepspeed", "accelerate", "numpy"}
    assert done.returncode == 2
    assert "error: unknown flag --stepz (did you mean --steps?)\n  expected: a recipe field" in done.stderr


@pytest.mark.parametrize("flag", ["--help", "--dry_run"])
@pytest.mark.parametrize("reader", ["head -n 1", "true"])
def test_a_reader_that_leaves_early_is_no_error(flag: str, reader: str) -> None:
    command = f"{sys.executable} {QUICK_START} {flag} | {reader}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_run_outlives_the_reader_of_its_output(tiny_llama_dir: Path, chat_file: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "tiny.py", tmp_path / "run"
    file.write_text(FORM.format(batch=", sequence_length=128", steps="3", more=""))
    flags = f"--model.path {tiny_llama_dir} --data.train {chat_file} --precision.dtype fp32 --output_dir {out}"
    environment = os.environ | {"TOOLKIT_CACHE": str(tmp_path / "cache"), "DS_ACCELERATOR": "cpu"}
    command = f"{sys.executable} {file} {flags} | head -n 2; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "nobody reads the output any more; the run goes on\n" in done.stderr
    assert complete_steps(out / "checkpoints") == [3] and (out / "export" / "config.json").is_file()


def a_recipe(model: Path, data: Path, **changes: Any) -> Recipe:
    fields: dict[str, Any] = {
        "model": Model(path=str(model)),
        "data": Data(train=str(data), max_examples=40),
        "batch": Batch(global_size=2, sequence_length=128),
        "optimizer": Optimizer(learning_rate=1e-3),
        "precision": Precision(dtype="fp32"),
        "checkpoint": Checkpoint(every_steps=1, keep=5),
        "tracking": Tracking(tensorboard=False),
        "steps": 2,
    }
    return Recipe(**(fields | changes))


def start_run(rank: int, world_size: int, recipe: Recipe, argv: list[str], cache: str) -> tuple[int, str]:
    """Exit code and standard error of a start, in a process of its own."""
    os.environ["TOOLKIT_CACHE"] = cache
    sys.argv = ["x.py"]
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = run.main(recipe, argv)
    return code, said.getvalue()


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, tiny_llama_dir: Path, chat_file: Path
) -> tuple[Recipe, Path, str]:
    """A run of two steps with a checkpoint after each: its recipe, its folder, the cache."""
    folder = tmp_path_factory.mktemp("finished")
    recipe, cache = a_recipe(tiny_llama_dir, chat_file), str(folder / "cache")
    code, said = run_distributed(start_run, 1, recipe, ["--output_dir", str(folder / "run")], cache)[0]
    assert code == 0, said
    return recipe, folder / "run", cache


def test_a_damaged_checkpoint(finished: tuple[Recipe, Path, str], tmp_path: Path) -> None:
    recipe, original, cache = finished
    copy = shutil.copytree(original, tmp_path / "run")
    file = copy / "checkpoints" / folder_name(2) / "rank-00000.bin"
    with file.open("r+b") as stream:
        stream.seek(1000)
        stream.write(b"\xff\xff\xff\xff")
    flags = ["--output_dir", str(copy), "--resume", "auto", "--steps", "3"]
    code, said = run_distributed(start_run, 1, recipe, flags, cache)[0]
    assert code == 2 and "Traceback" not in said
    assert f"error: {file} does not match its sha256\n  expected: the file as it was written\n" in said
    assert f"do this:  delete {file.parent} and continue from the checkpoint before it with --resume auto" in said
    shutil.rmtree(file.parent)  # what the message says works
    code, said = run_distributed(start_run, 1, recipe, flags, cache)[0]
    assert code == 0, said
    assert complete_steps(copy / "checkpoints") == [1, 2, 3]


def test_a_truncated_checkpoint(finished: tuple[Recipe, Path, str], tmp_path: Path, capfd: Any) -> None:
    recipe, original, _ = finished
    copy = shutil.copytree(original, tmp_path / "run")
    checkpoint = copy / "checkpoints" / folder_name(1)
    file = checkpoint / "rank-00000.bin"
    os.truncate(file, 100)
    size = (original / "checkpoints" / folder_name(1) / "rank-00000.bin").stat().st_size
    flags = ["--output_dir", str(tmp_path / "new"), "--resume", str(checkpoint)]
    assert run.main(recipe, flags) == 2
    assert f"error: {file} has 100 bytes instead of {size}\n" in capfd.readouterr().err


def test_export_into_a_folder_with_files(finished: tuple[Recipe, Path, str], tmp_path: Path, capfd: Any) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert verbs.main(["export", str(finished[1]), str(tmp_path)]) == 2
    said = capfd.readouterr().err
    assert f"error: {tmp_path} already holds files\n  expected: an absent or empty folder\n" in said
    assert "do this:  choose another folder, or delete that one" in said
    assert verbs.main(["export", str(finished[1]), str(tmp_path / "notes.txt")]) == 2
    assert f": {tmp_path / 'notes.txt'} is a file\n" in capfd.readouterr().err
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_export_to_a_disk_that_takes_nothing(finished: tuple[Recipe, Path, str], tmp_path: Path, capfd: Any) -> None:
    """Said with the disk's reason and what the verb can do about it; nothing of it is a run's to continue."""
    with read_only(tmp_path / "disk") as disk:
        assert verbs.main(["export", str(finished[1]), str(disk / "out")]) == 2
        said = capfd.readouterr().err
        assert f"error: OUT {disk}/out: {disk} cannot be written to (Read-only file system)\n" in said
        assert "do this:  export to another folder\n" in said and "--resume" not in said
    with small_disk(tmp_path / "small", 8192) as disk:
        assert verbs.main(["export", str(finished[1]), str(disk / "out")]) == 1
        said = capfd.readouterr().err
        assert f"exporting step 2 in {disk} failed: No space left on device\n  expected: room on the disk\n" in said
        assert "do this:  free space, or export to a folder on another disk\n" in said and not list(disk.iterdir())


def test_export_of_a_checkpoint_away_from_its_run(
    finished: tuple[Recipe, Path, str], tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, copied, out = finished[1], tmp_path / "away" / "kept" / "step", tmp_path / "out"
    shutil.copytree(original / "checkpoints" / folder_name(1), copied)
    assert verbs.main(["export", str(copied), str(out)]) == 2
    missing = tmp_path / "away" / "model"
    said = capfd.readouterr().err
    assert (
        f"error: {copied} is a checkpoint without the files of its model: there is no {missing}/config.json\n" in said
    )
    assert f"do this:  export it where the run is, or copy that folder along: RUN/model to {missing}" in said
    shutil.copytree(original / "model", missing)  # what the message says works, from inside the folder too
    monkeypatch.chdir(copied)
    assert verbs.main(["export", ".", str(out)]) == 0 and (out / "model.safetensors").is_file()
    (missing / "config.json").write_text("{")
    capfd.readouterr()
    assert verbs.main(["export", str(copied), str(tmp_path / "again")]) == 2
    assert f"error: {missing}/config.json cannot be read: " in capfd.readouterr().err
    assert not (tmp_path / "again").exists()
    # Checkpoints may lie on another disk than the rest of their run.
    shutil.copytree(original, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    (tmp_path / "run" / "checkpoints").symlink_to(original / "checkpoints")
    assert verbs.main(["export", str(tmp_path / "run"), str(tmp_path / "linked")]) == 0


def test_weights_of_another_shape_than_the_config(
    finished: tuple[Recipe, Path, str], tiny_llama_dir: Path, tmp_path: Path
) -> None:
    from transformers import AutoConfig

    recipe, _, cache = finished
    model = shutil.copytree(tiny_llama_dir, tmp_path / "model")
    config = AutoConfig.from_pretrained(model)
    config.intermediate_size = 96
    config.save_pretrained(model)
    flags = ["--model.path", str(model), "--output_dir", str(tmp_path / "run")]
    code, said = run_distributed(start_run, 1, recipe, flags, cache)[0]
    assert code == 2 and "Traceback" not in said

    assert re.search(
        rf"error: {model}: model\.layers\.\d\.mlp\.\w+\.weight has shape \(.*\) in the files and \(.*\) in the model that its config describes \(and 5 more\)\n",
        said,
    ), said


def test_a_disk_that_fills_up_while_saving(finished: tuple[Recipe, Path, str], tmp_path: Path) -> None:
    recipe, original, cache = finished
    checkpoints = original / "checkpoints"
    one = sum(file.stat().st_size for file in (checkpoints / folder_name(1)).iterdir())
    model = sum(file.stat().st_size for file in (original / "model").iterdir())
    with small_disk(tmp_path / "disk", model + int(1.6 * one)) as disk:
        code, said = run_distributed(start_run, 1, recipe, ["--output_dir", str(disk / "run")], cache)[0]
        assert code == 1 and "Traceback" not in said
        assert f"error: saving checkpoint 2 in {disk}/run/checkpoints failed: No space left on device\n" in said
        assert "expected: room on the disk" in said and "complete checkpoints are intact" in said
        assert complete_steps(disk / "run" / "checkpoints") == [1]
        intact = disk / "run" / "checkpoints" / folder_name(1)
        verify_hashes(intact, read_manifest(intact).files)


def test_a_disk_that_fills_up_while_exporting_keeps_the_export_there_was(
    finished: tuple[Recipe, Path, str], tmp_path: Path
) -> None:
    from toolkit.checkpoint.export import renew
    from toolkit.checkpoint.export_folder import is_current, read_stamp
    from toolkit.errors import StorageError

    def pages(folder: Path) -> int:
        return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())

    original = finished[1]
    with small_disk(tmp_path / "disk", pages(original) + pages(original / "export")) as disk:
        run = Path(shutil.copytree(original, disk / "run"))
        with pytest.raises(StorageError, match=f"exporting step 2 in {run} failed: No space left on device"):
            renew(run, run / "export", "fp32", keep_best=False)
        stamp, _ = read_stamp(run / "export") or (None, {})
        assert stamp is not None and (stamp.step, stamp.dtype) == (2, "bf16") and is_current(run / "export", stamp)
        assert sorted(path.name for path in run.iterdir()) == sorted(path.name for path in original.iterdir())


@pytest.mark.parametrize(
    ("num_bytes", "what"),
    [
        (1 << 15, "no space left while reading data.train='{data}' into the cache"),
        (1 << 18, "no space left under {cache}/tokens while encoding the data"),
    ],
)
def test_a_disk_that_fills_up_while_preparing_the_data(
    tiny_llama_dir: Path, tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch, num_bytes: int, what: str
) -> None:
    from tests.tiny import write_lines

    # Characters that are three bytes as text and three tokens of eight bytes each in the store.
    data = write_lines(tmp_path / "data.jsonl", [{"text": "\u4e00" * 40}] * 400)
    with small_disk(tmp_path / "disk", num_bytes) as disk:
        monkeypatch.setenv("TOOLKIT_CACHE", str(disk))
        recipe = a_recipe(tiny_llama_dir, data).model_copy(update={"data": Data(train=str(data))})
        code = run.main(recipe, ["--output_dir", str(tmp_path / "run")])
    said = capfd.readouterr().err
    assert code == 1 and "Traceback" not in said
    assert f"error: {what.format(data=data, cache=disk)}\n" in said
    assert "  expected: room for " in said
    assert "do this:  free some space, or set TOOLKIT_CACHE to a directory on a larger disk" in said


def test_a_padding_token_that_is_the_end_token_trains_the_end(
    tiny_llama_dir: Path, chat_file: Path, tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    from toolkit.data.example import IGNORED
    from toolkit.tasks.language.causal_lm import CausalLMTask

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    recipe = a_recipe(tiny_llama_dir, chat_file)
    recipe = recipe.model_copy(update={"model": Model(path=str(tiny_llama_dir), tokenizer=str(tmp_path / "tokenizer"))})
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    assert run.main(recipe, ["--preview", "1"]) == 0
    assert "<|im_end|>]]" in capfd.readouterr().out

    task = CausalLMTask(recipe.task, tokenizer)
    answers = ("Yes.", "Yes, and there is more to say about it.")
    turns = [[{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": answer}] for answer in answers]
    examples = [task.encode({"messages": messages})[0] for messages in turns]
    batch = task.collate([[example] for example in examples])
    end = tokenizer.eos_token_id
    for row, example in enumerate(examples):
        length = len(example["input_ids"])
        assert (batch["targets"][row] == end).sum() == 1  # the end of the answer, and no padding
        assert (batch["targets"][row, length - 1 :] == IGNORED).all()
    assert int(batch["input_ids"][0, -1]) == end  # padded with it
