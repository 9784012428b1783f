"""What each style of a tensor plan does to a module's weights and at the module's edges.

Two states of an activation matter. It is WHOLE when every rank of a tensor group holds the same values and will hold
the same, complete gradient; it is LOCAL when each rank holds its own heads or features. The styles are those of
transformers 5 (transformers/distributed/tensor_parallel.py), computed as in Shoeybi et al. 2019, "Megatron-LM".
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal


class Cut(Enum):
    """How a weight is divided among the ranks."""

    NONE = "none"
    OUTPUT = "output"
    """By output features; a bias likewise."""
    INPUT = "input"
    """By input features; a bias stays whole and is added once, after the sum."""


class Enter(Enum):
    """What happens to a module's floating-point inputs."""

    AS_IS = "as_is"
    SUM_GRADIENT = "sum_gradient"
    """A whole input is used locally: each rank knows a part of its gradient, and the parts are summed."""
    CUT = "cut"
    """Of a whole input (its last dimension) the rank's own share is taken."""
    WHOLE = "whole"
    """A whole input stays whole where those around it are local: random numbers are those that all ranks draw."""
    DIVIDE = "divide"
    """By the degree, because the module's owner will sum over the ranks what each of them has in full."""


class Leave(Enum):
    """What happens to a module's output."""

    AS_IS = "as_is"
    SUM = "sum"
    """Over the ranks: each has computed one term of it."""
    GATHER = "gather"
    """The ranks' features, side by side."""
    LATENT = "latent"
    """Multi-head latent attention: the last features, the rotary key that all heads share, are used locally, the
    first ones are not."""


@dataclass(frozen=True)
class Boundary:
    """What happens at a module's edges."""

    enter: Enter
    leave: Leave
    rotary_width: int = 0
    """Leave.LATENT: number of last features that are used locally."""
    widths: tuple[int, ...] = ()
    """Leave.GATHER: features of each rank; () where all have equally many."""


Parts = int | Literal["query_key_value"]
"""Blocks that lie one after the other along the cut dimension, each cut for itself: that many equal ones, or the
query, key and value of an attention with fewer key-value heads."""


@dataclass(frozen=True)
class Style:
    """One word of a tensor plan."""

    cut: Cut = Cut.NONE
    enter: Enter = Enter.AS_IS
    leave: Leave = Leave.AS_IS
    parts: Parts = 1
    partial: bool = False
    """Whole weights that see local activations only: their gradients are summed over the ranks."""

    @property
    def is_optional(self) -> bool:
        """Whether the module may as well stay whole: what goes in and what comes out are whole either way."""
        return (self.enter, self.leave) in ((Enter.SUM_GRADIENT, Leave.GATHER), (Enter.CUT, Leave.SUM))


WHOLE = Style()
COLUMN = Style(Cut.OUTPUT, Enter.SUM_GRADIENT)
ROW = Style(Cut.INPUT, leave=Leave.SUM)
GATHERED = Style(Cut.OUTPUT, Enter.SUM_GRADIENT, Leave.GATHER)
SPLIT_ROW = Style(Cut.INPUT, Enter.CUT, Leave.SUM)
PARTIAL = Style(partial=True)

STYLES: dict[str, Style] = {
    "colwise": COLUMN,
    "rowwise": ROW,
    "colwise_gather_output": GATHERED,
    "colwise_rep": GATHERED,
    "rowwise_split_input": SPLIT_ROW,
    "rowwise_rep": SPLIT_ROW,
    "packed_colwise": Style(Cut.OUTPUT, Enter.SUM_GRADIENT, parts=2),
    "packed_rowwise": Style(Cut.INPUT, parts=2),
    "replicated_with_grad_allreduce": PARTIAL,
    "mla_kv_a_proj": Style(leave=Leave.LATENT),
    "moe_tp_experts": Style(enter=Enter.SUM_GRADIENT, leave=Leave.SUM),
    "moe_identity_expert": Style(enter=Enter.DIVIDE),
    "all_reduce": Style(enter=Enter.SUM_GRADIENT, leave=Leave.SUM),
    # An owner of bare cut parameters computes with them as they are.
    "local_params": WHOLE,
    "replicate": WHOLE,
    # A vocabulary is divided together with the head that reads it, or not at all: tensor_plan, _vocabulary.
    "embedding_rowwise": WHOLE,
    "embedding_colwise": WHOLE,
    # Ours, for the table of tensor_layouts.
    "per_head_columns": Style(Cut.INPUT),
    "whole_amid_local": Style(enter=Enter.WHOLE),
    "thirds_colwise": Style(Cut.OUTPUT, Enter.SUM_GRADIENT, parts=3),
    "query_key_value_colwise": Style(Cut.OUTPUT, Enter.SUM_GRADIENT, parts="query_key_value"),
}
"""Every style of transformers but `sequence_parallel`, and ours."""
