"""Linear layers that multiply in fp8 (torchao's float8 training): weights, gradients and everything else stay in bf16.

Each row of what such a layer multiplies is scaled to the range of an 8-bit float by its own largest number; the product
is bf16. By row and not by tensor, which is faster: the largest number of a whole input is one of some token, and every
token before it, and in another document, would see it in its rounding (by 2% of the hidden states of a tiny Llama).
A layer keeps its Parameter objects and their names, so loading, ZeRO, tensor parallelism, checkpoints and the export
do not see the difference.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from toolkit.errors import LaunchError, ModelError, plural

MULTIPLE = 16
"""Both sides of a matrix must be multiples of it: what fp8 tensor cores load at a time."""


@dataclass(frozen=True)
class Fp8Layers:
    """What `use_fp8` did."""

    chosen: int
    outside: int
    """Linear layers outside the base model (heads), or of a class of their own."""
    uneven: int
    """Those with a side that is no multiple of MULTIPLE on each tensor-parallel rank."""
    small: int
    """Those that fp8 does not make faster, by the size of their part on each tensor-parallel rank; routers among them."""

    def describe(self) -> str:
        """For the screen."""
        left = {
            "outside the base model or of another class": self.outside,
            f"with a side that is no multiple of {MULTIPLE}": self.uneven,
            "too small to win": self.small,
        }
        others = ", ".join(f"{number} {why}" for why, number in left.items() if number)
        chosen = plural(self.chosen, "linear layer")
        return f"fp8: {chosen} multiply in fp8" + (f"; in bf16 stay {others}" if others else "")


def use_fp8(model: nn.Module, *, emulate: bool, tensor: int = 1) -> Fp8Layers:
    """Let the large linear layers of `model` multiply in fp8, in place; before tensor parallelism cuts them.

    `emulate`: on a device without fp8, round to it and multiply in fp32. `tensor`: ranks that share each matrix. Raises
    ModelError when no layer is large enough, LaunchError without torchao.
    """
    convert, config_class = _torchao()
    base: nn.Module = getattr(model, "base_model", model)
    inside = {id(module) for module in base.modules()}
    counts = dict.fromkeys(("chosen", "outside", "uneven", "small"), 0)

    def is_chosen(module: Any, name: str) -> bool:
        is_plain = type(module) is nn.Linear and id(module) in inside
        verdict = _verdict(module, tensor) if is_plain else "outside"
        counts[verdict] += 1
        return verdict == "chosen"

    # pad_inner_dim: the product that gives a weight's gradient runs over tokens, of which there may be any number.
    config = replace(config_class.from_recipe_name("rowwise"), emulate=emulate, pad_inner_dim=True)
    convert(model, config=config, module_filter_fn=is_chosen)
    found = Fp8Layers(**counts)
    if not found.chosen:
        raise ModelError(
            f"precision.dtype='fp8': none of the {sum(counts.values())} linear layers of {type(model).__name__} is one "
            f"that fp8 makes faster",
            expected=f"layers with more than 1,024 inputs and 2,048 outputs, not fewer than 2,049 and 4,097 at once, in multiples of {MULTIPLE}"
            + (f" on each of {tensor} tensor-parallel ranks" if tensor > 1 else " in the stack of layers"),
            do="set precision.dtype='bf16'",
        )
    return found


def _verdict(module: nn.Linear, tensor: int) -> str:
    sides = (module.in_features, module.out_features)
    if any(side % (MULTIPLE * tensor) for side in sides):
        return "uneven"
    # Ranks cut one side or the other: with half of either, a layer must still be large enough.
    inputs, outputs = sides
    wins = is_faster(inputs // tensor, outputs) and is_faster(inputs, outputs // tensor)
    return "chosen" if wins else "small"


def is_faster(inputs: int, outputs: int) -> bool:
    """Whether fp8 wins on an H100: torchao's rule from its measurements of scaling by row (float8/float8_linear_utils.py,
    _auto_filter_for_rowwise)."""
    return outputs > 2048 and inputs > 1024 and (outputs > 4096 or inputs > 2048)


def _torchao() -> tuple[Any, Any]:
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError:
        raise LaunchError(
            "precision.dtype='fp8' needs the package torchao",
            expected="torchao, which has linear layers that train in fp8",
            do="run pip install 'toolkit[torchao]', or set precision.dtype='bf16'",
        ) from None
    return convert_to_float8_training, Float8LinearConfig
