"""The suite on a machine without optional packages: what the check of it hides, and what the last lines say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOOK = "for name in ip pdsh ssh ssh-keygen sshd; do command -v $name; done; ls /usr/include/libaio.h; command -v c++; exit 7"


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)


def test_a_bare_run_sees_no_optional_package() -> None:
    """Only a compiler is left; the command's own exit code comes back; outside nothing has changed."""
    before = run("sh", "-c", LOOK).stdout
    done = run("tests/bare.sh", "sh", "-c", LOOK)
    if done.returncode == 125:
        pytest.skip(f"{done.stderr.strip()}; to run it: be root, with the right to mount")
    compiler = run("sh", "-c", "command -v c++").stdout
    assert (done.returncode, done.stdout) == (7, compiler)
    assert run("sh", "-c", LOOK).stdout == before


def test_what_was_skipped_is_listed_last(tmp_path: Path) -> None:
    """File, count, reason and cure, once for each reason."""
    file = tmp_path / "test_it.py"
    file.write_text(
        "import pytest\n@pytest.mark.parametrize('n', [1, 2])\ndef test_a(n): pytest.skip('no x; to run it: get x')\n"
        "def test_b(): pass\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", tmp_path, "-p", "tests.conftest", file],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    section, listed, count = done.stdout.splitlines()[-3:]
    assert section.strip("= ") == "2 skipped"
    assert listed.startswith("2 in ") and listed.endswith("test_it.py: no x; to run it: get x")
    assert count.startswith("1 passed, 2 skipped")
