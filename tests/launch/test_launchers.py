"""The same recipe file under every launcher, each as a user would start it: the same numbers, and one voice."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.distributed import run_distributed
from tests.launch.runs import OUR_ERROR, hashes, records, tiny_recipe, train_in_rank, write_recipe
from toolkit.checkpoint.manifest import complete_steps
from toolkit.ds_config.golden import write
from toolkit.recipe import Checkpoint, Optimizer, Recipe

STEPS = 3
BIN = Path(sys.executable).parent
TIMEOUT_S = 150
TOOLS = (
    "cc",
    "c++",
    "gcc",
    "g++",
    "x86_64-linux-gnu-gcc",
    "x86_64-linux-gnu-g++",
    "ld",
    "nvcc",
    "dpkg",
    "rpm",
    "pacman",
)
FAILING_TOOL = """#!/bin/sh
echo "$0 $*" >> {called}
echo "collect2: error: ld returned 1 exit status" >&2
exit 1
"""
OUR_LINE = re.compile(
    r"(batch|schedule|step|time|done|length|ZeRO): .*|step +\d+/\d+  .*|preparing .*|  \d.*|  packed .*|torch .*"
)
"""Every line of a run of the tiny recipe."""
DEEPSPEEDS_LINE = re.compile(r"\[[\d :,-]+\] \[(INFO|WARNING)\] \[\w+\.py:.*")


@pytest.fixture(scope="module")
def recipe(tiny_llama_dir: Path, chat_file: Path) -> Recipe:
    return tiny_recipe(tiny_llama_dir, chat_file, steps=STEPS, checkpoint=Checkpoint(export=False))


@pytest.fixture(scope="module")
def home(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a user has it: recipes/ and ds_configs/."""
    folder = tmp_path_factory.mktemp("home")
    write_recipe(folder / "recipes" / "tiny.py", recipe)
    write(folder / "recipes", folder / "ds_configs")
    (folder / "tools").mkdir()
    for tool in TOOLS:
        (folder / "tools" / tool).write_text(FAILING_TOOL.format(called=folder / "called"))
        (folder / "tools" / tool).chmod(0o755)
    return folder


def environment(home: Path, launcher: str) -> dict[str, str]:
    # DeepSpeed says that it found no GPU unless it is told the device. Its own launcher and accelerate's say it by
    # themselves; under the others it would come from our ranks.
    device = {"DS_ACCELERATOR": "cpu"} if launcher in ("deepspeed", "accelerate") else {"CUDA_VISIBLE_DEVICES": ""}
    set_by_launchers = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "DS_ACCELERATOR")
    kept = {key: value for key, value in os.environ.items() if key not in set_by_launchers}
    return kept | {
        "PATH": f"{home / 'tools'}:{BIN}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(home / "huggingface"),
        "TOOLKIT_CACHE": str(home / "cache"),
        **device,
    }


def command(*words: str) -> list[str]:
    """`words` with PORT replaced by a free one, so that nothing else on this machine is in the way."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [str(BIN / words[0]), *(word.replace("PORT", str(port)) for word in words[1:])]


def start(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(*words), cwd=home, env=environment(home, words[0]), capture_output=True, text=True, timeout=TIMEOUT_S
    )
    # A run that compiles nothing asks no compiler, linker or package manager either, whatever is installed here.
    assert not (home / "called").exists(), (home / "called").read_text()
    return done


def is_our_voice(done: subprocess.CompletedProcess[str]) -> None:
    """Nothing on the screen but our lines, rank 0's alone: of the launchers nothing either."""
    lines = done.stdout.splitlines()
    assert [line for line in lines if not OUR_LINE.fullmatch(line)] == []
    assert lines[0].startswith("batch: 4 sequences per step = ") and lines[-1].startswith(f"done: {STEPS} steps in ")
    assert done.stderr == ""


# Without -q the launcher logs eleven lines around ours.
DEEPSPEED = ("deepspeed", "-q", "--num_gpus", "2", "--master_port", "PORT")
TORCHRUN = ("torchrun", "--nproc_per_node", "2", "--master_port", "PORT")
ACCELERATE = ("accelerate", "launch", "--main_process_port", "PORT")


@pytest.fixture(scope="module")
def by_deepspeed(home: Path) -> Path:
    """Folder of the run that `deepspeed` started."""
    done = start(home, *DEEPSPEED, "recipes/tiny.py")
    assert done.returncode == 0, done.stderr
    # One voice: a line of each kind, though two ranks ran.
    for line in ("batch: 4 sequences per step = 1 per rank x 2 ranks x 2 micro-batches", "done: 3 steps in "):
        assert done.stdout.count(line) == 1
    is_our_voice(done)
    folder = home / "runs" / "tiny"
    assert [record["step"] for record in records(folder)] == [1, 2, 3]
    return folder


def same_run(done: subprocess.CompletedProcess[str], folder: Path, expected: Path) -> None:
    assert done.returncode == 0, done.stderr
    is_our_voice(done)
    assert records(folder) == records(expected)
    assert hashes(folder, STEPS) == hashes(expected, STEPS)


def test_torchrun(home: Path, by_deepspeed: Path) -> None:
    same_run(start(home, *TORCHRUN, "recipes/tiny.py", "--output_dir", "torchrun"), home / "torchrun", by_deepspeed)


def test_accelerate_with_flags(home: Path, by_deepspeed: Path) -> None:
    flags = ("--use_deepspeed", "--num_processes", "2", "--zero_stage", "2", "--gradient_clipping", "0.5")
    # Else accelerate says on standard error which defaults it takes.
    flags += ("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no")
    done = start(home, *ACCELERATE, *flags, "recipes/tiny.py", "--output_dir", "flags")
    same_run(done, home / "flags", by_deepspeed)


def test_accelerate_with_the_rendered_yaml_and_an_override(home: Path, recipe: Recipe, by_deepspeed: Path) -> None:
    # The JSON that the YAML names holds what the recipe file says; flags of this start go on top of it.
    loose = recipe.model_copy(update={"optimizer": Optimizer(learning_rate=1e-2, weight_decay=0.01, max_grad_norm=9.0)})
    write_recipe(home / "recipes" / "loose.py", loose)
    write(home / "recipes", home / "ds_configs")
    overrides = ("--optimizer.max_grad_norm", "0.5", "--output_dir", "yaml")
    done = start(home, *ACCELERATE, "--config_file", "ds_configs/loose.yaml", "recipes/loose.py", *overrides)
    same_run(done, home / "yaml", by_deepspeed)


def test_plain_python_is_one_rank(home: Path, by_deepspeed: Path) -> None:
    done = start(home, "python", "recipes/tiny.py", "--output_dir", "python")
    assert done.returncode == 0, done.stderr
    is_our_voice(done)
    assert "1 per rank x 1 rank x 4 micro-batches" in done.stdout
    pairs = list(zip(records(home / "python"), records(by_deepspeed), strict=True))
    for one, two in pairs:
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-4)
        for key in ("step", "learning_rate", "tokens", "targets", "samples", "epoch"):
            assert one[key] == two[key]


def test_accelerate_that_would_start_one_process_in_silence(home: Path) -> None:
    done = start(home, *ACCELERATE, "--cpu", "--num_processes", "2", "recipes/tiny.py", "--output_dir", "single")
    assert (
        "error: accelerate launch was asked for several processes and started one: without a GPU, it starts more only through DeepSpeed\n"
        "  expected: as many processes as --num_processes says\n"
        "  do this:  add --use_deepspeed (instead of --cpu), or pass --config_file ds_configs/NAME.yaml; for one process start with `python`\n"
    ) in done.stderr
    assert "returned non-zero exit status 2" in done.stderr
    assert not (home / "single").exists()


def test_verbose_brings_what_deepspeed_says(home: Path) -> None:
    done = start(home, "python", "recipes/tiny.py", "--verbose", "--steps", "1", "--output_dir", "verbose")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert (
        lines[0]
        == "length: --steps 1 leaves no room for the recipe's schedule.warmup_steps=2; taken instead: --schedule.warmup_steps 0"
    )
    assert len([line for line in lines if DEEPSPEEDS_LINE.fullmatch(line)]) > 20
    assert "DeepSpeed info: version=" in done.stdout and "Setting accelerator to CPU" in done.stdout
    assert lines[-1].startswith("done: 1 step in ")


CONTRADICTION = "error: the launcher contradicts the recipe: "


def test_accelerate_flags_that_contradict(home: Path) -> None:
    flags = ("--use_deepspeed", "--num_processes", "2", "--zero_stage", "3", "--gradient_clipping", "1.0")
    more = ("--gradient_accumulation_steps", "1", "--offload_optimizer_device", "cpu", "--mixed_precision", "bf16")
    done = start(home, *ACCELERATE, *flags, *more, "recipes/tiny.py", "--output_dir", "never")
    assert len(OUR_ERROR.findall(done.stderr)) == 1
    assert (
        CONTRADICTION
        + (
            "ACCELERATE_DEEPSPEED_ZERO_STAGE=3, the recipe has zero_optimization.stage=2; "
            "ACCELERATE_GRADIENT_ACCUMULATION_STEPS=1, the recipe has gradient_accumulation_steps=2; "
            "ACCELERATE_GRADIENT_CLIPPING=1.0, the recipe has gradient_clipping=0.5; "
            "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE=cpu, the recipe has zero_optimization.offload_optimizer.device=none; "
            "ACCELERATE_MIXED_PRECISION=bf16, the recipe has fp32\n"
            "  expected: the values of the recipe, which is the one source of truth\n"
        )
        in done.stderr
    )
    # torchrun, which accelerate starts here, ends with 1 itself and reports the ranks' codes.
    assert re.search(r"exitcode *: 2 \(pid", done.stderr)
    # The report ends with our message again, not with a link.
    report = done.stderr.rpartition("Root Cause (first observed failure):")[2]
    assert "traceback : the launcher contradicts the recipe: ACCELERATE_DEEPSPEED_ZERO_STAGE=3" in report
    assert "    expected: the values of the recipe, which is the one source of truth\n" in report
    assert not (home / "never").exists()


def test_a_deepspeed_file_that_contradicts(home: Path) -> None:
    text = (home / "ds_configs" / "tiny.json").read_text()
    (home / "other.json").write_text(text.replace('"stage": 2', '"stage": 1').replace('"lr": 0.01', '"lr": 0.1'))
    words = ("recipes/tiny.py", "--deepspeed_config", "other.json", "--output_dir", "never")
    done = start(home, *DEEPSPEED, *words)
    assert done.returncode == 2
    assert len(OUR_ERROR.findall(done.stderr)) == 1
    # The launcher says how its processes ended, and no more.
    assert re.fullmatch(r"\[.*\] \[ERROR\] \[launch\.py:.*exits with return code = 2\n", done.stdout)
    assert (
        CONTRADICTION
        + (
            "--deepspeed_config other.json: optimizer.params.lr is 0.1 there and 0.01 in the recipe; "
            "--deepspeed_config other.json: zero_optimization.stage is 1 there and 2 in the recipe\n"
        )
        in done.stderr
    )
    assert not (home / "never").exists()


@pytest.mark.parametrize("words", [DEEPSPEED, TORCHRUN], ids=lambda words: words[0])
def test_ctrl_c(words: Sequence[str], home: Path, recipe: Recipe) -> None:
    """The terminal's Ctrl-C reaches launchers and ranks alike; deepspeed sends SIGTERM on top, torchrun SIGINT once more."""
    longer = recipe.model_copy(update={"steps": 20})
    write_recipe(home / f"by_{words[0]}.py", longer)
    folder = home / "runs" / f"by_{words[0]}"
    launcher = subprocess.Popen(
        command(*words, f"by_{words[0]}.py"),
        cwd=home,
        env=environment(home, words[0]),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + TIMEOUT_S
        while not (folder / "metrics.jsonl").exists() or not records(folder):
            assert launcher.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        os.killpg(launcher.pid, signal.SIGINT)
        # The output ends when the last rank does; the launcher itself may be gone before.
        output, _ = launcher.communicate(timeout=TIMEOUT_S)
    finally:
        if launcher.poll() is None:
            os.killpg(launcher.pid, signal.SIGKILL)
    message = re.findall(r"interrupted: step (\d+) of 20 is saved; continue with --resume auto", output)
    assert len(message) == 1, output
    assert complete_steps(folder / "checkpoints") == [int(message[0])]
    assert f"{os.sep}toolkit{os.sep}" not in output, "a traceback of ours"
    assert launcher.returncode not in (0, None)
    if words == TORCHRUN:
        return
    continued, whole = (str(folder), "auto"), (str(home / "whole"), None)
    for output_dir, resume in (continued, whole):
        (code, _), _ = run_distributed(train_in_rank, 2, longer, output_dir, str(home / "cache"), resume)
        assert code == 0
    assert records(folder) == records(home / "whole")
    assert hashes(folder, 20) == hashes(home / "whole", 20)
