"""The file that `accelerate config` writes: its keys, and those of its block deepspeed_config.

Source: accelerate 1.15, commands/config/config_args.py (ClusterConfig), commands/launch.py, utils/launch.py
(prepare_deepspeed_cmd_env) and utils/dataclasses.py (DeepSpeedPlugin); tests compare them with the installed one.
"""

from __future__ import annotations

from toolkit.ds_config.schema_keys import BOOL, NON_NEGATIVE, POSITIVE, TEXT, Key, Section, one_of

SWITCH = Key("bool", nullable=True)
NAME = Key("text", nullable=True)
AMOUNT = Key("number", low=0)
DEVICE = one_of("none", "cpu", "nvme", nullable=True)
LAUNCHERS = ("pdsh", "standard", "openmpi", "mvapich", "mpich", "nossh", "slurm")

BLOCK = Section(
    {
        "deepspeed_config_file": NAME,
        "zero_stage": Key("int", low=0, high=3, nullable=True),
        "gradient_accumulation_steps": Key("int", low=1, nullable=True),
        "gradient_clipping": Key("number", low=0, nullable=True),
        "offload_optimizer_device": DEVICE,
        "offload_param_device": DEVICE,
        "offload_optimizer_nvme_path": NAME,
        "offload_param_nvme_path": NAME,
        "zero3_init_flag": SWITCH,
        "zero3_save_16bit_model": SWITCH,
        "deepspeed_hostfile": NAME,
        "deepspeed_exclusion_filter": NAME,
        "deepspeed_inclusion_filter": NAME,
        "deepspeed_multinode_launcher": one_of(*LAUNCHERS, nullable=True),
        "deepspeed_moe_layer_cls_names": NAME,
    }
)

OVERRULED: dict[str, str] = {
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "gradient_clipping": "gradient_clipping",
    "zero_stage": "zero_optimization.stage",
    "offload_optimizer_device": "zero_optimization.offload_optimizer.device",
    "offload_param_device": "zero_optimization.offload_param.device",
    "offload_optimizer_nvme_path": "zero_optimization.offload_optimizer.nvme_path",
    "offload_param_nvme_path": "zero_optimization.offload_param.nvme_path",
    "zero3_save_16bit_model": "zero_optimization.stage3_gather_16bit_weights_on_model_save",
}
"""Keys of the block -> the key of a DeepSpeed JSON that says the same. Beside such a file accelerate refuses them."""

DISTRIBUTED_TYPES = (
    "NO",
    "MULTI_CPU",
    "MULTI_GPU",
    "MULTI_NPU",
    "MULTI_MLU",
    "MULTI_SDAA",
    "MULTI_MUSA",
    "MULTI_XPU",
    "DEEPSPEED",
    "FSDP",
    "XLA",
    "MEGATRON_LM",
    "MULTI_HPU",
    "MULTI_NEURON",
)

CLUSTER = Section(
    {
        "compute_environment": one_of("LOCAL_MACHINE", "AMAZON_SAGEMAKER"),
        "distributed_type": one_of(*DISTRIBUTED_TYPES),
        "mixed_precision": one_of("no", "fp16", "bf16", "fp8", nullable=True),
        "use_cpu": BOOL,
        "debug": BOOL,
        "num_processes": Key("int", low=1, choices=(-1,)),
        "machine_rank": NON_NEGATIVE,
        "num_machines": POSITIVE,
        "gpu_ids": NAME,
        "main_process_ip": NAME,
        "main_process_port": Key("int", low=0, nullable=True),
        "rdzv_backend": NAME,
        "same_network": SWITCH,
        "main_training_function": TEXT,
        "enable_cpu_affinity": BOOL,
        "deepspeed_config": BLOCK,
        **dict.fromkeys(
            ("fp8_config", "fsdp_config", "parallelism_config", "megatron_lm_config", "mpirun_config", "dynamo_config"),
            Key("object", nullable=True),
        ),
        # Read by accelerate as older versions wrote them.
        **dict.fromkeys(("fp16", "dynamo_backend"), Key("any")),
        **dict.fromkeys(
            (
                "downcast_bf16",
                "tpu_name",
                "tpu_zone",
                "tpu_use_cluster",
                "tpu_use_sudo",
                "command_file",
                "commands",
                "tpu_vm",
                "tpu_env",
            ),
            Key("any"),
        ),
    }
)
