"""Recipe + target -> the one DeepSpeed configuration. Pure: same input, same dict; nothing is "auto"."""

from __future__ import annotations

from typing import Any

from toolkit.ds_config.model_size import LARGEST, UNKNOWN, ModelSize
from toolkit.ds_config.optimizer_block import needs_untested_flag, optimizer_block, wants_host_optimizer
from toolkit.ds_config.target import Target
from toolkit.errors import RecipeError
from toolkit.recipe import Batch, Parallel, Recipe
from toolkit.recipe.mesh import Mesh, mesh_of


def render(recipe: Recipe, target: Target, size: ModelSize = UNKNOWN) -> dict[str, Any]:
    """The DeepSpeed configuration of `recipe` on `target`, with integers everywhere.

    `size` is that of the model, which buckets follow; away from the model's files it is taken for one of billions.
    Raises RecipeError when the batch does not divide or the device cannot do what the recipe asks.
    """
    mesh = mesh_of(recipe.parallel, target.world_size)
    dtype = resolved_dtype(recipe, target)
    stage = effective_stage(recipe, dtype)
    config: dict[str, Any] = {
        "train_batch_size": recipe.batch.global_size,
        "train_micro_batch_size_per_gpu": recipe.batch.micro_size,
        "gradient_accumulation_steps": accumulation_steps(recipe, mesh),
        # Absent, DeepSpeed clips at 1.0; 0.0 means never.
        "gradient_clipping": recipe.optimizer.max_grad_norm,
        "optimizer": optimizer_block(recipe, target, stage),
    }
    scheduler = scheduler_block(recipe)
    if scheduler is not None:
        config["scheduler"] = scheduler
    config |= _precision(recipe, dtype)
    config["zero_optimization"] = _zero(recipe, target, stage, size)
    if stage and needs_untested_flag(recipe):
        config["zero_allow_untested_optimizer"] = True
    if "nvme" in (recipe.parallel.offload_optimizer, recipe.parallel.offload_param):
        config["aio"] = {
            "block_size": 1048576,
            "queue_depth": 8,
            "intra_op_parallelism": 1,
            "single_submit": False,
            "overlap_events": True,
        }
    if mesh.sequence > 1:
        config["sequence_parallel_size"] = mesh.sequence
    if mesh.pipeline > 1:
        # Partitioned activations would be gathered again at once, since every tensor-parallel rank needs all of them.
        config["pipeline"] = {"pipe_partitioned": False, "grad_partitioned": False}
    config["wall_clock_breakdown"] = False
    return config


def resolved_dtype(recipe: Recipe, target: Target) -> str:
    """The number format, with "auto" decided by the target."""
    dtype = recipe.precision.dtype
    if dtype == "auto":
        return "bf16" if target.bf16 and target.bf16_is_native else "fp32"
    if not getattr(target, dtype, True):
        raise RecipeError(
            f"precision.dtype={dtype!r} on this {target.device} device",
            expected="a number format that the device computes in",
            do="set precision.dtype='auto', or another one of fp32, bf16, fp16",
        )
    return dtype


def effective_stage(recipe: Recipe, dtype: str) -> int:
    """The ZeRO stage that is rendered: the recipe's, except that stage 0 in 16 bits or in a pipeline runs as stage 1."""
    # DeepSpeed's 16-bit stage 0 takes an optimizer step on zero gradients when it is built, which shifts Adam's
    # bias correction and decays the weights (runtime/fp16/fused_optimizer.py, initialize_optimizer_states): its
    # loss curve leaves that of stages 1-3. In a pipeline, stage 0 clips by the norm of each stage's own gradients.
    # Stage 1 computes the same update without either.
    stage = recipe.parallel.zero_stage
    return 1 if stage == 0 and (dtype != "fp32" or recipe.parallel.pipeline > 1) else stage


def accumulation_steps(recipe: Recipe, mesh: Mesh) -> int:
    """Micro-batches per rank and optimizer step: batch.global_size / (batch.micro_size x data-parallel ranks)."""
    per_pass = recipe.batch.micro_size * mesh.data
    steps, rest = divmod(recipe.batch.global_size, per_pass)
    if rest:
        ranks = "world size" if mesh.is_plain else f"data-parallel ranks ({mesh.describe()})"
        raise RecipeError(
            f"batch.global_size={recipe.batch.global_size} is not a multiple of batch.micro_size x {ranks} = "
            f"{recipe.batch.micro_size} x {mesh.data} = {per_pass}",
            expected=f"a multiple of {per_pass}",
            do=_dividing_batch(recipe.batch, mesh.data),
        )
    return steps


def _dividing_batch(batch: Batch, replicas: int) -> str:
    """What to do about a batch that the replicas cannot share; a smaller micro-batch keeps the batch and comes first."""
    per_pass = batch.micro_size * replicas
    lower = batch.global_size // per_pass * per_pass
    nearest = " or ".join(str(size) for size in (lower, lower + per_pass) if size)
    micro = batch.dividing_micro_size(replicas)
    smaller = f"pass --batch.micro_size {micro} (the same batch), " if micro else ""
    return f"{smaller}set batch.global_size to {nearest}, or start another number of processes"


def scheduler_block(recipe: Recipe) -> dict[str, Any] | None:
    """DeepSpeed's own schedule where it can be made exact; None where torch's LambdaLR runs the closed form."""
    # WarmupLR and WarmupDecayLR spend two steps at the minimum; engine/schedule.py advances them by one, which makes
    # them equal to the closed form. Their warm-up cannot be shorter than two steps (runtime/lr_schedules.py).
    schedule = recipe.schedule
    ramp: dict[str, Any] = {
        "warmup_min_lr": 0.0,
        "warmup_max_lr": recipe.optimizer.learning_rate,
        "warmup_num_steps": schedule.warmup_steps,
        "warmup_type": "linear",
    }
    if schedule.warmup_steps < 2 or _has_two_rates(recipe):
        return None
    if schedule.type == "constant":
        return {"type": "WarmupLR", "params": ramp}
    if schedule.type == "linear" and schedule.min_ratio == 0.0 and recipe.steps is not None:
        return {"type": "WarmupDecayLR", "params": {"total_num_steps": recipe.steps, **ramp}}
    return None


def _has_two_rates(recipe: Recipe) -> bool:
    return recipe.optimizer.type == "muon" and recipe.optimizer.adam_learning_rate is not None


def _precision(recipe: Recipe, dtype: str) -> dict[str, Any]:
    precision = recipe.precision
    if dtype == "fp32":
        return {"data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"}
    sums = "fp32" if precision.accumulation_dtype == "fp32" else dtype
    shared = {"data_types": {"grad_accum_dtype": sums}, "communication_data_type": sums}
    if dtype == "bf16":
        return {"bf16": {"enabled": True, "check_grad_overflow": True}, **shared}
    return {
        "fp16": {
            "enabled": True,
            "loss_scale": 0.0,
            "initial_scale_power": precision.initial_scale_power,
            "loss_scale_window": precision.loss_scale_window,
            "hysteresis": precision.hysteresis,
            "min_loss_scale": precision.min_loss_scale,
        },
        **shared,
    }


def follows_model(recipe: Recipe) -> frozenset[str]:
    """Dotted names of what differs between two renderings of `recipe`, one for the model at hand and one without it."""
    parallel, zero = recipe.parallel, "zero_optimization."
    names = {f"{zero}{name}" for name in ("stage3_max_live_parameters", "stage3_max_reuse_distance", "sub_group_size")}
    if parallel.reduce_bucket_size is None:
        buckets = ("reduce_bucket_size", "allgather_bucket_size", "stage3_prefetch_bucket_size")
        names |= {f"{zero}{name}" for name in buckets}
    if parallel.param_persistence_threshold is None:
        names.add(f"{zero}stage3_param_persistence_threshold")
    return frozenset(names)


def overlaps(recipe: Recipe, target: Target) -> bool:
    """Whether communication runs beside the computation: as the recipe says, else where there is a stream for it."""
    if recipe.parallel.overlap_comm is not None:
        return recipe.parallel.overlap_comm
    # A pipeline reduces at the end of its schedule, and a CPU device has one queue: there a second bucket is memory alone.
    return target.device == "cuda" and recipe.parallel.pipeline == 1


def _zero(recipe: Recipe, target: Target, stage: int, size: ModelSize) -> dict[str, Any]:
    parallel = recipe.parallel
    if stage == 0:
        return {"stage": 0}
    chosen = parallel.reduce_bucket_size
    bucket = size.bucket if chosen is None else chosen
    # DeepSpeed asserts an even all-gather bucket.
    bucket += bucket % 2
    is_muon = recipe.optimizer.type == "muon"
    zero: dict[str, Any] = {
        "stage": stage,
        "contiguous_gradients": True,
        "overlap_comm": overlaps(recipe, target),
        # Muon orthogonalises whole gradients, which stage 3 has only without reduce-scatter.
        "reduce_scatter": not (is_muon and stage == 3),
        "reduce_bucket_size": bucket,
    }
    if stage < 3:
        zero |= {"allgather_partitions": True, "allgather_bucket_size": bucket}
    else:
        threshold = parallel.param_persistence_threshold
        offloads = parallel.offload_optimizer != "none" or wants_host_optimizer(recipe, target)
        zero |= {
            "stage3_prefetch_bucket_size": bucket,
            "stage3_param_persistence_threshold": size.persistent if threshold is None else threshold,
            "stage3_max_live_parameters": size.live,
            "stage3_max_reuse_distance": size.reuse,
            "stage3_gather_16bit_weights_on_model_save": True,
            # The step's temporaries are as large as this. On the host there are none, and Muon's momentum is kept by group.
            "sub_group_size": LARGEST if offloads or is_muon else size.step,
        }
    if parallel.offload_optimizer != "none" or wants_host_optimizer(recipe, target):
        zero["offload_optimizer"] = _offload(parallel.offload_optimizer, parallel, target)
    if parallel.offload_param != "none":
        zero["offload_param"] = _offload(parallel.offload_param, parallel, target)
    return zero


def _offload(device: str, parallel: Parallel, target: Target) -> dict[str, Any]:
    # Pinning means nothing on a CPU device and can hit the memlock limit.
    block: dict[str, Any] = {"device": "cpu" if device == "none" else device, "pin_memory": target.device == "cuda"}
    if device == "nvme":
        block["nvme_path"] = parallel.nvme_path
    return block
