"""Linear layers that multiply in fp8 (torchao's float8 training): weights, gradients and everything else stay in bf16.

Input, weight and output gradient of such a layer are each scaled to the range of an 8-bit float by their largest number
before they are multiplied; the product is bf16. A layer keeps its Parameter objects and their names, so loading, ZeRO,
tensor parallelism, checkpoints and the export do not see the difference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from toolkit.errors import LaunchError, ModelError, plural

MULTIPLE = 16
"""Both sides of a matrix must be multiples of it: what fp8 tensor cores load at a time."""

LARGE = (4097, 1025)
"""In features and out features, one of which a layer must reach for fp8 to win on an H100 (torchao's rule for this
scaling: float8/float8_linear_utils.py, _auto_filter_for_tensorwise): 1024 x 2048 x 1024 runs at 0.80 of bf16's speed,
4096 x 8192 x 16384 at 1.39 (its README)."""


@dataclass(frozen=True)
class Fp8Layers:
    """What `use_fp8` did."""

    chosen: int
    outside: int
    """Linear layers outside the base model (heads), or of a class of their own."""
    uneven: int
    """Those with a side that is no multiple of MULTIPLE on each tensor-parallel rank."""
    small: int
    """Those below LARGE on each tensor-parallel rank, routers among them."""

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
    config = config_class(emulate=emulate, pad_inner_dim=True)
    convert(model, config=config, module_filter_fn=is_chosen)
    found = Fp8Layers(**counts)
    if not found.chosen:
        raise ModelError(
            f"precision.dtype='fp8': none of the {sum(counts.values())} linear layers of {type(model).__name__} is one "
            f"that fp8 makes faster",
            expected=f"layers of at least {LARGE[0]} inputs or {LARGE[1]} outputs, in multiples of {MULTIPLE},"
            + (f" on each of {tensor} tensor-parallel ranks" if tensor > 1 else " in the stack of layers"),
            do="set precision.dtype='bf16'",
        )
    return found


def _verdict(module: nn.Linear, tensor: int) -> str:
    sides = (module.in_features, module.out_features)
    if any(side % (MULTIPLE * tensor) for side in sides):
        return "uneven"
    is_large = any(side // tensor >= large for side, large in zip(sides, LARGE, strict=True))
    return "chosen" if is_large else "small"


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
