"""What is imported, and what is not: imports are most of the time of a plan and all of that of a dry run."""

import importlib.util
import json
import subprocess
import sys
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


def test_a_package_is_absent_for_a_while() -> None:
    assert "colorsys" not in sys.modules  # of Python, and used by nobody here
    with as_if_absent("colorsys", "json"):
        assert importlib.util.find_spec("colorsys") is None
        with pytest.raises(ImportError):
            import colorsys
        assert importlib.util.find_spec("json") is not None  # imported before
    import colorsys

    assert colorsys.rgb_to_hsv(0, 0, 0) == (0, 0, 0)


def test_a_package_is_back_after_a_fault() -> None:
    with pytest.raises(ValueError), as_if_absent("sndhdr"):
        raise ValueError
    assert importlib.util.find_spec("sndhdr") is not None
