"""What to change about a run whose numbers are not finite any more."""

from __future__ import annotations

ADVICE = (
    "lower optimizer.learning_rate, lengthen schedule.warmup_steps, set optimizer.max_grad_norm=1.0, "
    "or look at the data with --preview"
)
ADVICE_FP16 = "set precision.dtype='bf16' (fp16 ends at 65504), or lower optimizer.learning_rate"
