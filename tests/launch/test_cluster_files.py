"""The files for several hosts, run: the SLURM script under commands that place its hosts on this machine, accelerate's YAML on both "hosts"."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.launch.runs import tiny_recipe, write_recipe
from toolkit.cli import verbs
from toolkit.recipe import Checkpoint, Launch

BIN = Path(sys.executable).parent
TIMEOUT_S = 150

# What SLURM's own do for a job of two hosts, with one task each.
SCONTROL = '#!/bin/sh\n[ "$*" = "show hostnames there[1-2]" ] && printf "127.0.0.1\\n127.0.0.2\\n"\n'
SRUN = """\
#!/bin/bash
[ "$1" = --kill-on-bad-exit=1 ] || exit 9
shift
SLURM_NODEID=0 SLURM_STEP_NUM_TASKS=2 "$@" & first=$!
SLURM_NODEID=1 SLURM_STEP_NUM_TASKS=2 "$@" & second=$!
wait $first && wait $second
"""


@pytest.fixture
def home(tiny_llama_dir: Path, chat_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a recipe for two hosts."""
    tiny = tiny_recipe(tiny_llama_dir, chat_file, steps=3, checkpoint=Checkpoint(export=False))
    tiny = tiny.model_copy(update={"launch": Launch(devices=1, hosts=2, device="cpu")})
    write_recipe(tmp_path / "recipes" / "tiny.py", tiny)
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{BIN}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def rendered(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    assert verbs.main(["config", "recipes/tiny.py", *flags]) == 0
    return capsys.readouterr().out


def test_slurm_script(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = rendered(capsys, "--slurm")
    assert "#SBATCH --nodes=2\n" in text and "--gpus" not in text
    assert "#SBATCH --nodes=4\n" in rendered(capsys, "--slurm", "--hosts", "4")
    (home / "bin").mkdir()
    for name, content in (("scontrol", SCONTROL), ("srun", SRUN)):
        (home / "bin" / name).write_text(content)
        (home / "bin" / name).chmod(0o755)
    (home / "job.sh").write_text(text)
    slurm = {"SLURM_JOB_NODELIST": "there[1-2]", "SLURM_JOB_ID": str(os.getpid()), "SLURM_NNODES": "2"}
    done = subprocess.run(
        ["bash", "job.sh", "--dry_run", "--note", "two words"],
        env={**os.environ, **slurm},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("# tiny: two words\n") == 1
    assert "# DeepSpeed configuration for 2 x cpu\n" in done.stdout


def test_accelerate_yaml(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = rendered(capsys, "--accelerate")
    assert text.startswith("# Start this on every host, with two flags that take the place of values below:\n")
    config = yaml.safe_load(text)
    assert (config["num_machines"], config["num_processes"], config["main_process_ip"]) == (2, 2, "FIRST_HOST")
    assert yaml.safe_load(rendered(capsys, "--accelerate", "--hosts", "4"))["num_processes"] == 4
    assert "main_process_ip" not in rendered(capsys, "--accelerate", "--hosts", "1")
    (home / "ds_configs").mkdir()
    (home / "ds_configs" / "tiny.json").write_text(rendered(capsys))
    (home / "ds_configs" / "tiny.yaml").write_text(text)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(BIN / "accelerate"), "launch", "--config_file", "ds_configs/tiny.yaml", "--main_process_ip", "127.0.0.1", "--main_process_port", str(port)]  # fmt: skip
    machines = [
        subprocess.Popen(
            [*command, "--machine_rank", str(number), "recipes/tiny.py", "--dry_run"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(2)
    ]
    first, second = (machine.communicate(timeout=TIMEOUT_S)[0] for machine in machines)
    assert [machine.returncode for machine in machines] == [0, 0], first + second
    assert "# DeepSpeed configuration for 2 x cpu\n" in first
    assert "DeepSpeed configuration" not in second
