"""The YAML that `accelerate launch --config_file` reads, rendered beside each JSON."""

from __future__ import annotations

import yaml

from toolkit.recipe import Launch


def render_accelerate(launch: Launch, json_path: str) -> str:
    """YAML for `launch`, pointing at the DeepSpeed JSON at `json_path` (relative to where accelerate is started).

    Mixed precision, accumulation and clipping stay out of it: accelerate refuses them beside a JSON, which has them.
    """
    config = {
        "compute_environment": "LOCAL_MACHINE",
        "deepspeed_config": {
            "deepspeed_config_file": json_path,
            "deepspeed_multinode_launcher": "standard",
            "zero3_init_flag": False,
        },
        "distributed_type": "DEEPSPEED",
        "machine_rank": 0,
        "main_training_function": "main",
        "num_machines": launch.hosts,
        "num_processes": launch.world_size,
        "rdzv_backend": "static",
        "same_network": True,
        "use_cpu": launch.device == "cpu",
    }
    return yaml.safe_dump(config, sort_keys=True)
