"""What ranks send each other in a step, in bytes.

Volumes are those of the algorithms: a ring all-reduce of n bytes among d ranks sends 2 n (d - 1) / d from each, a
gather or scatter half of it (Thakur et al. 2005); ZeRO's are those of Rajbhandari et al. 2019 (arXiv 1910.02054,
section 7), with what DeepSpeed does per micro-batch and per step; Ulysses' those of Jacobs et al. 2023.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from toolkit.ds_config.render import weights_dtype
from toolkit.plan.inventory import Inventory
from toolkit.plan.states import SIZES
from toolkit.recipe.mesh import Mesh


@dataclass(frozen=True)
class Volumes:
    """Bytes that a rank sends, each travelling piece counted as a ring counts it."""

    summed_per_micro: float
    """In all-reduces of gradients, for each micro-batch."""
    summed_per_step: float
    """The same for each step."""
    spread_per_micro: float
    """In gathers and scatters of weights and gradients, for each micro-batch."""
    spread_per_step: float
    """The same for each step."""
    tensor: float
    """For each micro-batch, inside of layers."""
    sequence: float
    """For each micro-batch, tokens for heads and back."""
    pipeline: float
    """For each micro-batch, to the next stage and from it."""
    sums: int
    """Sums of tensor ranks for each micro-batch."""
    trades: int
    """Exchanges of tokens for heads for each micro-batch."""

    def of_step(self, accumulation: int) -> float:
        """All of them."""
        each = self.summed_per_micro + self.spread_per_micro + self.tensor + self.sequence + self.pipeline
        return self.summed_per_step + self.spread_per_step + accumulation * each


def volumes(
    inventory: Inventory, config: Mapping[str, Any], mesh: Mesh, hidden_bytes: float, layers: int, *, recomputes: bool
) -> Volumes:
    """What a rank sends in a step; benchmarks/plan_states.py compares it with what ranks do send.

    `hidden_bytes` is what a layer hands to the next one of a micro-batch, `layers` how many this rank has.
    """
    zero = config["zero_optimization"]
    weight = SIZES[weights_dtype(config)]
    ring = (mesh.gradient_ranks - 1) / mesh.gradient_ranks
    gradients = SIZES[config["communication_data_type"]] * inventory.trained * ring
    weights = weight * inventory.trained * ring
    summed_per_micro = summed_per_step = spread_per_micro = spread_per_step = 0.0
    if zero["stage"] == 3:
        # Gathered for the forward pass, frozen weights as well, and again for the backward pass, but for those at the end of
        # the model that are used again, or fetched ahead again, so soon that they are kept (partitioned_param_coordinator.py).
        window = int(zero["stage3_max_reuse_distance"]) + int(zero["stage3_prefetch_bucket_size"])
        again = max(0.0, inventory.total - window / 2)
        spread_per_micro = weight * (inventory.total + again) * ring
    elif zero["stage"] > 0:
        spread_per_step = weights
    # Each rank of stage 2 keeps its part of the sums, but all of them travel to all (stage_1_and_2.py, average_tensor).
    all_to_all = not zero.get("reduce_scatter", True) or (
        zero["stage"] == 2 and zero.get("use_multi_rank_bucket_allreduce", True)
    )
    if zero["stage"] < 2:
        summed_per_step = 2 * gradients
    elif all_to_all:
        summed_per_micro = 2 * gradients
    else:
        spread_per_micro += gradients
    # Two sums forward and two backward of each layer, and the forward ones once more where it is recomputed. One more puts
    # together what ranks look up in their parts of the vocabulary, and one the gradients of the head's inputs.
    ends = (2 if mesh.pipeline == 1 else 1) * any(one.is_embedding for one in inventory.parameters)
    sums = (4 + (2 if recomputes else 0)) * layers + ends if mesh.tensor > 1 else 0
    trades = (8 + (4 if recomputes else 0)) * layers if mesh.sequence > 1 else 0
    return Volumes(
        summed_per_micro,
        summed_per_step,
        spread_per_micro,
        spread_per_step,
        sums * 2 * hidden_bytes * (mesh.tensor - 1) / mesh.tensor,
        trades * hidden_bytes * (mesh.sequence - 1) / mesh.sequence**2,
        2 * hidden_bytes if mesh.pipeline > 1 else 0.0,
        sums,
        trades,
    )
