"""Traces without values see two rounds of a loop, and count what all of them ask for."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from toolkit.models.alike import alike, planned_for, times
from toolkit.models.cross_entropy import linear_cross_entropy
from toolkit.models.log_probabilities import linear_log_probabilities
from toolkit.plan.trace import _Watched


def seen(loss: Callable[..., Tensor], tokens: int, *, is_shortened: bool) -> tuple[Any, int, int]:
    """Work, the most bytes that are live at a time, and operations that ran, of a head's loss on `tokens`."""
    with FakeTensorMode(), planned_for("cpu") if is_shortened else nullcontext():
        hidden = torch.empty(tokens, 64, dtype=torch.bfloat16, requires_grad=True)
        weight = torch.empty(16_384, 64, dtype=torch.bfloat16, requires_grad=True)
        targets = torch.empty(tokens, dtype=torch.int64)
        live = Counting()
        live.expect({})
        live.add([hidden, weight, targets])
        live.begin()
        with live:
            loss(hidden, weight, None, targets).sum().backward()
    return live.work, round(live.fullest.live), live.ran


class Counting(_Watched):
    """Counts what runs, too."""

    ran = 0

    def __torch_dispatch__(self, *given: Any, **more: Any) -> Any:
        self.ran += 1
        return super().__torch_dispatch__(*given, **more)


@pytest.mark.parametrize("loss", [linear_cross_entropy, linear_log_probabilities])
@pytest.mark.parametrize("tokens", [60, 4_096, 10_000])
def test_a_shortened_head_counts_what_the_whole_one_does(loss: Callable[..., Tensor], tokens: int) -> None:
    work, most, ran = seen(loss, tokens, is_shortened=True)
    whole_work, whole_most, whole_ran = seen(loss, tokens, is_shortened=False)
    assert work == whole_work and most == whole_most
    assert ran <= whole_ran and (tokens < 100 or ran < whole_ran / 3)


def test_rounds_within_rounds_multiply() -> None:
    with planned_for("cuda"):
        found = [(a, b, times()) for a in alike(range(5)) for b in alike("xyz")]
        assert times() == 1
    assert found == [(0, "x", 8), (0, "z", 4), (4, "x", 2), (4, "z", 1)]
    assert sum(count for *_, count in found) == 15


def test_with_values_every_round_runs() -> None:
    assert list(alike(range(4))) == [0, 1, 2, 3]
    with planned_for("cpu"):
        assert list(alike([])) == [] and list(alike([7])) == [7]


def test_a_round_that_fails_leaves_no_trace_behind() -> None:
    def fails() -> None:
        with planned_for("cpu"):
            for _ in alike(range(3)):
                raise ValueError("in a round")

    with pytest.raises(ValueError, match="in a round"):
        fails()
    assert times() == 1
