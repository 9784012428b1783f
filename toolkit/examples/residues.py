"""A protein language model in small: hidden residues are told from those around them.

The sequences are made by a stated process, `Families`, so that anybody gets the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from toolkit.recipe.tasks import Direction
from toolkit.tasks.custom import Arrays, Batch, CustomTask, Row

RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
ALIKE = ("AGSTP", "ILMV", "FWY", "DENQ", "KRH", "C")
"""Residues that take each other's place."""
PADDING, MASK = 20, 21
"""Tokens beside the residues."""


@dataclass(frozen=True)
class Families:
    """Families of sequences, each a profile as of an HMM without transitions between its insertions.

    A profile has `shortest` to `longest` positions. Each has a residue, drawn from the composition of the families, and a
    probability to keep it, drawn from Beta(2, 1.2); else the place takes a residue of the same group (ALIKE) in two of three
    cases, and any in the third. A position is left out, or followed by any residue, with probability `indels` each.
    """

    families: int
    seed: int
    shortest: int = 30
    longest: int = 60
    indels: float = 0.01

    def sequences(self, count: int, part: int) -> list[str]:
        """`count` sequences, one family after the other; each `part` has others of the same families."""
        random = np.random.default_rng(self.seed)
        composition = random.dirichlet(np.full(len(RESIDUES), 5.0))
        profiles = []
        for _ in range(self.families):
            length = int(random.integers(self.shortest, self.longest + 1))
            profiles.append((random.choice(len(RESIDUES), length, p=composition), random.beta(2.0, 1.2, length)))
        drawn = np.random.default_rng([self.seed, part])
        return [self._sequence(*profiles[number % self.families], drawn) for number in range(count)]

    def _sequence(self, residues: Any, kept: Any, random: np.random.Generator) -> str:
        found = []
        for residue, probability in zip(residues, kept, strict=True):
            if random.random() < self.indels:
                continue
            letter = RESIDUES[residue]
            if random.random() >= probability:
                letters = next(group for group in ALIKE if letter in group) if random.random() < 2 / 3 else RESIDUES
                letter = letters[int(random.integers(len(letters)))]
            found.append(letter)
            if random.random() < self.indels:
                found.append(RESIDUES[int(random.integers(len(RESIDUES)))])
        return "".join(found)


class Block(nn.Module):
    """Attention and a feed-forward layer, each added to what it reads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.layers = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, hidden: Tensor, is_real: Tensor) -> Tensor:
        """hidden [B, T, D], is_real [B, T]"""
        queries, keys, values = (
            self.qkv(self.norms[0](hidden)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )
        mask = is_real[:, None, None, :]
        found = nn.functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        hidden = hidden + self.out(found.transpose(1, 2).flatten(2))
        more: Tensor = self.layers(self.norms[1](hidden))
        return hidden + more


class ResidueModel(nn.Module):
    """A transformer over residues; what it says of each is read from the table that it is embedded with."""

    def __init__(self, width: int, depth: int, heads: int, longest: int) -> None:
        super().__init__()
        self.residues = nn.Embedding(len(RESIDUES) + 2, width)
        self.places = nn.Parameter(torch.randn(longest, width) * 0.02)
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, len(RESIDUES) + 2)
        nn.init.normal_(self.residues.weight, std=0.02)
        self.head.weight = self.residues.weight

    def forward(self, ids: Tensor) -> Tensor:
        """ids [B, T] -> logits [B, T, residues]"""
        hidden = self.residues(ids) + self.places[: ids.shape[1]]
        for block in self.blocks:
            hidden = block(hidden, ids != PADDING)
        logits: Tensor = self.head(self.norm(hidden))
        return logits[..., : len(RESIDUES)]


@dataclass
class MaskedResidues(CustomTask):
    """Hide a share of the residues, drawn anew in each pass, and learn to tell them."""

    families: int = 24
    sequences: int = 3000
    held_out: int = 400
    width: int = 64
    depth: int = 2
    heads: int = 4
    hidden_share: float = 0.15
    longest: int = 80
    """Residues of a sequence that are read."""
    seed: int = 0
    """Of the families."""

    metrics: ClassVar[Mapping[str, Direction]] = {"perplexity": "falls", "accuracy": "rises"}
    padding: ClassVar[Mapping[str, float]] = {"ids": PADDING, "labels": -100}

    def build(self) -> nn.Module:
        """A small transformer."""
        return ResidueModel(self.width, self.depth, self.heads, self.longest)

    def rows(self, split: str) -> Sequence[Row]:
        """A row for each sequence."""
        is_train = split == "train"
        count = self.sequences if is_train else self.held_out
        return [{"sequence": text} for text in Families(self.families, self.seed).sequences(count, int(not is_train))]

    def encode(self, row: Row) -> dict[str, Any]:
        """One token of each letter."""
        return {"ids": np.array([RESIDUES.index(letter) for letter in row["sequence"][: self.longest]], np.int64)}

    def transform(self, example: Arrays, random: np.random.Generator, *, is_trained: bool) -> dict[str, Any]:
        """Some residues hidden, and what they were."""
        ids = example["ids"]
        count = max(1, round(self.hidden_share * len(ids)))
        hidden = random.choice(len(ids), count, replace=False)
        labels, seen = np.full_like(ids, -100), ids.copy()
        labels[hidden], seen[hidden] = ids[hidden], MASK
        return {"ids": seen, "labels": labels}

    def targets(self, batch: Batch) -> Tensor:
        """Hidden residues. [B]"""
        return (batch["labels"] != -100).sum(1)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The cross-entropies of the hidden residues of each sequence. [B]"""
        logits = model(batch["ids"]).transpose(1, 2)
        return nn.functional.cross_entropy(logits, batch["labels"], reduction="none").sum(1)

    def measure(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Hidden residues that are told right. [B]"""
        return {"accuracy": (model(batch["ids"]).argmax(-1) == batch["labels"]).sum(1)}

    def figures(self, means: Mapping[str, float]) -> dict[str, float]:
        """Perplexity follows from the mean loss."""
        return {"perplexity": math.exp(min(means["loss"], 700.0)), "accuracy": means["accuracy"]}
