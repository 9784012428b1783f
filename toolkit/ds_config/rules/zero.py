"""Rules about the keys of zero_optimization and what they do with one another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from toolkit.ds_config.edits import remove, write
from toolkit.ds_config.rules.context import Context, Fault, rule
from toolkit.ds_config.values import exact

ZERO = "zero_optimization"


@rule(
    "allgather-bucket-odd",
    looks_at=f"{ZERO}.allgather_bucket_size",
    why="stages 1 and 2 stop on an odd bucket with a bare AssertionError (stage_1_and_2.py)",
)
def allgather_bucket_odd(context: Context) -> Iterator[Fault]:
    size = context.number(f"{ZERO}.allgather_bucket_size")
    if size is not None and context.stage in (1, 2) and int(size) % 2:
        where = f"{ZERO}.allgather_bucket_size"
        even = int(size) + 1
        yield where, f"{where}={exact(size)} is odd", "an even number of elements", f"write {even}", write(where, even)


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
        f"gradient_clipping={exact(context.clipping)}"
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
        what = f"gradient_predivide_factor={exact(factor)} with reduce-scatter at stage {context.stage}"
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
        what = f"{where}={exact(size)} does not divide the world size {context.target.world_size}"
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
        what = f"{where}.update_interval={exact(interval)} overwrites gradient_accumulation_steps={exact(steps)}"
        yield f"{where}.update_interval", what, f"{exact(steps)}", "make the two equal"


@rule(
    "elastic-checkpoint",
    looks_at=f"{ZERO}.elastic_checkpoint",
    why="elastic checkpoints are no longer supported at stage 3 (zero/config.py); DeepSpeed only warns",
)
def elastic_checkpoint(context: Context) -> Iterator[Fault]:
    where = f"{ZERO}.elastic_checkpoint"
    if context.flag(where) and context.stage == 3:
        yield (
            where,
            f"{where}=true at stage 3 has no effect",
            "universal checkpoints",
            "remove 'elastic_checkpoint'",
            remove(where),
        )


@rule(
    "contiguous-gradients",
    looks_at=f"{ZERO}.contiguous_gradients, {ZERO}.offload_optimizer",
    why="stages 1 and 2 switch contiguous gradients on when the optimizer is offloaded, whatever the file says",
)
def contiguous_gradients(context: Context) -> Iterator[Fault]:
    where = f"{ZERO}.contiguous_gradients"
    if context.raw(where) is False and context.stage in (1, 2) and context.optimizer_offload != "none":
        yield (
            where,
            f"{where}=false is overruled by offload_optimizer",
            "true",
            "remove 'contiguous_gradients'",
            remove(where),
        )


ZERO_RULES = (
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
