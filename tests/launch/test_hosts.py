"""Two hosts, as `deepspeed --hostfile` sees them: one run, one loss curve; a host that is lost is named, and missed no longer."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed import run_distributed
from tests.launch.runs import OUR_ERROR, records, tiny_recipe, train_in_rank, write_recipe
from tests.launch.two_hosts import Host, TwoHosts, two_hosts, why_not
from toolkit.checkpoint.manifest import complete_steps
from toolkit.recipe import Batch, Checkpoint, Launch, Recipe

pytestmark = pytest.mark.skipif(bool(why_not()), reason=f"two hosts cannot be built: {why_not()}")

BIN = Path(sys.executable).parent
STEPS = 30
HOST_TIMEOUT_S = 8
TIMEOUT_S = 240


@pytest.fixture(scope="module")
def recipe(tiny_llama_dir: Path, chat_file: Path) -> Recipe:
    tiny = tiny_recipe(tiny_llama_dir, chat_file, steps=STEPS, checkpoint=Checkpoint(every_steps=5, export=False))
    return tiny.model_copy(
        update={
            "batch": Batch(global_size=16, micro_size=1, sequence_length=64),
            "launch": Launch(devices=1, hosts=2, host_timeout_s=HOST_TIMEOUT_S),
        }
    )


@pytest.fixture(scope="module")
def home(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's folder, which both hosts see."""
    folder = tmp_path_factory.mktemp("home")
    write_recipe(folder / "recipes" / "tiny.py", recipe)
    return folder


@pytest.fixture(scope="module")
def hosts(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoHosts]:
    with two_hosts(tmp_path_factory.mktemp("hosts")) as pair:
        (home / "hostfile").write_text(f"{pair.a.address} slots=1\n{pair.b.address} slots=1\n")
        yield pair


def start(host: Host, home: Path, *words: str) -> subprocess.Popen[str]:
    # No HF_*, no OMP_*, no TOOLKIT_CACHE of this machine but what a user would have exported.
    environment = {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "HOME": str(home),
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOOLKIT_CACHE": str(home / "cache"),
        "DS_ACCELERATOR": "cpu",
    }
    return host.popen(*words, cwd=home, environment=environment)


def launch(hosts: TwoHosts, home: Path) -> subprocess.Popen[str]:
    return start(hosts.a, home, str(BIN / "deepspeed"), "--hostfile", "hostfile", "recipes/tiny.py", "--resume", "auto")


def finish(started: subprocess.Popen[str]) -> str:
    try:
        return started.communicate(timeout=TIMEOUT_S)[0]
    finally:
        if started.poll() is None:
            os.killpg(started.pid, signal.SIGKILL)


def finish_with_error(started: subprocess.Popen[str]) -> tuple[str, float]:
    """The output, and when its first error came."""
    assert started.stdout is not None
    lines, said_at = [], 0.0
    for line in started.stdout:
        lines.append(line)
        said_at = said_at or (bool(OUR_ERROR.match(line)) and time.monotonic())
    return "".join(lines) + finish(started), said_at


def wait_for_step(step: int, folder: Path, run: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not (folder / "metrics.jsonl").exists() or not records(folder) or records(folder)[-1]["step"] < step:
        assert run.poll() is None, run.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


DOCTOR = (str(BIN / "toolkit"), "doctor", "--hostfile", "hostfile")


@pytest.fixture(scope="module")
def doctors_words(hosts: TwoHosts, home: Path) -> tuple[str, str]:
    """What the doctor says before and after it has written .deepspeed_env."""
    return finish(start(hosts.a, home, *DOCTOR)), finish(start(hosts.a, home, *DOCTOR, "--write-env"))


def test_doctor_arranges_and_approves(hosts: TwoHosts, home: Path, doctors_words: tuple[str, str]) -> None:
    before, after = doctors_words
    lost = f"warn  variables: TOOLKIT_CACHE (where fetched checkpoints and prepared data are kept) is not as here on {hosts.a.address}, {hosts.b.address}\n"
    assert lost in before, before
    assert "  OMP_NUM_THREADS=1: threads of each rank\n" in after
    assert "ok    variables: every host sees what this shell sets for a run" in after
    for host in (hosts.a, hosts.b):
        assert f"ok    host {host.address}: {host.name}: python " in after, after
    assert (
        f"ok    network: the ranks meet at {hosts.a.address}, port 29500 on {hosts.a.address}, "
        f"{hosts.b.address} from {hosts.b.address} over eth0\n"
    ) in after
    assert "keep-alive" not in after
    lines = (home / ".deepspeed_env").read_text()
    assert lines.splitlines()[0] == "TOOLKIT_FORWARDED=DS_ACCELERATOR,HF_HUB_OFFLINE,OMP_NUM_THREADS,TOOLKIT_CACHE"


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("doctors_words")
def test_a_lost_host_is_named_and_the_run_goes_on(hosts: TwoHosts, home: Path, recipe: Recipe, tmp_path: Path) -> None:
    folder = home / "runs" / "tiny"
    run = launch(hosts, home)
    wait_for_step(7, folder, run)
    hosts.b.lose_power()
    lost_at = time.monotonic()
    output, said_at = finish_with_error(run)
    assert HOST_TIMEOUT_S - 3 < said_at - lost_at < HOST_TIMEOUT_S + 6, output
    assert f"2 hosts: {hosts.a.name} ({hosts.a.address}) rank 0, {hosts.b.name} ({hosts.b.address}) rank 1; gloo uses eth0" in output  # fmt: skip
    check_message(output, hosts)
    assert run.returncode != 0
    saved = complete_steps(folder / "checkpoints")[-1]

    hosts.mend()
    output = finish(launch(hosts, home))
    assert f"step-{saved:08d} (written by 2 ranks)" in output
    assert f"done: {STEPS} steps" in output, output
    whole = tmp_path / "one-host"
    (code, _), _ = run_distributed(train_in_rank, 2, recipe, str(whole), str(home / "cache"), None)
    assert code == 0
    assert records(folder) == records(whole)


def check_message(output: str, hosts: TwoHosts) -> None:
    """One error, which names the lost host, and no traceback."""
    silent = rf"error: host {hosts.b.name} \({re.escape(hosts.b.address)}\): no sign of life for \d+ s\n"
    assert len(re.findall(silent, output)) == 1, output
    assert len(OUR_ERROR.findall(output)) == 1, output
    assert "then start the same command again with --resume auto" in output
    assert "Traceback" not in output
