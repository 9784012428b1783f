"""What this shell sets for a run reaches the other hosts as it is here, or is said not to."""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

import pytest
from deepspeed.launcher.multinode_runner import PDSHRunner

from toolkit.doctor import launcher_variables
from toolkit.doctor.launcher_variables import malformed, ours, read, to_forward, write

ENVIRONMENT = {
    "HF_HOME": "/data/my hub",
    "OMP_NUM_THREADS": "4",
    "TOKENIZERS_PARALLELISM": "false",
    "TOOLKIT_CACHE": "/data/cache;x",
    "PATH": "/bin",
    "LANG": "C",
}
WANTED = {name: ENVIRONMENT[name] for name in ("HF_HOME", "OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM", "TOOLKIT_CACHE")}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / ".deepspeed_env"


def test_what_matters_is_forwarded() -> None:
    forward = to_forward(ENVIRONMENT)
    assert dict(forward.lines) == WANTED
    assert not forward.kept_back


@pytest.mark.parametrize("name", ["HF_TOKEN", "WANDB_API_KEY", "COMET_API_KEY"])
def test_secrets_are_not(name: str) -> None:
    forward = to_forward({name: "abc"})
    assert not forward.lines
    assert forward.kept_back[name].startswith("a secret does not belong into a file of the project")


@pytest.mark.parametrize("value", ['a"b', "a$b", "a`b", "a\\b", "a\nb", "a%hb"])
def test_values_that_the_launcher_would_garble_are_not(value: str) -> None:
    forward = to_forward({"HF_HOME": value})
    assert not forward.lines
    assert forward.kept_back["HF_HOME"].startswith("the launcher would garble its value")


def test_every_line_survives_the_launcher(file: Path) -> None:
    """Read as runner.main reads the file, quoted by its runner, and evaluated by the remote shell."""
    write(file, to_forward(ENVIRONMENT).lines)
    runner = PDSHRunner(argparse.Namespace(user_args=[], user_script="x.py"), "")
    for line in file.read_text().splitlines(keepends=True):
        name, value = line.split("=", maxsplit=1)
        runner.add_export(name, value)
    exports = "".join(f"export {name}={value}; " for name, value in runner.exports.items())
    for name, value in WANTED.items():
        done = subprocess.run(["sh", "-c", f"{exports} printenv {name}"], capture_output=True, text=True, check=True)
        assert done.stdout == f"{value}\n"


def test_written_twice_is_written_once(file: Path) -> None:
    assert write(file, WANTED)
    first = file.read_text()
    assert not write(file, WANTED)
    assert file.read_text() == first
    assert read(file) == {launcher_variables.NOTE: ",".join(WANTED), **WANTED}


def test_lines_of_others_stay_and_ours_go(file: Path) -> None:
    file.write_text("NCCL_DEBUG=INFO\nOMP_NUM_THREADS=8\n")
    assert write(file, WANTED)
    assert read(file)["OMP_NUM_THREADS"] == "8"
    assert ours(file) == set(WANTED) - {"OMP_NUM_THREADS"}
    assert write(file, {"HF_HOME": "/other"})
    assert file.read_text() == "NCCL_DEBUG=INFO\nOMP_NUM_THREADS=8\nTOOLKIT_FORWARDED=HF_HOME\nHF_HOME=/other\n"
    assert write(file, {})
    assert file.read_text() == "NCCL_DEBUG=INFO\nOMP_NUM_THREADS=8\n"


def test_an_empty_file_is_no_file(file: Path) -> None:
    write(file, WANTED)
    assert write(file, {})
    assert not file.exists()
    assert not write(file, {})


def test_lines_the_launcher_dies_of(file: Path) -> None:
    file.write_text("A=1\n\n# B=2\nword\n")
    assert malformed(file) == [2, 3, 4]
    assert malformed(file.with_name("none")) == []
