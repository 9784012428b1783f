"""Rules about the ZeRO stage and the keys of zero_optimization."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from toolkit.ds_config.rules.context import Context, Fault, rule
from toolkit.ds_config.schema_zero import GATHER, STAGE3_ALIASES, ZERO_DEFAULTS
from toolkit.ds_config.values import show

ZERO = "zero_optimization"

KEY_STAGES: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(
        ("contiguous_gradients", "reduce_scatter", "reduce_bucket_size", "overlap_comm", "offload_optimizer"), (1, 2, 3)
    ),
    **dict.fromkeys(
        (
            "allgather_bucket_size",
            "allgather_partitions",
            "use_multi_rank_bucket_allreduce",
            "round_robin_gradients",
            "parameter_alignment",
            "ignore_unused_parameters",
            "compute_grad_norm",
        ),
        (1, 2),
    ),
    **dict.fromkeys(
        (
            "offload_param",
            "sub_group_size",
            "zero_hpz_partition_size",
            "zero_quantized_weights",
            "zero_quantized_nontrainable_weights",
            "zero_quantized_gradients",
            "memory_efficient_linear",
            "override_module_apply",
            "log_trace_cache_warnings",
            "enable_sanity_checks",
            "leaf_module",
            "save_muon_momentum_buffer_in_memory",
            *STAGE3_ALIASES,
            *(f"stage3_{name}" for name in STAGE3_ALIASES),
        ),
        (3,),
    ),
}
"""Key of zero_optimization -> the stages that read it (engine.py, _configure_zero_optimizer)."""

OWN_RULE = ("offload_param", "offload_optimizer", "compute_grad_norm")
"""Keys that a rule of their own speaks about."""


@rule(
    "zero-section-missing",
    looks_at=f"{ZERO}, {ZERO}.stage",
    why="without it DeepSpeed trains plain data parallel and says nothing, and accelerate refuses the file (ValueError in "
    "DeepSpeedPlugin)",
    severity="warning",
)
def section_missing(context: Context) -> Iterator[Fault]:
    if context.stage_is_searched:
        return
    if not context.has(ZERO):
        what, expected, do = (
            f"{ZERO} is missing",
            "the section, with its stage",
            f'add "{ZERO}": {{"stage": 0}} or higher',
        )
        if context.training_args is None:
            yield ZERO, f"{what}: DeepSpeed shards nothing", expected, do
        else:
            yield ZERO, f"{what}: accelerate, and so the Trainer, refuses the file", expected, do, "error"
    elif isinstance(context.raw(ZERO), Mapping) and not context.has(f"{ZERO}.stage"):
        what = f"{ZERO}.stage is missing: DeepSpeed takes 0 and shards nothing"
        yield f"{ZERO}.stage", what, "0, 1, 2 or 3", "write the stage"


@rule(
    "zero-as-boolean",
    looks_at=ZERO,
    why="DeepSpeed reads true as stage 1 and warns that the form is old (zero/config.py); accelerate looks for keys in it and "
    "fails",
    severity="warning",
)
def zero_as_boolean(context: Context) -> Iterator[Fault]:
    value = context.raw(ZERO)
    if isinstance(value, bool):
        what, do = f"{ZERO}={show(value)} is the form of old files", f'write "{ZERO}": {{"stage": {int(value)}}}'
        yield ZERO, what, "an object with the stage", do, "warning" if context.training_args is None else "error"


@rule(
    "fp16-at-stage-0",
    looks_at=f"{ZERO}.stage, fp16.enabled, fp16.loss_scale",
    why="stage 0 never multiplies the loss by the scale, yet divides the gradients by it: they come out up to 65,536 times "
    "too small (engine.py, backward scales for ZeROOptimizer alone; run: after 120 steps of SGD 4.85 where fp32 reaches 0.04)",
)
def fp16_at_stage_0(context: Context) -> Iterator[Fault]:
    if context.stage == 0 and not context.stage_is_searched and _is_scaled(context):
        what = (
            f"{ZERO}.stage=0 with {context.dtype_source}: gradients are divided by a loss scale that was never applied"
        )
        yield f"{ZERO}.stage", what, "stage 1, 2 or 3 with fp16, or bf16", "use stage 1; on one rank it costs nothing"


def _is_scaled(context: Context) -> bool:
    """Whether the loss has a scale; a static one of 1 changes nothing."""
    return context.dtype == "fp16" and context.number("fp16.loss_scale", 0) != 1


@rule(
    "stage-0-in-16-bits",
    looks_at=f"{ZERO}.stage, bf16.enabled, fp16.enabled",
    why="DeepSpeed's 16-bit optimizer of stage 0 leaves the loss curve that stages 1-3 share (measured: 5.667 against "
    "5.645 after 8 steps)",
    severity="warning",
)
def stage0_in_16_bits(context: Context) -> Iterator[Fault]:
    if context.stage == 0 and not context.stage_is_searched and context.dtype != "fp32" and not _is_scaled(context):
        what = f"{ZERO}.stage=0 with {context.dtype_source} computes other losses than stages 1, 2 and 3"
        yield f"{ZERO}.stage", what, "stage 1, 2 or 3 with 16-bit parameters", "use stage 1"


@rule(
    "key-of-another-stage",
    looks_at=f"{ZERO}.*",
    why="each ZeRO stage reads its own keys and ignores the others' in silence (engine.py, _configure_zero_optimizer)",
    severity="warning",
)
def key_of_another_stage(context: Context) -> Iterator[Fault]:
    for name, value in context.zero.items():
        stages = KEY_STAGES.get(str(name))
        if stages is None or name in OWN_RULE or context.stage in stages or _says_nothing(str(name), value):
            continue
        if str(name).endswith(GATHER) and context.number("tensor_parallel.autotp_size"):
            continue  # accelerate asks for it with tensor parallelism at every stage
        where = f"{ZERO}.{name}"
        readers = " or ".join(str(stage) for stage in stages)
        yield (
            where,
            f"{where}={show(value)} is ignored at stage {context.stage}",
            f"stage {readers}",
            f"remove {name!r}",
        )


def _says_nothing(name: str, value: Any) -> bool:
    """Whether `value` is what DeepSpeed takes anyway, or is for Hugging Face to fill in where it matters."""
    default = ZERO_DEFAULTS.get(name.removeprefix("stage3_"))
    return value in (None, False, "auto") or (type(value) in (bool, int, float) and value == default)


@rule(
    "allgather-bucket-odd",
    looks_at=f"{ZERO}.allgather_bucket_size",
    why="stages 1 and 2 stop on an odd bucket with a bare AssertionError (stage_1_and_2.py)",
)
def allgather_bucket_odd(context: Context) -> Iterator[Fault]:
    size = context.number(f"{ZERO}.allgather_bucket_size")
    if size is not None and context.stage in (1, 2) and int(size) % 2:
        where = f"{ZERO}.allgather_bucket_size"
        yield where, f"{where}={size:g} is odd", "an even number of elements", f"write {int(size) + 1}"


@rule(
    "compute-grad-norm",
    looks_at=f"{ZERO}.compute_grad_norm, gradient_clipping, offload_optimizer, zenflow, data_types.grad_accum_dtype",
    why="DeepSpeed raises when the norm is switched off and something still needs it; clipping is on by default",
)
def compute_grad_norm(context: Context) -> Iterator[Fault]:
    where = f"{ZERO}.compute_grad_norm"
    if context.raw(where) is not False:
        return
    reasons = {
        f"stage {context.stage}": context.stage not in (1, 2),
        f"gradient_clipping={context.clipping:g}"
        + ("" if context.has("gradient_clipping") else " (its default)"): context.clipping > 0,
        "offload_optimizer": context.optimizer_offload != "none",
        "zenflow": context.raw(f"{ZERO}.zenflow") is not None,
        "bf16 with fp32 gradient sums at stage 1": context.stage == 1
        and (context.dtype, context.accumulation_dtype) == ("bf16", "fp32"),
    }
    for reason, holds in reasons.items():
        if holds:
            expected = (
                "true; or stage 1 or 2, gradient_clipping 0, no offload, no zenflow, no fp32 sums of bf16 at stage 1"
            )
            yield where, f"{where}=false with {reason}", expected, "remove 'compute_grad_norm'"


@rule(
    "prescaled-gradients",
    looks_at=f"prescale_gradients, gradient_predivide_factor, {ZERO}.reduce_scatter",
    why="with reduce-scatter, stages 2 and 3 assert that gradients are not scaled before the reduction",
)
def prescaled_gradients(context: Context) -> Iterator[Fault]:
    if context.stage < 2 or not context.flag(f"{ZERO}.reduce_scatter", True):
        return
    if context.flag("prescale_gradients"):
        what = f"prescale_gradients=true with reduce-scatter at stage {context.stage}"
        yield "prescale_gradients", what, "false", "remove 'prescale_gradients'"
    factor = context.number("gradient_predivide_factor", 1.0)
    if factor not in (None, 1.0):
        what = f"gradient_predivide_factor={factor:g} with reduce-scatter at stage {context.stage}"
        yield "gradient_predivide_factor", what, "1.0", "remove 'gradient_predivide_factor'"


@rule(
    "summed-gradients",
    looks_at=f"gradient_allreduce_op, {ZERO}.stage, {ZERO}.zenflow, compile.deepcompile",
    why="DeepSpeed raises on 'sum' with stage 3, ZenFlow and DeepCompile (runtime/config.py, _do_error_check)",
)
def summed_gradients(context: Context) -> Iterator[Fault]:
    where = "gradient_allreduce_op"
    if (context.text(where) or "mean").lower() != "sum":
        return
    partners = {
        "stage 3": context.stage == 3,
        "zenflow": context.raw(f"{ZERO}.zenflow") is not None,
        "compile.deepcompile=true": context.flag("compile.deepcompile"),
    }
    for partner, present in partners.items():
        if present:
            yield where, f"{where}='sum' with {partner}", "'mean'", f"remove {where!r}"


@rule(
    "quantized-communication",
    looks_at=f"{ZERO}.zero_quantized_*, torch_autocast.enabled, {ZERO}.reduce_scatter",
    why="the quantization kernels exist for CUDA only; autocast and qwZ exclude each other; qgZ needs reduce-scatter",
)
def quantized_communication(context: Context) -> Iterator[Fault]:
    weights, gradients = f"{ZERO}.zero_quantized_weights", f"{ZERO}.zero_quantized_gradients"
    for where in (weights, gradients, f"{ZERO}.zero_quantized_nontrainable_weights"):
        if context.flag(where) and context.on_cpu:
            what = f"{where}=true on a CPU device: its kernel is not implemented there"
            yield where, what, "false on a CPU device", f"remove {where.rpartition('.')[2]!r}"
    if context.flag(weights) and context.flag("torch_autocast.enabled"):
        yield (
            weights,
            f"{weights}=true with torch_autocast.enabled=true",
            "one of the two",
            "use bf16 in place of autocast",
        )
    if context.flag(gradients) and not context.flag(f"{ZERO}.reduce_scatter", True):
        yield gradients, f"{gradients}=true with reduce_scatter=false", "reduce_scatter true", "remove 'reduce_scatter'"


@rule(
    "hpz-partition",
    looks_at=f"{ZERO}.zero_hpz_partition_size",
    why="the secondary partition is a group of equal size on every host, so its size divides the world size",
)
def hpz_partition(context: Context) -> Iterator[Fault]:
    size, where = context.number(f"{ZERO}.zero_hpz_partition_size", 1), f"{ZERO}.zero_hpz_partition_size"
    if context.target is not None and size is not None and size > 1 and context.target.world_size % size:
        what = f"{where}={size:g} does not divide the world size {context.target.world_size}"
        yield where, what, "the number of ranks per host", f"correct {where}"


@rule(
    "zenflow",
    looks_at=f"{ZERO}.zenflow, stage, offload_optimizer, gradient_accumulation_steps",
    why="at stages 1 and 2 DeepSpeed 0.19.8 scrambles every matrix at start (flattened transposed, read back plain); at "
    "stage 3 it needs CUDA; it overwrites gradient_accumulation_steps with update_interval",
)
def zenflow(context: Context) -> Iterator[Fault]:
    where = f"{ZERO}.zenflow"
    if not isinstance(context.raw(where), Mapping):
        return
    if context.stage < 3:
        what = (
            f"{where} at stage {context.stage}: DeepSpeed scrambles the weights"
            if context.stage
            else f"{where} at stage 0"
        )
        yield where, what, "stage 3 on CUDA, or no zenflow", "remove 'zenflow'"
    elif context.on_cpu:
        yield where, f"{where} on a CPU device", "a CUDA device", "remove 'zenflow'"
    elif context.optimizer_offload != "cpu":
        what = f"{where} with offload_optimizer.device={context.optimizer_offload!r}"
        yield where, what, "offload_optimizer.device 'cpu'", 'add "offload_optimizer": {"device": "cpu"}'
    interval, steps = context.number(f"{where}.update_interval"), context.number("gradient_accumulation_steps")
    if interval is not None and steps is not None and interval != steps:
        what = f"{where}.update_interval={interval:g} overwrites gradient_accumulation_steps={steps:g}"
        yield f"{where}.update_interval", what, f"{steps:g}", "make the two equal"


@rule(
    "elastic-checkpoint",
    looks_at=f"{ZERO}.elastic_checkpoint",
    why="elastic checkpoints are no longer supported at stage 3 (zero/config.py); DeepSpeed only warns",
)
def elastic_checkpoint(context: Context) -> Iterator[Fault]:
    where = f"{ZERO}.elastic_checkpoint"
    if context.flag(where) and context.stage == 3:
        yield where, f"{where}=true at stage 3 has no effect", "universal checkpoints", "remove 'elastic_checkpoint'"


@rule(
    "contiguous-gradients",
    looks_at=f"{ZERO}.contiguous_gradients, {ZERO}.offload_optimizer",
    why="stages 1 and 2 switch contiguous gradients on when the optimizer is offloaded, whatever the file says",
)
def contiguous_gradients(context: Context) -> Iterator[Fault]:
    where = f"{ZERO}.contiguous_gradients"
    if context.raw(where) is False and context.stage in (1, 2) and context.optimizer_offload != "none":
        yield where, f"{where}=false is overruled by offload_optimizer", "true", "remove 'contiguous_gradients'"


ZERO_RULES = (
    section_missing,
    zero_as_boolean,
    fp16_at_stage_0,
    stage0_in_16_bits,
    key_of_another_stage,
    allgather_bucket_odd,
    compute_grad_norm,
    prescaled_gradients,
    summed_gradients,
    quantized_communication,
    hpz_partition,
    zenflow,
    elastic_checkpoint,
    contiguous_gradients,
)
