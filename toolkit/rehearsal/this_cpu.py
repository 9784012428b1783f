"""What this host's CPU lacks of what a recipe asks of its machines: something near takes its place, and that is said."""

from __future__ import annotations

from toolkit.engine import device
from toolkit.recipe import Precision, Recipe


def on_this_cpu(recipe: Recipe, not_shown: list[str]) -> Recipe:
    """`recipe` in a number format and with places of offload that are here; what they take the place of goes to `not_shown`."""
    changes: dict[str, object] = {}
    target = device.target(1, wanted="cpu")
    dtype = recipe.precision.dtype
    if dtype in ("bf16", "fp16") and not getattr(target, dtype):
        other = Precision(dtype="bf16" if target.bf16 else "fp32")
        not_shown.append(f"precision.dtype={dtype!r} (this CPU does not compute in it; {other.dtype} takes its place)")
        changes["precision"] = other
    parallel = recipe.parallel
    on_disk = [name for name in ("offload_optimizer", "offload_param") if getattr(parallel, name) == "nvme"]
    if on_disk and not device.swaps_to_disk():
        not_shown.append("offload to 'nvme' (no libaio here: apt-get install libaio-dev; 'cpu' takes its place)")
        changes["parallel"] = parallel.model_copy(update={**dict.fromkeys(on_disk, "cpu"), "nvme_path": None})
    return Recipe(**{**dict(recipe), **changes}) if changes else recipe
