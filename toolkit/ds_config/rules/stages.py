"""Rules about the ZeRO stage: whether it is written, what it computes, and which keys it reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from toolkit.ds_config.edits import write
from toolkit.ds_config.findings import Severity
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
        if not context.for_hugging_face:
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
        graver: Severity = "error" if context.for_hugging_face else "warning"
        yield ZERO, what, "an object with the stage", do, graver, write(ZERO, {"stage": int(value)})


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


STAGE_RULES = (
    section_missing,
    zero_as_boolean,
    fp16_at_stage_0,
    stage0_in_16_bits,
    key_of_another_stage,
)
