"""Key tables of zero_optimization and the number formats, as of DeepSpeed 0.19.8.

Sources: deepspeed/runtime/zero/{config,offload_config,leaf_module_config}.py, runtime/zenflow/zenflow_config.py,
runtime/precision_config.py, runtime/config.py (torch_autocast, data_types).
"""

from __future__ import annotations

from toolkit.ds_config.schema_keys import (
    BOOL,
    ELEMENTS,
    NON_NEGATIVE,
    SHARE,
    Key,
    Same,
    Section,
    one_of,
    retired,
)

OFFLOAD_DEVICE = Key("text", choices=("none", "cpu", "nvme"), accelerate=True)
NVME_PATH = Key("text", nullable=True, accelerate=True)

OFFLOAD_PARAM = Section(
    {
        "device": OFFLOAD_DEVICE,
        "nvme_path": NVME_PATH,
        "buffer_count": NON_NEGATIVE,
        "buffer_size": ELEMENTS,
        "max_in_cpu": ELEMENTS,
        "pin_memory": BOOL,
    },
    nullable=True,
    is_closed=True,
)

OFFLOAD_OPTIMIZER = Section(
    {
        "device": OFFLOAD_DEVICE,
        "nvme_path": NVME_PATH,
        "buffer_count": NON_NEGATIVE,
        "pin_memory": BOOL,
        "pipeline_read": BOOL,
        "pipeline_write": BOOL,
        "fast_init": BOOL,
        "ratio": SHARE,
        "super_offload": BOOL,
        "cpuadam_cores_perc": SHARE,
    },
    nullable=True,
    is_closed=True,
)

ZENFLOW = Section(
    {
        "topk_ratio": Key("number", above=0, high=1),
        "select_strategy": one_of("auto", "step", "epoch"),
        "select_interval": Key("int", low=1, choices=("auto",)),
        "update_interval": Key("int", low=1, choices=("auto",)),
        "overlap_step": BOOL,
        "offload": BOOL,
        "auto_ratio": SHARE,
        "full_warm_up_rounds": NON_NEGATIVE,
        "pt_reserved_cores_perc": SHARE,
        "steps_per_epoch": retired("nothing: DeepSpeed fills it in while it runs"),
    },
    nullable=True,
    is_closed=True,
)

LEAF_MODULE = Section({name: Key("texts") for name in ("classes", "names", "name_suffixes")}, is_closed=True)

STAGE3_ALIASES: dict[str, Key] = {
    "prefetch_bucket_size": ELEMENTS,
    "param_persistence_threshold": ELEMENTS,
    "model_persistence_threshold": ELEMENTS,
    "max_live_parameters": ELEMENTS,
    "max_reuse_distance": ELEMENTS,
    "gather_16bit_weights_on_model_save": BOOL,
    "module_granularity_threshold": ELEMENTS,
    "use_all_reduce_for_fetch_params": BOOL,
    "allgather_sequential": BOOL,
}
"""Keys that are written with or without the prefix "stage3_"."""

GATHER = "gather_16bit_weights_on_model_save"
FILLED_BY_TRAINER = {"prefetch_bucket_size", "param_persistence_threshold", "gather_16bit_weights_on_model_save"}
"""Of those, the ones in which Hugging Face replaces "auto", under the prefixed name only."""


def _both_spellings() -> dict[str, Key]:
    keys: dict[str, Key] = {}
    for name, key in STAGE3_ALIASES.items():
        keys[name] = Key(key.kind, low=key.low)
        keys[f"stage3_{name}"] = Key(key.kind, low=key.low, auto=name in FILLED_BY_TRAINER, aliases=(name,))
    return keys


ON_THE_HOST = {"device": "cpu"}

ZERO = Section(
    {
        "stage": Key("int", low=0, high=3, accelerate=True),
        "contiguous_gradients": BOOL,
        "reduce_scatter": BOOL,
        "reduce_bucket_size": Key("count", low=1, auto=True),
        "use_multi_rank_bucket_allreduce": BOOL,
        "allgather_partitions": BOOL,
        "allgather_bucket_size": ELEMENTS,
        "overlap_comm": Key("bool", nullable=True),
        "compute_grad_norm": BOOL,
        "load_from_fp32_weights": BOOL,
        "elastic_checkpoint": BOOL,
        "offload_param": OFFLOAD_PARAM,
        "offload_optimizer": OFFLOAD_OPTIMIZER,
        "zenflow": ZENFLOW,
        "sub_group_size": ELEMENTS,
        "cpu_offload_param": retired(
            '"offload_param": {"device": "cpu"}',
            acts_as=BOOL,
            aliases=("offload_param",),
            becomes=("offload_param", ON_THE_HOST),
        ),
        "cpu_offload_use_pin_memory": retired('"pin_memory" inside offload_param or offload_optimizer'),
        "cpu_offload": retired(
            '"offload_optimizer": {"device": "cpu"}',
            acts_as=BOOL,
            aliases=("offload_optimizer",),
            becomes=("offload_optimizer", ON_THE_HOST),
        ),
        **_both_spellings(),
        "stage3_gather_fp16_weights_on_model_save": retired(
            '"stage3_gather_16bit_weights_on_model_save"',
            acts_as=BOOL,
            aliases=(GATHER, f"stage3_{GATHER}"),
            becomes=(f"stage3_{GATHER}", None),
        ),
        "ignore_unused_parameters": BOOL,
        "legacy_stage1": retired('"stage": 1 alone: the legacy implementation was removed'),
        "round_robin_gradients": BOOL,
        "parameter_alignment": BOOL,
        "zero_hpz_partition_size": NON_NEGATIVE,
        "zero_quantized_weights": BOOL,
        "zero_quantized_nontrainable_weights": BOOL,
        "zero_quantized_gradients": BOOL,
        "memory_efficient_linear": BOOL,
        "pipeline_loading_checkpoint": BOOL,
        "override_module_apply": BOOL,
        "log_trace_cache_warnings": BOOL,
        "enable_sanity_checks": BOOL,
        "save_muon_momentum_buffer_in_memory": BOOL,
        "leaf_module": LEAF_MODULE,
    },
    removed={
        "mics_shard_size": "nothing: MiCS was removed; ZeRO++ hpZ (zero_hpz_partition_size) is the nearest",
        "mics_hierarchical_params_gather": "nothing: MiCS was removed",
        "zeropp_loco_param": "nothing: LoCo was removed; zero_quantized_gradients alone stays",
    },
    or_boolean=True,
    is_closed=True,
)

ZERO_DEFAULTS = {
    "contiguous_gradients": True,
    "reduce_scatter": True,
    "reduce_bucket_size": 500_000_000,
    "allgather_bucket_size": 500_000_000,
    "use_multi_rank_bucket_allreduce": True,
    "allgather_partitions": True,
    "sub_group_size": 1_000_000_000,
    "prefetch_bucket_size": 50_000_000,
    "param_persistence_threshold": 100_000,
    "max_live_parameters": 1_000_000_000,
    "max_reuse_distance": 1_000_000_000,
    "module_granularity_threshold": 0,
    "ignore_unused_parameters": True,
    "zero_hpz_partition_size": 1,
    "memory_efficient_linear": True,
    "override_module_apply": True,
}
"""What DeepSpeed takes for keys that are not written, where that is neither null nor false; "stage3_" left out."""

FP16 = Section(
    {
        "enabled": Key("bool", auto=True),
        "auto_cast": BOOL,
        "loss_scale": Key("number", low=0),
        "initial_scale_power": Key("count", low=0),
        # The bounds of these hold under a dynamic loss scale only: rules/precision.py.
        "loss_scale_window": Key("count"),
        "hysteresis": Key("count"),
        "consecutive_hysteresis": BOOL,
        "min_loss_scale": Key("count"),
        "fp16_master_weights_and_grads": BOOL,
    },
    is_closed=True,
)

BF16 = Section(
    {
        "enabled": Key("bool", auto=True),
        "immediate_grad_update": BOOL,
        "check_grad_overflow": BOOL,
        "bf16_master_weights_and_grads": BOOL,
        "bf16_optimizer_states": BOOL,
    },
    removed={"check_overflow": Same("check_grad_overflow")},
    is_closed=True,
)

# Hugging Face fills in "auto" under the name "bf16" only.
OLD_BF16 = Section({**BF16.keys, "enabled": BOOL}, removed=BF16.removed, is_closed=True)

FP32_NAMES = ("fp32", "float32", "float", "torch.float32")
FP16_NAMES = ("fp16", "float16", "half", "torch.float16")
BF16_NAMES = ("bf16", "bfloat16", "torch.bfloat16")

TORCH_AUTOCAST = Section(
    {
        "enabled": BOOL,
        "dtype": one_of(*BF16_NAMES, *FP16_NAMES),
        "lower_precision_safe_modules": Key("texts"),
    }
)

DATA_TYPES = Section(
    {
        "grad_accum_dtype": one_of(*FP32_NAMES, *FP16_NAMES, *BF16_NAMES, nullable=True),
        "param_dtype": one_of(*FP32_NAMES, *FP16_NAMES, *BF16_NAMES, nullable=True),
        "buffer_dtype": one_of(*FP32_NAMES, *FP16_NAMES, *BF16_NAMES, nullable=True),
        "keep_in_fp32_modules": Key("texts", choices=("auto",)),
    }
)

COMMUNICATION_DTYPE = one_of("fp32", "fp16", "bf16", caseless=True, nullable=True)

NUMBER_FORMATS = {
    **dict.fromkeys(FP32_NAMES, "fp32"),
    **dict.fromkeys(FP16_NAMES, "fp16"),
    **dict.fromkeys(BF16_NAMES, "bf16"),
}
"""Every spelling of a number format -> fp32, fp16 or bf16."""
