"""The top level of a DeepSpeed JSON, and the keys that DeepSpeed 0.19.8 no longer has.

Sources: deepspeed/runtime/{config,constants}.py, deepspeed/__init__.py.
"""

from __future__ import annotations

from toolkit.ds_config.schema_data import DATA_EFFICIENCY
from toolkit.ds_config.schema_formats import (
    BF16,
    COMMUNICATION_DTYPE,
    DATA_TYPES,
    FP16,
    OLD_BF16,
    TORCH_AUTOCAST,
)
from toolkit.ds_config.schema_keys import BOOL, OBJECT, POSITIVE, TEXT, Key, Section, one_of, retired
from toolkit.ds_config.schema_parallel import EXPERT_PARALLEL, PIPELINE, TENSOR_PARALLEL
from toolkit.ds_config.schema_tables import (
    ACTIVATION_CHECKPOINTING,
    AIO,
    AUTOTUNING,
    CHECKPOINT,
    COMET,
    COMMS_LOGGER,
    COMPILE,
    FLOPS_PROFILER,
    HYBRID_ENGINE,
    MONITOR_FILES,
    WANDB,
    WEIGHT_QUANTIZATION,
)
from toolkit.ds_config.schema_zero import ZERO

DEEPSPEED_VERSION = "0.19.8"
"""The version these tables were read from; tests compare them with the installed one."""

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
        "train_batch_size": Key("count", low=1, auto=True).that(
            "is the samples of one update: micro size x accumulation steps x ranks; what is missing of the three follows"
        ),
        "train_micro_batch_size_per_gpu": Key("int", low=1, auto=True).that("is the samples that a rank takes at once"),
        "gradient_accumulation_steps": Key("count", low=1, auto=True).that(
            "is the micro-batches of one update; backward() divides the loss by it unless told scale_wrt_gas=False",
            absent="what follows from the other two sizes, else 1; accelerate and the Trainer write 1",
        ),
        "managed_gradient_accumulation": BOOL.that(
            "lets DeepSpeed count the micro-batches; false makes every step() an update",
            absent="true: step() updates after gradient_accumulation_steps calls",
        ),
        "gradient_clipping": Key("number", low=0, auto=True).that(
            "clips the norm of all gradients to it; 0 for never",
            absent="1.0: the norm of the gradients is clipped at 1.0",
        ),
        "prescale_gradients": BOOL.that("divides gradients before they are summed over ranks"),
        "gradient_predivide_factor": Key("number", above=0).that(
            "divides by it before the sum and by the rest after it; 1.0 where it is absent"
        ),
        "gradient_allreduce_op": one_of("mean", "sum", caseless=True).that(
            "averages gradients over ranks, or sums them; mean where it is absent"
        ),
        "communication_data_type": COMMUNICATION_DTYPE.that(
            "is the format in which gradients travel",
            absent="the parameters' format: bf16 gradients are summed over ranks in bf16",
        ),
        "seq_parallel_communication_data_type": COMMUNICATION_DTYPE.that(
            "is that format under sequence parallelism; fp32 where it is absent"
        ),
        "fp16": FP16,
        "bf16": BF16,
        "bfloat16": retired('"bf16", the only name that Hugging Face reads', acts_as=OLD_BF16, becomes=("bf16", None)),
        "torch_autocast": TORCH_AUTOCAST,
        "data_types": DATA_TYPES,
        "zero_optimization": ZERO,
        "zero_allow_untested_optimizer": BOOL.that("lets ZeRO take an optimizer that is not on its list"),
        "zero_force_ds_cpu_optimizer": BOOL.that(
            "refuses an offloaded optimizer that is not DeepSpeed's own; true where it is absent"
        ),
        "tensor_parallel": TENSOR_PARALLEL,
        "expert_parallel": EXPERT_PARALLEL,
        "sequence_parallel_size": POSITIVE.that("splits each sequence over so many ranks (Ulysses)"),
        "data_parallel_size": POSITIVE.that("is the ranks that take other samples, beside sequence_parallel_size"),
        "use_data_before_expert_parallelism": BOOL.that("numbers ranks by data first, then by experts"),
        "pipeline": PIPELINE,
        "activation_checkpointing": ACTIVATION_CHECKPOINTING,
        "checkpoint": CHECKPOINT,
        "data_efficiency": DATA_EFFICIENCY,
        "flops_profiler": FLOPS_PROFILER,
        "wall_clock_breakdown": BOOL.that(
            "times forward, backward and step of each micro-batch, and waits for the GPU to do so"
        ),
        "memory_breakdown": BOOL.that("logs the memory in use at certain places"),
        "dump_state": BOOL.that("logs the engine's settings at the start"),
        "disable_python_gc": BOOL.that("collects Python's garbage at chosen moments alone"),
        "dataloader_drop_last": BOOL.that("drops the last incomplete batch of DeepSpeed's own loader"),
        "disable_allgather": BOOL.that("is stored and never read"),
        "vocabulary_size": Key("int", low=1, nullable=True).that(
            "warns where it is no multiple of 8, and does nothing else"
        ),
        "log_level": one_of("debug", "info", "warning", "error", "critical", caseless=True, nullable=True).that(
            "is how much DeepSpeed logs"
        ),
        "steps_per_print": Key("count", low=1, nullable=True, accelerate=True).that(
            "logs every so many steps; accelerate and the Trainer switch it off"
        ),
        "comms_logger": COMMS_LOGGER,
        "tensorboard": MONITOR_FILES.that("logs to TensorBoard"),
        "csv_monitor": MONITOR_FILES.that("logs to CSV files"),
        "wandb": WANDB,
        "comet": COMET,
        "timers": Section(
            {
                "throughput": Section(
                    {
                        "enabled": BOOL.that("measures samples per second; true where it is absent"),
                        "synchronized": BOOL.that("waits for the GPU to do so; true where it is absent"),
                    },
                    is_closed=True,
                    does="measures samples per second",
                )
            },
            does="sets what is measured in each step",
        ),
        "aio": AIO,
        "autotuning": AUTOTUNING,
        "compile": COMPILE,
        "hybrid_engine": HYBRID_ENGINE,
        "weight_quantization": WEIGHT_QUANTIZATION,
        "datastates_ckpt": Key("any").that("switches DataStates checkpoints on, whatever its value but false"),
        # The tables of optimizer.params and scheduler.params depend on the type: schema_optimizers.py.
        "optimizer": Section(
            {
                "type": TEXT.that("names the optimizer: DeepSpeed's own in any case, torch.optim's exactly"),
                "params": Key("object", nullable=True).that("holds the arguments of its class"),
                "legacy_fusion": BOOL.that("takes the older fused 16-bit optimizer at stage 0"),
            },
            required=("type",),
            does="lets DeepSpeed build the optimizer",
            absent="the script, or the Trainer, builds the optimizer",
        ),
        "scheduler": Section(
            {
                "type": TEXT.that("names the schedule, exactly"),
                "params": OBJECT.that("holds the arguments of its class"),
            },
            required=("type", "params"),
            does="lets DeepSpeed set the learning rate of each step",
            absent="the script, or the Trainer, sets the learning rate",
        ),
    },
    removed=REMOVED,
)

ENVIRONMENT: dict[str, str] = {
    "DEEPSPEED_TIMEOUT": "is the minutes that a collective may take before the run ends: 10 where it is not set; the Trainer's "
    "ddp_timeout, 1800 s, goes before it",
}
"""What matters and has no key: variables of the environment (deepspeed/constants.py)."""
