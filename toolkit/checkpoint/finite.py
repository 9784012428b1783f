"""Whether numbers are worth keeping: a weight that is NaN or infinite makes every later one so."""

from __future__ import annotations

import math

import torch

from toolkit.engine import process
from toolkit.engine.advice import ADVICE, ADVICE_FP16
from toolkit.engine.fragments import WEIGHT
from toolkit.engine.protocol import Engine
from toolkit.errors import RunFailed
from toolkit.models.dtypes import DTYPES


def largest(values: torch.Tensor) -> float:
    """Return the largest magnitude among `values`; NaN where one is NaN. One pass, no copy."""
    if values.numel() == 0:
        return 0.0
    low, high = (float(bound) for bound in torch.aminmax(values))
    return math.nan if math.isnan(low) or math.isnan(high) else max(abs(low), abs(high))


def limit(dtype: torch.dtype, *, of_weights: bool = False) -> float:
    """Return the magnitude from which on a number is infinite once it is rounded to `dtype`.

    `of_weights`: or its square is. Layers square what they compute with weights, and norms divide by the result: such
    a model has a finite loss, and no gradient ever again.
    """
    info = torch.finfo(dtype)
    # Half a step beyond the largest number is the first that rounds to infinity.
    rounding = info.max * (2 - info.eps / 2) / (2 - info.eps)
    return min(rounding, math.sqrt(torch.finfo(torch.float32).max)) if of_weights else rounding


def is_sound(values: torch.Tensor, state: str, dtype: torch.dtype) -> bool:
    """Return whether `values` of an optimizer's `state` are finite, or, as weights, of use in `dtype`."""
    of_weights = state == WEIGHT
    # NaN compares as false.
    return largest(values) < limit(dtype if of_weights else torch.float32, of_weights=of_weights)


def training_dtype(engine: Engine) -> torch.dtype:
    """Return the format that the forward pass sees: what fits into the fp32 weights need not fit into it."""
    return next(engine.model.parameters()).dtype


def check_weights(engine: Engine, step: int) -> None:
    """Raise RunFailed on every rank when a weight of any rank is not finite after `step`. Collective."""
    dtype = training_dtype(engine)
    # Consumed to the end: a fragment may be swapped in from disk, and is swapped out when the next one is asked for.
    wrong = [
        (part.name, largest(part.tensors[WEIGHT]))
        for part in engine.fragments()
        if WEIGHT in part.tensors and not is_sound(part.tensors[WEIGHT], WEIGHT, dtype)
    ]
    found = [one for some in process.gather_objects(wrong[:1]) for one in some]
    if found:
        raise unsound(found[0][0], WEIGHT, found[0][1], step, dtype)


def unsound(name: str, state: str, value: float, step: int, dtype: torch.dtype) -> RunFailed:
    """Return the error for a parameter whose weight, or `state` of the optimizer, reaches `value` after `step`."""
    owner = name if state == WEIGHT else f"the optimizer's {state} of {name}"
    if not math.isfinite(value):
        what = f"{owner} is not finite after step {step}"
    else:
        what = f"{owner} has grown to {value:.3g} after step {step}, too large for {short_name(dtype)} to compute with"
    return RunFailed(
        what,
        expected="finite numbers in whatever is evaluated and kept",
        do=ADVICE_FP16 if dtype == torch.float16 else ADVICE,
    )


def short_name(dtype: torch.dtype) -> str:
    """fp32, bf16 or fp16: what recipes call `dtype`."""
    return next((name for name, known in DTYPES.items() if known == dtype), str(dtype))
