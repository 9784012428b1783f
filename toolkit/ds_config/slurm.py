"""The SLURM batch script of a recipe."""

from __future__ import annotations

import shlex

from toolkit.recipe import Launch

WARNING_S = 180
"""So long before the time limit the ranks are told to save and leave."""

_SCRIPT = """\
#!/bin/bash
# Submit from the project's folder, with its environment active, and with what the cluster asks for; what follows the
# script are flags of the recipe:
#     sbatch --time 24:00:00 --partition NAME {file} --optimizer.learning_rate 1e-5
# Submitted again, the run continues from its last checkpoint.
#SBATCH --job-name={name}
#SBATCH --nodes={hosts}
#SBATCH --ntasks-per-node=1
{devices}#SBATCH --exclusive
#SBATCH --output=%x-%j.out
#SBATCH --signal=TERM@{warning_s}
set -euo pipefail

# The ranks meet on the first host, at a port that other jobs there are unlikely to have.
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MASTER_ADDR=${{hosts[0]}} MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
# At the signal, torchrun waits so long for the ranks to save; its own patience is 30 s.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT={patience_s}

# One torchrun per host; the host's number is only known inside of srun.
srun --kill-on-bad-exit=1 bash -c 'exec torchrun --nnodes "$SLURM_NNODES" --node_rank "$SLURM_NODEID" \\
    --nproc_per_node {per_host} --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT" \\
    {recipe} --resume auto "$@"' torchrun "$@"
"""


def render_slurm(launch: Launch, name: str, recipe_path: str) -> str:
    """The script that runs the recipe at `recipe_path`, called `name`, on the machines of `launch`.

    `sbatch --nodes N` may ask for other numbers of hosts: the global batch stays what the recipe says.
    """
    devices = "" if launch.device == "cpu" else f"#SBATCH --gpus-per-node={launch.devices}\n"
    return _SCRIPT.format(
        file=f"ds_configs/{name}.slurm",
        name=name,
        hosts=launch.hosts,
        devices=devices,
        warning_s=WARNING_S,
        patience_s=WARNING_S - 10,
        per_host=launch.devices,
        recipe=shlex.quote(recipe_path),
    )
