"""Which tokens of a text are hidden from a model, and what stands in their place (Devlin et al. 2018, arXiv 1810.04805, 3.1)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]
Places = NDArray[np.int64]


def num_chosen(candidates: int, probability: float) -> int:
    """How many of `candidates` tokens are to be told: their share, rounded, and at least one of any."""
    return min(candidates, max(1, round(candidates * probability)))


def choose(words: Tokens, probability: float, random: np.random.Generator, *, whole_word: bool) -> Places:
    """The places to be told, rising. `words` [T] numbers the word that each token is of, -1 for what is never hidden.

    With `whole_word`, words in random order, passing over those that would make it more tokens than wanted, as in BERT's
    own code; where even the first one would, that one alone.
    """
    places = np.flatnonzero(words >= 0)
    count = num_chosen(len(places), probability)
    if not whole_word:
        return np.sort(random.choice(places, count, replace=False))
    starts = np.flatnonzero(np.diff(words[places], prepend=-1))
    groups = np.split(places, starts[1:])
    taken: list[Places] = []
    for index in random.permutation(len(groups)):
        if sum(map(len, taken)) + len(groups[index]) <= count or not taken:
            taken.append(groups[index])
    return np.sort(np.concatenate(taken))


def hide(
    tokens: Tokens,
    chosen: Places,
    random: np.random.Generator,
    *,
    mask_token: int,
    mask_share: float,
    others: Tokens,
    random_share: float,
) -> Tokens:
    """`tokens` with the `chosen` ones hidden: behind `mask_token`, behind any of `others`, or as they are."""
    hidden, draw = tokens.copy(), random.random(len(chosen))
    hidden[chosen[draw < mask_share]] = mask_token
    swapped = chosen[(draw >= mask_share) & (draw < mask_share + random_share)]
    hidden[swapped] = random.choice(others, len(swapped))
    return hidden
