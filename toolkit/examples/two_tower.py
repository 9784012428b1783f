"""A two-tower recommender: users and items as vectors whose product says what a user takes next.

The interactions are made by a stated process, `Interactions`, so that anybody gets the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from toolkit.recipe.tasks import Direction
from toolkit.tasks.custom import Arrays, Batch, CustomTask, Row


@dataclass(frozen=True)
class Interactions:
    """Users who each take some items.

    Users and items have `factors` latent factors from a standard normal distribution. A user takes item j with a
    probability in proportion to exp(`taste` * (user . item) / sqrt(`factors`) - `skew` * log(rank of j)), without
    taking one twice; how many is drawn evenly from `fewest` to `most`. Of each user's items, in a random order, the
    last two are held out.
    """

    users: int
    items: int
    seed: int
    factors: int = 8
    taste: float = 2.5
    skew: float = 0.7
    fewest: int = 12
    most: int = 30

    def taken(self) -> list[list[int]]:
        """The items of each user."""
        random = np.random.default_rng(self.seed)
        users = random.standard_normal((self.users, self.factors))
        items = random.standard_normal((self.items, self.factors))
        popularity = -self.skew * np.log1p(random.permutation(self.items))
        drawn = self.taste * users @ items.T / np.sqrt(self.factors) + popularity
        # The largest k of these are k draws without replacement (Gumbel-top-k).
        order = np.argsort(-(drawn + random.gumbel(size=drawn.shape)), axis=1)
        counts = random.integers(self.fewest, self.most + 1, self.users)
        return [[int(item) for item in random.permutation(order[user, :count])] for user, count in enumerate(counts)]


class Tower(nn.Module):
    """The vectors of users, or of items: a table, and a layer that looks at each again."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(count, width)
        self.layers = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width, bias=False))
        nn.init.normal_(self.table.weight, std=width**-0.5)

    def forward(self, ids: Tensor) -> Tensor:
        """ids [...] -> [..., width]"""
        vectors: Tensor = self.table(ids)
        deeper: Tensor = self.layers(vectors)
        return vectors + deeper


class Towers(nn.Module):
    """Scores of items for a user."""

    def __init__(self, users: int, items: int, width: int) -> None:
        super().__init__()
        self.users, self.items = Tower(users, width), Tower(items, width)
        self.popularity = nn.Embedding(items, 1)
        nn.init.zeros_(self.popularity.weight)

    def forward(self, user: Tensor, items: Tensor) -> Tensor:
        """user [B], items [B, K] or [K] -> scores [B, K]"""
        wanted, places = torch.unique(items, return_inverse=True)  # the vector of each item is computed once
        scores = self.users(user) @ self.items(wanted).T + self.popularity(wanted).squeeze(-1)
        chosen: Tensor = scores.gather(1, places.expand(len(user), -1))
        return chosen


@dataclass
class TwoTower(CustomTask):
    """Learn which item a user takes among `negatives` others; measure it among all that the user has not taken yet."""

    users: int = 1500
    items: int = 500
    width: int = 32
    negatives: int = 100
    seed: int = 0
    """Of the interactions."""

    metrics: ClassVar[Mapping[str, Direction]] = {"recall_at_10": "rises", "ndcg_at_10": "rises"}
    padding: ClassVar[Mapping[str, float]] = {"seen": -1}

    def build(self) -> nn.Module:
        """Two towers."""
        return Towers(self.users, self.items, self.width)

    def rows(self, split: str) -> Sequence[Row]:
        """A row for each interaction: of "train", or with the user's items in training beside it."""
        taken = enumerate(Interactions(self.users, self.items, self.seed).taken())
        if split == "train":
            return [{"user": user, "item": item, "seen": []} for user, items in taken for item in items[:-2]]
        return [{"user": user, "item": item, "seen": items[:-2]} for user, items in taken for item in items[-2:]]

    def encode(self, row: Row) -> dict[str, Any]:
        """The numbers of the user and of the item, and those of the items seen before."""
        return {"user": row["user"], "item": row["item"], "seen": np.array(row["seen"], np.int64)}

    def transform(self, example: Arrays, random: np.random.Generator, *, is_trained: bool) -> dict[str, Any]:
        """The item, and others that are drawn evenly."""
        others = random.integers(0, self.items - 1, self.negatives)
        others += others >= example["item"]
        return {**example, "choice": np.concatenate([example["item"][None], others])}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The cross-entropy of the item among the others. [B]"""
        scores = model(batch["user"], batch["choice"])
        return nn.functional.cross_entropy(scores, torch.zeros_like(batch["item"]), reduction="none")

    def measure(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Whether the item is among the first ten of all that were not seen before, and its discounted gain. [B]"""
        scores = model(batch["user"], torch.arange(self.items, device=batch["user"].device))
        return gains(scores, batch["item"], batch["seen"])


def gains(scores: Tensor, item: Tensor, seen: Tensor, first: int = 10) -> dict[str, Tensor]:
    """Recall and NDCG of one item each [B] among the `first` of `scores` [B, N] without those `seen` [B, S] (-1: none)."""
    known = torch.zeros(len(scores), scores.shape[1] + 1, dtype=torch.bool, device=scores.device)
    known.scatter_(1, seen % known.shape[1], True)  # -1 becomes the last column, which no item has
    scores = scores.masked_fill(known[:, :-1], -torch.inf)
    rank = (scores > scores.gather(1, item[:, None])).sum(1)
    is_found = rank < first
    return {
        f"recall_at_{first}": is_found.float(),
        f"ndcg_at_{first}": torch.where(is_found, 1.0 / torch.log2(rank + 2.0), 0.0),
    }
