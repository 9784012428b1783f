"""Memory of one rank at its fullest moment, by component: states and activations put together, and what lies on disks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from toolkit.plan.activations import Activations, Moment
from toolkit.plan.states import SIZES, Held, States

GIB = 2**30

CPU_PROCESS = 1.0 * GIB
"""Resident set of a rank on a CPU besides its tensors: Python, torch, DeepSpeed and transformers, gloo's buffers
(measured by benchmarks/plan_runs.py)."""

KEPT_BY_MALLOC = 0.7
"""Of a backward pass's activations, the share that glibc still holds when the optimizer steps: smaller blocks come from
heaps, which shrink from their end only (`toolkit.processor.MAPPED`; measured by benchmarks/plan_runs.py)."""

HOST_PROCESS = 2.5 * GIB
"""The same of a rank beside a GPU, with the CUDA libraries."""

CUDA_CONTEXT = 1.3 * GIB
"""What CUDA itself takes of a device in training: its context, kernels and libraries (benchmarks/gpu.py, on an H200)."""

WORKSPACE = 64 * 2**20
"""Bytes that cuBLAS and cuBLASLt have torch's allocator give them on Hopper; other devices less."""

NCCL = 0.35 * GIB
"""Buffers of NCCL's channels, for a rank that has others to talk to."""

SLACK = 0.04
"""Of what tensors hold at most, the share that torch's allocator keeps besides on a GPU: rounding and gaps."""

CPU_SLACK = 0.1
"""The same of glibc, whose heaps do not move what they hold (measured by benchmarks/plan_runs.py)."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank."""

    device: Mapping[str, int]
    """At the fullest moment, by component. On a CPU everything is in it."""
    moment: str
    """Which moment that is."""
    steady: Mapping[str, int]
    """Between two steps, by component."""
    host: Mapping[str, int]
    """Beside a GPU, by component; on a CPU nothing."""
    pinned: int
    """Of `host`, page-locked."""
    nvme: int
    loading: int = 0
    """Beside a GPU, bytes of host memory while weights are made ready for training."""

    @property
    def peak(self) -> int:
        """Bytes of the device at the fullest moment."""
        return sum(self.device.values())

    @property
    def tensors(self) -> int:
        """Of these, what tensors hold: torch.cuda.max_memory_allocated."""
        return sum(size for name, size in self.device.items() if name not in OUTSIDE)

    @property
    def host_peak(self) -> int:
        """Bytes of host memory, at its fullest moment."""
        return max(sum(self.host.values()), self.loading)


OUTSIDE = ("process", "activations, freed", "CUDA context", "NCCL", "allocator slack")
"""Components that are no tensors."""


@dataclass(frozen=True)
class Flight:
    """Micro-batches of a rank."""

    accumulation: int
    """Micro-batches of a step."""
    in_flight: int = 1
    """Micro-batches whose activations are there at a time: several in a pipeline."""


def put_together(
    states: States,
    activations: Activations,
    flight: Flight,
    trained: int,
    *,
    is_cpu: bool,
    ranks: int,
    flattened_on_host: int = 0,
) -> Memory:
    """The fullest moment of a step of a rank with `states` and `activations`, which trains `trained` numbers.

    `flattened_on_host`: bytes of weights that DeepSpeed puts together on the host, for want of room on the device.
    """
    steady = _merged(states.steady, is_cpu=is_cpu)

    def fullest(moments: Iterable[Moment], *, is_first: bool = False) -> dict[str, int]:
        held = [_in_backward(states, activations, moment, flight, trained, is_first=is_first) for moment in moments]
        return max(held, key=lambda sizes: sum(sizes.values()), default={})

    turn = fullest(activations.turn, is_first=True)
    moments = {
        "at the turn of a micro-batch": turn,
        "in the backward pass": fullest(activations.layers.values()),
        "at the end of the backward pass": fullest([activations.tail]),
        "in the optimizer step": dict(states.step),
    }
    if is_cpu:
        moments["in the optimizer step"]["activations, freed"] = round(KEPT_BY_MALLOC * turn["activations"])
    name = max(moments, key=lambda moment: sum(moments[moment].values()))
    device = dict(steady)
    for component, size in moments[name].items():
        device[component] = device.get(component, 0) + size
    if not is_cpu:
        device["cuBLAS"] = WORKSPACE
    device = {component: size for component, size in device.items() if size}
    host: dict[str, int] = {}
    device["allocator slack"] = round((CPU_SLACK if is_cpu else SLACK) * sum(device.values()))
    if is_cpu:
        device["process"] = round(CPU_PROCESS)
    else:
        device["CUDA context"] = round(CUDA_CONTEXT)
        if ranks > 1:
            device["NCCL"] = round(NCCL)
        host = _on_host(states.steady, activations, flight)
    # One copy of each weight, and the flat one.
    loading = round(HOST_PROCESS + 2 * flattened_on_host) if flattened_on_host else 0
    return Memory(device, name, steady, host, states.steady.pinned, sum(states.steady.nvme.values()), loading)


def _merged(held: Held, *, is_cpu: bool) -> dict[str, int]:
    """What is on the device; on a CPU that is what is on the host, too."""
    found = dict(held.device)
    for component, size in held.host.items() if is_cpu else ():
        found[component] = found.get(component, 0) + size
    return found


def _in_backward(
    states: States, activations: Activations, moment: Moment, flight: Flight, trained: int, *, is_first: bool
) -> dict[str, int]:
    # From the second micro-batch on, the sums of those before are there from its beginning.
    graded = trained if flight.accumulation > 1 else moment.graded
    found = dict(states.backward)
    if is_first and graded < states.first_reduction:
        # No bucket is full yet.
        found.pop("reduction", None)
        found.pop("gradients", None)
    found["gradients"] = found.get("gradients", 0) + round(states.per_gradient * graded)
    found["activations"] = round(moment.live + (flight.in_flight - 1) * activations.kept)
    return found


def _on_host(held: Held, activations: Activations, flight: Flight) -> dict[str, int]:
    """Host memory beside a GPU."""
    found = {"process": round(HOST_PROCESS), **held.host}
    if held.rounding:
        found["rounding of page-locked memory"] = held.rounding
    kept = round(activations.host * flight.in_flight)
    if kept:
        found["activations"] = kept
    return found


@dataclass(frozen=True)
class Disk:
    """Bytes on disk of a whole run."""

    checkpoint: int
    """One."""
    most: int
    """While the last one is written: those that are kept, and it."""
    export: int


def count_disk(
    trained: int, moments: float, *, keep: int, keeps_best: bool, export_dtype: str | None, exports: int
) -> Disk:
    """Of `trained` numbers: fp32 weights and their optimizer states, `moments` bytes of a number; `exports` numbers go into
    an export in `export_dtype`, None: there is none."""
    checkpoint = round(trained * (4 + moments))
    export = 0 if export_dtype is None else exports * SIZES[export_dtype]
    return Disk(checkpoint, checkpoint * (keep + keeps_best + 1), export)


def components(memory: Memory) -> list[tuple[str, int]]:
    """Of the fullest moment, the largest first."""
    return sorted(memory.device.items(), key=lambda item: -item[1])


def to_json(memory: Memory) -> dict[str, Any]:
    """For plan.json."""
    return {
        "moment": memory.moment,
        "peak_bytes": memory.peak,
        "tensors_bytes": memory.tensors,
        "device_bytes": dict(memory.device),
        "between_steps_bytes": dict(memory.steady),
        "host_bytes": dict(memory.host),
        "host_loading_bytes": memory.loading,
        "pinned_bytes": memory.pinned,
        "nvme_bytes": memory.nvme,
    }
