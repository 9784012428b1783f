"""Rules about number formats and gradient clipping."""

from __future__ import annotations

from collections.abc import Iterator

from toolkit.ds_config.edits import write
from toolkit.ds_config.rules.context import Context, Fault, rule
from toolkit.ds_config.rules.trainer_values import argument
from toolkit.ds_config.schema_formats import NUMBER_FORMATS
from toolkit.ds_config.values import exact, show

MASTER = "bf16.bf16_master_weights_and_grads"
STATES = "bf16.bf16_optimizer_states"
MASTER_FP16 = "fp16.fp16_master_weights_and_grads"
SUMS = "data_types.grad_accum_dtype"

DEFAULT_CLIPPING = 1.0
"""What DeepSpeed clips at where nothing is written (runtime/constants.py)."""


@rule(
    "clipping-unwritten",
    looks_at="gradient_clipping",
    why="absent, DeepSpeed clips at 1.0, also when the Trainer is told max_grad_norm=0 (constants.py; run)",
    severity="warning",
)
def clipping_unwritten(context: Context) -> Iterator[Fault]:
    if context.has("gradient_clipping") or context.is_made:  # of which accelerate-clipping speaks
        return
    where, expected, do = "gradient_clipping", "the norm to clip at, or 0.0 for never", 'write "gradient_clipping"'
    what = f"{where} is missing: DeepSpeed clips the gradient norm at {DEFAULT_CLIPPING}"
    norm = None if context.training_args is None else argument(context.training_args, "max_grad_norm")
    if norm is None or norm == DEFAULT_CLIPPING:
        yield where, what, expected, do
    else:
        do = f'write "{where}": "auto", which becomes max_grad_norm'
        told = f"{what}, whatever max_grad_norm={show(norm)} says"
        yield where, told, expected, do, "error", write(where, "auto")


@rule(
    "fp16-and-bf16",
    looks_at="fp16.enabled, bf16.enabled",
    why="DeepSpeed asserts that at most one of the two is enabled (runtime/config.py)",
)
def fp16_and_bf16(context: Context) -> Iterator[Fault]:
    for name, enabled in (("bf16", context.flag("bf16.enabled")), ("bfloat16", context.old_bf16)):
        if context.flag("fp16.enabled") and enabled:
            yield "fp16.enabled", f"fp16.enabled=true and {name}.enabled=true", "one of the two", "disable fp16"


@rule(
    "autocast-and-16-bits",
    looks_at="torch_autocast.enabled, fp16.enabled, bf16.enabled",
    why="DeepSpeed accepts both in silence: parameters are cast to 16 bits and autocast runs on top (run)",
)
def autocast_and_16_bits(context: Context) -> Iterator[Fault]:
    # With masters in bf16, autocast is the way that DeepSpeed's documentation shows.
    if context.flag("torch_autocast.enabled") and context.dtype != "fp32" and not context.flag(MASTER):
        what = f"torch_autocast.enabled=true with {context.dtype_source}"
        yield "torch_autocast.enabled", what, "one of the two", f"disable torch_autocast or {context.dtype}"


@rule(
    "autocast-dtype",
    looks_at="torch_autocast.dtype",
    why="without it torch picks the device's default (bf16 on a CPU, fp16 on CUDA), so results depend on the machine",
    severity="warning",
)
def autocast_dtype(context: Context) -> Iterator[Fault]:
    if context.flag("torch_autocast.enabled") and not context.has("torch_autocast.dtype"):
        what = "torch_autocast.dtype is missing: the device decides"
        yield "torch_autocast.dtype", what, "'bfloat16' or 'float16'", "write 'dtype'"


@rule(
    "device-number-format",
    looks_at="fp16.enabled, bf16.enabled, torch_autocast.dtype",
    why="DeepSpeed raises at start when the device does not compute in the format (engine.py, _do_sanity_check)",
)
def device_number_format(context: Context) -> Iterator[Fault]:
    if context.target is None:
        return
    for dtype, supported in (("bf16", context.target.bf16), ("fp16", context.target.fp16)):
        if context.dtype == dtype and not supported:
            what = f"{context.dtype_source} on a {context.target.device} device that does not compute in {dtype}"
            yield f"{dtype}.enabled", what, "a format of this device", f"disable {dtype}"


@rule(
    "accumulation-dtype-unwritten",
    looks_at=f"{SUMS}, gradient_accumulation_steps, fp16.enabled, bf16.enabled",
    why="absent, micro-batch gradients are summed in the parameters' 16 bits, which drops small ones (engine.py)",
    severity="warning",
)
def accumulation_dtype_unwritten(context: Context) -> Iterator[Fault]:
    steps = context.number("gradient_accumulation_steps", 1)
    if context.dtype != "fp32" and steps is not None and steps > 1 and context.raw(SUMS) is None:
        what = f"{SUMS} is missing: {exact(steps)} micro-batches are summed in {context.dtype}"
        yield SUMS, what, f"'fp32', or '{context.dtype}' on purpose", f'write "data_types": {{"{SUMS[11:]}": "fp32"}}'


@rule(
    "loss-scale-range",
    looks_at="fp16.enabled, fp16.loss_scale, fp16.loss_scale_window, fp16.min_loss_scale, fp16.hysteresis",
    why="a dynamic loss scale divides by its window and collapses below its floor; with a static scale DeepSpeed does not "
    "look at either (precision_config.py)",
)
def loss_scale_range(context: Context) -> Iterator[Fault]:
    if not context.flag("fp16.enabled") or context.number("fp16.loss_scale", 0) != 0:
        return
    for name in ("loss_scale_window", "min_loss_scale", "hysteresis"):
        where = f"fp16.{name}"
        value = context.number(where, 1)
        if value is not None and value < 1:
            what = f"{where}={exact(value)} with a dynamic loss scale (fp16.loss_scale is 0)"
            yield where, what, "an integer >= 1", f"correct {name!r}, or write a static loss_scale"


@rule(
    "accumulation-dtype-at-stage-0",
    looks_at=f"{SUMS}, zero_optimization.stage",
    why="stage 0 raises NotImplementedError when gradients are summed in another format than the parameters' (engine.py)",
)
def accumulation_dtype_at_stage_0(context: Context) -> Iterator[Fault]:
    if context.stage == 0 and context.accumulation_dtype != context.dtype:
        what = f"{SUMS}={context.raw(SUMS)!r} with {context.dtype} parameters at stage 0"
        yield SUMS, what, f"'{context.dtype}' at stage 0", f"write '{context.dtype}', or use stage 1"


@rule(
    "param-dtype",
    looks_at="data_types.param_dtype, fp16.enabled, bf16.enabled",
    why="DeepSpeed asserts that it equals the enabled format (engine.py, _assert_valid_mixed_precision_config)",
)
def param_dtype(context: Context) -> Iterator[Fault]:
    where = "data_types.param_dtype"
    written = NUMBER_FORMATS.get(context.text(where) or "", context.dtype)
    if written != context.dtype:
        what = f"{where}={context.raw(where)!r} while the enabled format is {context.dtype}"
        yield where, what, f"'{context.dtype}', or nothing", "remove 'param_dtype'"


@rule(
    "low-precision-masters",
    looks_at=f"{MASTER}, {STATES}, {MASTER_FP16}, {SUMS}, offload_optimizer, optimizer.type",
    why="DeepSpeed asserts stage 1-3, and its CPU Adam with offload unless the bf16 states are low precision as well; at "
    "stage 1 with fp32 gradient sums its BF16_Optimizer keeps fp32 masters all the same, in silence (run)",
)
def low_precision_masters(context: Context) -> Iterator[Fault]:
    for where in (MASTER, STATES, MASTER_FP16):
        if context.flag(where) and context.stage == 0:
            yield where, f"{where}=true at stage 0", "stage 1, 2 or 3", "set zero_optimization.stage to 1 or higher"
    if context.flag(STATES) and not context.flag(MASTER):
        yield STATES, f"{STATES}=true without {MASTER}", "both", "enable 'bf16_master_weights_and_grads' too"
    host_adam = context.optimizer_offload == "cpu" and context.optimizer_class in (None, "DeepSpeedCPUAdam")
    for where, alone in ((MASTER, not context.flag(STATES)), (MASTER_FP16, True)):
        if context.flag(where) and alone and context.stage and not host_adam:
            what = f"{where}=true without offload to DeepSpeed's CPU Adam"
            do = "enable 'bf16_optimizer_states' too" if where == MASTER else f"remove {where.rpartition('.')[2]!r}"
            yield where, what, "offload_optimizer.device 'cpu' with Adam or AdamW, torch_adam false", do
    is_bf16_optimizer = context.stage == 1 and (context.dtype, context.accumulation_dtype) == ("bf16", "fp32")
    if context.flag(MASTER) and context.flag(STATES) and is_bf16_optimizer and context.optimizer_offload == "none":
        what = f"{MASTER}=true at stage 1 with {SUMS} fp32: masters and states stay in fp32"
        yield MASTER, what, "stage 2 or 3, or gradients summed in bf16", f"use stage 2, or write 'bf16' for {SUMS}"


PRECISION_RULES = (
    clipping_unwritten,
    fp16_and_bf16,
    autocast_and_16_bits,
    autocast_dtype,
    device_number_format,
    accumulation_dtype_unwritten,
    loss_scale_range,
    accumulation_dtype_at_stage_0,
    param_dtype,
    low_precision_masters,
)
