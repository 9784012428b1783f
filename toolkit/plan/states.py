"""Bytes that a rank's tensors hold under ZeRO, by what they are: DeepSpeed 0.19.8's own arithmetic.

Four pieces of DeepSpeed hold the states of a run, and each does it in its own way (`Keeper`). Sizes follow from the
rendered configuration, the parameters of one rank and the number of ranks that share them. What lies beside the model
for the length of a step only (buckets, copies for a collective, gradients on their way) is told apart, by the moment at
which it is there: while the backward pass runs, and when the optimizer steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from toolkit.ds_config.render import weights_dtype
from toolkit.ds_config.target import Device
from toolkit.plan.inventory import Inventory, Parameter

SIZES = {"fp32": 4, "bf16": 2, "fp16": 2}
"""Bytes of a number."""

ALIGNMENT = 2
"""Elements per rank to which a flat group is filled up (stage_1_and_2.py, nccl_start_alignment_factor)."""

FLAT_REDUCTION = 500_000_000
"""Elements of gradients that are copied into one flat tensor for a reduction outside of ZeRO's buckets (engine.py,
MEMORY_OPT_ALLREDUCE_SIZE)."""

MUON_CACHE = 256 * 2**20
"""Bytes of buffers that stage 3 keeps for Muon's all-gathers (stage3.py, _muon_allgather_max_cached_bytes)."""

SWAP_STATES, SWAP_PARAMETERS, PARAMETER_BUFFER = 4, 5, 100_000_000
"""NVMe: buffers of a sub-group's states in fp32 (offload_optimizer.buffer_count), and buffers of parameters and their
elements (offload_param.buffer_count and buffer_size)."""

PIECE_8BIT, UPDATE_8BIT = 2**24, 53
"""8-bit states on a CPU: numbers that are updated at a time, and bytes of the copies that are made of each."""

CODES_PER_SCALE = 256
"""8-bit states: numbers that share an fp32 scale (`toolkit.engine.adam8bit`)."""


class Keeper(Enum):
    """Who of DeepSpeed holds the states."""

    PLAIN = "torch's optimizer, stage 0 in fp32"
    BF16 = "BF16_Optimizer: stage 1 in bf16 with gradients summed in fp32"
    SHARED = "ZeRO stages 1 and 2"
    PARTITIONED = "ZeRO stage 3"


@dataclass
class Held:
    """Bytes by component and place."""

    device: dict[str, int] = field(default_factory=dict)
    host: dict[str, int] = field(default_factory=dict)
    nvme: dict[str, int] = field(default_factory=dict)
    pinned: int = 0
    """Of what is in host memory, so much is page-locked."""
    rounding: int = 0
    """What page-locked memory takes besides: it comes in powers of two (torch's CachingHostAllocator)."""

    def pin(self, size: float, tensors: int = 1) -> None:
        """Note that `size` bytes on the host, in so many tensors, are page-locked."""
        each = max(1, round(size / tensors))
        self.pinned += round(size)
        self.rounding += tensors * (1 << (each - 1).bit_length()) - tensors * each

    def add(self, place: str, component: str, size: float) -> None:
        """Put `size` bytes of `component` at "device", "host" or "nvme"."""
        where: dict[str, int] = getattr(self, place)
        if size:
            where[component] = where.get(component, 0) + round(size)


@dataclass(frozen=True)
class States:
    """What a rank holds besides activations."""

    steady: Held
    """Between two steps."""
    backward: dict[str, int]
    """More on the device from the first gradient of a micro-batch to the last."""
    per_gradient: float
    """More on the device for each gradient element that a micro-batch has given so far, bytes."""
    step: dict[str, int]
    """More on the device when the optimizer steps; none of `backward` is there then."""
    keeper: Keeper
    first_reduction: int = 0
    """Gradient elements before which no bucket is full, and `backward` has no gradients yet."""


def keeper_of(config: Mapping[str, Any]) -> Keeper:
    """Who holds the states of a run with the rendered `config` (engine.py, _configure_optimizer)."""
    zero = config["zero_optimization"]
    if zero["stage"] == 0:
        return Keeper.PLAIN
    if zero["stage"] == 3:
        return Keeper.PARTITIONED
    is_summed_apart = "bf16" in config and config["data_types"]["grad_accum_dtype"] == "fp32"
    if zero["stage"] == 1 and is_summed_apart and "offload_optimizer" not in zero:
        return Keeper.BF16
    return Keeper.SHARED


def count_states(
    inventory: Inventory, config: Mapping[str, Any], ranks: int, device: Device, *, averages: bool = False
) -> States:
    """What one of `ranks` ranks that share states holds of `inventory` under the `config` rendered for `device`.

    `averages`: an exponential moving average of the weights is kept besides.
    """
    return _Count(inventory, config, ranks, device, averages).states()


class _Count:
    """One count. Sizes of numbers: weights, sums of gradients, gradients on the wire, masters."""

    def __init__(
        self, inventory: Inventory, config: Mapping[str, Any], ranks: int, device: Device, averages: bool
    ) -> None:
        self.inventory, self.config, self.ranks, self.averages = inventory, config, ranks, averages
        self.is_cpu = device == "cpu"
        self.zero = config["zero_optimization"]
        self.keeper = keeper_of(config)
        self.weight = SIZES[weights_dtype(config)]
        self.sums = SIZES[config["data_types"]["grad_accum_dtype"]]
        self.wire = SIZES[config["communication_data_type"]]
        self.master = 2 if config.get("bf16", {}).get("bf16_master_weights_and_grads") else 4
        self.groups = inventory.groups()
        optimizer = self.zero.get("offload_optimizer", {})
        self.offloads = bool(optimizer)
        self.states_place = {"cpu": "host", "nvme": "nvme"}.get(optimizer.get("device"), "device")
        self.pins = any(self.zero.get(name, {}).get("pin_memory") for name in ("offload_optimizer", "offload_param"))
        self.held = Held()

    def states(self) -> States:
        """Everything, by who holds it."""
        found = {
            Keeper.PLAIN: self._plain,
            Keeper.BF16: self._bf16,
            Keeper.SHARED: self._shared,
            Keeper.PARTITIONED: self._partitioned,
        }[self.keeper]()
        self.held.add("device", "parameters", self.inventory.buffers * self.weight)
        if "optimizer" not in self.config and self.is_cpu:
            # On CUDA the update is one compiled kernel.
            found.step["optimizer"] = UPDATE_8BIT * min(PIECE_8BIT, self._share)
        return found

    # Sizes

    @property
    def _trained(self) -> int:
        return self.inventory.trained

    @property
    def _frozen(self) -> int:
        return self.inventory.total - self._trained

    def _padded(self, group: list[Parameter]) -> int:
        whole, unit = sum(parameter.numel for parameter in group), ALIGNMENT * self.ranks
        return math.ceil(whole / unit) * unit

    @property
    def _flat(self) -> int:
        """Elements of all groups, each filled up."""
        return sum(map(self._padded, self.groups))

    @property
    def _share(self) -> int:
        """Elements of a rank's share of them."""
        return self._flat // self.ranks

    def _moments(self, share: float) -> float:
        """Bytes of the optimizer's states for `share`, the part of the trained elements that is this rank's."""
        return share * self._moments_per_element()

    def _moments_per_element(self) -> float:
        size = 2 if self.config.get("bf16", {}).get("bf16_optimizer_states") else 4
        if "optimizer" not in self.config:
            return 2 * (1 + 4 / CODES_PER_SCALE)
        kind, params = self.config["optimizer"]["type"].lower(), self.config["optimizer"]["params"]
        if kind == "lion":
            # DeepSpeed's kernel for the host keeps a second moment that the rule does not use (ops/lion/cpu_lion.py).
            return 2 * size if self.offloads else size
        if kind == "muon":
            return self._muon_states()
        count = {
            "adam": 2,
            "adamw": 2,
            "adagrad": 1,
            "rmsprop": 1 + bool(params.get("momentum")) + bool(params.get("centered")),
            "sgd": 1 if params.get("momentum") else 0,
        }[kind]
        return count * size

    def _muon_states(self) -> float:
        """Mean bytes: one moment for hidden matrices, Adam's two for the rest."""
        hidden = sum(
            parameter.numel
            for parameter in self.inventory.parameters
            if parameter.is_trained and parameter.is_matrix and not parameter.is_embedding
        )
        return 8.0 - 4.0 * hidden / max(1, self._trained)

    @property
    def _is_muon(self) -> bool:
        return str(self.config.get("optimizer", {}).get("type", "")).lower() == "muon"

    # Who holds them

    def _plain(self) -> States:
        held, trained = self.held, self._trained
        held.add("device", "parameters", 4 * (trained + self._frozen))
        held.add("device", "optimizer states", self._moments(trained))
        self._average(trained)
        # Every reduction, also among one rank, copies the gradients into one flat tensor (engine.py, allreduce_bucket).
        step = {"gradients": 4 * trained, "reduction": 4 * self._flat_reduction()}
        return States(held, {}, 4.0, step, self.keeper)

    def _bf16(self) -> States:
        held, share = self.held, self._share
        held.add("device", "parameters", self.weight * (self._flat + self._frozen))
        held.add("device", "gradients", self.sums * self._flat)
        held.add("device", "master weights", self.master * share)
        held.add("device", "optimizer states", self._moments(share))
        self._average(share)
        step = {
            # The 16-bit gradients of the last micro-batch are there until the step is over.
            "gradients": self.weight * self._trained,
            "reduction": self.wire * self._flat_reduction() if self.wire == self.sums else 0,
        }
        if self.wire != self.sums:
            step["reduction"] = (self.sums + self.wire) * self._flat_reduction()
        return States(held, {}, float(self.weight), step, self.keeper)

    def _flat_reduction(self) -> int:
        return min(self._trained, max(FLAT_REDUCTION, self.inventory.largest))

    def _shared(self) -> States:
        held, share = self.held, self._share
        is_once = self.master == self.weight and not self.offloads and not self._is_muon
        held.add("device", "parameters", self.weight * (self._flat + self._frozen))
        if not is_once:  # else they are the weights themselves (`toolkit.engine.lean`)
            held.add(self.states_place, "master weights", self.master * share)
        held.add(self.states_place, "optimizer states", self._moments(share))
        if self.offloads:
            # Their gradients, the rounded weights on their way back, and one parameter's gradient on either side.
            held.add("host", "gradients", self.master * share)
            held.add("host", "staging", self.weight * (share + self.inventory.largest))
            held.add("device", "staging", self.weight * self.inventory.largest)
            if self.pins:  # all but the moments, which the optimizer makes itself
                held.pin(self.master * share)
                held.pin(self.master * share)
                held.pin(self.weight * share)
        self._average(share)
        backward = self._buckets()
        per_gradient, step = 0.0, {}
        is_partitioned = self.zero["stage"] == 2
        is_compact = is_partitioned and (self.sums != self.weight or is_once)
        if is_compact:
            backward["gradients"] = self.sums * share
            # Masters of another format are given a copy in theirs (stage_1_and_2.py, step).
            step["gradients"] = (self.sums + (self.master if self.master != self.sums else 0)) * share
        elif self.offloads:
            if is_partitioned and self.weight == self.sums:
                held.add("host", "gradients", self.weight * self._flat // self.ranks)
            else:
                per_gradient = self._kept_whole
        else:
            # Stage 1 keeps whole gradients until the last micro-batch, and sums of another format beside them; then a rank's own are copied out, and once more
            # into one flat tensor in the format of the masters (stage_1_and_2.py, step).
            per_gradient = 0.0 if is_partitioned else self._kept_whole
            if is_partitioned:
                backward["gradients"] = self.weight * share
            step["gradients"] = 2 * self.sums * share
            if self.master != self.sums:
                step["gradients"] += self.master * share
        bucket = min(int(self.zero["reduce_bucket_size"]), self._trained)
        return States(held, backward, per_gradient, step, self.keeper, first_reduction=bucket)

    @property
    def _kept_whole(self) -> float:
        """Bytes of a whole gradient element that stage 1 keeps until the step."""
        return float(self.weight + (self.sums if self.sums != self.weight else 0))

    def _buckets(self) -> dict[str, int]:
        """The bucket (two where reductions overlap the backward pass) and what a full one is copied to before it is sent."""
        size = min(int(self.zero["reduce_bucket_size"]), max(1, self._trained))
        reserved = int(self.zero["reduce_bucket_size"]) * (2 if self.zero["overlap_comm"] else 1)
        sent = self.weight * size + (self.wire * size if self.wire != self.weight else 0)
        return {"buckets": self.weight * reserved, "reduction": sent if self.zero["stage"] == 2 else 0}

    def _partitioned(self) -> States:
        held = self.held
        split = [(parameter, math.ceil(parameter.numel / self.ranks)) for parameter in self.inventory.parameters]
        share = sum(part for parameter, part in split if parameter.is_trained)
        persistent = self._persistent()
        params_place = {"cpu": "host", "nvme": "nvme"}.get(self.zero.get("offload_param", {}).get("device"), "device")
        held.add(params_place, "parameters", self.weight * sum(part for _, part in split))
        held.add("device", "persistent parameters", self.weight * persistent)
        # Where they lie in the same memory, masters of the weights' format are the weights (`toolkit.engine.lean`).
        lies = {"host", "device"} if self.is_cpu else {self.states_place}
        is_once = self.master == self.weight and params_place in lies and self.states_place in lies
        ratio = float(self.zero.get("offload_optimizer", {}).get("ratio", 1.0))
        for place, part in ((self.states_place, ratio), ("device", 1.0 - ratio)):
            if not is_once:
                held.add(place, "master weights", self.master * share * part)
            held.add(place, "optimizer states", self._moments(share) * part)
        gradients_place = "device" if not self.offloads else "host"
        held.add(gradients_place, "gradients", self.sums * share)
        if self.offloads:
            held.add(self.states_place, "gradients", self.master * share)
        self._average(share)
        if self.pins:
            pieces = max(1, round(share / int(self.zero["sub_group_size"])))
            if self.offloads:
                held.pin(self.sums * share)
            if self.states_place == "host":
                held.pin(self.master * share, pieces)
                held.pin(self.master * share, pieces)
            held.pin(self.weight * share if params_place == "host" else 0, pieces)
        self._swap_buffers(share, params_place, max((part for _, part in split), default=0))
        size = min(int(self.zero["reduce_bucket_size"]), max(1, self._trained))
        held.add("device", "buckets", self.sums * int(self.zero["reduce_bucket_size"]))
        if self._is_muon and self.ranks > 1:
            held.add(gradients_place, "staging", self._muon_buffers())
        # A full bucket is copied into the order of the ranks, and its pieces once more (coalesced_collectives.py).
        backward = {"reduction": 2 * self.wire * size}
        if self.ranks > 1 or params_place != "device":
            # A single rank computes with the parameters where they are (partition_parameters.py, NoGatherHandle).
            backward["gathered parameters"] = self.weight * self._gathered()
        step = {"gradients": self.master * min(share, int(self.zero["sub_group_size"]))}
        return States(held, backward, 0.0, step, self.keeper, first_reduction=size)

    def _swap_buffers(self, share: int, params_place: str, largest: int) -> None:
        """Host memory through which states and parameters go to NVMe and come back (swap_tensor/optimizer_utils.py and
        partitioned_param_swapper.py, with the default counts and sizes of DeepSpeed's configuration)."""
        size = 0
        if self.states_place == "nvme":
            size += SWAP_STATES * 4 * min(share, int(self.zero["sub_group_size"]))
        if params_place == "nvme":
            # Page-locked it is all there; else only what a parameter has been read into.
            size += SWAP_PARAMETERS * self.weight * (PARAMETER_BUFFER if self.pins else min(PARAMETER_BUFFER, largest))
        self.held.add("host", "swap buffers", size)
        if self.pins and size:
            self.held.pin(size)

    def _muon_buffers(self) -> int:
        """What stays of the all-gathers of Muon's gradients and moments: a pair of buffers for each size that occurs, the
        last ones that fit into a limit (stage3.py, _partitioned_buffers_all_gather)."""
        bucket, sub_group = int(self.zero["reduce_bucket_size"]), int(self.zero["sub_group_size"])
        chunks: list[int] = []
        whole = held = 0
        hidden = [
            item for item in self.inventory.parameters if item.is_trained and item.is_matrix and not item.is_embedding
        ]
        for parameter in hidden:
            is_new_group = held >= sub_group
            if not chunks or is_new_group or whole + parameter.numel > bucket:
                chunks.append(0)
                whole = 0
            held = 0 if is_new_group else held
            part = math.ceil(parameter.numel / self.ranks)
            chunks[-1] += part
            whole += parameter.numel
            held += part
        kept = 0
        for size in {chunk: (1 + self.ranks) * chunk * self.wire for chunk in chunks}.values():
            kept += size if size <= MUON_CACHE and kept + size <= MUON_CACHE else 0
        return kept

    def _persistent(self) -> int:
        """Elements of parameters that every rank keeps whole."""
        threshold = int(self.zero["stage3_param_persistence_threshold"])
        small = (parameter.numel for parameter in self.inventory.parameters if parameter.numel < threshold)
        return sum(small) if self.ranks > 1 else 0

    def _gathered(self) -> int:
        """Elements of parameters that are whole at a time: the largest that computes, and what is fetched ahead of the next."""
        largest = max((parameter.numel for parameter in self.inventory.parameters), default=0)
        live = int(self.zero["stage3_max_live_parameters"])
        ahead = int(self.zero["stage3_prefetch_bucket_size"])
        return min(self.inventory.total, max(largest, min(live, largest + ahead)))

    def _average(self, share: int) -> None:
        if self.averages:
            self.held.add("device", "average weights", 4 * share)
