"""The losses of preference tuning against the formulas typed once more, with exp and log instead of what is stable."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from toolkit.tasks.preferences import losses

BETA = 0.3


def numbers(seed: int, low: float = -6.0, high: float = -0.2) -> Tensor:
    """[9] fp64 that require gradients, in [low, high]."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(9, generator=generator, dtype=torch.float64) * (high - low) + low).requires_grad_()


def log_sigmoid(values: Tensor) -> Tensor:
    return (1.0 / (1.0 + (-values).exp())).log()


CHOSEN, REJECTED, REFERENCE_CHOSEN, REFERENCE_REJECTED = (numbers(seed) for seed in range(4))
TOKENS = torch.arange(1.0, 10.0, dtype=torch.float64)
DESIRABLE = torch.tensor([True, False, True, True, False, False, True, False, True])


def margin() -> Tensor:
    """TRL's beta x delta_score, from what it calls chosen and rejected log ratios."""
    return BETA * ((CHOSEN - REFERENCE_CHOSEN) - (REJECTED - REFERENCE_REJECTED))


def rewards_margin() -> Tensor:
    reward = losses.implicit_reward
    return reward(CHOSEN, REFERENCE_CHOSEN, BETA) - reward(REJECTED, REFERENCE_REJECTED, BETA)


def ratios() -> tuple[Tensor, Tensor]:
    return (CHOSEN - REFERENCE_CHOSEN) / TOKENS, (REJECTED - REFERENCE_REJECTED) / TOKENS.flip(0)


def odds(mean: Tensor) -> Tensor:
    return mean.exp() / (1.0 - mean.exp())


def kto_by_example() -> Tensor:
    """One answer after the other, as in TRL's two branches."""
    baseline = BETA * 0.7
    found = []
    for policy, reference, is_desirable in zip(CHOSEN, REFERENCE_CHOSEN, DESIRABLE, strict=True):
        reward = BETA * (policy - reference)
        if is_desirable:
            found.append(1.5 * (1.0 - 1.0 / (1.0 + (baseline - reward).exp())))
        else:
            found.append(0.8 * (1.0 - 1.0 / (1.0 + (reward - baseline).exp())))
    return torch.stack(found)


CASES: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
    "sigmoid": (lambda: losses.dpo_sigmoid(rewards_margin()), lambda: -log_sigmoid(margin())),
    "conservative": (
        lambda: losses.dpo_sigmoid(rewards_margin(), 0.2),
        lambda: -0.8 * log_sigmoid(margin()) - 0.2 * log_sigmoid(-margin()),
    ),
    "robust": (
        lambda: losses.dpo_robust(rewards_margin(), 0.2),
        lambda: (-(1 - 0.2) * log_sigmoid(margin()) + 0.2 * log_sigmoid(-margin())) / (1 - 2 * 0.2),
    ),
    "hinge": (lambda: losses.dpo_hinge(rewards_margin()), lambda: (1 - margin()).clamp(min=0)),
    "ipo": (lambda: losses.ipo(*ratios(), BETA), lambda: (ratios()[0] - ratios()[1] - 1 / (2 * BETA)) ** 2),
    "orpo": (
        lambda: losses.orpo(CHOSEN, REJECTED, BETA),
        lambda: -CHOSEN - BETA * log_sigmoid((odds(CHOSEN) / odds(REJECTED)).log()),
    ),
    "simpo": (
        lambda: losses.simpo(CHOSEN, REJECTED, 2.0, 0.5),
        # TRL's gamma_logratios = gamma / beta
        lambda: -log_sigmoid(2.0 * (CHOSEN - REJECTED - 0.5 / 2.0)),
    ),
    "kto": (
        lambda: losses.kto(losses.implicit_reward(CHOSEN, REFERENCE_CHOSEN, BETA), BETA * 0.7, DESIRABLE, 1.5, 0.8),
        kto_by_example,
    ),
    "bradley_terry": (
        lambda: losses.bradley_terry(CHOSEN, REJECTED, TOKENS / 10, 0.01),
        lambda: -log_sigmoid(CHOSEN - REJECTED - TOKENS / 10) + 0.01 * (CHOSEN + REJECTED) ** 2,
    ),
    "bradley_terry_plain": (lambda: losses.bradley_terry(CHOSEN, REJECTED), lambda: -log_sigmoid(CHOSEN - REJECTED)),
}


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradients(name: str) -> None:
    ours, theirs = (function() for function in CASES[name])
    assert ours.shape == (9,) and ours.dtype == torch.float64
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    leaves = [CHOSEN, REJECTED, REFERENCE_CHOSEN, REFERENCE_REJECTED]
    weights = torch.linspace(-1.0, 2.0, 9, dtype=torch.float64)
    gradients = [torch.autograd.grad(loss @ weights, leaves, allow_unused=True) for loss in (ours, theirs)]
    assert gradients[0][0] is not None
    for mine, other in zip(*gradients, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None:
            torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mean", [-1e-12, -1e-4, -0.69, -0.7, -30.0, -800.0])
def test_odds_are_exact_where_a_probability_is_near_one_or_zero(mean: float) -> None:
    value = torch.tensor(mean, dtype=torch.float64, requires_grad=True)
    found = losses.log_odds(value)
    gradient = torch.autograd.grad(found, value)[0]
    # By series where exp rounds: log(1 - exp(x)) = log(-x - x^2/2 - ...); its derivative by x is -1 / (exp(-x) - 1).
    exact = -torch.log(torch.expm1(torch.tensor(-mean, dtype=torch.float64)))
    wanted = exact if mean > -700 else torch.tensor(mean, dtype=torch.float64)
    torch.testing.assert_close(found.detach(), wanted, rtol=1e-12, atol=0.0)
    slope = 1.0 + 1.0 / torch.expm1(torch.tensor(-mean, dtype=torch.float64))
    torch.testing.assert_close(gradient, slope, rtol=1e-10, atol=0.0)


def test_the_kl_estimate_is_never_negative_and_zero_without_answers() -> None:
    assert losses.kl_estimate(6.0, 4) == 1.5
    assert losses.kl_estimate(-6.0, 4) == 0.0
    assert losses.kl_estimate(0.0, 0) == 0.0
