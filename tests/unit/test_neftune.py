"""NEFTune's noise: the magnitude of the paper, also where a row is cut into parts."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from toolkit.models.neftune import add_neftune


def noise(tokens: int, parts: int) -> torch.Tensor:
    """On embeddings [2, tokens, 16] at alpha 5."""
    embeddings = nn.Embedding(8, 16)
    add_neftune(SimpleNamespace(config=SimpleNamespace(), get_input_embeddings=lambda: embeddings), 5.0, parts)  # type: ignore[arg-type]
    places = torch.zeros(2, tokens, dtype=torch.int64)
    found: torch.Tensor = embeddings(places) - embeddings.eval()(places)
    return found.detach()


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_parts_draw_from_the_distribution_of_the_whole(parts: int) -> None:
    """Uniform in +-5 / sqrt(512 x 16), however many ranks hold the 512 tokens."""
    found = torch.cat([noise(512 // parts, parts) for _ in range(parts)], dim=1)
    limit = 5.0 / math.sqrt(512 * 16)
    assert found.shape == (2, 512, 16)
    assert 0.999 * limit < float(found.abs().max()) < limit * (1 + 1e-5)
    assert float(found.std()) == pytest.approx(limit / math.sqrt(3), rel=0.02)
