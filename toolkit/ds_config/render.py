"""Recipe + target -> the one DeepSpeed configuration. Pure: same input, same dict; nothing is "auto"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toolkit.ds_config.model_size import UNKNOWN, ModelSize, bucket_size, live_parameters, reduced_size
from toolkit.ds_config.optimizer_block import needs_untested_flag, optimizer_block, wants_host_optimizer
from toolkit.ds_config.state_formats import check_state_formats
from toolkit.ds_config.target import Target
from toolkit.errors import RecipeError
from toolkit.recipe import Batch, Parallel, Recipe
from toolkit.recipe.mesh import Mesh, mesh_of


def render(recipe: Recipe, target: Target, model: ModelSize = UNKNOWN) -> dict[str, Any]:
    """The DeepSpeed configuration of `recipe` on `target`, with integers everywhere; its buckets follow `model`.

    Raises RecipeError when the batch does not divide or the device cannot do what the recipe asks.
    """
    mesh = mesh_of(recipe.parallel, target.world_size)
    dtype = resolved_dtype(recipe, target)
    stage = effective_stage(recipe, dtype)
    check_state_formats(recipe, target, dtype, stage)
    config: dict[str, Any] = {
        "train_batch_size": recipe.batch.global_size,
        "train_micro_batch_size_per_gpu": recipe.batch.micro_size,
        "gradient_accumulation_steps": accumulation_steps(recipe, mesh),
        # Absent, DeepSpeed clips at 1.0; 0.0 means never.
        "gradient_clipping": recipe.optimizer.max_grad_norm,
    }
    if recipe.precision.state_dtype != "8bit":
        # DeepSpeed has no class of that kind to build: the engine hands it one.
        config["optimizer"] = optimizer_block(recipe, target, stage)
    scheduler = scheduler_block(recipe)
    if scheduler is not None:
        config["scheduler"] = scheduler
    config |= _precision(recipe, target, dtype)
    config["zero_optimization"] = _zero(recipe, target, stage, model)
    if stage and (needs_untested_flag(recipe) or recipe.precision.state_dtype == "8bit"):
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
        # Here DeepSpeed reads this key instead (runtime/engine.py, _configure_distributed_model).
        config["seq_parallel_communication_data_type"] = config["communication_data_type"]
    if mesh.pipeline > 1:
        # Partitioned activations would be gathered again at once, since every tensor-parallel rank needs all of them.
        config["pipeline"] = {"pipe_partitioned": False, "grad_partitioned": False}
    config["wall_clock_breakdown"] = False
    return config


def resolved_dtype(recipe: Recipe, target: Target) -> str:
    """The number format of the parameters, with "auto" decided by the target; fp8 layers have theirs in bf16."""
    dtype = recipe.precision.dtype
    if dtype == "auto":
        return "bf16" if target.bf16 and target.bf16_is_native else "fp32"
    if dtype == "fp8":
        _check_fp8(target)
        return "bf16"
    if not getattr(target, dtype, True):
        raise RecipeError(
            f"precision.dtype={dtype!r} on this {target.device} device",
            expected="a number format that the device computes in",
            do="set precision.dtype='auto', or another one of fp32, bf16, fp16",
        )
    return dtype


def weights_dtype(config: Mapping[str, Any]) -> str:
    """The number format of the parameters under a rendered configuration."""
    return next((dtype for dtype in ("bf16", "fp16") if dtype in config), "fp32")


def _check_fp8(target: Target) -> None:
    if not (target.fp8 and target.bf16):
        raise RecipeError(
            f"precision.dtype='fp8' on this {target.device} device",
            expected="a CUDA device of compute capability 8.9 or later (Ada, Hopper, Blackwell), which multiplies in fp8",
            do="set precision.dtype='bf16', or 'auto'",
        )


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


def _precision(recipe: Recipe, target: Target, dtype: str) -> dict[str, Any]:
    precision = recipe.precision
    sums = "fp32" if precision.accumulation_dtype == "fp32" else dtype
    exchanged = _communication(recipe, target, dtype, sums)
    shared = {"data_types": {"grad_accum_dtype": sums}, "communication_data_type": exchanged}
    if dtype == "fp32":
        _check_tf32(recipe, target)
        return shared
    if dtype == "bf16":
        bf16: dict[str, Any] = {"enabled": True, "check_grad_overflow": True}
        if precision.master_dtype == "bf16":
            bf16["bf16_master_weights_and_grads"] = True
        if precision.state_dtype == "bf16" or (precision.master_dtype == "bf16" and precision.state_dtype == "8bit"):
            # Without it DeepSpeed keeps fp32 states, and bf16 masters then only for its own offloaded Adam.
            bf16["bf16_optimizer_states"] = True
        return {"bf16": bf16, **shared}
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


def _communication(recipe: Recipe, target: Target, dtype: str, sums: str) -> str:
    """The format that ranks exchange gradients in."""
    wanted = recipe.precision.communication_dtype
    if wanted == "auto":
        return dtype if target.device == "cuda" else sums
    if wanted == "fp16" and dtype != "fp16":
        raise RecipeError(
            f"precision.communication_dtype='fp16' with parameters in {dtype}",
            expected="fp16 only with precision.dtype='fp16': nothing scales other gradients into its range, and small ones vanish",
            do="set precision.communication_dtype='bf16', or 'auto'",
        )
    return wanted


def _check_tf32(recipe: Recipe, target: Target) -> None:
    if recipe.precision.tf32 and target.device != "cuda":
        raise RecipeError(
            f"precision.tf32=True on a {target.device} device",
            expected="a CUDA device, whose tensor cores multiply in TF32",
            do="set precision.tf32=False",
        )


def _zero(recipe: Recipe, target: Target, stage: int, model: ModelSize) -> dict[str, Any]:
    parallel = recipe.parallel
    if stage == 0:
        return {"stage": 0}
    reduced = parallel.reduce_bucket_size or reduced_size(model)
    bucket = parallel.reduce_bucket_size or bucket_size(model)
    # DeepSpeed asserts an even all-gather bucket.
    bucket += bucket % 2
    zero: dict[str, Any] = {
        "stage": stage,
        "contiguous_gradients": True,
        "overlap_comm": _overlaps(parallel, target),
        # Muon orthogonalises whole gradients, which stage 3 has only without reduce-scatter.
        "reduce_scatter": not (recipe.optimizer.type == "muon" and stage == 3),
        "reduce_bucket_size": reduced + reduced % 2,
    }
    if stage < 3:
        zero |= {"allgather_partitions": True, "allgather_bucket_size": bucket}
    else:
        zero |= {
            "stage3_prefetch_bucket_size": bucket,
            "stage3_param_persistence_threshold": _persistence_threshold(parallel, model),
            "stage3_max_live_parameters": live_parameters(model),
            # Kept is what is needed again within one layer: by the backward pass after the layer was computed anew.
            "stage3_max_reuse_distance": live_parameters(model) // 2,
            "stage3_gather_16bit_weights_on_model_save": True,
            # Whole sub-groups are offloaded or not: a share of the states needs many of them.
            "sub_group_size": live_parameters(model) if parallel.offload_ratio == 1.0 else 100_000_000,
        }
    if parallel.offload_optimizer != "none" or wants_host_optimizer(recipe, target):
        zero["offload_optimizer"] = _offload(parallel.offload_optimizer, parallel, target)
        if parallel.offload_ratio < 1.0:
            zero["offload_optimizer"]["ratio"] = parallel.offload_ratio
    if parallel.offload_param != "none":
        zero["offload_param"] = _offload(parallel.offload_param, parallel, target)
    return zero


def follows_model(recipe: Recipe) -> frozenset[str]:
    """Dotted keys in which two renderings of `recipe` differ, one for its model and one where no model is at hand."""
    names = ["stage3_max_live_parameters", "stage3_max_reuse_distance", "sub_group_size"]
    if recipe.parallel.reduce_bucket_size is None:
        names += ["reduce_bucket_size", "allgather_bucket_size", "stage3_prefetch_bucket_size"]
    if recipe.parallel.param_persistence_threshold is None:
        names.append("stage3_param_persistence_threshold")
    return frozenset(f"zero_optimization.{name}" for name in names)


def _overlaps(parallel: Parallel, target: Target) -> bool:
    if parallel.overlap_comm is None:
        # On a CPU there is no second stream, and the collectives compete with the products for the cores.
        return target.device == "cuda" and parallel.pipeline == 1
    return parallel.overlap_comm


def _persistence_threshold(parallel: Parallel, model: ModelSize) -> int:
    if parallel.param_persistence_threshold is None:
        # DeepSpeed keeps what has fewer elements than this.
        return min(model.longest_vector + 1, 100_000)
    return parallel.param_persistence_threshold


def _offload(device: str, parallel: Parallel, target: Target) -> dict[str, Any]:
    # Pinning means nothing on a CPU device and can hit the memlock limit.
    block: dict[str, Any] = {"device": "cpu" if device == "none" else device, "pin_memory": target.device == "cuda"}
    if device == "nvme":
        block["nvme_path"] = parallel.nvme_path
    return block
