"""How long a step takes: the work that the trace has counted, at the rates of a device, and what travels between ranks.

A pipeline's bubble is that of one-forward-one-backward, stage by stage (Narayanan et al. 2021).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from toolkit.ds_config.render import weights_dtype
from toolkit.plan.devices import EFFICIENCY, LAUNCH_S, REACHED_BANDWIDTH, Hardware
from toolkit.plan.inventory import Inventory
from toolkit.plan.peaks import NumberFormat
from toolkit.plan.states import SIZES, Keeper, States
from toolkit.plan.volumes import Volumes, volumes
from toolkit.plan.work import Work
from toolkit.processor import MAPPED
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

FRESH = 10.0
"""On a processor, bytes moved that take as long as one of memory that the system hands out anew, page by page, and takes
back after use: as it does with tensors so large that glibc asks it each time."""

ADDED, REDUCED = 4, 4
"""Times that each number of a gradient is read or written: by the backward pass, to be added to those before; and into a
bucket and out of it, where ranks sum them: in every micro-batch from stage 2 on, once a step below it."""

CROWDED_SUM_S, CROWDED_TRADE_S = 0.006, 0.015
"""Seconds of a sum inside of a layer, and of an exchange of tokens for heads, through gloo where ranks are more than cores:
each rank waits for the others to be let run (measured by benchmarks/plan_runs.py, where they vary by a half)."""

THREADED = 0.9
"""Products that a rank reaches with several cores as threads, as a share of what as many ranks reach with a core each: those
of small matrices do not divide well (two threads reached 0.74 to 0.95 of two ranks, by the shapes of SmolLM2-135M)."""

HELD_UP = 1.7
"""Times that gloo takes longer inside of a step than alone: ranks come at different times, and its threads want the cores that
compute (in steps of ZeRO-2 with SmolLM2-135M on two cores 1.6 to 2.6 s, where the same bytes take 1.2 s alone)."""

GLOO_SPREADS = 3.4
"""Times that gloo is slower in gathers and scatters than in all-reduces, byte for byte (measured by
benchmarks/collectives.py)."""


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
    """Bytes that the other operations move, the optimizer's on the device among them."""
    rest: float = 0.0
    """Of the total, seconds that are not those of `flops` and `moved`: links, the host, operations that wait to be started."""

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
    host_memory: int | None = None
    """Bytes of memory of a host with GPUs; None: not known, and taken for enough."""

    @property
    def threaded(self) -> float:
        """Share of the processor's products that ranks with several cores each reach."""
        return THREADED if self.hardware.is_cpu and self.cores_shared < self.hardware.cores else 1.0

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
    kept_on_host: float = 0.0,
    waits_s: float = 0.0,
) -> Seconds:
    """Of one step of the rank with `work` per micro-batch, that of its gradients included.

    `hidden_bytes` is what a layer hands to the next one of a micro-batch, `layers` how many this rank has, `pair_share`
    the part of attention that documents ask for, `kept_on_host` the bytes of activations that go there and come back,
    `waits_s` what this stage of a pipeline waits for the others.
    """
    busy, waiting = micro_batch_seconds(work, place, number_format, pair_share)
    compute, bubble = accumulation * (busy + waiting), waits_s
    turns = accumulation + bubble / (busy + waiting)
    sent = volumes(inventory, config, mesh, hidden_bytes, layers, recomputes=recomputes)
    per_micro, per_step, inside = _travel(sent, mesh, place)
    beside = accumulation * per_micro + per_step
    if config["zero_optimization"].get("overlap_comm") and states.keeper is not Keeper.BF16:
        beside = max(VISIBLE * beside, beside - 0.8 * compute)
    communication = beside + accumulation * inside
    on_device, on_host, updated = _update(inventory, states, config, mesh, place, accumulation)
    offload = _offload(inventory, states, config, mesh, place, accumulation)
    # Layer inputs travel beside the computation, on a stream of their own.
    offload += accumulation * max(0.0, 2 * kept_on_host / place.hardware.host_link - busy)
    return Seconds(
        compute,
        communication,
        on_device + on_host,
        offload,
        bubble,
        turns * place.cores_shared * work.products(pair_share) / place.threaded,
        turns * place.cores_shared * work.traffic + updated,
        turns * waiting + communication + on_host + offload,
    )


def with_gradients(work: Work, inventory: Inventory, config: Mapping[str, Any], hardware: Hardware) -> Work:
    """The `work` of a micro-batch, and what its gradients ask for besides the products that make them.

    On a processor what memory made anew takes is added, too.
    """
    passes = ADDED + (REDUCED if config["zero_optimization"]["stage"] > 1 else 0)
    moved = float(passes * SIZES[weights_dtype(config)] * inventory.trained)
    if hardware.is_cpu:
        moved += FRESH * _made_per_micro(work, inventory, config)
    return work.plus(Work(traffic=moved), 1.0)


def micro_batch_seconds(
    work: Work, place: Place, number_format: NumberFormat, pair_share: float
) -> tuple[float, float]:
    """Seconds of the forward and backward pass of one micro-batch: at work, and waiting for operations to be started."""
    hardware, share = place.hardware, 1.0 / place.cores_shared
    rate = hardware.flops(number_format) * place.rates.compute * place.threaded * share
    busy = work.products(pair_share) / rate + work.traffic / (hardware.bandwidth * place.rates.memory * share)
    return busy, 0.0 if hardware.is_cpu else max(0.0, work.operations * LAUNCH_S - busy)


def one_forward_one_backward(stages: Sequence[float], micro_batches: int, forward: float) -> float:
    """Seconds from the first forward pass of a step to its last backward pass.

    `stages` take so many seconds for a micro-batch each, of which the share `forward` is the forward pass. A stage begins
    with as many forward passes as there are stages from it on, and then does one backward pass and one forward pass in
    turn (Narayanan et al. 2021, figure 4, DeepSpeed's TrainSchedule). Equal stages wait for one micro-batch of each
    other; faster ones work while the slowest makes them wait.
    """
    if len(stages) == 1:
        return micro_batches * stages[0]  # exactly: nobody waits
    few = min(micro_batches, 4 * len(stages))  # from then on the slowest stage sets the pace
    orders = []
    for index in range(len(stages)):
        ahead = min(few, len(stages) - index)
        order = [(False, number) for number in range(ahead)]
        for number in range(few):
            order += [(True, number), *([(False, ahead + number)] if ahead + number < few else [])]
        orders.append(order[::-1])
    ended: dict[tuple[int, bool, int], float] = {}
    clocks = [0.0] * len(stages)
    while any(orders):
        for index, order in enumerate(orders):
            while order:
                is_back, number = order[-1]
                neighbour = index + 1 if is_back else index - 1
                is_end = not 0 <= neighbour < len(stages)
                if not is_end and (neighbour, is_back, number) not in ended:
                    break
                begin = clocks[index] if is_end else max(clocks[index], ended[neighbour, is_back, number])
                clocks[index] = begin + stages[index] * (1.0 - forward if is_back else forward)
                ended[index, is_back, number] = clocks[index]
                order.pop()
    return max(clocks) + (micro_batches - few) * max(stages)


def _travel(sent: Volumes, mesh: Mesh, place: Place) -> tuple[float, float, float]:
    """Seconds of communication per micro-batch, per step, and per micro-batch inside of layers, which nothing hides."""
    link = place.link_of(mesh.gradient_ranks, mesh.tensor)
    summed, spread = (HELD_UP, HELD_UP * GLOO_SPREADS) if place.hardware.is_cpu else (1.0, 1.0)
    per_micro = (summed * sent.summed_per_micro + spread * sent.spread_per_micro) / link
    per_step = (summed * sent.summed_per_step + spread * sent.spread_per_step) / link
    inside = sent.tensor / place.link_of(mesh.tensor, 1)
    inside += sent.sequence / place.link_of(mesh.sequence, mesh.tensor)
    inside += sent.pipeline / place.link_of(2, mesh.world_size // mesh.pipeline)
    if place.cores_shared > place.hardware.cores > 0:
        inside += sent.sums * CROWDED_SUM_S + sent.trades * CROWDED_TRADE_S
    return per_micro, per_step, inside


def _made_per_micro(work: Work, inventory: Inventory, config: Mapping[str, Any]) -> float:
    """Bytes of large tensors that are made anew in every micro-batch, the weights that stage 3 gathers among them."""
    if config["zero_optimization"]["stage"] < 3:
        return work.mapped
    return work.mapped + work.returned + 2.0 * SIZES[weights_dtype(config)] * inventory.total


def _made_per_step(inventory: Inventory, states: States) -> float:
    """The same in every step: sums of gradients, what they are flattened into, and the largest in fp64 for the norm."""
    made = [states.backward.get("gradients", 0), *states.step.values()] if states.keeper is Keeper.SHARED else []
    return float(sum(size for size in [*made, 8 * inventory.largest] if size >= MAPPED))


def _update(
    inventory: Inventory, states: States, config: Mapping[str, Any], mesh: Mesh, place: Place, accumulation: int
) -> tuple[float, float, float]:
    """Seconds of the optimizer's step on the device and on the host, and bytes that it moves on the device.

    A processor is its own host: what is offloaded is read and written once more.
    """
    hardware, zero = place.hardware, config["zero_optimization"]
    share = inventory.trained / (1 if states.keeper is Keeper.PLAIN else mesh.gradient_ranks)
    on_host = 0.0
    if "offload_optimizer" in zero and not hardware.is_cpu:
        on_host = share * float(zero["offload_optimizer"].get("ratio", 1.0))
    moved = DEVICE_UPDATE * (share - on_host)
    if zero["stage"] == 1 or (zero["stage"] == 0 and mesh.gradient_ranks > 1):
        moved += REDUCED * SIZES[weights_dtype(config)] * inventory.trained
    if hardware.is_cpu:
        moved += FRESH * _made_per_step(inventory, states) + 2 * _to_host_and_back(
            inventory, config, mesh, accumulation
        )
    moved *= place.cores_shared
    host_seconds = HOST_UPDATE * on_host * _per_host(mesh, place) / HOST_BANDWIDTH
    return moved / (hardware.bandwidth * place.rates.memory), host_seconds, moved


def _offload(
    inventory: Inventory,
    states: States,
    config: Mapping[str, Any],
    mesh: Mesh,
    place: Place,
    accumulation: int,
) -> float:
    """Seconds that gradients, weights and states travel between device, host and NVMe in one step."""
    hardware = place.hardware
    if hardware.is_cpu:
        return 0.0
    optimizer, parameters = _offloaded_to(config)
    weight, per_host = SIZES[weights_dtype(config)], _per_host(mesh, place)
    disk = 0.0
    if optimizer == "nvme":
        disk += 2 * per_host * sum(size for name, size in states.steady.nvme.items() if name != "parameters")
    if parameters == "nvme":
        trained, total = inventory.trained / mesh.gradient_ranks, inventory.total / mesh.gradient_ranks
        disk += per_host * weight * (2 * accumulation * total + trained)
    return _to_host_and_back(inventory, config, mesh, accumulation) / hardware.host_link + disk / NVME


def _offloaded_to(config: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Where optimizer states and parameters are offloaded to."""
    zero = config["zero_optimization"]
    return zero.get("offload_optimizer", {}).get("device"), zero.get("offload_param", {}).get("device")


def _to_host_and_back(inventory: Inventory, config: Mapping[str, Any], mesh: Mesh, accumulation: int) -> float:
    """Bytes of gradients and weights that a rank sends to the host, or fetches from it, in one step."""
    optimizer, parameters = _offloaded_to(config)
    weight, sums = SIZES[weights_dtype(config)], SIZES[config["data_types"]["grad_accum_dtype"]]
    trained, total = inventory.trained / mesh.gradient_ranks, inventory.total / mesh.gradient_ranks
    found = 0.0
    if optimizer is not None:
        # Each micro-batch's gradients go to the host, those before come back to be added to, and the sum is copied once
        # more in fp32 (stage_1_and_2.py, async_accumulate_grad_in_cpu_via_gpu; stage3.py, partition_grads).
        found += (sums * (2 * accumulation - 1) + 4) * trained
    if parameters is None:
        found += weight * trained if optimizer is not None else 0.0
    else:
        # Fetched for the forward pass and for the backward pass of every micro-batch; updated weights go back.
        found += weight * (2 * accumulation * total + (trained if optimizer is None else 0.0))
    return found


def _per_host(mesh: Mesh, place: Place) -> int:
    return min(place.devices_per_host, mesh.world_size)


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
