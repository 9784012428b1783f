"""Which formats of master weights and optimizer states DeepSpeed really keeps, and which it refuses or ignores."""

from __future__ import annotations

from toolkit.ds_config.optimizer_block import uses_kernel
from toolkit.ds_config.target import Target
from toolkit.errors import RecipeError
from toolkit.recipe import Recipe

IN_BF16 = ("adam", "adamw")
"""Optimizers that are proven on bf16 masters."""


def check_state_formats(recipe: Recipe, target: Target, dtype: str, stage: int) -> None:
    """Raise RecipeError where precision.master_dtype or precision.state_dtype would not be what is kept.

    `dtype` is the resolved format of the parameters, `stage` the ZeRO stage that is rendered.
    """
    precision, parallel = recipe.precision, recipe.parallel
    if precision.state_dtype == "8bit":
        _check_8bit(recipe)
    if parallel.offload_ratio < 1.0:
        _check_ratio(recipe, target)
    if precision.master_dtype == "fp32":
        if precision.state_dtype == "bf16":
            raise RecipeError(
                "precision.state_dtype='bf16' with precision.master_dtype='fp32'",
                expected="both 'bf16': the optimizer keeps its states in the format of the weights that it updates",
                do="set precision.master_dtype='bf16', or precision.state_dtype='fp32'",
            )
        return
    masters = "precision.master_dtype='bf16'"
    if dtype != "bf16":
        raise RecipeError(
            f"{masters} with parameters in {dtype} (precision.dtype={recipe.precision.dtype!r} on this {target.device} device)",
            expected="parameters in bf16",
            do="set precision.dtype='bf16', or precision.master_dtype='fp32'",
        )
    if recipe.optimizer.type not in IN_BF16:
        raise RecipeError(
            f"{masters} with optimizer.type={recipe.optimizer.type!r}",
            expected=f"{' or '.join(IN_BF16)}: the others are not proven on bf16 weights",
            do="set precision.master_dtype='fp32', or optimizer.type='adamw'",
        )
    if parallel.offload_optimizer == "nvme":
        raise RecipeError(
            f"{masters} with parallel.offload_optimizer='nvme'",
            expected="'none' or 'cpu': swapping of bf16 states to a disk is not proven",
            do="set parallel.offload_optimizer='cpu', or precision.master_dtype='fp32'",
        )
    if parallel.offload_optimizer != "none":
        _check_host_kernel(recipe, target)
    elif precision.state_dtype == "fp32":
        raise RecipeError(
            f"{masters} with precision.state_dtype={precision.state_dtype!r} and parallel.offload_optimizer='none'",
            expected="states in bf16 too: only DeepSpeed's Adam for offloaded states keeps fp32 states of bf16 weights",
            do="set precision.state_dtype='bf16' or '8bit', or parallel.offload_optimizer='cpu'",
        )
    elif stage == 1 and precision.accumulation_dtype == "fp32":
        # runtime/engine.py, _do_optimizer_sanity_check: BF16_Optimizer, which never reads bf16_master_weights_and_grads.
        raise RecipeError(
            f"{masters} with ZeRO stage 1 and precision.accumulation_dtype='fp32'",
            expected="another stage or accumulation_dtype='bf16': here DeepSpeed keeps fp32 masters and states, in silence",
            do="set precision.accumulation_dtype='bf16'"
            if parallel.pipeline > 1
            else "set parallel.zero_stage=2, or precision.accumulation_dtype='bf16'",
        )


def _check_ratio(recipe: Recipe, target: Target) -> None:
    """What stays on the device is updated by torch's AdamW, whatever the optimizer (runtime/zero/stage3.py, partial_offload)."""
    optimizer, precision = recipe.optimizer, recipe.precision
    ratio = f"parallel.offload_ratio={recipe.parallel.offload_ratio}"
    if optimizer.type != "adamw" or not uses_kernel(recipe, target):
        raise RecipeError(
            f"{ratio} with optimizer.type={optimizer.type!r} and optimizer.implementation={optimizer.implementation!r}"
            + ("" if target.compiler else ", without a C++ compiler"),
            expected="adamw by DeepSpeed's kernel: for a part of the states it asserts that one and runs AdamW on the rest",
            do="set optimizer.type='adamw' and optimizer.implementation='deepspeed' (it needs g++), or parallel.offload_ratio=1.0",
        )
    if precision.master_dtype != precision.state_dtype:
        raise RecipeError(
            f"{ratio} with precision.master_dtype={precision.master_dtype!r} and precision.state_dtype={precision.state_dtype!r}",
            expected="the same format: on the device AdamW keeps its states in that of the weights",
            do=f"set precision.state_dtype={precision.master_dtype!r}, or parallel.offload_ratio=1.0",
        )


def _check_8bit(recipe: Recipe) -> None:
    states = "precision.state_dtype='8bit'"
    if recipe.parallel.offload_optimizer != "none":
        raise RecipeError(
            f"{states} with parallel.offload_optimizer={recipe.parallel.offload_optimizer!r}",
            expected="'none': in host memory 8-bit states would cost the processor more time than they save",
            do="set parallel.offload_optimizer='none', or precision.state_dtype='fp32'",
        )
    if recipe.optimizer.implementation == "deepspeed":
        raise RecipeError(
            f"{states} with optimizer.implementation='deepspeed'",
            expected="'auto' or 'torch': DeepSpeed has no Adam with 8-bit states",
            do="set optimizer.implementation='auto'",
        )


def _check_host_kernel(recipe: Recipe, target: Target) -> None:
    if uses_kernel(recipe, target):
        return
    raise RecipeError(
        f"precision.master_dtype='bf16' with parallel.offload_optimizer={recipe.parallel.offload_optimizer!r}, "
        f"optimizer.type={recipe.optimizer.type!r} and optimizer.implementation={recipe.optimizer.implementation!r}"
        + ("" if target.compiler else ", without a C++ compiler"),
        expected="adam or adamw by DeepSpeed's kernel: no other keeps offloaded bf16 weights",
        do="set optimizer.type='adamw' and optimizer.implementation='deepspeed' (it needs g++), or precision.master_dtype='fp32'",
    )
