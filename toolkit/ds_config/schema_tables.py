"""Key tables of everything but zero_optimization, the number formats and the optimizers, as of DeepSpeed 0.19.8.

Sources: deepspeed/runtime/config.py, runtime/constants.py and the config.py of each package named beside a table.
"""

from __future__ import annotations

from toolkit.ds_config.schema_keys import (
    BOOL,
    INTEGER,
    NON_NEGATIVE,
    NUMBER,
    OBJECT,
    POSITIVE,
    TEXT,
    TEXT_OR_NULL,
    Key,
    Same,
    Section,
    one_of,
)

ACTIVATION_CHECKPOINTING = Section(  # runtime/activation_checkpointing/config.py
    {
        "partition_activations": BOOL,
        "number_checkpoints": Key("int", low=1, nullable=True),
        "contiguous_memory_optimization": BOOL,
        "cpu_checkpointing": BOOL,
        "profile": BOOL,
        "synchronize_checkpoint_boundary": BOOL,
    }
)

CHECKPOINT = Section(  # runtime/model_checkpointing/config.py
    {
        "tag_validation": one_of("Ignore", "Warn", "Fail", caseless=True),
        "load_universal": BOOL,
        "use_node_local_storage": BOOL,
        "parallel_write": Section({"pipeline_stage": BOOL}),
        "checkpoint_serialization": BOOL,
        "writer": Section(
            {
                "type": one_of("mock", "python", "fast", caseless=True),
                "decoupled": BOOL,
                "io_buffer_size": POSITIVE,
                "io_buffer_double": BOOL,
                "show_statistics": BOOL,
                "data_parallel": one_of("replica", "socket", "machine", caseless=True, nullable=True),
                "io_multiplier": POSITIVE,
            },
            nullable=True,
        ),
    }
)

CURRICULUM_METRIC = Section(  # runtime/data_pipeline/{curriculum_scheduler,data_sampling/data_sampler}.py
    {
        "index_to_sample_path": TEXT,
        "index_to_metric_path": TEXT,
        "difficulty_type": one_of("value", "percentile"),
        "clustering_type": one_of("single_cluster", "schedule_based"),
        "min_difficulty": NUMBER,
        "max_difficulty": NUMBER,
        "schedule_type": one_of("fixed_discrete", "fixed_root", "fixed_linear", "custom"),
        "schedule_config": Section(
            {
                "difficulty": Key("list"),
                "max_step": Key("list"),
                "total_curriculum_step": POSITIVE,
                "difficulty_step": POSITIVE,
                "root_degree": POSITIVE,
            }
        ),
    },
    required=("min_difficulty", "max_difficulty", "schedule_type"),
)

RANDOM_LTD = Section(  # runtime/data_pipeline/data_routing/{scheduler,basic_layer}.py
    {
        "enabled": BOOL,
        "total_layer_num": POSITIVE,
        "random_ltd_layer_num": POSITIVE,
        "random_ltd_layer_id": Key("list"),
        "model_mask_name": TEXT_OR_NULL,
        "model_type": one_of("decoder", "encoder"),
        "hidden_state_order": TEXT,
        "random_ltd_schedule": Section(
            {
                "min_value": POSITIVE,
                "max_value": POSITIVE,
                "schedule_type": one_of("fixed_linear"),
                "schedule_config": Section({"require_steps": POSITIVE, "seq_per_step": POSITIVE}),
            }
        ),
        "layer_token_lr_schedule": Section(
            {
                "enabled": BOOL,
                "total_layer_tokens": POSITIVE,
                "warmup_type": TEXT,
                "warmup_layer_tokens": POSITIVE,
            }
        ),
    }
)

DATA_EFFICIENCY = Section(  # runtime/data_pipeline/config.py
    {
        "enabled": BOOL,
        "seed": NON_NEGATIVE,
        "data_sampling": Section(
            {
                "enabled": BOOL,
                "num_epochs": POSITIVE,
                "num_workers": NON_NEGATIVE,
                "pin_memory": BOOL,
                "curriculum_learning": Section(
                    {
                        "enabled": BOOL,
                        "data_cluster_path": TEXT,
                        "curriculum_metrics": Section({}, each=CURRICULUM_METRIC),
                    }
                ),
                "dynamic_batching": Section(
                    {
                        "enabled": BOOL,
                        "metrics_path": TEXT,
                        "lr_scaling_method": one_of("linear", "sqrt", "none"),
                        "min_batch_size": POSITIVE,
                        "max_batch_size": Key("int", low=1, nullable=True),
                        "sequence_picking_order": one_of("random", "seqlen", "dataloader"),
                        "max_tokens": POSITIVE,
                        "verbose": BOOL,
                    }
                ),
            }
        ),
        "data_routing": Section({"enabled": BOOL, "random_ltd": RANDOM_LTD}),
    }
)

FLOPS_PROFILER = Section(  # profiling/config.py
    {
        "enabled": BOOL,
        "recompute_fwd_factor": NUMBER,
        "profile_step": POSITIVE,
        "module_depth": INTEGER,
        "top_modules": POSITIVE,
        "detailed": BOOL,
        "output_file": TEXT_OR_NULL,
    }
)

AUTOTUNING = Section(  # autotuning/config.py
    {
        "enabled": BOOL,
        "fast": BOOL,
        "results_dir": TEXT,
        "exps_dir": TEXT,
        "overwrite": BOOL,
        "start_profile_step": POSITIVE,
        "end_profile_step": POSITIVE,
        "metric": one_of("latency", "throughput", "flops", "forward", "step"),
        "metric_path": TEXT_OR_NULL,
        "tuner_type": one_of("gridsearch", "random", "model_based"),
        "tuner_early_stopping": NON_NEGATIVE,
        "tuner_num_trials": POSITIVE,
        "arg_mappings": Section({}, is_open=True, nullable=True),
        "model_info": Section(
            {
                "profile": BOOL,
                "num_params": Key("int", low=1, nullable=True),
                "hidden_size": Key("int", low=1, nullable=True),
                "num_layers": Key("int", low=1, nullable=True),
            },
            nullable=True,
        ),
        "model_info_path": TEXT_OR_NULL,
        "mp_size": POSITIVE,
        "max_train_batch_size": Key("int", low=1, nullable=True),
        "min_train_batch_size": POSITIVE,
        "max_train_micro_batch_size_per_gpu": POSITIVE,
        "min_train_micro_batch_size_per_gpu": POSITIVE,
        "num_tuning_micro_batch_sizes": POSITIVE,
    },
    removed={"start_step": Same("start_profile_step"), "end_step": Same("end_profile_step")},
)

AIO = Section(  # runtime/swap_tensor/aio_config.py
    {
        "block_size": POSITIVE,
        "queue_depth": POSITIVE,
        "intra_op_parallelism": POSITIVE,
        "single_submit": BOOL,
        "overlap_events": BOOL,
        "use_gds": BOOL,
    },
    nullable=True,
)

COMPILE = Section(  # compile/config.py
    {
        **dict.fromkeys(
            (
                "deepcompile",
                "autoep_non_moe",
                "free_activation",
                "offload_activation",
                "offload_activation_pin_memory",
                "offload_opt_states",
                "double_buffer",
                "symmetric_memory",
                "debug_log",
                "offload_parameters",
                "sync_before_reduce",
                "sync_after_reduce",
                "sync_before_allgather",
                "sync_after_allgather",
                "keep_int_input_tensors",
                "keep_all_input_tensors",
            ),
            BOOL,
        ),
        "free_activation_threshold": Key("count", low=0),
        "passes": Key("texts", nullable=True, members=("z1", "z3", "autosp", "autotp")),
    },
    is_closed=True,
)

MONITOR_FILES = Section({"enabled": BOOL, "output_path": TEXT, "job_name": TEXT}, is_closed=True)  # monitor/config.py
WANDB = Section({"enabled": BOOL, "group": TEXT_OR_NULL, "team": TEXT_OR_NULL, "project": TEXT}, is_closed=True)
COMET = Section(
    {
        "enabled": BOOL,
        "samples_log_interval": POSITIVE,
        **dict.fromkeys(("project", "workspace", "api_key", "experiment_name", "experiment_key"), TEXT_OR_NULL),
        "online": Key("bool", nullable=True),
        "mode": one_of("get", "create", "get_or_create", nullable=True),
    },
    is_closed=True,
)

HYBRID_ENGINE = Section(  # runtime/config.py HybridEngineConfig
    {
        "enabled": BOOL,
        "max_out_tokens": POSITIVE,
        "inference_tp_size": POSITIVE,
        "release_inference_cache": BOOL,
        "pin_parameters": BOOL,
        "tp_gather_partition_size": POSITIVE,
        "enable_cuda_graph": BOOL,
    },
    is_closed=True,
)

WEIGHT_QUANTIZATION = Section(  # inference/config.py WeightQuantConfig
    {
        "enabled": BOOL,
        "num_bits": POSITIVE,
        "q_type": one_of("asymmetric", "symmetric"),
        "q_groups": POSITIVE,
        "quantized_initialization": OBJECT,
        "post_init_quant": OBJECT,
    },
    is_closed=True,
)

COMMS_LOGGER = Section(  # comm/config.py
    {"enabled": BOOL, "prof_all": BOOL, "prof_ops": Key("texts"), "verbose": BOOL, "debug": BOOL},
    is_closed=True,
)

PIPELINE = Section(  # runtime/config.py get_pipeline_config, runtime/pipe/engine.py
    {
        "stages": Key("int", low=1, choices=("auto",)),
        "partition": TEXT,
        "seed_layers": BOOL,
        "activation_checkpoint_interval": NON_NEGATIVE,
        "use_reentrant": BOOL,
        "pipe_partitioned": BOOL,
        "grad_partitioned": BOOL,
    }
)
