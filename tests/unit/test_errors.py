"""Errors: one message of three parts, the right exit code, never a traceback, once per job."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from toolkit import errors
from toolkit.errors import InputError, RunFailed, StorageError, ToolkitError, did_you_mean, plural, show

TEXT = "batch.global_size=7\n  expected: a multiple of 2\n  do this:  set batch.global_size=8"


def make(kind: type[ToolkitError]) -> ToolkitError:
    return kind("batch.global_size=7", expected="a multiple of 2", do="set batch.global_size=8")


def subclasses(kind: type[ToolkitError]) -> list[type[ToolkitError]]:
    return [kind, *(below for child in kind.__subclasses__() for below in subclasses(child))]


KINDS = [kind for kind in subclasses(ToolkitError) if kind.__module__ == errors.__name__]


@pytest.mark.parametrize("kind", KINDS)
def test_message_and_exit_code(kind: type[ToolkitError]) -> None:
    error = make(kind)
    assert str(error) == TEXT
    assert error.exit_code == (2 if issubclass(kind, InputError) else 3 if kind is RunFailed else 1)


@pytest.mark.parametrize("kind", KINDS)
def test_pickling_keeps_kind_and_parts(kind: type[ToolkitError]) -> None:
    error = make(kind)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert (copy.what, copy.expected, copy.do, str(copy)) == (error.what, error.expected, error.do, TEXT)


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = [line.split("+--")[-1].split()[0] for line in (errors.__doc__ or "").splitlines() if "exit" in line or "+--" in line]  # fmt: skip
    assert sorted(drawn) == sorted(kind.__name__ for kind in KINDS)


@pytest.mark.parametrize(
    ("kind", "rank", "printed"),
    [
        (InputError, None, f"error: {TEXT}\n"),
        (InputError, "0", f"error: {TEXT}\n"),
        (InputError, "1", ""),
        (RunFailed, "0", f"error: {TEXT}\n"),
        (RunFailed, "1", f"error [rank 1]: {TEXT}\n"),
        (StorageError, "3", f"error [rank 3]: {TEXT}\n"),
    ],
)
def test_only_rank_0_speaks_for_input_errors(
    kind: type[ToolkitError],
    rank: str | None,
    printed: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(errors, "HEAD_START_S", 0.1)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    assert show(make(kind)) == kind.exit_code
    assert capsys.readouterr() == ("", printed)


def python(program: str, rank: str = "0") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"RANK": rank}
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env=environment)


def test_a_bad_recipe_file_ends_with_a_message_and_exit_code_2() -> None:
    done = python("import toolkit\ntoolkit.Batch(global_sise=8)")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr == (
        "error: batch.global_size is missing; unknown field batch.global_sise (did you mean 'global_size'?)\n"
        "  expected: a value for batch.global_size; one of global_size, micro_size, auto_micro_size, sequence_length\n"
        "  do this:  correct the recipe or the flag; `--help` lists every field with its type and meaning\n"
    )


def test_other_ranks_leave_silently_with_the_same_code() -> None:
    program = "import toolkit.errors\ntoolkit.errors.HEAD_START_S = 0.1\ntoolkit.Batch(global_size=0)"
    done = python(program, rank="1")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    done = python("import toolkit\n1 / 0")
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "ZeroDivisionError" in done.stderr


def test_a_diverged_run_ends_with_3() -> None:
    done = python(
        "from toolkit.errors import *\nimport toolkit\nraise RunFailed('nan', expected='a number', do='rest')"
    )
    assert (done.returncode, done.stderr) == (3, "error: nan\n  expected: a number\n  do this:  rest\n")


def test_plural() -> None:
    said = [plural(count, "step") for count in (0, 1, 2, 1000)]
    assert said == ["0 steps", "1 step", "2 steps", "1,000 steps"]
    assert plural(1, "process", "processes") == "1 process" and plural(3, "process", "processes") == "3 processes"


def test_several_errors_keep_their_messages() -> None:
    first, second = make(errors.RecipeError), errors.LaunchError("a", expected="b", do="c")
    both = pickle.loads(pickle.dumps(errors.together([first, second])))
    assert (both.what, both.exit_code) == ("batch.global_size=7; a", 2)
    assert f"error: {both}" == f"error: {TEXT}\nerror: a\n  expected: b\n  do this:  c"
    assert errors.together([second]) is second


@pytest.mark.parametrize(
    ("word", "answer"), [("learning_rat", " (did you mean 'learning_rate'?)"), ("zzz", ""), ("", "")]
)
def test_did_you_mean(word: str, answer: str) -> None:
    assert did_you_mean(word, ["learning_rate", "betas"]) == answer


def test_ctrl_c_while_modules_are_imported_is_one_line(tmp_path: Path) -> None:
    """Of the command and of a recipe; an interrupted program that only imports the toolkit keeps its traceback."""
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow/pydantic.py").write_text("raise KeyboardInterrupt\n")
    (tmp_path / "recipe.py").write_text("from toolkit import Recipe\n")
    (tmp_path / "own.py").write_text("import toolkit\n\ndef f():\n    raise KeyboardInterrupt\n\nf()\n")
    root = str(Path(errors.__file__).parents[1])
    command = [sys.executable, "-c", "from toolkit.cli.verbs import main; main()"]
    for words in (command, [sys.executable, "recipe.py"]):
        paths = {"PYTHONPATH": f"{tmp_path}/slow:{root}"}
        done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=os.environ | paths, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")
    words = [sys.executable, "own.py"]
    own = {"PYTHONPATH": root}
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=os.environ | own, check=False)
    assert "Traceback" in done.stderr and done.stderr.endswith("KeyboardInterrupt\n")
