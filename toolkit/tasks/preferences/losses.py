"""What is minimised when a model learns from preferences: pure functions of log-probabilities, one loss per pair or answer.

A log-probability is the sum over the tokens of an answer, the end of the turn included, given its prompt; tensors are
[P], one entry per pair, in fp64 as `toolkit.models.log_probabilities.segment_sum` gives them. Each formula is the paper's;
where TRL (1.16) computes something else, it is said.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def implicit_reward(policy: Tensor, reference: Tensor, beta: float) -> Tensor:
    """beta x log(policy / reference), the reward that a policy implies (Rafailov et al. 2023, arXiv 2305.18290, eq. 5,
    without the part that depends on the prompt alone)."""
    return beta * (policy - reference)


def dpo_sigmoid(margin: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """-log sigmoid(margin), margin = difference of implicit rewards (arXiv 2305.18290, eq. 7).

    With label_smoothing e, the share of pairs whose labels are thought to be flipped: (1 - e) x this + e x that of the
    flipped pair (Mitchell 2023, "A note on DPO with noisy preferences", conservative DPO).
    """
    return -(1.0 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)


def dpo_robust(margin: Tensor, label_smoothing: float) -> Tensor:
    """As `dpo_sigmoid`, without the bias that flipped labels give it (Chowdhury et al. 2024, arXiv 2403.00409)."""
    clean, flipped = -logsigmoid(margin), -logsigmoid(-margin)
    return ((1.0 - label_smoothing) * clean - label_smoothing * flipped) / (1.0 - 2.0 * label_smoothing)


def dpo_hinge(margin: Tensor) -> Tensor:
    """max(0, 1 - margin) (SLiC-HF: Zhao et al. 2023, arXiv 2305.10425; with the reference as in TRL)."""
    return torch.relu(1.0 - margin)


def ipo(chosen_ratio: Tensor, rejected_ratio: Tensor, beta: float) -> Tensor:
    """(chosen_ratio - rejected_ratio - 1 / (2 beta))^2, beta being the paper's tau (Azar et al. 2023, arXiv 2310.12036, eq. 17).

    The ratios are log(policy / reference) per token of the answer, as in TRL, whose authors asked the paper's: with sums
    the target 1 / (2 beta) would mean something else for long answers than for short ones.
    """
    return (chosen_ratio - rejected_ratio - 1.0 / (2.0 * beta)).square()


def log_odds(mean: Tensor) -> Tensor:
    """log(p / (1 - p)) of p = exp(mean), `mean` < 0 being a log-probability per token (Hong et al. 2024, arXiv 2403.07691, eq. 4)."""
    # log(1 - p) without cancellation: by expm1 near p = 1, by log1p elsewhere (Maechler 2012, "log1mexp", eq. 7).
    is_likely = mean > -0.6931471805599453
    likely, unlikely = torch.where(is_likely, mean, -1.0), torch.where(is_likely, -1.0, mean)
    return mean - torch.where(is_likely, torch.log(-torch.expm1(likely)), torch.log1p(-torch.exp(unlikely)))


def orpo(chosen_mean: Tensor, rejected_mean: Tensor, beta: float) -> Tensor:
    """Negative log-likelihood per token of the chosen answer - beta x log sigmoid(difference of log odds), beta being the
    paper's lambda (arXiv 2403.07691, eq. 6 and 7).

    Of the answer alone, as the paper's P(y|x), and pair by pair. TRL takes the likelihood of the prompt's tokens too, and
    its mean over the tokens of a batch, so that long answers weigh more.
    """
    return -chosen_mean - beta * logsigmoid(log_odds(chosen_mean) - log_odds(rejected_mean))


def simpo(chosen_mean: Tensor, rejected_mean: Tensor, beta: float, gamma: float) -> Tensor:
    """-log sigmoid(beta x (chosen_mean - rejected_mean) - gamma), means being log-probabilities per token (Meng et al. 2024,
    arXiv 2405.14734, eq. 6). `gamma` is the target margin between rewards."""
    return -logsigmoid(beta * (chosen_mean - rejected_mean) - gamma)


def kto(reward: Tensor, baseline: float, is_desirable: Tensor, desirable: float, undesirable: float) -> Tensor:
    """Weight x (1 - sigmoid(reward - baseline)) of a desirable answer, weight x (1 - sigmoid(baseline - reward)) of another
    (Ethayarajh et al. 2024, arXiv 2402.01306, section 4.1, without the constant lambda_y).

    reward [P] = beta x log(policy / reference), `baseline` = beta x `kl_estimate`, through which no gradient flows.
    """
    # Not from Python numbers: torch.where would round them to fp32.
    is_desirable = is_desirable.to(reward.dtype)
    signs = 2.0 * is_desirable - 1.0
    weights = desirable * is_desirable + undesirable * (1.0 - is_desirable)
    return weights * (1.0 - torch.sigmoid(signs * (reward - baseline)))


def kl_estimate(total: float, count: float) -> float:
    """max(0, total / count), `total` being the sum of log(policy / reference) over `count` answers to other prompts than
    their own (arXiv 2402.01306, section 4.1); 0 where there are none."""
    return max(0.0, total / max(1.0, count))


def bradley_terry(chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0, centering: float = 0.0) -> Tensor:
    """-log sigmoid(chosen - rejected - margin) + centering x (chosen + rejected)^2, of a reward model's rewards.

    With `margin` as in Llama 2 (Touvron et al. 2023, arXiv 2307.09288, eq. 2); `centering` keeps rewards around zero, which
    the first term does not (Eisenstein et al. 2023, arXiv 2312.09244).
    """
    loss = -logsigmoid(chosen - rejected - margin)
    return loss + centering * (chosen + rejected).square() if centering else loss
