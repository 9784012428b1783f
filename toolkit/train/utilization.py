"""How much of the device a step uses: TFLOPS of the model per device, and their share of the device's peak (MFU)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.ds_config.render import weights_dtype
from toolkit.engine import device
from toolkit.models.flops import ModelFlops, Uncountable, count_flops_per_example, count_model_flops
from toolkit.plan.peaks import find_peak
from toolkit.plan.strategy import number_format
from toolkit.recipe import Recipe
from toolkit.train.inputs import Inputs
from toolkit.train.progress import Display


@dataclass(frozen=True)
class Utilization:
    """What a step's time is compared with. The definitions are those of `toolkit.models.flops`."""

    flops: ModelFlops
    devices: int
    peak_tflops: float | None
    """Of one device, in the number format of the run; None where it is not known, as on every CPU."""

    def of_step(self, lengths: NDArray[np.integer[Any]], targets: int, seconds: float) -> dict[str, float]:
        """`lengths` of the documents of the global batch, in tokens, `targets` among them. -> entries of the record."""
        tflops = self.flops.of_step(lengths, targets) / seconds / self.devices / 1e12
        found = {"tflops_per_device": tflops}
        return found if self.peak_tflops is None else {**found, "mfu": tflops / self.peak_tflops}


def prepare_utilization(
    recipe: Recipe, inputs: Inputs, config: Mapping[str, Any], devices: int, display: Display
) -> Utilization | None:
    """Count the model's FLOPs; None, and said why, where they cannot be counted. Touches no device and no weight."""
    task = inputs.task
    try:
        if task.looks:
            raise Uncountable("an example has several texts, whose lengths are not told apart")
        example = task.one_example()
        if example is not None:
            flops = count_flops_per_example(task.auto_class, inputs.model_config, example)
        else:
            flops = count_model_flops(
                task.auto_class, inputs.model_config, recipe.batch.sequence_length, is_causal=task.is_causal
            )
        if inputs.adapters is not None:
            flops = replace(flops, adapters=inputs.adapters.adapters)
    except Uncountable as reason:
        display.say(f"note: no TFLOPS and no MFU in the metrics: {reason}")
        return None
    name = device.gpu_name()
    peak = find_peak(name) if name is not None else None
    return Utilization(
        flops, devices, peak.tflops(number_format(recipe, weights_dtype(config))) if peak is not None else None
    )
