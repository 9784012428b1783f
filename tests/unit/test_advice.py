"""What messages, docstrings and pages advise exists: verbs, their flags, recipe fields, the flags of launchers."""

from __future__ import annotations

import argparse
import ast
import functools
import importlib.util
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from toolkit.cli import verbs
from toolkit.cli.flag_errors import OPTIONS
from toolkit.recipe import Recipe
from toolkit.recipe.dotted import CHOICES
from toolkit.recipe.removed import REMOVED

ROOT = Path(__file__).parents[2]
SECTIONS = {
    name: set(field.annotation.model_fields)
    for name, field in Recipe.model_fields.items()
    if isinstance(field.annotation, type) and hasattr(field.annotation, "model_fields")
}
SECTIONS |= {
    name: {field for kind in base.kinds.values() for field in kind.model_fields} for name, base in CHOICES.items()
}
LAUNCHERS = {"deepspeed": "launcher/runner.py", "accelerate": "commands/launch.py", "torch": "distributed/run.py"}
DEEPSPEED_KEYS = {"checkpoint.load_universal", "checkpoint.writer", "optimizer.params"}
"""Keys of a DeepSpeed JSON whose block is called like a section of ours."""
SUFFIXES = {"bin", "json", "jsonl", "py", "yaml", "md", "csv", "txt", "safetensors"}
OTHER_PROGRAMS = {
    **dict.fromkeys(("query_gpu", "query_compute_apps", "format", "gpu_reset"), "nvidia-smi"),
    **dict.fromkeys(("gpus", "shm_size"), "docker"),
    "reinstall": "apt-get",
    "force_reinstall": "pip",
    "upgrade": "pip",
    "pid": "tail",
    "sort": "ps",
    "adapters": "benchmarks/topology_table.py",
    "budget_s": "benchmarks/gpu.py",
    "group": "benchmarks/tasks.py",
    "ipc": "docker",
    "ulimit": "docker",
    "local_rank": "the deepspeed launcher's to the script",
    "deepspeed": "scripts of the Hugging Face Trainer",
    "deepspeed_config": "scripts of the Hugging Face Trainer",
    "optim": "scripts of the Hugging Face Trainer",
    "no_deps": "pip",
    "logdir": "tensorboard",
    "tiny": "benchmarks/",
    **dict.fromkeys(
        ("job_name", "nodes", "ntasks_per_node", "gpus_per_node", "exclusive", "output", "partition"), "sbatch"
    ),
    **dict.fromkeys(("signal", "time", "kill_on_bad_exit"), "sbatch"),
}


def texts(source: str) -> Iterator[str]:
    """Every string of the Python file `source`, docstrings included; what an f-string fills in is "{}"."""
    inside: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            inside |= {id(part) for part in node.values}
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.value


def advice() -> Iterator[tuple[str, str]]:
    """(file, text) of all that a user may read."""
    for folder in ("toolkit", "recipes"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            yield from ((str(file.relative_to(ROOT)), text) for text in texts(file.read_text(encoding="utf-8")))
    for file in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]:
        yield str(file.relative_to(ROOT)), file.read_text(encoding="utf-8")


@functools.cache
def flags_of_verbs() -> dict[str, set[str]]:
    subparsers = next(a for a in verbs.parser()._actions if isinstance(a, argparse._SubParsersAction))
    return {
        name: {option.lstrip("-").replace("-", "_") for action in verb._actions for option in action.option_strings}
        for name, verb in subparsers.choices.items()
    }


def wrong_verbs(text: str) -> set[str]:
    """`toolkit VERB ...` in backticks whose verb, or one of its flags, there is not."""
    known, found = flags_of_verbs(), set()
    for verb, rest in re.findall(r"`toolkit ([a-z]+)\b([^`]*)`", text):
        flags = {flag.replace("-", "_") for flag in re.findall(r"--([a-z][\w-]*)", rest)}
        if verb not in known or flags - known[verb]:
            found.add(f"toolkit {verb}{rest}")
    return found


def wrong_fields(text: str) -> set[str]:
    """section.field of a recipe that there is not."""
    found = re.findall(rf"(?<![\w./{{-])({'|'.join(SECTIONS)})\.([a-z][a-z_]*)\b(?![.(/*])", text)
    named = {
        (section, field) for section, field in found if field.removeprefix("no_") not in SUFFIXES | SECTIONS[section]
    }
    return {f"{section}.{field}" for section, field in named} - DEEPSPEED_KEYS


def wrong_flags(text: str) -> set[str]:
    """--flag that neither a recipe, a verb nor a launcher takes."""
    if not re.search(r"\s", text):  # a word of a command that the code runs
        return set()
    found = {flag.rstrip(".-") for flag in re.findall(r"(?<![\w-])--([a-z][\w.-]*)", text)}
    return {
        flag
        for flag in found
        if flag.replace("-", "_").replace(".no_", ".") not in known_flags() and not _is_a_launchers(flag)
    }


@functools.cache
def known_flags() -> set[str]:
    fields = {f"{section}.{field}" for section, names in SECTIONS.items() for field in names}
    return (fields | set(Recipe.model_fields) | set(OPTIONS) | set(OTHER_PROGRAMS)).union(*flags_of_verbs().values())


@functools.cache
def _is_a_launchers(flag: str) -> bool:
    for package, file in LAUNCHERS.items():
        spec = importlib.util.find_spec(package)
        assert spec is not None and spec.origin is not None
        source = (Path(spec.origin).parent / file).read_text(encoding="utf-8")
        if re.search(rf"""["']--{re.escape(flag).replace("_", "[-_]")}["']""", source):
            return True
    return False


@pytest.mark.parametrize("wrong", [wrong_verbs, wrong_fields, wrong_flags])
def test_all_that_is_advised_exists(wrong: Callable[[str], set[str]]) -> None:
    ghosts = {(file, ghost) for file, text in advice() for ghost in wrong(text)}
    assert ghosts == (
        {("toolkit/recipe/removed.py", name) for name in REMOVED if not name.startswith("data.")}
        if wrong is wrong_fields
        else set()
    )


def test_a_ghost_is_seen() -> None:
    """The advice that once stood in the code, among what is right."""
    assert wrong_verbs("end programs; `toolkit plot RECIPE` says, `toolkit doctor --hostfile H --bild`, `toolkit rules`") == {
        "toolkit plot RECIPE", "toolkit doctor --hostfile H --bild"
    }  # fmt: skip
    assert wrong_fields(
        "set parallel.pin_memory=False, parallel.tensor=1, optimizer.params.lr, data.jsonl, {task.fields}"
    ) == {"parallel.pin_memory"}
    assert wrong_flags("--stepz 3, --steps 3, --master_port 1, --data.packing False, --write-env") == {"stepz"}
    assert "a {} b" in list(texts("x = f'a {y} b'")) and "doc" in list(texts('"""doc"""'))
