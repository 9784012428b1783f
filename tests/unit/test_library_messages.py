"""What libraries say: held back, shown with --verbose, and all of it where a run ends in a fault that nobody foresaw."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from toolkit.cli.output import exit_code_of
from toolkit.errors import RecipeError, tell_launcher
from toolkit.library_messages import MOST_HELD, prints_held, show_all


class Ear(logging.Handler):
    """What comes through to a library's own handler."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(record.getMessage())


@pytest.fixture
def ear() -> Iterator[Ear]:
    found, logger = Ear(), logging.getLogger("library")
    logger.propagate = False
    logger.addHandler(found)
    yield found
    logger.removeHandler(found)


def speak() -> int:
    """As libraries do: two loggers, and Python's warnings."""
    logging.getLogger("library").warning("the default will change in v%d", 6)
    logging.getLogger("library.below").warning("no GPU")
    logging.getLogger("library.below").error("the file is damaged")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("is deprecated", FutureWarning, stacklevel=1)
    return 0


def test_only_errors_are_shown(ear: Ear, capfd: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(speak) == 0
    assert ear.heard == ["the file is damaged"]
    assert capfd.readouterr() == ("", "")


def test_verbose_shows_all(ear: Ear) -> None:
    def action() -> int:
        show_all()
        return speak()

    with pytest.warns(FutureWarning, match="is deprecated"):
        assert exit_code_of(action) == 0
    assert ear.heard == ["the default will change in v6", "no GPU", "the file is damaged"]
    # The one command only: the next holds back again.
    assert exit_code_of(speak) == 0
    assert ear.heard[3:] == ["the file is damaged"]


def test_a_fault_that_nobody_foresaw_brings_all(ear: Ear, capfd: pytest.CaptureFixture[str]) -> None:
    def action() -> int:
        return speak() + speak() // 0

    with pytest.raises(ZeroDivisionError):
        exit_code_of(action)
    lines = capfd.readouterr().err.splitlines()
    assert lines[:3] == [
        "held back until this fault (--verbose shows it at once):",
        "  WARNING library: the default will change in v6 [2 times]",
        "  WARNING library.below: no GPU [2 times]",
    ]
    assert lines[3].startswith("  WARNING py.warnings: ") and lines[3].endswith("FutureWarning: is deprecated")
    assert lines[-1] == '    warnings.warn("is deprecated", FutureWarning, stacklevel=1) [2 times]'


def test_a_message_of_ours_needs_none_of_it(ear: Ear, capfd: pytest.CaptureFixture[str]) -> None:
    def action() -> int:
        speak()
        raise RecipeError("a", expected="b", do="c")

    assert exit_code_of(action) == 2
    assert capfd.readouterr().err == "error: a\n  expected: b\n  do this:  c\n"


def test_of_many_the_newest_are_kept(ear: Ear, capfd: pytest.CaptureFixture[str]) -> None:
    def action() -> int:
        for number in range(MOST_HELD + 1):
            logging.getLogger("library").warning("step %d", number)
        logging.getLogger("library").warning("%d", "no number")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        exit_code_of(action)
    lines = capfd.readouterr().err.splitlines()[1:]
    assert lines == [f"  WARNING library: step {n}" for n in range(2, MOST_HELD + 1)] + ["  WARNING library: %d"]


def test_loggers_are_as_before(caplog: pytest.LogCaptureFixture) -> None:
    def action() -> int:
        logging.getLogger("born.inside").warning("unheard")
        return 0

    assert exit_code_of(action) == 0
    logging.getLogger("born.inside").warning("heard")
    assert [record.getMessage() for record in caplog.records] == ["heard"]
    assert type(logging.getLogger("born.after")) is logging.Logger


def test_the_report_of_torchrun_gets_the_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    tell_launcher("steps=0\n  expected: more")
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=2, error_file=str(file))
    assert json.loads(file.read_text()) == {"message": failure.message}
    assert failure.message["message"] == "steps=0\n  expected: more"  # type: ignore[index]
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", "")
    tell_launcher("nowhere to go")


def test_prints_are_held_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Those of a library between two lines of ours: held until a fault, or shown at once with --verbose."""

    def action() -> int:
        print("ours")
        with prints_held("library"):
            print("stage=0\nstage=1")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        exit_code_of(action)
    out, err = capsys.readouterr()
    assert out == "ours\n"
    assert "  printed by library: stage=0\n  printed by library: stage=1\n" in err

    def verbose() -> int:
        show_all()
        with prints_held("library"):
            print("stage=0")
        return 0

    assert exit_code_of(verbose) == 0
    assert capsys.readouterr().out == "stage=0\n"
