"""How large a model is, as far as DeepSpeed's buckets and limits follow from it."""

from __future__ import annotations

from dataclasses import dataclass

LARGEST = 1_000_000_000
"""What stands for "no limit": DeepSpeed's own default."""

LARGEST_BUCKET, SMALLEST_BUCKET = 50_000_000, 500_000
"""Elements. A larger bucket gains no speed that could be measured; a smaller one is all latency."""


@dataclass(frozen=True)
class ModelSize:
    """Of what one rank of a tensor-parallel group holds of the model, in elements; None where it is not known."""

    layer: int | None
    """Parameters of the largest layer."""
    vector: int | None
    """The largest parameter with one dimension: a norm's weight or a bias."""

    @property
    def bucket(self) -> int:
        """Gradients reduced at a time, and parameters fetched ahead at stage 3: a layer's."""
        return LARGEST_BUCKET if self.layer is None else min(LARGEST_BUCKET, max(SMALLEST_BUCKET, self.layer))

    @property
    def live(self) -> int:
        """Stage 3, parameters that may be gathered at a time: the layer that computes and the one after it."""
        return LARGEST if self.layer is None else max(2 * self.layer, 2 * SMALLEST_BUCKET)

    @property
    def reuse(self) -> int:
        """Stage 3, parameters used again within so many elements stay gathered: a layer between recomputing and backward."""
        return LARGEST if self.layer is None else max(self.layer, SMALLEST_BUCKET)

    @property
    def step(self) -> int:
        """Stage 3, elements that the optimizer updates at a time."""
        return LARGEST if self.layer is None else max(self.layer, self.bucket)

    @property
    def persistent(self) -> int:
        """Stage 3, the largest parameter that every rank keeps whole."""
        return 100_000 if self.vector is None else self.vector


UNKNOWN = ModelSize(None, None)
"""A model that is not at hand is taken for one of billions of parameters."""
