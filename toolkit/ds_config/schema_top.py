"""The top level of a DeepSpeed JSON, tensor and expert parallelism, and the keys that DeepSpeed 0.19.8 no longer has.

Sources: deepspeed/runtime/{config,constants}.py, deepspeed/__init__.py, runtime/tensor_parallel/config.py,
module_inject/{autotp_config,auto_ep_config}.py.
"""

from __future__ import annotations

from toolkit.ds_config.schema_keys import (
    BOOL,
    INTEGER,
    NUMBER,
    OBJECT,
    POSITIVE,
    TEXT,
    TEXT_OR_NULL,
    Key,
    Section,
    one_of,
    retired,
)
from toolkit.ds_config.schema_tables import (
    ACTIVATION_CHECKPOINTING,
    AIO,
    AUTOTUNING,
    CHECKPOINT,
    COMET,
    COMMS_LOGGER,
    COMPILE,
    DATA_EFFICIENCY,
    FLOPS_PROFILER,
    HYBRID_ENGINE,
    MONITOR_FILES,
    PIPELINE,
    WANDB,
    WEIGHT_QUANTIZATION,
)
from toolkit.ds_config.schema_zero import BF16, COMMUNICATION_DTYPE, DATA_TYPES, FP16, OLD_BF16, TORCH_AUTOCAST, ZERO

DEEPSPEED_VERSION = "0.19.8"
"""The version these tables were read from; tests compare them with the installed one."""

LAYER_SPEC = Section(
    {
        "patterns": Key("texts"),
        "partition_type": one_of("row", "column", "skip", caseless=True),
        "gather_output": BOOL,
        "grad_allreduce": BOOL,
        "shape": Key("list", nullable=True),
        "partition_dim": Key("int", nullable=True),
        "model_types": Key("texts", nullable=True),
    }
)

TP_GROUP = Section(
    {
        "tp_size": POSITIVE,
        "tp_grain_size": POSITIVE,
        **dict.fromkeys(("mpu", "tp_group"), retired("nothing: it holds a Python object, which JSON cannot")),
    },
    is_closed=True,
)

TENSOR_PARALLEL = Section(
    {
        "autotp_size": Key("int", low=0),
        "dtype": retired("nothing: it holds a torch.dtype, which JSON cannot"),
        "tp_overlap_comm": BOOL,
        "vocab_parallel_lm_head": Key("bool", nullable=True),
        "vocab_parallel_ce_backend": one_of("torch", "liger"),
        "tensor_parallel": TP_GROUP,
        "tp": TP_GROUP,
        "injection_policy_tuple": Key("list", nullable=True),
        "partition_config": Section(
            {
                "tp_size": POSITIVE,
                "layer_specs": Key("list", item=LAYER_SPEC),
                "embedding_partition_dim": INTEGER,
                "lm_head_patterns": Key("texts"),
                "use_default_specs": BOOL,
                "strict_mode": BOOL,
            },
            nullable=True,
        ),
        "preset_model": one_of(
            "llama", "bloom", "chatglm", "mixtral", "deepseek_v2", "qwen2", "phi3", caseless=True, nullable=True
        ),
        "keep_module_on_host": BOOL,
        "replace_with_kernel_inject": BOOL,
        "kernel_inject": Key("bool", aliases=("replace_with_kernel_inject",)),
    },
    twins=(("tp", "tensor_parallel"),),
    is_closed=True,
)

EXPERT_PARALLEL = Section(
    {
        "enabled": BOOL,
        "autoep_size": POSITIVE,
        "expert_tensor_parallel_size": Key("int", low=1, high=1),
        "validate_folding_routing": BOOL,
        "async_split_plan": BOOL,
        "use_grouped_mm": BOOL,
        "disable_triton_grouped_mm": BOOL,
        "route_norm": Key("bool", nullable=True),
        "route_scale": NUMBER,
        "score_apply": one_of("auto", "pre", "post"),
        "combine_impl": one_of("auto", "weighted_sum", "fused_weighted_sum", "legacy_bmm"),
        "row_weighting_impl": one_of("auto", "eager", "fused"),
        "gate_up_impl": one_of("separate", "fused"),
        "comm_backend": one_of("comm", "deepep"),
        "comm_num_sm": POSITIVE,
        "comm_qp_margin": Key("int", low=0),
        "comm_max_tokens_per_rank": Key("int", low=0),
        "num_expert_groups": Key("int", low=1, nullable=True),
        "num_limited_groups": Key("int", low=1, nullable=True),
        "score_func": one_of("auto", "softmax", "sigmoid"),
        "top_k": Key("int", low=1, choices=("auto",)),
        "load_balance_coeff": Key("any", instead="nothing (or null): AutoEP has no load-balancing loss", nullable=True),
        "routed_scaling_factor": Key("number", choices=("auto",)),
        "has_shared_experts": Key("bool", nullable=True),
        "preset_model": one_of(
            "mixtral", "qwen3_moe", "qwen3_5_moe", "deepseek_v2", "deepseek_v3", "minimax_m3", nullable=True
        ),
        "expert_activation": one_of("swiglu", "geglu_tanh", "swiglu_clamped", "swiglu_oai", nullable=True),
        **dict.fromkeys(
            (
                "moe_layer_pattern",
                "expert_pattern",
                "router_pattern",
                "expert_w1",
                "expert_w2",
                "expert_w3",
                "num_experts_attr",
                "top_k_attr",
                "shared_experts_pattern",
                "shared_experts_gate_pattern",
            ),
            TEXT_OR_NULL,
        ),
    }
)

BATCH_KEYS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")

REMOVED = {
    "nebula": "nothing: Nebula checkpoints were removed",
    "compression_training": "nothing: the compression library was removed",
    "amp": '"bf16", "fp16" or "torch_autocast": Apex AMP was removed',
    "quantize_training": "nothing: quantized training was removed",
    "sparse_gradients": "nothing: an embedding built with sparse=True is reduced sparsely by itself",
    "eigenvalue": "nothing: it belonged to quantized training, which was removed",
    "sparse_attention": "nothing: sparse attention was removed; use the model's own attention",
    "elasticity": "the three batch keys: elastic training was removed",
    "graph_harvesting": "nothing: graph harvesting was removed",
    "curriculum_learning": '"data_efficiency": {"data_sampling": {"curriculum_learning": ...}}',
    "progressive_layer_drop": "nothing: progressive layer dropping was removed",
}

TOP = Section(
    {
        "train_batch_size": Key("count", low=1, auto=True),
        "train_micro_batch_size_per_gpu": Key("int", low=1, auto=True),
        "gradient_accumulation_steps": Key("count", low=1, auto=True),
        "managed_gradient_accumulation": BOOL,
        "gradient_clipping": Key("number", low=0, auto=True),
        "prescale_gradients": BOOL,
        "gradient_predivide_factor": Key("number", above=0),
        "gradient_allreduce_op": one_of("mean", "sum", caseless=True),
        "communication_data_type": COMMUNICATION_DTYPE,
        "seq_parallel_communication_data_type": COMMUNICATION_DTYPE,
        "fp16": FP16,
        "bf16": BF16,
        "bfloat16": retired('"bf16", the only name that Hugging Face reads', acts_as=OLD_BF16, becomes=("bf16", None)),
        "torch_autocast": TORCH_AUTOCAST,
        "data_types": DATA_TYPES,
        "zero_optimization": ZERO,
        "zero_allow_untested_optimizer": BOOL,
        "zero_force_ds_cpu_optimizer": BOOL,
        "tensor_parallel": TENSOR_PARALLEL,
        "expert_parallel": EXPERT_PARALLEL,
        "sequence_parallel_size": POSITIVE,
        "data_parallel_size": POSITIVE,
        "use_data_before_expert_parallelism": BOOL,
        "pipeline": PIPELINE,
        "activation_checkpointing": ACTIVATION_CHECKPOINTING,
        "checkpoint": CHECKPOINT,
        "data_efficiency": DATA_EFFICIENCY,
        "flops_profiler": FLOPS_PROFILER,
        **dict.fromkeys(
            (
                "wall_clock_breakdown",
                "memory_breakdown",
                "dump_state",
                "disable_python_gc",
                "dataloader_drop_last",
                "disable_allgather",
            ),
            BOOL,
        ),
        "vocabulary_size": Key("int", low=1, nullable=True),
        "log_level": one_of("debug", "info", "warning", "error", "critical", caseless=True, nullable=True),
        "steps_per_print": Key("count", low=1, nullable=True, accelerate=True),
        "comms_logger": COMMS_LOGGER,
        "tensorboard": MONITOR_FILES,
        "csv_monitor": MONITOR_FILES,
        "wandb": WANDB,
        "comet": COMET,
        "timers": Section({"throughput": Section({"enabled": BOOL, "synchronized": BOOL}, is_closed=True)}),
        "aio": AIO,
        "autotuning": AUTOTUNING,
        "compile": COMPILE,
        "hybrid_engine": HYBRID_ENGINE,
        "weight_quantization": WEIGHT_QUANTIZATION,
        "datastates_ckpt": Key("any"),
        # The tables of optimizer.params and scheduler.params depend on the type: schema_optimizers.py.
        "optimizer": Section(
            {"type": TEXT, "params": Key("object", nullable=True), "legacy_fusion": BOOL}, required=("type",)
        ),
        "scheduler": Section({"type": TEXT, "params": OBJECT}, required=("type", "params")),
    },
    removed=REMOVED,
)
