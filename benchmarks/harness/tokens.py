"""Random tokens as micro-batches of causal language modelling."""

from __future__ import annotations

from typing import Any

Batches = list[dict[str, Any]]
"""The micro-batches of one step: input_ids, position_ids, targets [1, T]."""


def random_steps(steps: int, micro_batches: int, length: int, vocabulary: int) -> list[Batches]:
    """Micro-batches of one unpacked sequence for every step, the same in every process."""
    import torch

    source = torch.Generator().manual_seed(0)
    drawn = (torch.randint(4, vocabulary, (micro_batches, 1, length), generator=source) for _ in range(steps))
    return [[_batch(row) for row in tokens] for tokens in drawn]


def _batch(tokens: Any) -> dict[str, Any]:
    import torch

    from toolkit.models.attention import DOCUMENT_LENGTHS, lengths_tensor
    from toolkit.models.heads import TARGET_ROWS, target_rows

    targets = torch.nn.functional.pad(tokens[:, 1:], (0, 1), value=-100)
    return {
        "input_ids": tokens,
        "position_ids": torch.arange(tokens.shape[1])[None],
        "targets": targets,
        TARGET_ROWS: target_rows(targets),
        DOCUMENT_LENGTHS: lengths_tensor([[tokens.shape[1]]]),
    }
