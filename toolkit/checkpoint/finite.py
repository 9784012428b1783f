"""Whether numbers are worth keeping: a weight that is NaN or infinite makes every later one so."""

from __future__ import annotations

import torch

from toolkit.engine import process
from toolkit.engine.fragments import WEIGHT
from toolkit.engine.protocol import Engine
from toolkit.errors import RunFailed


def is_finite(values: torch.Tensor, dtype: torch.dtype = torch.float32) -> bool:
    """Return whether every one of `values` is finite and stays so when it is rounded to `dtype`. One pass, no copy."""
    if values.numel() == 0:
        return True
    low, high = torch.aminmax(values)
    info = torch.finfo(dtype)
    # Half a step beyond the largest number is the first that rounds to infinity. NaN compares as false.
    limit = info.max * (2 - info.eps / 2) / (2 - info.eps)
    return max(abs(float(low)), abs(float(high))) < limit and float(low) <= float(high)


def training_dtype(engine: Engine) -> torch.dtype:
    """Return the format that the forward pass sees: what fits into the fp32 weights need not fit into it."""
    return next(engine.model.parameters()).dtype


def check_weights(engine: Engine, step: int) -> None:
    """Raise RunFailed on every rank when a weight of any rank is not finite after `step`. Collective."""
    dtype = training_dtype(engine)
    # Consumed to the end: a fragment may be swapped in from disk, and is swapped out when the next one is asked for.
    wrong = [part.name for part in engine.fragments() if not is_finite(part.tensors[WEIGHT], dtype)]
    found = [name for names in process.gather_objects(wrong[:1]) for name in names]
    if found:
        raise not_finite(found[0], WEIGHT, step, dtype)


def not_finite(name: str, state: str, step: int, dtype: torch.dtype) -> RunFailed:
    """Return the error for a parameter whose weight, or `state` of the optimizer, is not finite after `step`."""
    short = str(dtype).removeprefix("torch.")
    if state != WEIGHT:
        what = f"the optimizer's {state} of {name} is not finite after step {step}"
    elif dtype == torch.float32:
        what = f"{name} is not finite after step {step}"
    else:
        what = f"{name} is not finite in {short} after step {step}"
    fp16 = "set precision.dtype='bf16' (fp16 ends at 65504), " if dtype == torch.float16 else ""
    return RunFailed(
        what,
        expected="finite numbers in whatever is evaluated and kept",
        do=f"{fp16}lower optimizer.learning_rate, lengthen schedule.warmup_steps, or set optimizer.max_grad_norm=1.0",
    )
