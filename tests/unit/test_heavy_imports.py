"""What is imported, and what is not: imports are most of the time of a plan and all of that of a dry run."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from toolkit.heavy_imports import as_if_absent

ROOT = Path(__file__).parents[2]
PLAN = """
import sys
from toolkit.cli.verbs import main
code = main(["plan", *sys.argv[1:]])
print("imported:", *sorted({"datasets", "pandas", "scipy", "torchao", "deepspeed", "sklearn"} & set(sys.modules)))
sys.exit(code)
"""


def test_a_plan_imports_only_what_it_needs(tmp_path: Path) -> None:
    """No data are read, nothing is quantized, one rank pretends to be no others."""
    recipe = ROOT / "recipes" / "pretrain_llama10m_zero1.py"
    words = [str(recipe), "--devices", "1", "--device", "H100", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", PLAN, *words], capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    printed, _, imported = done.stdout.rstrip("\n").rpartition("\n")
    assert json.loads(printed)["as_given"]
    assert imported == "imported:"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package that nobody has imported."""
    name = "never_imported_before"
    (tmp_path / f"{name}.py").write_text("answer = 42\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


def test_a_package_is_absent_for_a_while(package: str) -> None:
    with as_if_absent(package, "json"):
        assert importlib.util.find_spec(package) is None
        with pytest.raises(ImportError):
            importlib.import_module(package)
        assert importlib.util.find_spec("json") is not None  # imported before
    assert importlib.import_module(package).answer == 42


def test_a_package_is_back_after_a_fault(package: str) -> None:
    with pytest.raises(ValueError, match="a fault"), as_if_absent(package):
        raise ValueError("a fault")
    assert importlib.util.find_spec(package) is not None
