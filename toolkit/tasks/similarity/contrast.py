"""Losses and figures of embeddings of texts that belong together, [N, K, D]: N examples of an anchor, its positive and K - 2 negatives."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 1024
"""Anchors that are compared with all candidates at a time."""


def contrastive_losses(embeddings: Tensor, temperature: float) -> Tensor:
    """[N]: -log softmax(similarity / temperature) of each anchor's positive among the positives and negatives of all.

    InfoNCE, van den Oord et al. 2018, arXiv 1807.03748. The similarity is the dot product.
    """
    anchors, candidates = embeddings[:, 0], _candidates(embeddings)
    own = torch.arange(len(anchors), device=anchors.device)
    blocks = zip(torch.split(anchors, BLOCK), torch.split(own, BLOCK), strict=True)
    return torch.cat([
        torch.nn.functional.cross_entropy(block @ candidates.T / temperature, places, reduction="none")
        for block, places in blocks
    ])  # fmt: skip


def cosent_loss(cosines: Tensor, scores: Tensor, temperature: float) -> Tensor:
    """0-dim: log(1 + sum of exp((cosine_j - cosine_i) / temperature) over all i, j with score_i > score_j).

    CoSENT, Su 2022, kexue.fm/archives/8847. cosines and scores are [N].
    """
    differences = (cosines[None, :] - cosines[:, None]) / temperature
    wrong = differences[scores[:, None] > scores[None, :]]
    return torch.cat([wrong.new_zeros(1), wrong]).logsumexp(0)


def pair_cosines(embeddings: Tensor) -> Tensor:
    """[N]: cosine of the first two vectors of each example."""
    return torch.nn.functional.cosine_similarity(embeddings[:, 0], embeddings[:, 1], dim=-1)


def ranks(embeddings: Tensor) -> Tensor:
    """[N]: place of each anchor's positive among the positives and negatives of all, the nearest first; 1 is the best.

    A text that is as near as the positive, such as the same one in another example, is not in its way.
    """
    candidates, found = _candidates(embeddings), []
    for block in torch.split(embeddings, BLOCK):
        similarities = block[:, 0] @ candidates.T
        own = (block[:, 0] * block[:, 1]).sum(-1, keepdim=True)
        # Above rounding: the product of the same two vectors differs in its last digits with what is beside it.
        found.append(1 + (similarities > own + 1e-5 * own.abs()).sum(-1))
    return torch.cat(found)


def _candidates(embeddings: Tensor) -> Tensor:
    """[N x (K - 1), D]: all positives, then all negatives."""
    return embeddings[:, 1:].transpose(0, 1).flatten(0, 1)
