"""Key tables of what stands beside the training itself: checkpoints, profiling, logs, compilation, disks, as of DeepSpeed 0.19.8.

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
        "partition_activations": BOOL.that("splits kept activations over the tensor-parallel ranks"),
        "number_checkpoints": Key("int", low=1, nullable=True).that(
            "is the number of checkpoints, for the contiguous buffer"
        ),
        "contiguous_memory_optimization": BOOL.that("copies kept activations into one buffer"),
        "cpu_checkpointing": BOOL.that("moves kept activations to host memory"),
        "profile": BOOL.that("times each checkpointed layer"),
        "synchronize_checkpoint_boundary": BOOL.that("waits for the GPU at each checkpoint"),
    },
    does="sets deepspeed.checkpointing, for models that call it themselves; Hugging Face models do not",
)

CHECKPOINT = Section(  # runtime/model_checkpointing/config.py
    {
        "tag_validation": one_of("Ignore", "Warn", "Fail", caseless=True).that(
            "compares the tag of a checkpoint between ranks; Warn where it is absent"
        ),
        "load_universal": BOOL.that(
            "loads a universal checkpoint, of any number of ranks",
            absent="false: the number of ranks must be that of the saved run",
        ),
        "use_node_local_storage": BOOL.that("saves each host's part on its own disk"),
        "parallel_write": Section(
            {"pipeline_stage": BOOL.that("lets all data-parallel ranks write the layers of a pipeline stage")},
            does="shares the writing among ranks",
        ),
        "checkpoint_serialization": BOOL.that("writes files as torch.save does; true where it is absent"),
        "writer": Section(
            {
                "type": one_of("mock", "python", "fast", caseless=True).that("is who writes; fast where it is absent"),
                "decoupled": BOOL.that("writes in another process while training goes on"),
                "io_buffer_size": POSITIVE.that("is the size of a write in bytes; 64 MiB where it is absent"),
                "io_buffer_double": BOOL.that("fills one buffer while the other is written; true where it is absent"),
                "show_statistics": BOOL.that("logs the speed of writing"),
                "data_parallel": one_of("replica", "socket", "machine", caseless=True, nullable=True).that(
                    "shares the writing among these ranks"
                ),
                "io_multiplier": POSITIVE.that("is the number of writers per rank; 1 where it is absent"),
            },
            nullable=True,
            does="replaces torch.save by a faster writer; every one fails in this version",
        ),
    },
    does="sets how checkpoints are written and loaded",
)

FLOPS_PROFILER = Section(  # profiling/config.py
    {
        "enabled": BOOL.that("counts the operations of one step and prints them; also times every step"),
        "recompute_fwd_factor": NUMBER.that(
            "adds that share of the forward pass for recomputed activations; 0.0 where it is absent"
        ),
        "profile_step": POSITIVE.that("is the step that is measured; 1 where it is absent"),
        "module_depth": INTEGER.that("is the depth down to which modules are printed; -1 for all"),
        "top_modules": POSITIVE.that("is how many modules are printed at each depth; 1 where it is absent"),
        "detailed": BOOL.that("prints every module; true where it is absent"),
        "output_file": TEXT_OR_NULL.that("is the file for the report; null: standard output"),
    },
    does="measures the operations of one step",
)

AUTOTUNING = Section(  # autotuning/config.py
    {
        "enabled": BOOL.that("measures a few steps and ends the run, for the tuner of `deepspeed --autotuning`"),
        "fast": BOOL.that("tunes the micro batch size alone; true where it is absent"),
        "results_dir": TEXT.that("is the folder for the results; autotuning_results where it is absent"),
        "exps_dir": TEXT.that("is the folder for the trials; autotuning_exps where it is absent"),
        "overwrite": BOOL.that("repeats trials that are there already; true where it is absent"),
        "start_profile_step": POSITIVE.that("is the first step that is measured; 3 where it is absent"),
        "end_profile_step": POSITIVE.that("is the last step that is measured; 5 where it is absent"),
        "metric": one_of("latency", "throughput", "flops", "forward", "step").that(
            "is what is made best; throughput where it is absent"
        ),
        "metric_path": TEXT_OR_NULL.that("is the file for the measurement"),
        "tuner_type": one_of("gridsearch", "random", "model_based").that(
            "is the order of trials; gridsearch where it is absent"
        ),
        "tuner_early_stopping": NON_NEGATIVE.that(
            "stops after so many trials without a better one; 5 where it is absent"
        ),
        "tuner_num_trials": POSITIVE.that("is the most trials; 50 where it is absent"),
        "arg_mappings": Section({}, is_open=True, nullable=True, does="maps keys of the file to flags of the script"),
        "model_info": Section(
            {
                "profile": BOOL.that("measures the model before it tunes"),
                "num_params": Key("int", low=1, nullable=True).that("is the number of parameters"),
                "hidden_size": Key("int", low=1, nullable=True).that("is the width of the model"),
                "num_layers": Key("int", low=1, nullable=True).that("is the number of layers"),
            },
            nullable=True,
            does="tells the tuner of the model, in place of a first run",
        ),
        "model_info_path": TEXT_OR_NULL.that("is the file for what was measured of the model"),
        "mp_size": POSITIVE.that("is the number of tensor-parallel ranks; 1 where it is absent"),
        "max_train_batch_size": Key("int", low=1, nullable=True).that("is the largest global batch that is tried"),
        "min_train_batch_size": POSITIVE.that("is stored and never read"),
        "max_train_micro_batch_size_per_gpu": POSITIVE.that(
            "is the largest micro batch that is tried; 1024 where it is absent"
        ),
        "min_train_micro_batch_size_per_gpu": POSITIVE.that(
            "is the smallest micro batch that is tried; 1 where it is absent"
        ),
        "num_tuning_micro_batch_sizes": POSITIVE.that("is how many micro batch sizes are tried; 3 where it is absent"),
    },
    removed={"start_step": Same("start_profile_step"), "end_step": Same("end_profile_step")},
    does="looks for the fastest settings, started by `deepspeed --autotuning`",
)

AIO = Section(  # runtime/swap_tensor/aio_config.py
    {
        "block_size": POSITIVE.that("is the size of a read or write in bytes; 1 MiB where it is absent"),
        "queue_depth": POSITIVE.that("is how many of them wait at once; 8 where it is absent"),
        "intra_op_parallelism": POSITIVE.that("is how many threads share one; 1 where it is absent"),
        "single_submit": BOOL.that("hands them to the kernel one by one"),
        "overlap_events": BOOL.that("hands new ones over while others finish; true where it is absent"),
        "use_gds": BOOL.that("reads from the disk straight into the GPU"),
    },
    nullable=True,
    does="tunes reads and writes of offload to nvme",
)

COMPILE = Section(  # compile/config.py
    {
        "deepcompile": BOOL.that(
            "compiles DeepSpeed's collectives with the model, once the script calls engine.compile()"
        ),
        "autoep_non_moe": BOOL.that("compiles around the layers with experts, which stay as they are"),
        "free_activation": BOOL.that("frees activations as soon as they were read"),
        "offload_activation": BOOL.that("keeps saved activations in host memory, as far as memory asks for it"),
        "offload_activation_pin_memory": BOOL.that("page-locks them there; true where it is absent"),
        "offload_opt_states": BOOL.that("keeps optimizer states in host memory during forward and backward"),
        "double_buffer": BOOL.that("gathers the next parameters while others are used; true where it is absent"),
        "symmetric_memory": BOOL.that("reduces over torch's symmetric memory"),
        "debug_log": BOOL.that("writes the compiled graphs"),
        "offload_parameters": BOOL.that("keeps parameters in host memory until they are used"),
        "sync_before_reduce": BOOL.that("waits for the GPU before each reduction"),
        "sync_after_reduce": BOOL.that("waits for the GPU after each reduction"),
        "sync_before_allgather": BOOL.that("waits for the GPU before parameters are gathered"),
        "sync_after_allgather": BOOL.that("waits for the GPU after parameters were gathered"),
        "keep_int_input_tensors": BOOL.that("keeps integer inputs for measuring; true where it is absent"),
        "keep_all_input_tensors": BOOL.that("keeps all inputs for measuring"),
        "free_activation_threshold": Key("count", low=0).that(
            "is the size in bytes from which they are freed; 10 MiB where it is absent"
        ),
        "passes": Key("texts", nullable=True, members=("z1", "z3", "autosp", "autotp")).that(
            "names the optimizations; null: by the stage"
        ),
    },
    is_closed=True,
    does="compiles the model together with ZeRO (DeepCompile)",
)

MONITOR_FILES = Section(  # monitor/config.py
    {
        "enabled": BOOL.that("writes loss, learning rate and loss scale of each step there"),
        "output_path": TEXT.that("is the folder for it"),
        "job_name": TEXT.that("is the folder's name below that; DeepSpeedJobName where it is absent"),
    },
    is_closed=True,
)
WANDB = Section(
    {
        "enabled": BOOL.that("sends loss, learning rate and loss scale of each step there"),
        "group": TEXT_OR_NULL.that("is the group of the run"),
        "team": TEXT_OR_NULL.that("is the team of the run"),
        "project": TEXT.that("is the project of the run; deepspeed where it is absent"),
    },
    is_closed=True,
    does="logs to Weights & Biases",
)
COMET = Section(
    {
        "enabled": BOOL.that("sends loss, learning rate and loss scale there"),
        "samples_log_interval": POSITIVE.that("sends them every so many samples; 100 where it is absent"),
        "project": TEXT_OR_NULL.that("is the project of the run"),
        "workspace": TEXT_OR_NULL.that("is the workspace of the run"),
        "api_key": TEXT_OR_NULL.that("is the secret of the account; better in the environment"),
        "experiment_name": TEXT_OR_NULL.that("is the name of the run"),
        "experiment_key": TEXT_OR_NULL.that("is the key of the run, to continue one"),
        "online": Key("bool", nullable=True).that("sends it, or keeps it in a file"),
        "mode": one_of("get", "create", "get_or_create", nullable=True).that("continues a run or begins one"),
    },
    is_closed=True,
    does="logs to Comet",
)

HYBRID_ENGINE = Section(  # runtime/config.py HybridEngineConfig
    {
        "enabled": BOOL.that("swaps inference kernels in while the model generates, for RLHF"),
        "max_out_tokens": POSITIVE.that("is the most tokens of prompt and answer; 512 where it is absent"),
        "inference_tp_size": POSITIVE.that(
            "is the number of tensor-parallel ranks while it generates; 1 where it is absent"
        ),
        "release_inference_cache": BOOL.that("frees the cache of keys and values after each generation"),
        "pin_parameters": BOOL.that("keeps all parameters gathered while it generates; true where it is absent"),
        "tp_gather_partition_size": POSITIVE.that("is how many layers are gathered at a time; 8 where it is absent"),
        "enable_cuda_graph": BOOL.that("generates with CUDA graphs"),
    },
    is_closed=True,
    does="generates with inference kernels between training steps",
)

WEIGHT_QUANTIZATION = Section(  # inference/config.py WeightQuantConfig
    {
        "enabled": BOOL.that("quantizes; true where it is absent"),
        "num_bits": POSITIVE.that("is the number of bits; 8 where it is absent"),
        "q_type": one_of("asymmetric", "symmetric").that("is how values are mapped; symmetric where it is absent"),
        "q_groups": POSITIVE.that("is the number of groups that have a scale each; 1 where it is absent"),
        "quantized_initialization": OBJECT.that("quantizes weights while the model is built"),
        "post_init_quant": OBJECT.that("quantizes weights after the model was built"),
    },
    is_closed=True,
    does="quantizes weights for ZeRO-Inference",
)

COMMS_LOGGER = Section(  # comm/config.py
    {
        "enabled": BOOL.that("times every collective, which then waits for the GPU"),
        "prof_all": BOOL.that("times all kinds of them; true where it is absent"),
        "prof_ops": Key("texts").that("lists the kinds that are timed, without prof_all"),
        "verbose": BOOL.that("logs each one at once"),
        "debug": BOOL.that("logs who called it"),
    },
    is_closed=True,
    does="logs sizes and times of collectives",
)
