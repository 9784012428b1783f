"""How long a step takes: the work that the trace has counted, at the rates of a device, and what travels between ranks.

Volumes are those of the algorithms: a ring all-reduce of n bytes among d ranks sends 2 n (d - 1) / d from each, a
gather or scatter half of it (Thakur et al. 2005); ZeRO's are those of Rajbhandari et al. 2019 (arXiv 1910.02054,
section 7), with what DeepSpeed does per micro-batch and per step; Ulysses' those of Jacobs et al. 2023, a pipeline's
bubble that of one-forward-one-backward (Narayanan et al. 2021).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from toolkit.ds_config.render import weights_dtype
from toolkit.plan.devices import EFFICIENCY, LAUNCH_S, REACHED_BANDWIDTH, Hardware
from toolkit.plan.inventory import Inventory
from toolkit.plan.peaks import NumberFormat
from toolkit.plan.states import SIZES, Keeper, States
from toolkit.plan.work import Work
from toolkit.recipe.mesh import Mesh

HOST_UPDATE = 28.0
"""Bytes that Adam on the host reads and writes for each number: gradient, master, two moments, and the rounded weight."""

HOST_BANDWIDTH = 200e9
"""Bytes per second of a server's memory, shared by its devices."""

NVME = 5e9
"""Bytes per second of a local NVMe disk, reading and writing."""

VISIBLE = 0.1
"""Of communication that runs beside computation, the part that the step still waits for: its ends, and what it takes away
from the computation."""

DEVICE_UPDATE = 30.0
"""Bytes that an optimizer on the device reads and writes for each number of its share."""


@dataclass(frozen=True)
class Rates:
    """How much of a device's listed rates work like this reaches; fitted to finished runs where there are any."""

    compute: float = EFFICIENCY
    memory: float = REACHED_BANDWIDTH


@dataclass(frozen=True)
class Seconds:
    """Of one optimizer step of the slowest rank, by what it is spent on."""

    compute: float
    """Products, attention and what lies between them."""
    communication: float
    """What of it does not hide behind computation."""
    optimizer: float
    offload: float
    bubble: float
    """Waiting of a pipeline's stages."""
    flops: float = 0.0
    """What is multiplied meanwhile on the device, waiting counted as work: of a processor by all ranks that share it."""
    moved: float = 0.0
    """Bytes that the other operations move, the optimizer's among them."""

    @property
    def total(self) -> float:
        """Of the whole step."""
        return self.compute + self.communication + self.optimizer + self.offload + self.bubble


@dataclass(frozen=True)
class Place:
    """Where a rank computes."""

    hardware: Hardware
    devices_per_host: int
    rates: Rates = Rates()
    cores_shared: int = 1
    """Ranks that share the processor, on a CPU."""

    def link_of(self, ranks: int, stride: int) -> float:
        """Bytes per second between `ranks` neighbours that lie `stride` ranks apart."""
        return self.hardware.link if ranks * stride <= self.devices_per_host else self.hardware.fabric


def step_seconds(
    work: Work,
    inventory: Inventory,
    states: States,
    config: Mapping[str, Any],
    mesh: Mesh,
    place: Place,
    number_format: NumberFormat,
    *,
    accumulation: int,
    hidden_bytes: float,
    layers: int,
    recomputes: bool,
    pair_share: float = 1.0,
) -> Seconds:
    """Of one step of the rank with `work` per micro-batch.

    `hidden_bytes` is what a layer hands to the next one of a micro-batch, `layers` how many this rank has, `pair_share`
    the part of attention that documents ask for.
    """
    micro = micro_batch_seconds(work, place, number_format, pair_share)
    compute = accumulation * micro
    turns = (accumulation + mesh.pipeline - 1) * place.cores_shared
    flops, moved = turns * (work.flops + work.attention * pair_share), turns * work.traffic
    per_micro, per_step, inside = _volumes(inventory, states, config, mesh, place, hidden_bytes, layers, recomputes)
    sent = accumulation * per_micro + per_step
    if config["zero_optimization"].get("overlap_comm") and states.keeper is not Keeper.BF16:
        sent = max(VISIBLE * sent, sent - 0.8 * compute)
    optimizer, offload, updated = _update(inventory, states, config, mesh, place)
    bubble = (mesh.pipeline - 1) * micro if mesh.pipeline > 1 else 0.0
    communication = sent + accumulation * inside
    return Seconds(compute, communication, optimizer, offload, bubble, flops, moved + updated)


def micro_batch_seconds(work: Work, place: Place, number_format: NumberFormat, pair_share: float) -> float:
    """Forward and backward pass of one micro-batch."""
    hardware, share = place.hardware, 1.0 / place.cores_shared
    rate = hardware.flops(number_format) * place.rates.compute * share
    products = (work.flops + work.attention * pair_share) / rate
    others = work.traffic / (hardware.bandwidth * place.rates.memory * share)
    found = products + others
    return found if hardware.is_cpu else max(found, work.operations * LAUNCH_S)


def _volumes(
    inventory: Inventory,
    states: States,
    config: Mapping[str, Any],
    mesh: Mesh,
    place: Place,
    hidden_bytes: float,
    layers: int,
    recomputes: bool,
) -> tuple[float, float, float]:
    """Seconds of communication per micro-batch, per step, and per micro-batch inside of layers, which nothing hides."""
    zero = config["zero_optimization"]
    weight = SIZES[weights_dtype(config)]
    wire = SIZES[config["communication_data_type"]]
    ranks = mesh.gradient_ranks
    link = place.link_of(ranks, mesh.tensor)
    ring = (ranks - 1) / ranks / link
    gradients, weights = wire * inventory.trained * ring, weight * inventory.trained * ring
    per_micro = per_step = 0.0
    if zero["stage"] == 3:
        # Gathered for the forward pass and again for the backward one; frozen weights as well.
        per_micro = 2 * weight * inventory.total * ring + gradients
    elif zero["stage"] == 2:
        per_micro, per_step = gradients, weights
    else:
        per_step = 2 * gradients + (weights if zero["stage"] == 1 else 0.0)
    inside = 0.0
    if mesh.tensor > 1:
        # Two sums forward and two backward of each layer, and the forward ones once more where it is recomputed.
        sums = 4 + (2 if recomputes else 0)
        inside += sums * layers * 2 * hidden_bytes * (mesh.tensor - 1) / mesh.tensor / place.link_of(mesh.tensor, 1)
    if mesh.sequence > 1:
        trades = 8 + (4 if recomputes else 0)
        inside += trades * layers * hidden_bytes / mesh.sequence / place.link_of(mesh.sequence, mesh.tensor)
    if mesh.pipeline > 1:
        stride = mesh.world_size // mesh.pipeline
        inside += 2 * hidden_bytes / place.link_of(2, stride)
    return per_micro, per_step, inside


def _update(
    inventory: Inventory, states: States, config: Mapping[str, Any], mesh: Mesh, place: Place
) -> tuple[float, float, float]:
    """Seconds of the optimizer's step and of moving what is offloaded, and bytes that the step moves on the device."""
    zero, hardware = config["zero_optimization"], place.hardware
    weight = SIZES[weights_dtype(config)]
    share = inventory.trained / (1 if states.keeper is Keeper.PLAIN else mesh.gradient_ranks)
    if hardware.is_cpu:
        bandwidth = hardware.bandwidth * place.rates.memory / place.cores_shared
        return DEVICE_UPDATE * share / bandwidth, 0.0, DEVICE_UPDATE * share * place.cores_shared
    target = zero.get("offload_optimizer", {}).get("device")
    if target is None:
        return DEVICE_UPDATE * share / (hardware.bandwidth * place.rates.memory), 0.0, DEVICE_UPDATE * share
    per_host = min(place.devices_per_host, mesh.world_size)
    update = HOST_UPDATE * share * per_host / HOST_BANDWIDTH
    moved = (SIZES[config["data_types"]["grad_accum_dtype"]] + weight) * share / hardware.host_link
    if zero.get("offload_param"):
        moved += 3 * weight * inventory.total / mesh.gradient_ranks / hardware.host_link
    if target == "nvme":
        moved += sum(states.steady.nvme.values()) * 2 * per_host / NVME
    return update, moved, 0.0


def with_memory(hardware: Hardware, gib: float | None, link_gb_s: float | None, fabric_gb_s: float | None) -> Hardware:
    """`hardware` with what the user knows better."""
    changes: dict[str, Any] = {}
    if gib is not None:
        changes["memory"] = int(gib * 2**30)
    if link_gb_s is not None:
        changes["link"] = link_gb_s * 1e9
    if fabric_gb_s is not None:
        changes["fabric"] = fabric_gb_s * 1e9
    return replace(hardware, **changes)
