"""What DeepSpeed's ZeRO optimizers keep twice in fp32, kept once.

Written for 16-bit weights, they hold fp32 masters beside the weights and gather a step's gradients in one buffer after
another. Where weights and gradients are fp32 themselves, on the same device, master and weight can be one tensor, and
gradients can be summed where the step reads them, as the optimizers do for 16 bits.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


def keep_once(optimizer: Any) -> None:
    """Let `optimizer`, a ZeRO optimizer of DeepSpeed that has not stepped yet, hold nothing twice; others are left alone."""
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        for master, weights in zip(
            optimizer.fp32_partitioned_groups_flat, optimizer.fp16_partitioned_groups_flat, strict=True
        ):
            _share(master, weights)
    elif (
        hasattr(optimizer, "single_partition_of_fp32_groups") and not optimizer.cpu_offload and not _has_muon(optimizer)
    ):
        _keep_once_below_stage_3(optimizer)


def _has_muon(optimizer: Any) -> bool:
    # It keeps whole matrices of its own, and its groups would need DeepSpeed's buffers anyway.
    return any(optimizer._is_muon_group(parameters) for parameters in optimizer.params_in_partition if parameters)


def _keep_once_below_stage_3(optimizer: Any) -> None:
    shared = False
    for index, master in enumerate(optimizer.single_partition_of_fp32_groups):
        rank = dist.get_rank(optimizer.real_dp_process_group[index])
        shared |= _share(master, optimizer.parallel_partitioned_bit16_groups[index][rank])
    if not shared:
        return
    # Each parameter knows its fragment of the master as a view.
    optimizer._link_all_hp_params()
    if optimizer.partition_gradients:
        # DeepSpeed sums fp32 gradients of 16-bit weights where the step reads them, but clones those of fp32 weights
        # each micro-batch and once more for the step (stage_1_and_2.py, _use_compact_grad_partition_buffer).
        optimizer._use_compact_grad_partition_buffer = lambda _index: True


def _share(master: torch.Tensor, weights: torch.Tensor | None) -> bool:
    """Whether `master` could take the memory of `weights` in the place of its own."""
    if weights is None or (master.dtype, master.device, master.numel()) != (
        weights.dtype,
        weights.device,
        weights.numel(),
    ):
        return False
    master.data = weights.detach()
    return True
