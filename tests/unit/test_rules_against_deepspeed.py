"""What the rules say about DeepSpeed, checked on DeepSpeed: what it refuses, and what it accepts in silence."""

from __future__ import annotations

import copy

import pydantic
import pytest
import torch
from deepspeed.runtime.config import DeepSpeedConfig, DeepSpeedConfigError
from deepspeed.runtime.fp16.fused_optimizer import FP16_Optimizer
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.runtime.lr_schedules import VALID_LR_SCHEDULES
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

from tests.unit.test_rules import CASES, Case, edited
from toolkit.ds_config.schema_schedules import DEEPSPEED_SCHEDULERS, SCHEDULERS

REFUSED_WHEN_PARSED = {
    "removed-key",
    "alias-twice",
    "batch-missing",
    "summed-gradients",
    "fp16-and-bf16",
}
"""Rules whose every case DeepSpeed refuses while it reads the file; the others fail later, or never."""

SILENT = {
    "unknown-key",
    "optimizer-type",
    "scheduler-type",
    "zero-section-missing",
    "stage-0-in-16-bits",
    "key-of-another-stage",
    "allgather-bucket-odd",
    "zenflow",
    "contiguous-gradients",
    "offload-param-below-stage-3",
    "offload-optimizer-at-stage-0",
    "nvme-optimizer-below-stage-3",
    "nvme-path",
    "clipping-unwritten",
    "autocast-and-16-bits",
    "accumulation-dtype-unwritten",
    "learning-rate-unwritten",
    "adam-or-adamw",
    "warmup-type-unwritten",
    "warmup-max-lr",
    "activation-checkpointing-inert",
    "checkpoint-writer",
    "datastates-enabled",
    "data-efficiency-inert",
    "pipeline-keys-unused",
}
"""Rules whose every case DeepSpeed reads without a word."""


def cases(rules: set[str]) -> list[Case]:
    return [case for case in CASES if case.rule in rules]


def parse(case: Case) -> DeepSpeedConfig:
    """DeepSpeed's own reading, which knows one rank outside a process group."""
    config = edited(case.bad)
    if "train_micro_batch_size_per_gpu" in config:
        config.pop("train_batch_size", None)
    return DeepSpeedConfig(copy.deepcopy(config))


@pytest.mark.parametrize("case", cases(REFUSED_WHEN_PARSED), ids=lambda case: f"{case.rule}:{case.where}")
def test_deepspeed_refuses(case: Case) -> None:
    with pytest.raises((AssertionError, ValueError, DeepSpeedConfigError, pydantic.ValidationError)):
        parse(case)


@pytest.mark.parametrize("case", cases(SILENT), ids=lambda case: f"{case.rule}:{case.where}")
def test_deepspeed_says_nothing(case: Case) -> None:
    assert parse(case) is not None


def test_defaults_the_rules_speak_of() -> None:
    config = DeepSpeedConfig({"train_batch_size": 1})
    assert config.gradient_clipping == 1.0
    assert config.zero_optimization_stage == 0
    assert config.zero_config.compute_grad_norm and config.zero_config.reduce_scatter
    assert DeepSpeedConfig({"train_batch_size": 1, "datastates_ckpt": {"enabled": False}}).datastates_config.enabled
    assert DeepSpeedConfig({"train_batch_size": 1, "zero_optimization": {"stage": "2"}}).zero_optimization_stage == 2


def test_torchs_schedules_do_not_take_deepspeeds_optimizers() -> None:
    own = set(SCHEDULERS) - set(DEEPSPEED_SCHEDULERS)
    assert set(DEEPSPEED_SCHEDULERS) == set(VALID_LR_SCHEDULES)
    for name in sorted(own):
        assert issubclass(getattr(torch.optim.lr_scheduler, name), torch.optim.lr_scheduler.LRScheduler)
    for wrapper in (DeepSpeedZeroOptimizer, DeepSpeedZeroOptimizer_Stage3, FP16_Optimizer, FP16_UnfusedOptimizer):
        assert not issubclass(wrapper, torch.optim.Optimizer)
        with pytest.raises(TypeError, match="is not an Optimizer"):
            torch.optim.lr_scheduler.StepLR(object.__new__(wrapper), step_size=1)
