"""Every rule: a configuration that fires it, what it says, and the cured configuration that is clean."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deepspeed
import pytest
import torch
from accelerate.utils import DeepSpeedPlugin
from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from transformers import TrainingArguments
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from toolkit.ds_config import schema_arguments
from toolkit.ds_config.check import check_config
from toolkit.ds_config.config_file import FILE_RULES
from toolkit.ds_config.files import NAMING_RULES
from toolkit.ds_config.findings import Finding
from toolkit.ds_config.rules import RULES, Context
from toolkit.ds_config.rules.accelerate import ACCELERATE_RULES
from toolkit.ds_config.rules.inert import NEVER_READ
from toolkit.ds_config.rules.stages import KEY_STAGES, OWN_RULE
from toolkit.ds_config.rules.trainer_values import ACCELERATE_STAGE, TRAINER_DEFAULTS
from toolkit.ds_config.schema_keys import Key, Section
from toolkit.ds_config.schema_optimizers import CLASS_DEFAULTS
from toolkit.ds_config.schema_top import TOP
from toolkit.ds_config.schema_zero import ZERO, ZERO_DEFAULTS
from toolkit.ds_config.target import Target

CPU = Target(world_size=2, device="cpu")
CUDA = Target(world_size=2, device="cuda")

BASE: dict[str, Any] = {
    "train_batch_size": 16,
    "train_micro_batch_size_per_gpu": 2,
    "gradient_accumulation_steps": 4,
    "gradient_clipping": 1.0,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "weight_decay": 0.0, "torch_adam": True}},
    "bf16": {"enabled": True},
    "data_types": {"grad_accum_dtype": "fp32"},
    "zero_optimization": {"stage": 2},
}
"""A sound configuration for two ranks; the cases below edit it."""

ARGUMENTS: dict[str, Any] = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "learning_rate": 1e-4,
    "bf16": True,
}
"""Trainer arguments that agree with BASE."""

REMOVE = object()


def edited(*edits: dict[str, Any]) -> dict[str, Any]:
    """BASE with the values at dotted paths replaced, or removed; later edits come on top."""
    config = copy.deepcopy(BASE)
    for path, value in [pair for edit in edits for pair in edit.items()]:
        *parents, name = path.split(".")
        node = config
        for parent in parents:
            node = node.setdefault(parent, {})
        if value is REMOVE:
            node.pop(name, None)
        else:
            node[name] = copy.deepcopy(value)
    return config


@dataclasses.dataclass(frozen=True)
class Case:
    """`bad` fires `rule` at `where` with `what`; with `cure` on top nothing is found."""

    rule: str
    bad: dict[str, Any]
    where: str
    what: str
    cure: dict[str, Any]
    target: Target | None = None
    arguments: dict[str, Any] | None = None
    also: tuple[str, ...] = ()
    """Other rules that rightly fire on the bad configuration."""
    cured_arguments: dict[str, Any] | None = None
    """Where they are what is cured."""
    severity: str = ""
    """Where it is not the one that WARNINGS gives the rule."""


WARNINGS = {
    "accelerate-scheduler-steps",
    "autotuning-ends-run",
    "managed-accumulation-scale",
    "pinned-memory-unwritten",
    "accelerate-zero3-init",
    "accumulation-dtype-unwritten",
    "activation-checkpointing-inert",
    "adam-or-adamw",
    "autocast-dtype",
    "clipping-unwritten",
    "data-efficiency-inert",
    "key-of-another-stage",
    "learning-rate-unwritten",
    "not-strict-json",
    "offload-without-optimizer",
    "one-cycle-momentum",
    "scheduler-without-optimizer",
    "stage-0-in-16-bits",
    "trainer-accumulation-unwritten",
    "trainer-argument-unknown",
    "trainer-no-warmup",
    "trainer-saves-no-weights",
    "warmup-downwards",
    "warmup-longer-than-run",
    "warmup-max-lr",
    "warmup-steps-unwritten",
    "warmup-type-unwritten",
    "zero-as-boolean",
    "zero-section-missing",
}
"""Rules that usually warn; all others usually refuse."""


Z = "zero_optimization"
OFFLOAD = f"{Z}.offload_optimizer"
LINEAR = {
    "scheduler": {
        "type": "WarmupDecayLR",
        "params": {"total_num_steps": 100, "warmup_num_steps": 10, "warmup_max_lr": 1e-4, "warmup_type": "linear"},
    }
}
P = "scheduler.params"
FP32 = {"bf16": REMOVE}
TRAINER = {"arguments": ARGUMENTS, "target": CPU}

CASES = [
    Case(
        "unknown-key",
        {"gradient_cliping": 1.0},
        "gradient_cliping",
        "did you mean 'gradient_clipping'",
        {"gradient_cliping": REMOVE},
    ),
    Case(
        "removed-key",
        {"elasticity": {}},
        "elasticity",
        "elasticity was removed before DeepSpeed",
        {"elasticity": REMOVE},
    ),
    Case(
        "deprecated-key",
        {f"{Z}.cpu_offload": True},
        f"{Z}.cpu_offload",
        "cpu_offload=true is deprecated",
        {f"{Z}.cpu_offload": REMOVE, f"{OFFLOAD}.device": "cpu", f"{OFFLOAD}.pin_memory": True},
        severity="warning",
    ),
    Case(
        "wrong-type",
        {f"{Z}.cpu_offload": {"device": "cpu"}},
        f"{Z}.cpu_offload",
        'cpu_offload={"device": "cpu"}',
        {f"{Z}.cpu_offload": REMOVE},
        also=("deprecated-key",),
    ),
    Case(
        "fp16-and-bf16",
        {**FP32, "bfloat16": {"enabled": True}, "fp16": {"enabled": True}, "data_types": REMOVE},
        "fp16.enabled",
        "fp16.enabled=true and bfloat16.enabled=true",
        {"bfloat16": REMOVE, "data_types.grad_accum_dtype": "fp32"},
        also=("deprecated-key", "accumulation-dtype-unwritten"),
    ),
    Case(
        "leftover-auto",
        {"_scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": "auto"}}},
        "_scheduler",
        "but accelerate stops at it",
        {"_scheduler": REMOVE},
        **TRAINER,
    ),
    Case(
        "alias-twice",
        {"tensor_parallel": {"tp": {"tp_size": 2}, "tensor_parallel": {"tp_size": 2}}},
        "tensor_parallel.tp",
        "are the same key",
        {"tensor_parallel.tensor_parallel": REMOVE},
    ),
    Case(
        "deprecated-key",
        {f"{Z}.legacy_stage1": True, f"{Z}.stage": 1},
        f"{Z}.legacy_stage1",
        "legacy_stage1=true is refused or ignored by DeepSpeed",
        {f"{Z}.legacy_stage1": REMOVE},
    ),
    Case(
        "deprecated-key",
        {"bfloat16": {"enabled": True}, **FP32},
        "bfloat16",
        'bfloat16={"enabled": true} is deprecated',
        {"bfloat16": REMOVE, "bf16": {"enabled": True}},
        severity="warning",
    ),
    Case(
        "wrong-type",
        {f"{Z}.stage": "2"},
        f"{Z}.stage",
        f'{Z}.stage="2"',
        {f"{Z}.stage": 2},
    ),
    Case(
        "wrong-type",
        {f"{Z}.stage": "three", f"{OFFLOAD}.device": "cpu", f"{OFFLOAD}.pin_memory": True},
        f"{Z}.stage",
        'stage="three"',
        {f"{Z}.stage": 3},
    ),
    Case(
        "missing-key",
        {**LINEAR, f"{P}.total_num_steps": REMOVE},
        f"{P}.total_num_steps",
        "is missing",
        {f"{P}.total_num_steps": 100},
    ),
    Case(
        "leftover-auto",
        {"train_batch_size": "auto"},
        "train_batch_size",
        "only Hugging Face fills that in",
        {"train_batch_size": 16},
        severity="warning",
    ),
    Case(
        "leftover-auto",
        {f"{Z}.overlap_comm": "auto", "wall_clock_breakdown": "auto"},
        f"{Z}.overlap_comm",
        '2 keys are "auto" (zero_optimization.overlap_comm, wall_clock_breakdown): nothing fills that in',
        {f"{Z}.overlap_comm": True, "wall_clock_breakdown": REMOVE},
    ),
    Case(
        "leftover-auto",
        {"data_types.keep_in_fp32_modules": "auto"},
        "data_types.keep_in_fp32_modules",
        "DeepSpeed takes that, but accelerate stops at it",
        {"data_types.keep_in_fp32_modules": REMOVE},
        **TRAINER,
    ),
    Case(
        "alias-twice",
        {f"{Z}.stage": 3, f"{Z}.max_live_parameters": 1, f"{Z}.stage3_max_live_parameters": 1},
        f"{Z}.stage3_max_live_parameters",
        "are the same key",
        {f"{Z}.max_live_parameters": REMOVE},
    ),
    Case(
        "alias-twice",
        {f"{Z}.cpu_offload": False, f"{OFFLOAD}.device": "cpu", f"{OFFLOAD}.pin_memory": True},
        f"{Z}.cpu_offload",
        "cpu_offload and zero_optimization.offload_optimizer are the same key",
        {f"{Z}.cpu_offload": REMOVE},
        also=("deprecated-key",),
    ),
    Case(
        "optimizer-type",
        {"optimizer.type": "AdamWW"},
        "optimizer.type",
        "did you mean 'AdamW'",
        {"optimizer.type": "AdamW"},
    ),
    Case(
        "scheduler-type",
        {"scheduler": {"type": "Cosine", "params": {}}},
        "scheduler.type",
        "is not a scheduler DeepSpeed can build",
        {"scheduler": REMOVE},
    ),
    Case(
        "batch-missing",
        {"train_batch_size": REMOVE, "train_micro_batch_size_per_gpu": REMOVE},
        "train_micro_batch_size_per_gpu",
        "neither train_batch_size nor train_micro_batch_size_per_gpu is written",
        {"train_micro_batch_size_per_gpu": 2},
    ),
    Case(
        "batch-identity",
        {"train_batch_size": 18},
        "train_batch_size",
        "train_batch_size=18 is not train_micro_batch_size_per_gpu=2 x gradient_accumulation_steps=4 x 2 ranks = 16",
        {"train_batch_size": 16},
        target=CPU,
    ),
    Case(
        "batch-identity",
        {"train_batch_size": 18, "gradient_accumulation_steps": REMOVE},
        "train_batch_size",
        "train_batch_size=18 is not a multiple of train_micro_batch_size_per_gpu=2 x 2 ranks = 4",
        {"train_batch_size": 20},
        target=CPU,
    ),
    Case(
        "batch-identity",
        {"train_batch_size": 15},
        "train_batch_size",
        "gradient_accumulation_steps=4 = 8",
        {"train_batch_size": 24},
    ),
    Case(
        "batch-identity",
        {"sequence_parallel_size": 2},
        "train_batch_size",
        "x 1 ranks = 8",
        {"train_batch_size": 8},
        target=CPU,
    ),
    Case(
        "parallel-degrees",
        {"tensor_parallel.autotp_size": 3},
        "tensor_parallel.autotp_size",
        "autotp_size=3 does not divide the world size 2",
        {"tensor_parallel.autotp_size": 2},
        target=CPU,
    ),
    Case(
        "parallel-degrees",
        {"train_batch_size": 8, "sequence_parallel_size": 2, "data_parallel_size": 2},
        "data_parallel_size",
        "data_parallel_size=2 x sequence_parallel_size=2 is not the world size 2",
        {"data_parallel_size": 1},
        target=CPU,
    ),
    Case("zero-section-missing", {Z: REMOVE, **FP32}, Z, "zero_optimization is missing", {Z: {"stage": 0}}),
    Case(
        "zero-section-missing",
        {f"{Z}.stage": REMOVE, **FP32},
        f"{Z}.stage",
        "DeepSpeed takes 0 and shards nothing",
        {f"{Z}.stage": 0},
    ),
    Case(
        "zero-section-missing",
        {Z: REMOVE, **FP32},
        Z,
        "accelerate, and so the Trainer, refuses the file",
        {Z: {"stage": 0}},
        target=CPU,
        arguments={**ARGUMENTS, "bf16": False},
        severity="error",
    ),
    Case("zero-as-boolean", {Z: True}, Z, "zero_optimization=true is the form of old files", {Z: {"stage": 1}}),
    Case(
        "zero-as-boolean",
        {Z: True},
        Z,
        "zero_optimization=true is the form of old files",
        {Z: {"stage": 1}},
        severity="error",
        **TRAINER,
    ),
    Case(
        "fp16-at-stage-0",
        {f"{Z}.stage": 0, **FP32, "fp16.enabled": True, "data_types.grad_accum_dtype": "fp16"},
        f"{Z}.stage",
        "stage=0 with fp16.enabled=true: gradients are divided by a loss scale that was never applied",
        {f"{Z}.stage": 1},
    ),
    Case(
        "fp16-at-stage-0",
        {f"{Z}.stage": 0, **FP32, "data_types.grad_accum_dtype": "fp16"},
        f"{Z}.stage",
        "stage=0 with fp16=true among the arguments",
        {f"{Z}.stage": 1},
        target=CPU,
        arguments={**ARGUMENTS, "bf16": False, "fp16": True},
    ),
    Case(
        "stage-0-in-16-bits",
        {f"{Z}.stage": 0, **FP32, "fp16": {"enabled": True, "loss_scale": 1}, "data_types.grad_accum_dtype": "fp16"},
        f"{Z}.stage",
        "zero_optimization.stage=0 with fp16.enabled=true computes other losses than stages 1, 2 and 3",
        {f"{Z}.stage": 1},
    ),
    Case(
        "stage-0-in-16-bits",
        {f"{Z}.stage": 0, "data_types.grad_accum_dtype": "bf16"},
        f"{Z}.stage",
        "zero_optimization.stage=0 with bf16.enabled=true computes other losses than stages 1, 2 and 3",
        {f"{Z}.stage": 1},
    ),
    Case(
        "key-of-another-stage",
        {f"{Z}.sub_group_size": 2e9},
        f"{Z}.sub_group_size",
        "is ignored at stage 2",
        {f"{Z}.stage": 3},
    ),
    Case(
        "key-of-another-stage",
        {f"{Z}.stage": 3, f"{Z}.round_robin_gradients": True},
        f"{Z}.round_robin_gradients",
        "is ignored at stage 3",
        {f"{Z}.stage": 2},
    ),
    Case(
        "allgather-bucket-odd",
        {f"{Z}.allgather_bucket_size": 5001},
        f"{Z}.allgather_bucket_size",
        "allgather_bucket_size=5001 is odd",
        {f"{Z}.allgather_bucket_size": 5002},
    ),
    Case(
        "compute-grad-norm",
        {f"{Z}.compute_grad_norm": False, "gradient_clipping": REMOVE},
        f"{Z}.compute_grad_norm",
        "compute_grad_norm=false with gradient_clipping=1 (its default)",
        {"gradient_clipping": 0.0},
        also=("clipping-unwritten",),
    ),
    Case(
        "compute-grad-norm",
        {f"{Z}.compute_grad_norm": False, "gradient_clipping": 0.0, f"{Z}.stage": 1},
        f"{Z}.compute_grad_norm",
        "with bf16 with fp32 gradient sums at stage 1",
        {f"{Z}.stage": 2},
    ),
    Case(
        "prescaled-gradients",
        {"prescale_gradients": True},
        "prescale_gradients",
        "with reduce-scatter at stage 2",
        {f"{Z}.stage": 1},
    ),
    Case(
        "prescaled-gradients",
        {"gradient_predivide_factor": 2.0},
        "gradient_predivide_factor",
        "gradient_predivide_factor=2",
        {f"{Z}.reduce_scatter": False},
    ),
    Case(
        "summed-gradients",
        {"gradient_allreduce_op": "SUM", f"{Z}.stage": 3},
        "gradient_allreduce_op",
        "'sum' with stage 3",
        {f"{Z}.stage": 2},
    ),
    Case(
        "quantized-communication",
        {f"{Z}.stage": 3, f"{Z}.zero_quantized_weights": True},
        f"{Z}.zero_quantized_weights",
        "zero_quantized_weights=true on a CPU device",
        {f"{Z}.zero_quantized_weights": REMOVE},
        target=CPU,
    ),
    Case(
        "quantized-communication",
        {f"{Z}.stage": 3, f"{Z}.zero_quantized_gradients": True, f"{Z}.reduce_scatter": False},
        f"{Z}.zero_quantized_gradients",
        "with reduce_scatter=false",
        {f"{Z}.reduce_scatter": True},
    ),
    Case(
        "hpz-partition",
        {f"{Z}.stage": 3, f"{Z}.zero_hpz_partition_size": 3},
        f"{Z}.zero_hpz_partition_size",
        "zero_hpz_partition_size=3 does not divide the world size 2",
        {f"{Z}.zero_hpz_partition_size": 2},
        target=CPU,
    ),
    Case(
        "zenflow",
        {f"{Z}.zenflow": {"topk_ratio": 0.1}, f"{OFFLOAD}.device": "cpu", f"{OFFLOAD}.pin_memory": True},
        f"{Z}.zenflow",
        "zenflow at stage 2: DeepSpeed scrambles the weights",
        {f"{Z}.zenflow": REMOVE},
    ),
    Case(
        "zenflow",
        {
            f"{Z}.stage": 3,
            f"{Z}.zenflow": {"topk_ratio": 0.1},
            f"{OFFLOAD}.device": "cpu",
            f"{OFFLOAD}.pin_memory": True,
        },
        f"{Z}.zenflow",
        "zenflow on a CPU device",
        {f"{Z}.zenflow": REMOVE},
        target=CPU,
    ),
    Case(
        "zenflow",
        {
            f"{Z}.stage": 3,
            f"{Z}.zenflow": {"update_interval": 2},
            f"{OFFLOAD}.device": "cpu",
            f"{OFFLOAD}.pin_memory": True,
        },
        f"{Z}.zenflow.update_interval",
        "update_interval=2 overwrites gradient_accumulation_steps=4",
        {f"{Z}.zenflow.update_interval": 4},
        target=CUDA,
    ),
    Case(
        "elastic-checkpoint",
        {f"{Z}.stage": 3, f"{Z}.elastic_checkpoint": True},
        f"{Z}.elastic_checkpoint",
        "has no effect",
        {f"{Z}.elastic_checkpoint": False},
    ),
    Case(
        "contiguous-gradients",
        {f"{Z}.contiguous_gradients": False, f"{OFFLOAD}.device": "cpu", f"{OFFLOAD}.pin_memory": True},
        f"{Z}.contiguous_gradients",
        "is overruled by offload_optimizer",
        {f"{Z}.contiguous_gradients": True},
    ),
    Case(
        "offload-param-below-stage-3",
        {f"{Z}.offload_param": {"device": "cpu", "pin_memory": True}},
        f"{Z}.offload_param.device",
        "offload_param.device='cpu' is ignored at stage 2",
        {f"{Z}.stage": 3},
    ),
    Case(
        "offload-optimizer-at-stage-0",
        {f"{Z}.stage": 0, f"{OFFLOAD}.device": "cpu", f"{OFFLOAD}.pin_memory": True, **FP32},
        f"{OFFLOAD}.device",
        "device='cpu' at stage 0",
        {f"{Z}.stage": 1},
    ),
    Case(
        "nvme-optimizer-below-stage-3",
        {OFFLOAD: {"device": "nvme", "pin_memory": True, "nvme_path": "/nvme"}},
        f"{OFFLOAD}.device",
        "device='nvme' means 'cpu' at stage 2",
        {f"{Z}.stage": 3},
    ),
    Case(
        "nvme-path",
        {f"{Z}.stage": 3, f"{OFFLOAD}.device": "nvme", f"{OFFLOAD}.pin_memory": True},
        f"{OFFLOAD}.nvme_path",
        "nvme_path is missing",
        {f"{OFFLOAD}.nvme_path": "/nvme"},
    ),
    Case(
        "nvme-path",
        {f"{Z}.stage": 3, OFFLOAD: {"device": "nvme", "pin_memory": True, "nvme_path": "~/nvme"}},
        f"{OFFLOAD}.nvme_path",
        "is a folder named '~' to DeepSpeed",
        {f"{OFFLOAD}.nvme_path": "/nvme"},
    ),
    Case(
        "nvme-path",
        {OFFLOAD: {"device": "cpu", "pin_memory": True, "nvme_path": "/nvme"}},
        f"{OFFLOAD}.nvme_path",
        "is ignored with device 'cpu'",
        {f"{OFFLOAD}.nvme_path": REMOVE},
        severity="warning",
    ),
    Case(
        "partial-offload",
        {OFFLOAD: {"device": "cpu", "pin_memory": True, "ratio": 0.5}},
        f"{OFFLOAD}.ratio",
        "ratio=0.5 at stage 2",
        {f"{Z}.stage": 3, "optimizer.params.torch_adam": False},
    ),
    Case(
        "partial-offload",
        {f"{Z}.stage": 3, OFFLOAD: {"device": "cpu", "pin_memory": True, "ratio": 0.5}},
        f"{OFFLOAD}.ratio",
        "optimizer.type='AdamW' (torch.optim.AdamW)",
        {"optimizer.params.torch_adam": False},
    ),
    Case(
        "offload-without-optimizer",
        {f"{OFFLOAD}.device": "cpu", f"{OFFLOAD}.pin_memory": True, "optimizer": REMOVE},
        "optimizer",
        "device='cpu' without an optimizer section: DeepSpeed stops at one of torch's",
        {"zero_force_ds_cpu_optimizer": False},
    ),
    Case(
        "super-offload",
        {OFFLOAD: {"device": "cpu", "pin_memory": True, "super_offload": True}},
        f"{OFFLOAD}.super_offload",
        "super_offload=true at stage 2",
        {f"{Z}.stage": 3},
    ),
    Case(
        "super-offload",
        {f"{Z}.stage": 3, OFFLOAD: {"device": "cpu", "pin_memory": True, "super_offload": True}},
        f"{OFFLOAD}.super_offload",
        "super_offload=true on a CPU device",
        {f"{OFFLOAD}.super_offload": False},
        target=CPU,
    ),
    Case(
        "gds-on-cpu",
        {"aio.use_gds": True},
        "aio.use_gds",
        "aio.use_gds=true on a CPU device",
        {"aio.use_gds": False},
        target=CPU,
    ),
    Case(
        "clipping-unwritten",
        {"gradient_clipping": REMOVE},
        "gradient_clipping",
        "DeepSpeed clips the gradient norm at 1.0",
        {"gradient_clipping": 0.0},
    ),
    Case(
        "clipping-unwritten",
        {"gradient_clipping": REMOVE},
        "gradient_clipping",
        "clips the gradient norm at 1.0, whatever max_grad_norm=0.0 says",
        {"gradient_clipping": "auto"},
        target=CPU,
        arguments={**ARGUMENTS, "max_grad_norm": 0.0},
        severity="error",
    ),
    Case(
        "fp16-and-bf16",
        {"fp16.enabled": True},
        "fp16.enabled",
        "fp16.enabled=true and bf16.enabled=true",
        {"fp16.enabled": False},
    ),
    Case(
        "autocast-and-16-bits",
        {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}},
        "torch_autocast.enabled",
        "torch_autocast.enabled=true with bf16.enabled=true",
        {"bf16.enabled": False},
    ),
    Case(
        "autocast-dtype",
        {"torch_autocast.enabled": True, **FP32},
        "torch_autocast.dtype",
        "the device decides",
        {"torch_autocast.dtype": "bfloat16"},
    ),
    Case(
        "device-number-format",
        {},
        "bf16.enabled",
        "bf16.enabled=true on a cuda device that does not compute in bf16",
        {"bf16.enabled": False},
        target=Target(2, "cuda", bf16=False),
    ),
    Case(
        "accumulation-dtype-unwritten",
        {"data_types": REMOVE},
        "data_types.grad_accum_dtype",
        "4 micro-batches are summed in bf16",
        {"data_types.grad_accum_dtype": "fp32"},
    ),
    Case(
        "loss-scale-range",
        {"bf16.enabled": False, "fp16": {"enabled": True, "min_loss_scale": 0}},
        "fp16.min_loss_scale",
        "min_loss_scale=0 with a dynamic loss scale",
        {"fp16.loss_scale": 128},
    ),
    Case(
        "accumulation-dtype-at-stage-0",
        {f"{Z}.stage": 0, **FP32, "data_types.grad_accum_dtype": "bf16"},
        "data_types.grad_accum_dtype",
        "grad_accum_dtype='bf16' with fp32 parameters at stage 0",
        {"data_types.grad_accum_dtype": "float32"},
    ),
    Case(
        "param-dtype",
        {"data_types.param_dtype": "fp16"},
        "data_types.param_dtype",
        "while the enabled format is bf16",
        {"data_types.param_dtype": "bfloat16"},
    ),
    Case(
        "low-precision-masters",
        {"bf16.bf16_master_weights_and_grads": True},
        "bf16.bf16_master_weights_and_grads",
        "without offload to DeepSpeed's CPU Adam",
        {"bf16.bf16_optimizer_states": True},
    ),
    Case(
        "low-precision-masters",
        {"bf16.bf16_optimizer_states": True},
        "bf16.bf16_optimizer_states",
        "without bf16.bf16_master_weights_and_grads",
        {"bf16.bf16_master_weights_and_grads": True},
    ),
    Case(
        "low-precision-masters",
        {
            "bf16.bf16_master_weights_and_grads": True,
            "bf16.bf16_optimizer_states": True,
            "zero_optimization.stage": 1,
        },
        "bf16.bf16_master_weights_and_grads",
        "masters and states stay in fp32",
        {"zero_optimization.stage": 2},
    ),
    Case(
        "learning-rate-unwritten",
        {"optimizer.params.lr": REMOVE},
        "optimizer.params.lr",
        "the optimizer's own default is used",
        {"optimizer.params.lr": 1e-4},
    ),
    Case(
        "adam-or-adamw",
        {"optimizer.type": "Adam", "optimizer.params.weight_decay": 0.1},
        "optimizer.type",
        "optimizer.type='Adam' with weight_decay=0.1: DeepSpeed runs AdamW",
        {"optimizer.params.adam_w_mode": False},
    ),
    Case(
        "adam-or-adamw",
        {"optimizer.params.adam_w_mode": False},
        "optimizer.params.adam_w_mode",
        "is ignored with optimizer.type='AdamW'",
        {"optimizer.type": "Adam"},
    ),
    Case(
        "untested-optimizer",
        {"optimizer": {"type": "SGD", "params": {"lr": 0.1}}},
        "zero_allow_untested_optimizer",
        "optimizer.type='SGD' at stage 2 without zero_allow_untested_optimizer",
        {"zero_allow_untested_optimizer": True},
    ),
    Case(
        "optimizer-needs-shapes",
        {"optimizer": {"type": "Adafactor", "params": {"lr": 1e-3}}, **FP32},
        "optimizer.type",
        "'Adafactor' at stage 2: it needs row and column statistics",
        {f"{Z}.stage": 0},
    ),
    Case(
        "optimizer-on-cpu",
        {"optimizer": {"type": "Lion", "params": {"lr": 1e-4}}},
        "optimizer.type",
        "optimizer.type='Lion' on a CPU device without offload_optimizer",
        {f"{OFFLOAD}.device": "cpu", f"{OFFLOAD}.pin_memory": True},
        target=CPU,
    ),
    Case(
        "optimizer-on-cpu",
        {"optimizer": {"type": "Lamb", "params": {"lr": 1e-3}}, f"{Z}.stage": 0, **FP32},
        "optimizer.type",
        "optimizer.type='Lamb' on a CPU device",
        {"optimizer.type": "AdamW"},
        target=CPU,
    ),
    Case(
        "optimizer-needs-compiler",
        {"optimizer.params.torch_adam": False},
        "optimizer.type",
        "optimizer.type='AdamW' needs FusedAdam, and there is no C++ compiler",
        {"optimizer.params.torch_adam": True},
        target=Target(2, "cpu", compiler=False),
    ),
    Case(
        "optimizer-needs-compiler",
        {"optimizer": {"type": "Lion", "params": {"lr": 1e-4}}},
        "optimizer.type",
        "optimizer.type='Lion' needs FusedLion, and nvcc is of CUDA 13.0, torch of CUDA 12.8",
        {"optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "torch_adam": True}}},
        target=Target(2, "cuda", nvcc_fault="nvcc is of CUDA 13.0, torch of CUDA 12.8"),
    ),
    Case(
        "amsgrad",
        {"optimizer.params": {"lr": 1e-4, "amsgrad": True}},
        "optimizer.params.amsgrad",
        "amsgrad=true with FusedAdam",
        {"optimizer.params.torch_adam": True},
    ),
    Case(
        "nesterov",
        {"optimizer": {"type": "SGD", "params": {"lr": 0.1, "nesterov": True}}, "zero_allow_untested_optimizer": True},
        "optimizer.params.nesterov",
        "nesterov=true with momentum=0 and dampening=0",
        {"optimizer.params.momentum": 0.9},
    ),
    Case(
        "lamb-loss-scale",
        {
            "optimizer": {"type": "Lamb", "params": {"lr": 1e-3}},
            "fp16": {"enabled": False, "loss_scale": 128},
            f"{Z}.stage": 0,
            **FP32,
        },
        "fp16.loss_scale",
        "fp16.loss_scale=128 with optimizer.type='Lamb'",
        {"fp16.loss_scale": 0},
    ),
    Case(
        "muon-at-stage-3",
        {"optimizer": {"type": "Muon", "params": {"lr": 0.02}}, f"{Z}.stage": 3},
        f"{Z}.reduce_scatter",
        "reduce_scatter is not false for Muon at stage 3",
        {f"{Z}.reduce_scatter": False},
    ),
    Case(
        "warmup-type-unwritten",
        {**LINEAR, f"{P}.warmup_type": REMOVE},
        f"{P}.warmup_type",
        "the warm-up is logarithmic",
        {f"{P}.warmup_type": "linear"},
    ),
    Case(
        "warmup-steps-unwritten",
        {**LINEAR, f"{P}.warmup_num_steps": REMOVE},
        f"{P}.warmup_num_steps",
        "1000 steps are taken",
        {f"{P}.warmup_num_steps": 5},
    ),
    Case(
        "warmup-max-lr",
        {**LINEAR, f"{P}.warmup_max_lr": REMOVE},
        f"{P}.warmup_max_lr",
        "WarmupDecayLR takes 0.001",
        {f"{P}.warmup_max_lr": 1e-4},
    ),
    Case(
        "warmup-max-lr",
        {**LINEAR, f"{P}.warmup_max_lr": 2e-4},
        f"{P}.warmup_max_lr",
        "warmup_max_lr=0.0002 overrides optimizer.params.lr=0.0001",
        {f"{P}.warmup_max_lr": 1e-4},
    ),
    Case(
        "warmup-downwards",
        {**LINEAR, f"{P}.warmup_min_lr": 2e-4},
        f"{P}.warmup_min_lr",
        "warmup_min_lr=0.0002 is above warmup_max_lr=0.0001",
        {f"{P}.warmup_min_lr": 0},
    ),
    Case(
        "torch-scheduler",
        {"scheduler": {"type": "CosineAnnealingLR", "params": {"T_max": 100}}},
        "scheduler.type",
        "scheduler.type='CosineAnnealingLR' at stage 2",
        {f"{Z}.stage": 0, **FP32},
    ),
    Case(
        "torch-scheduler",
        {"scheduler": {"type": "StepLR", "params": {"step_size": 3}}, f"{Z}.stage": 0},
        "scheduler.type",
        "scheduler.type='StepLR' in bf16",
        FP32,
        also=("stage-0-in-16-bits", "accumulation-dtype-at-stage-0"),
    ),
    Case(
        "torch-optimizer-twice",
        {"optimizer.params.fused": True, "optimizer.params.foreach": True},
        "optimizer.params.fused",
        "fused=true and foreach=true",
        {"optimizer.params.foreach": REMOVE},
    ),
    Case(
        "warmup-longer-than-run",
        {**LINEAR, f"{P}.warmup_num_steps": 100},
        f"{P}.warmup_num_steps",
        "with total_num_steps=100",
        {f"{P}.warmup_num_steps": 99},
    ),
    Case(
        "one-cycle-momentum",
        {"scheduler": {"type": "OneCycle", "params": {"cycle_min_lr": 1e-5, "cycle_max_lr": 1e-4}}},
        f"{P}.cycle_momentum",
        "OneCycle overwrites the optimizer's betas",
        {f"{P}.cycle_momentum": False},
    ),
    Case(
        "one-cycle-length",
        {"scheduler": {"type": "OneCycleLR", "params": {"max_lr": 1e-4}}, f"{Z}.stage": 0, **FP32},
        f"{P}.total_steps",
        "total_steps is missing",
        {f"{P}.epochs": 2, f"{P}.steps_per_epoch": 50},
    ),
    Case(
        "scheduler-without-optimizer",
        {**LINEAR, "optimizer": REMOVE},
        "scheduler",
        "scheduler is written without an optimizer section",
        {"scheduler": REMOVE},
    ),
    Case(
        "activation-checkpointing-inert",
        {"activation_checkpointing": {"partition_activations": True}},
        "activation_checkpointing",
        "activation_checkpointing has no effect on a Hugging Face model",
        {"activation_checkpointing.partition_activations": False},
    ),
    Case(
        "checkpoint-writer",
        {"checkpoint.writer": {"type": "fast"}},
        "checkpoint.writer",
        "DeepSpeed fails when it saves",
        {"checkpoint.writer": None},
    ),
    Case(
        "datastates-enabled",
        {"datastates_ckpt": {"enabled": False}},
        "datastates_ckpt",
        "switches DataStates checkpoints on",
        {"datastates_ckpt": False},
    ),
    Case(
        "data-efficiency-inert",
        {"data_efficiency.enabled": True},
        "data_efficiency.enabled",
        "has no effect without",
        {"data_efficiency.enabled": False},
    ),
    Case(
        "data-efficiency-inert",
        {"data_efficiency.data_routing.enabled": True},
        "data_efficiency.data_routing.enabled",
        "under data_efficiency.enabled=false",
        {"data_efficiency.data_routing.enabled": False},
    ),
    Case(
        "never-read",
        {"disable_allgather": True},
        "disable_allgather",
        "disable_allgather=true changes nothing: DeepSpeed never reads it",
        {"disable_allgather": False},
    ),
    Case(
        "never-read",
        {f"{Z}.allgather_partitions": False},
        f"{Z}.allgather_partitions",
        "allgather_partitions=false changes nothing",
        {f"{Z}.allgather_partitions": True},
    ),
    Case(
        "pipeline-keys-unused",
        {f"{Z}.stage": 1, "pipeline.stages": 2},
        "pipeline.stages",
        "pipeline.stages=2 is never read",
        {"pipeline.stages": REMOVE},
    ),
    Case(
        "pipeline-limits",
        {"pipeline": {}},
        f"{Z}.stage",
        "zero_optimization.stage=2 with a pipeline",
        {f"{Z}.stage": 1},
    ),
    Case(
        "pipeline-limits",
        {f"{Z}.stage": 1, "pipeline": {}, "flops_profiler.enabled": True},
        "flops_profiler.enabled",
        "flops_profiler.enabled=true with a pipeline",
        {"flops_profiler.enabled": False},
    ),
    Case(
        "pipeline-limits",
        {f"{Z}.stage": 0, "pipeline": {}, **FP32},
        f"{Z}.stage",
        "each stage clips by its own norm",
        {"gradient_clipping": 0.0},
    ),
    Case(
        "managed-accumulation",
        {"managed_gradient_accumulation": False, f"{Z}.stage": 1, f"{Z}.overlap_comm": True},
        "managed_gradient_accumulation",
        "managed_gradient_accumulation=false with overlap_comm=true at stage 1",
        {f"{Z}.stage": 2},
    ),
    Case(
        "managed-accumulation-scale",
        {"managed_gradient_accumulation": False, "gradient_accumulation_steps": REMOVE},
        "gradient_accumulation_steps",
        "backward() divides no loss, and micro-batches are summed",
        {"gradient_accumulation_steps": 4},
    ),
    Case(
        "pipeline-unread",
        {"pipeline": {"pipe_partitioned": True}, f"{Z}.stage": 1},
        "pipeline",
        "the Trainer trains without pipeline parallelism",
        {"pipeline": REMOVE},
        target=CPU,
        arguments=ARGUMENTS,
    ),
    Case(
        "autotuning-ends-run",
        {"autotuning": {"enabled": True, "end_profile_step": 7}},
        "autotuning.enabled",
        "ends the run after 8 steps, with exit code 0",
        {"autotuning.enabled": False},
    ),
    Case(
        "universal-at-stage-0",
        {"checkpoint": {"load_universal": True}, f"{Z}.stage": 0, **FP32},
        "checkpoint.load_universal",
        "at stage 0: loading fails",
        {f"{Z}.stage": 1},
    ),
    Case(
        "pipeline-loading",
        {f"{Z}.pipeline_loading_checkpoint": True},
        f"{Z}.pipeline_loading_checkpoint",
        "at stage 2: loading a checkpoint fails",
        {f"{Z}.stage": 3},
    ),
    Case(
        "pinned-memory-unwritten",
        {OFFLOAD: {"device": "cpu"}, "optimizer.params.torch_adam": False},
        f"{OFFLOAD}.pin_memory",
        "page-locks the memory (true)",
        {f"{OFFLOAD}.pin_memory": True},
    ),
    Case(
        "deepcompile",
        {"compile.deepcompile": True, f"{Z}.stage": 0, **FP32},
        "compile.deepcompile",
        "at stage 0 falls back",
        {f"{Z}.stage": 1},
    ),
    Case(
        "deepcompile",
        {"compile": {"deepcompile": True, "offload_activation": True, "offload_parameters": True}},
        "compile.offload_activation",
        "compile.offload_activation and compile.offload_parameters are both true",
        {"compile.offload_parameters": False},
    ),
    Case(
        "deepcompile",
        {"compile": {"deepcompile": True, "passes": ["autosp"]}},
        "compile.passes",
        "compile.passes with autosp at stage 2 falls back to torch.compile",
        {f"{Z}.stage": 1},
    ),
    Case(
        "deepcompile",
        {"compile": {"deepcompile": True, "passes": ["autotp"]}},
        "compile.passes",
        "autotp and no tensor_parallel.autotp_size above 1 falls back",
        {"tensor_parallel.autotp_size": 2},
    ),
    Case(
        "deepcompile",
        {"compile": {"deepcompile": True, "passes": ["autotp", "z1"]}, "tensor_parallel.autotp_size": 2},
        "compile.passes",
        'compile.passes=["autotp", "z1"]: autotp combines with no other',
        {"compile.passes": ["autotp"]},
    ),
    Case(
        "trainer-accumulation-unwritten",
        {"gradient_accumulation_steps": REMOVE},
        "gradient_accumulation_steps",
        "the Trainer accumulates 4 micro-batches: accelerate writes 1, which contradicts train_batch_size",
        {"gradient_accumulation_steps": "auto"},
        severity="error",
        **TRAINER,
    ),
    Case(
        "trainer-accumulation-unwritten",
        {"gradient_accumulation_steps": REMOVE, "train_batch_size": REMOVE},
        "gradient_accumulation_steps",
        "the Trainer accumulates 4 micro-batches: accelerate writes 1",
        {"gradient_accumulation_steps": 4},
        **TRAINER,
    ),
    Case(
        "trainer-optimizer-values",
        {"optimizer.params.betas": REMOVE},
        "optimizer.params.betas",
        "betas is missing: [0.9, 0.999] is used, not adam_beta1, adam_beta2=[0.9, 0.98]",
        {"optimizer.params.betas": "auto"},
        target=CPU,
        arguments={**ARGUMENTS, "adam_beta2": 0.98},
    ),
    Case(
        "trainer-optimizer-values",
        {"optimizer.params.weight_decay": REMOVE},
        "optimizer.params.weight_decay",
        "0.01 is used, not weight_decay=0.0 (TrainingArguments' default)",
        {"optimizer.params.weight_decay": "auto"},
        severity="warning",
        **TRAINER,
    ),
    Case(
        "trainer-mismatch",
        {"gradient_clipping": 0.5},
        "gradient_clipping",
        "gradient_clipping=0.5 but max_grad_norm gives 1.0 (TrainingArguments' default)",
        {"gradient_clipping": "auto"},
        **TRAINER,
    ),
    Case(
        "trainer-mismatch",
        {"optimizer.params.lr": 2e-4},
        "optimizer.params.lr",
        "optimizer.params.lr=0.0002 but learning_rate gives 0.0001",
        {"optimizer.params.lr": "auto"},
        **TRAINER,
    ),
    Case(
        "trainer-mismatch",
        {"bf16.enabled": False},
        "bf16.enabled",
        "bf16.enabled=false but bf16 or bf16_full_eval gives true",
        {"bf16.enabled": "auto"},
        **TRAINER,
    ),
    Case(
        "trainer-mismatch",
        {**LINEAR, f"{P}.total_num_steps": 200},
        f"{P}.total_num_steps",
        "total_num_steps=200 but max_steps gives 100",
        {f"{P}.total_num_steps": "auto"},
        target=CPU,
        arguments={**ARGUMENTS, "max_steps": 100, "warmup_steps": 10},
    ),
    Case(
        "trainer-bfloat16",
        {**FP32, "bfloat16": {"enabled": True}},
        "bfloat16.enabled",
        "fp32 is trained, since it looks for 'bf16' alone",
        {"bfloat16": REMOVE},
        target=CPU,
        arguments={**ARGUMENTS, "bf16": False},
        also=("deprecated-key",),
    ),
    Case(
        "trainer-global-batch",
        {"train_batch_size": 32, "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto"},
        "train_batch_size",
        "train_batch_size=32 but the Trainer computes 2 x 2 x 4 = 16",
        {"train_batch_size": "auto"},
        also=("batch-identity",),
        **TRAINER,
    ),
    Case(
        "trainer-schedule-shadowed",
        LINEAR,
        "scheduler.type",
        "scheduler.type='WarmupDecayLR' replaces lr_scheduler_type='cosine'",
        {"scheduler": REMOVE},
        target=CPU,
        arguments={**ARGUMENTS, "warmup_steps": 10, "lr_scheduler_type": "cosine"},
    ),
    Case(
        "trainer-no-warmup",
        {**LINEAR, f"{P}.warmup_num_steps": "auto"},
        f"{P}.warmup_num_steps",
        'warmup_num_steps="auto" with warmup_steps=0: the first two optimizer steps run at warmup_min_lr',
        {"scheduler": REMOVE},
        **TRAINER,
    ),
    Case(
        "trainer-optimizer-shadowed",
        {},
        "optimizer.type",
        "optimizer.type='AdamW' replaces optim='adafactor'",
        {"optimizer": REMOVE},
        target=CPU,
        arguments={**ARGUMENTS, "optim": "adafactor"},
    ),
    Case(
        "trainer-saves-no-weights",
        {f"{Z}.stage": 3},
        f"{Z}.stage3_gather_16bit_weights_on_model_save",
        "save_model writes no safetensors",
        {f"{Z}.stage3_gather_16bit_weights_on_model_save": True},
        **TRAINER,
    ),
    *(
        Case(
            "trainer-argument-value",
            {},
            name,
            what,
            {},
            CPU,
            {**ARGUMENTS, name: value},
            cured_arguments=ARGUMENTS,
        )
        for name, value, what in (
            ("lr_scheduler_type", "cosin", "lr_scheduler_type=\"cosin\" among the arguments (did you mean 'cosine'?)"),
            ("optim", "adamw_hf", 'optim="adamw_hf" among the arguments'),
            ("fp16", "false", 'fp16="false" among the arguments'),
            ("weight_decay", "0", 'weight_decay="0" among the arguments'),
            ("adam_beta2", 1.0, "adam_beta2=1.0 among the arguments"),
        )
    ),
    *(
        Case(
            "trainer-argument-unknown",
            {},
            name,
            what,
            {},
            CPU,
            {**ARGUMENTS, name: 1},
            cured_arguments=ARGUMENTS,
        )
        for name, what in (
            ("warmup_ratio", "warmup_ratio among the arguments is gone from TrainingArguments (transformers 5)"),
            ("no_cuda", "no_cuda among the arguments is gone"),
            ("learning_rte", "does not have 'learning_rte' (did you mean 'learning_rate'?): not read here"),
        )
    ),
    Case(
        "trainer-two-formats",
        {},
        "bf16",
        "bf16=true and fp16=true",
        {},
        CPU,
        {**ARGUMENTS, "fp16": True},
        cured_arguments=ARGUMENTS,
    ),
    *(
        Case("trainer-arguments-conflict", {}, where, what, {}, CPU, {**ARGUMENTS, **given}, cured_arguments=ARGUMENTS)
        for where, what, given in (
            ("fsdp", 'fsdp="full_shard" with DeepSpeed', {"fsdp": "full_shard"}),
            (
                "load_best_model_at_end",
                'eval_strategy="no" and save_strategy="steps"',
                {"load_best_model_at_end": True},
            ),
            (
                "load_best_model_at_end",
                "with save_only_model=true under DeepSpeed",
                {"load_best_model_at_end": True, "save_strategy": "best", "save_only_model": True},
            ),
            ("dataloader_prefetch_factor", "=2 without workers", {"dataloader_prefetch_factor": 2}),
        )
    ),
    Case(
        "trainer-arguments-conflict",
        {},
        "lr_scheduler_type",
        'lr_scheduler_type="greedy" without an evaluation',
        {},
        CPU,
        {**ARGUMENTS, "lr_scheduler_type": "greedy"},
        cured_arguments={**ARGUMENTS, "lr_scheduler_type": "greedy", "eval_strategy": "steps"},
    ),
    Case(
        "trainer-batch-finder",
        {f"{Z}.stage": 3, f"{Z}.stage3_gather_16bit_weights_on_model_save": True},
        f"{Z}.stage",
        "with auto_find_batch_size=true",
        {f"{Z}.stage": 2, f"{Z}.stage3_gather_16bit_weights_on_model_save": REMOVE},
        target=CPU,
        arguments={**ARGUMENTS, "auto_find_batch_size": True},
    ),
    Case(
        "trainer-tensor-parallel-stage-3",
        {f"{Z}.stage": 3, f"{Z}.stage3_gather_16bit_weights_on_model_save": True, "tensor_parallel.autotp_size": 2},
        "tensor_parallel.autotp_size",
        "autotp_size=2 at stage 3 with the Trainer",
        {f"{Z}.stage": 2},
        **TRAINER,
    ),
]


def found_in(case: Case, *edits: dict[str, Any]) -> list[Finding]:
    return check_config(edited(*edits), target=case.target, training_args=case.arguments)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.rule}:{case.where}")
def test_rule_fires_where_it_should_and_nothing_else_does(case: Case) -> None:
    found = found_in(case, case.bad)
    mine = [finding for finding in found if finding.rule == case.rule]
    assert [finding.where for finding in mine] == [case.where], found
    assert case.what in mine[0].what
    assert mine[0].expected and mine[0].do
    assert mine[0].severity == (case.severity or ("warning" if case.rule in WARNINGS else "error"))
    assert {finding.rule for finding in found} == {case.rule, *case.also}, found


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.rule}:{case.where}")
def test_cured_configuration_is_clean(case: Case) -> None:
    cured = dataclasses.replace(case, arguments=case.cured_arguments or case.arguments)
    assert found_in(cured, case.bad, case.cure) == []


def test_every_rule_has_a_case() -> None:
    # tests/unit/test_check.py has the cases of the rules about files, test_three_files.py those about several.
    elsewhere = {*FILE_RULES, *NAMING_RULES, *(rule.id for rule in ACCELERATE_RULES)}
    assert {case.rule for case in CASES} | elsewhere == {rule.id for rule in RULES}


def test_each_rule_says_its_usual_severity() -> None:
    assert {rule.id for rule in RULES if rule.severity == "warning"} == WARNINGS


def test_rules_are_documented_and_named_once() -> None:
    assert len({rule.id for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule.looks_at and len(rule.why) > 30, rule.id


@pytest.mark.parametrize(
    ("edits", "target", "what"),
    [
        ({f"{Z}.allgather_bucket_size": 500_000_001}, None, "allgather_bucket_size=500000001 is odd"),
        ({"train_batch_size": 16_777_217}, CPU, "train_batch_size=16777217 is not "),
        (
            {**LINEAR, "optimizer.params.lr": 1.00000001e-4},
            None,
            "warmup_max_lr=0.0001 overrides optimizer.params.lr=0.000100000001",
        ),
    ],
    ids=["odd", "batch", "rate"],
)
def test_numbers_are_said_in_full(edits: dict[str, Any], target: Target | None, what: str) -> None:
    assert any(what in finding.what for finding in check_config(edited(edits), target=target))


def test_nothing_is_concluded_from_a_section_that_is_none() -> None:
    found = check_config(edited({Z: 2}))
    assert {finding.rule for finding in found} == {"wrong-type"}, found


@pytest.mark.parametrize("target", [None, CPU, CUDA])
def test_the_base_configuration_is_clean(target: Target | None) -> None:
    assert check_config(BASE, target=target) == []
    assert check_config(BASE, target=target, training_args=ARGUMENTS) == []


HUGGING_FACE_ZERO3: dict[str, Any] = {
    "fp16": {
        "enabled": "auto",
        "loss_scale": 0,
        "loss_scale_window": 1000,
        "initial_scale_power": 16,
        "hysteresis": 2,
        "min_loss_scale": 1,
    },
    "bf16": {"enabled": "auto"},
    "data_types": {"grad_accum_dtype": "fp32"},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
    "zero_optimization": {
        "stage": 3,
        "offload_optimizer": {"device": "cpu", "pin_memory": True},
        "offload_param": {"device": "cpu", "pin_memory": True},
        "overlap_comm": True,
        "contiguous_gradients": True,
        "sub_group_size": 1e9,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "stage3_max_live_parameters": 1e9,
        "stage3_max_reuse_distance": 1e9,
        "stage3_gather_16bit_weights_on_model_save": True,
    },
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "steps_per_print": 2000,
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "wall_clock_breakdown": False,
}
"""The stage 3 example of Hugging Face's DeepSpeed page without its scheduler."""


def test_the_example_of_hugging_face_is_clean_for_the_trainer() -> None:
    assert check_config(HUGGING_FACE_ZERO3, target=CUDA, training_args=ARGUMENTS) == []
    rules = {finding.rule for finding in check_config(HUGGING_FACE_ZERO3, target=CUDA)}
    assert rules == {"leftover-auto"}


def test_auto_values_are_judged_by_what_the_trainer_fills_in() -> None:
    config = edited({"bf16.enabled": "auto", f"{Z}.stage": 0, "data_types.grad_accum_dtype": "bf16"})
    fired = {finding.rule for finding in check_config(config, training_args=ARGUMENTS)}
    assert fired == {"stage-0-in-16-bits"}
    in_fp32 = check_config(config, training_args={**ARGUMENTS, "bf16": False})
    assert {finding.rule for finding in in_fp32} == {"accumulation-dtype-at-stage-0"}


FAULTLESS: list[tuple[dict[str, Any], dict[str, Any] | None]] = [
    ({"steps_per_print": 1e5}, None),
    ({"steps_per_print": 0}, ARGUMENTS),
    ({"gradient_accumulation_steps": 4.0}, None),
    ({**LINEAR, f"{P}.total_num_steps": 1e3}, None),
    ({**LINEAR, f"{P}.warmup_max_lr": [1e-4, 1e-4]}, None),
    ({"_old": {"warmup_num_steps": "auto"}}, None),
    ({"optimizer": {"type": "Adagrad", "params": {"lr": 1e-4}}}, {**ARGUMENTS, "optim": "adagrad"}),
    ({"bf16.enabled": False, "fp16": {"enabled": True, "loss_scale": 128, "min_loss_scale": 0, "hysteresis": 0}}, None),
    ({"_comment": "for eight GPUs", "// note": 1, "optimizer.#why": "as published", "$schema": "x"}, None),
    (
        {
            "bf16": {"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": True},
            "torch_autocast": {"enabled": True, "dtype": "bfloat16"},
        },
        None,
    ),
    ({"compile": {"deepcompile": True, "passes": ["autosp"]}, f"{Z}.stage": 0, **FP32}, None),
    ({"steps_per_print": "auto", f"{Z}.stage": "auto"}, ARGUMENTS),
    ({f"{OFFLOAD}.device": "auto", f"{Z}.offload_param.device": "auto"}, ARGUMENTS),
    ({f"{Z}.sub_group_size": 1e9, f"{Z}.stage3_max_live_parameters": 1_000_000_000}, None),
    ({f"{Z}.stage3_prefetch_bucket_size": "auto"}, ARGUMENTS),
]
"""Edits of BASE, and the arguments, at which nothing is to be found."""


@pytest.mark.parametrize(("edits", "arguments"), FAULTLESS, ids=lambda value: ",".join(value or []))
def test_what_is_right_is_left_alone(edits: dict[str, Any], arguments: dict[str, Any] | None) -> None:
    assert check_config(edited(edits), training_args=arguments) == []


@pytest.mark.parametrize("optim", ["adamw_bnb_8bit", "paged_adamw_32bit", "galore_adamw"])
def test_an_optimizer_with_other_states_is_not_adamw(optim: str) -> None:
    found = check_config(BASE, training_args={**ARGUMENTS, "optim": optim})
    assert [finding.rule for finding in found] == ["trainer-optimizer-shadowed"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train_micro_batch_size_per_gpu", 0.5),
        ("train_micro_batch_size_per_gpu", 1e308),
        ("gradient_accumulation_steps", 1e308),
    ],
)
def test_sizes_that_are_none_are_the_schemas_alone(key: str, value: float) -> None:
    found = check_config(edited({key: value}), target=CPU)
    assert [finding.rule for finding in found if finding.severity == "error"] == ["wrong-type"]


def test_accelerate_fills_in_or_overwrites_what_the_schema_says_it_does() -> None:
    def keys(section: Section, prefix: str = "") -> Iterator[str]:
        for name, inner in section.keys.items():
            if isinstance(inner, Section):
                yield from keys(inner, f"{prefix}{name}.")
            elif inner.accelerate:
                yield f"{prefix}{name}"

    marked = sorted(keys(TOP))
    config = edited(dict.fromkeys(marked, "auto"))
    plugin = DeepSpeedPlugin(hf_ds_config=config)
    assert marked and [name for name in marked if plugin.get_value(name) == "auto"] == []
    assert plugin.get_value(f"{Z}.stage") == ACCELERATE_STAGE
    refused = DeepSpeedPlugin(hf_ds_config=edited({"data_types.keep_in_fp32_modules": "auto"}))
    with pytest.raises(ValueError, match="keep_in_fp32_modules"):
        refused.deepspeed_config_process(must_match=False)


def test_optimizer_defaults_are_those_of_the_classes() -> None:
    built = {"FusedAdam": FusedAdam, "DeepSpeedCPUAdam": DeepSpeedCPUAdam}
    for name, defaults in CLASS_DEFAULTS.items():
        made = built.get(name) or getattr(torch.optim, name.removeprefix("torch.optim."))
        parameters = inspect.signature(made.__init__).parameters
        found = {key: parameters[key].default for key in defaults}
        assert {**found, "betas": list(found["betas"])} == defaults, name


def test_stage_defaults_are_those_of_deepspeed() -> None:
    for name, value in ZERO_DEFAULTS.items():
        assert DeepSpeedZeroConfig.model_fields[name].default == value, name
    for name in set(KEY_STAGES) - set(OWN_RULE):
        bare = name.removeprefix("stage3_")
        default = DeepSpeedZeroConfig.model_fields[bare].default
        assert (
            bare in ZERO_DEFAULTS or default in (None, False) or bare in ("leaf_module", "model_persistence_threshold")
        ), name


def test_keys_that_are_never_read_have_no_reader() -> None:
    root = Path(deepspeed.__file__).parent
    readers = re.compile("|".join(rf"\.{name.rpartition('.')[2]}\b(?! *=[^=])" for name in NEVER_READ))
    found = [
        (path.name, line.strip())
        for path in root.rglob("*.py")
        for line in path.read_text(errors="ignore").splitlines()
        if readers.search(line)
    ]
    # A getter that nothing calls, and a copy from one record to another.
    assert {name for name, _ in found} <= {"engine.py", "autotp_config.py"}, found
    assert not any("zero_allgather_partitions()" in path.read_text(errors="ignore") for path in root.rglob("*.py"))


def test_trainer_defaults_are_those_of_transformers() -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(TrainingArguments)}
    assert defaults.keys() == schema_arguments.ARGUMENTS and not defaults.keys() & schema_arguments.REMOVED.keys()
    assert [kind.value for kind in SchedulerType] == schema_arguments.SCHEDULES
    assert [kind.value for kind in OptimizerNames] == schema_arguments.OPTIMIZERS
    for name, key in schema_arguments.READ.items():
        assert key.accepts(getattr(defaults[name], "value", defaults[name])) or name == "optim", name
    for name, value in TRAINER_DEFAULTS.items():
        assert defaults[name] == value, name


def test_the_stage_table_knows_only_keys_of_the_schema() -> None:
    assert set(KEY_STAGES) <= set(ZERO.keys)


JUNK: tuple[Any, ...] = (
    REMOVE,
    None,
    True,
    -1,
    0,
    1.5,
    float("inf"),
    "",
    "auto",
    "x",
    [],
    [1],
    [None, {}],
    {},
    {"type": 3},
    {"x": {"y": []}},
)


def paths(section: Section, prefix: str = "") -> list[str]:
    """Every dotted key of the schema."""
    found = []
    for name, inner in section.keys.items():
        found.append(f"{prefix}{name}")
        if not isinstance(inner, Key):
            found += paths(inner, f"{prefix}{name}.")
    return found


def test_no_value_makes_a_check_fail() -> None:
    """Whatever stands at whatever key, checking answers with findings and never raises."""
    rng = random.Random(0)
    params = [f"{P}.{name}" for name in LINEAR["scheduler"]["params"]]
    keys = [*paths(TOP), "optimizer.params.lr", "optimizer.params.betas", *params]
    seen: set[str] = set()
    for _ in range(1500):
        config = copy.deepcopy(BASE) | copy.deepcopy(LINEAR)
        for _ in range(rng.randint(1, 4)):
            put(config, rng.choice(keys), rng.choice(JUNK))
        arguments = {name: rng.choice(JUNK[1:]) for name in rng.sample(sorted(TRAINER_DEFAULTS), 5)}
        chosen = rng.choice([None, arguments, ARGUMENTS])
        found = check_config(config, target=rng.choice([None, CPU, CUDA]), training_args=chosen)
        assert all(finding.what and finding.expected and finding.do for finding in found)
        seen |= {finding.rule for finding in found}
    assert len(seen) > 20


def put(config: Any, path: str, value: Any) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        if not isinstance(config.get(parent), dict):
            config[parent] = {}
        config = config[parent]
    if value is REMOVE:
        config.pop(name, None)
    else:
        config[name] = copy.deepcopy(value)


def test_context_reads_nothing_from_malformed_sections() -> None:
    context = Context(
        {"zero_optimization": [], "optimizer": "AdamW", "gradient_clipping": "x", "bf16": {"enabled": "yes"}}
    )
    assert (context.stage, context.dtype, context.clipping, context.optimizer) == (0, "fp32", 1.0, None)
    assert context.optimizer_offload == context.param_offload == "none"
