"""The line of a step, in a terminal of any width."""

from __future__ import annotations

import contextlib
import io
import time

import pytest
from rich.console import Console

from toolkit.train.progress import Display, step_line

RECORD = {
    "step": 7,
    "loss": 2.9341,
    "grad_norm": 3.48,
    "learning_rate": 5.88e-06,
    "tokens_per_second": 1380.2,
    "memory_gib": 4.4,
}


def test_what_does_not_fit_is_left_out_from_the_end() -> None:
    whole = "loss 2.9341  grad_norm 3.48  lr 5.88e-06  tokens/s 1,380  memory 4.4 GiB"
    assert step_line(RECORD) == step_line(RECORD, width=len(whole)) == whole
    assert step_line(RECORD, width=len(whole) - 1) == "loss 2.9341  grad_norm 3.48  lr 5.88e-06  tokens/s 1,380"
    assert step_line(RECORD, width=5) == "loss 2.9341"
    assert step_line({**RECORD, "skipped": True}, width=5).startswith("SKIPPED")


def test_the_use_of_a_device_is_shown_where_there_is_any() -> None:
    used = {**RECORD, "tflops_per_device": 412.34, "mfu": 0.4169}
    assert "tokens/s 1,380  MFU 41.7%  TFLOPS 412.3  memory 4.4 GiB" in step_line(used)
    assert "TFLOPS" not in step_line({**RECORD, "tflops_per_device": 0.08}), "a CPU's"


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_a_terminal_of_any_width_shows_the_step_and_the_time_left(width: int) -> None:
    display = Display(is_main=True, total_steps=2000)
    screen = io.StringIO()
    display.console = Console(file=screen, force_terminal=True, width=width, color_system=None)
    with display.bar():
        display.step(RECORD)
    bars = [line for line in screen.getvalue().replace("\r", "\n").splitlines() if "step" in line]
    assert "7/2000" in bars[-1] and "loss 2.9341" in bars[-1] and "--:--" in bars[-1], bars


@pytest.mark.parametrize("in_training", [True, False])
def test_a_terminal_shows_what_counts_beside_the_steps(in_training: bool) -> None:
    display = Display(is_main=True, total_steps=2000)
    screen = io.StringIO()
    display.console = Console(file=screen, force_terminal=True, width=120, color_system=None)
    with display.bar() if in_training else contextlib.nullcontext():
        with display.counting("predictions", 40) as advance:
            advance(30)
            advance(7)
            time.sleep(0.3)  # the bar is drawn ten times a second
        shown = screen.getvalue()
        if in_training:
            display.step(RECORD)
    lines = [line for line in screen.getvalue().replace("\r", "\n").splitlines() if "predictions" in line]
    assert "37/40" in lines[-1]
    assert ("0/2000" in shown) == in_training
    assert not in_training or "predictions" not in screen.getvalue().rsplit("7/2000", 1)[1]


def test_without_a_terminal_a_long_count_says_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    display = Display(is_main=True)
    with display.counting("predictions", 5000) as advance:
        for _ in range(6):
            advance(500)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "predictions 1,000 of 5,000" and 2 <= len(said) < 6
    with Display(is_main=False).counting("predictions", 5) as advance:
        advance(5)
    assert capsys.readouterr().out == ""
