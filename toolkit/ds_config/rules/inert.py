"""Rules about sections that do nothing, or break, where a stock Hugging Face model is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from toolkit.ds_config.edits import remove
from toolkit.ds_config.rules.context import Context, Fault, rule
from toolkit.ds_config.values import exact, show


@rule(
    "activation-checkpointing-inert",
    looks_at="activation_checkpointing",
    why="DeepSpeed applies it only where a model calls deepspeed.checkpointing itself; Hugging Face models do not",
    severity="warning",
)
def activation_checkpointing_inert(context: Context) -> Iterator[Fault]:
    section = context.raw("activation_checkpointing")
    if isinstance(section, Mapping) and any(section.values()):
        what = "activation_checkpointing has no effect on a Hugging Face model"
        do = "remove the section; use model.activation_checkpointing (Trainer: gradient_checkpointing)"
        yield "activation_checkpointing", what, "the model's own checkpointing", do


@rule(
    "checkpoint-writer",
    looks_at="checkpoint.writer",
    why="every writer fails when the first checkpoint is saved: KeyError 'CROSS_SIZE' under torchrun, then "
    "AttributeError 'dp_rank' under the deepspeed launcher (run, DeepSpeed 0.19.8)",
)
def checkpoint_writer(context: Context) -> Iterator[Fault]:
    if context.raw("checkpoint.writer") is not None:
        what = "checkpoint.writer is written: DeepSpeed fails when it saves"
        yield "checkpoint.writer", what, "no writer section", "remove 'writer'"


@rule(
    "datastates-enabled",
    looks_at="datastates_ckpt",
    why='any value but false switches it on, also {"enabled": false} (datastates/config.py)',
)
def datastates_enabled(context: Context) -> Iterator[Fault]:
    value = context.raw("datastates_ckpt")
    if context.has("datastates_ckpt") and value is not False:
        what = f"datastates_ckpt={show(value)} switches DataStates checkpoints on"
        off = value is None or (isinstance(value, Mapping) and value.get("enabled") is False)
        fix = (remove("datastates_ckpt"),) if off else ()
        yield "datastates_ckpt", what, "false, or no such key", "remove 'datastates_ckpt'", *fix


@rule(
    "data-efficiency-inert",
    looks_at="data_efficiency.enabled",
    why="it acts in the data loader that DeepSpeed builds from training_data=, which neither the Trainer nor this "
    "toolkit uses",
    severity="warning",
)
def data_efficiency_inert(context: Context) -> Iterator[Fault]:
    section, enabled = context.raw("data_efficiency"), context.flag("data_efficiency.enabled")
    if enabled:
        what = "data_efficiency.enabled=true has no effect without DeepSpeed's own data loader"
        yield "data_efficiency.enabled", what, "false", "remove 'data_efficiency'"
    for part in ("data_sampling", "data_routing"):
        where = f"data_efficiency.{part}.enabled"
        if isinstance(section, Mapping) and not enabled and context.flag(where):
            yield where, f"{where}=true under data_efficiency.enabled=false", "both or neither", f"remove {part!r}"


NEVER_READ: dict[str, Any] = {
    "disable_allgather": False,
    "zero_optimization.allgather_partitions": True,
    "tensor_parallel.partition_config.embedding_partition_dim": 1,
    "autotuning.min_train_batch_size": 1,
}
"""Keys that DeepSpeed stores and reads nowhere -> the value by which nothing is asked for."""


@rule(
    "never-read",
    looks_at=", ".join(NEVER_READ),
    why="DeepSpeed 0.19.8 takes the key and no line of it looks at the value",
)
def never_read(context: Context) -> Iterator[Fault]:
    for where, nothing in NEVER_READ.items():
        value = context.raw(where)
        if context.has(where) and value not in (nothing, None):
            name = where.rpartition(".")[2]
            yield (
                where,
                f"{where}={show(value)} changes nothing: DeepSpeed never reads it",
                "no such key",
                f"remove {name!r}",
                remove(where),
            )


@rule(
    "pipeline-keys-unused",
    looks_at="pipeline.{stages, partition, seed_layers}",
    why="DeepSpeed stores them and never reads them; stages come from the PipelineModule (runtime/pipe/engine.py)",
)
def pipeline_keys_unused(context: Context) -> Iterator[Fault]:
    for name in ("stages", "partition", "seed_layers"):
        where = f"pipeline.{name}"
        if context.has(where):
            yield (
                where,
                f"{where}={show(context.raw(where))} is never read",
                "nothing",
                f"remove {name!r}",
                remove(where),
            )


@rule(
    "pipeline-limits",
    looks_at="pipeline, zero_optimization.stage, wall_clock_breakdown, flops_profiler.enabled",
    why="pipelines assert stage 0 or 1; timers stop with 'bwd_microstep timer has already been started' (run); clipping "
    "at stage 0 takes the norm per pipeline stage (measured)",
)
def pipeline_limits(context: Context) -> Iterator[Fault]:
    if not isinstance(context.raw("pipeline"), Mapping):
        return
    where = "zero_optimization.stage"
    if context.stage > 1:
        yield where, f"{where}={context.stage} with a pipeline", "1", "use stage 1"
    if context.stage == 0 and context.clipping > 0:
        what = f"{where}=0 with a pipeline and gradient_clipping={exact(context.clipping)}: each stage clips by its own norm"
        yield where, what, "stage 1, or gradient_clipping 0.0", "use stage 1"
    for timer in ("wall_clock_breakdown", "flops_profiler.enabled"):
        if context.flag(timer):
            yield (
                timer,
                f"{timer}=true with a pipeline: DeepSpeed stops in the first step",
                "false",
                f"remove {timer!r}",
            )


@rule(
    "managed-accumulation",
    looks_at="managed_gradient_accumulation, pipeline, compile.deepcompile, zero_optimization.overlap_comm",
    why="false makes every step() an update: accelerate and the Trainer set the boundary themselves and fail, and "
    "DeepSpeed asserts no pipeline, no DeepCompile and overlap_comm at stage 2 or 3 only (engine.py, _do_sanity_check)",
)
def managed_accumulation(context: Context) -> Iterator[Fault]:
    where = "managed_gradient_accumulation"
    if context.raw(where) is not False:
        return
    partners = {
        "the Hugging Face Trainer": context.training_args is not None,
        "compile.deepcompile=true": context.flag("compile.deepcompile"),
        "a pipeline": isinstance(context.raw("pipeline"), Mapping),
        f"overlap_comm=true at stage {context.stage}": context.stage < 2
        and context.flag("zero_optimization.overlap_comm"),
    }
    for partner, present in partners.items():
        if present:
            yield where, f"{where}=false with {partner}", "true", f"remove {where!r}"


@rule(
    "managed-accumulation-scale",
    looks_at="managed_gradient_accumulation, gradient_accumulation_steps",
    why="backward() divides each loss by gradient_accumulation_steps, however many of them come before step(), unless it is told "
    "scale_wrt_gas=False (engine.py, backward)",
    severity="warning",
)
def managed_accumulation_scale(context: Context) -> Iterator[Fault]:
    where, steps = "managed_gradient_accumulation", "gradient_accumulation_steps"
    if context.raw(where) is False and not context.has(steps):
        what = f"{steps} is missing with {where}=false: backward() divides no loss, and micro-batches are summed"
        do = f"write {steps!r}: as many as backward() is called before step()"
        yield steps, what, "the micro-batches that the script takes for one update", do


@rule(
    "pipeline-unread",
    looks_at="pipeline",
    why="the Trainer builds no PipelineModule, and nothing else reads the section (engine.py, pipe/engine.py)",
)
def pipeline_unread(context: Context) -> Iterator[Fault]:
    if context.training_args is not None and context.has("pipeline"):
        what = "pipeline is ignored: the Trainer trains without pipeline parallelism"
        yield "pipeline", what, "no such section", "remove it, or use a script that builds a PipelineModule"


@rule(
    "deepcompile",
    looks_at="compile.*, zero_optimization.stage, tensor_parallel.autotp_size",
    why="DeepCompile works on stages 1-3, its AutoSP pass on 0 and 1, its AutoTP pass with autotp_size alone; elsewhere "
    "DeepSpeed falls back to torch.compile with a line in its log. Its offload passes replace one another (engine.py, compile)",
)
def deepcompile(context: Context) -> Iterator[Fault]:
    if not context.flag("compile.deepcompile"):
        return
    passes = context.raw("compile.passes")
    passes = passes if isinstance(passes, list) else []
    stage, asked = context.stage, "compile.deepcompile=true"
    if "autotp" in passes:
        if set(passes) & {"autosp", "z1", "z3"}:
            yield (
                "compile.passes",
                f"compile.passes={show(passes)}: autotp combines with no other",
                '["autotp"]',
                "keep one",
            )
        if (context.number("tensor_parallel.autotp_size", 0) or 0) <= 1:
            what = "compile.passes with autotp and no tensor_parallel.autotp_size above 1 falls back to torch.compile"
            yield "compile.passes", what, "autotp_size 2 or more", "remove the pass, or write autotp_size"
    elif "autosp" in passes:
        if stage > 1:
            what = f"compile.passes with autosp at stage {stage} falls back to torch.compile"
            yield "compile.passes", what, "stage 0 or 1", "use stage 1, or remove the pass"
    elif stage == 0:
        yield "compile.deepcompile", f"{asked} at stage 0 falls back to torch.compile", "stage 1, 2 or 3", "use stage 1"
    offloads = [name for name in ("activation", "opt_states", "parameters") if context.flag(f"compile.offload_{name}")]
    if len(offloads) > 1:
        names = " and ".join(f"compile.offload_{name}" for name in offloads)
        yield f"compile.offload_{offloads[0]}", f"{names} are both true", "one of them", f"keep offload_{offloads[0]}"


INERT_RULES = (
    activation_checkpointing_inert,
    checkpoint_writer,
    datastates_enabled,
    data_efficiency_inert,
    never_read,
    pipeline_keys_unused,
    pipeline_limits,
    managed_accumulation,
    managed_accumulation_scale,
    pipeline_unread,
    deepcompile,
)
