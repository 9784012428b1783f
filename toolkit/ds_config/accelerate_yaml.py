"""The YAML that `accelerate launch --config_file` reads, rendered beside each JSON."""

from __future__ import annotations

from typing import Any

import yaml

from toolkit.recipe import Launch

SEVERAL_HOSTS = """\
# Start this on every host, with two flags that take the place of values below:
#   --machine_rank N        the number of the host: 0 on the first, {last} on the last
#   --main_process_ip HOST  name or address of the first host, the same on all
# The first host must be free to listen at main_process_port. num_processes counts all hosts.
"""


def render_accelerate(launch: Launch, json_path: str) -> str:
    """YAML for `launch`, pointing at the DeepSpeed JSON at `json_path` (relative to where accelerate is started).

    For several hosts the same file serves each of them: what differs is said on the command line, as its first lines
    explain. Mixed precision, accumulation and clipping stay out of it: accelerate refuses them beside a JSON, which has them.
    """
    config: dict[str, Any] = {
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
    if launch.hosts == 1:
        return yaml.safe_dump(config, sort_keys=True)
    config |= {"main_process_ip": "FIRST_HOST", "main_process_port": 29500}
    return SEVERAL_HOSTS.format(last=launch.hosts - 1) + yaml.safe_dump(config, sort_keys=True)
