"""Rules about accelerate's own file (--accelerate, or the file itself): what accelerate makes of it for DeepSpeed.

Source: accelerate 1.15, commands/config/config_args.py, commands/launch.py, utils/launch.py (prepare_deepspeed_cmd_env) and
utils/dataclasses.py (DeepSpeedPlugin).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from toolkit.ds_config.accelerate_file import (
    block_of,
    is_deepspeeds,
    mixed_precision,
    named_file,
    processes,
    sound,
)
from toolkit.ds_config.edits import Edit, move, remove, rename, write
from toolkit.ds_config.meant import meant
from toolkit.ds_config.misspelt import misspelt
from toolkit.ds_config.rules.context import Context, Fault, rule
from toolkit.ds_config.rules.trainer_values import argument, number_format
from toolkit.ds_config.schema_accelerate import BLOCK, CLUSTER, OVERRULED
from toolkit.ds_config.schema_keys import Key, Section
from toolkit.ds_config.values import exact, show
from toolkit.errors import did_you_mean

IN_BLOCK = "deepspeed_config"


def _block(context: Context) -> Mapping[str, Any]:
    return block_of(context.accelerate or {})


@rule(
    "accelerate-unknown-key",
    looks_at="every key",
    why="accelerate refuses its file for a key that it does not know (ValueError in from_yaml_file), and ignores one in "
    "deepspeed_config in silence",
    role="accelerate",
)
def accelerate_unknown_key(context: Context) -> Iterator[Fault]:
    held = context.accelerate or {}
    for name in held:
        if name in CLUSTER.keys:
            continue
        if name in BLOCK.keys:
            fix = _moved(held, name)
            do = f"move it: it belongs in {IN_BLOCK}"
            yield name, f"unknown key {name[:60]} (it belongs in {IN_BLOCK})", "accelerate refuses it here", do, *fix
        else:
            yield _unknown("", name, held, CLUSTER, "accelerate refuses the file")
    block = _block(context)
    for name in block:
        if name not in BLOCK.keys:
            yield _unknown(f"{IN_BLOCK}.", name, block, BLOCK, "accelerate ignores it")


def _unknown(prefix: str, name: str, beside: Mapping[str, Any], section: Section, outcome: str) -> Fault:
    certain, near = misspelt(name, section.keys), did_you_mean(name[:200], section.keys)
    fix = (rename(f"{prefix}{name}", certain),) if certain and certain not in beside else ()
    what = f"unknown key {prefix}{name[:60]}{near}: {outcome}"
    do = "rename it" if near else "remove it, or correct its name"
    return (f"{prefix}{name}", what, "a key that accelerate reads there", do, *fix)


def _moved(held: Mapping[str, Any], name: str) -> tuple[Edit, ...]:
    block = held.get(IN_BLOCK)
    return (move(name, f"{IN_BLOCK}.{name}"),) if isinstance(block, Mapping) and name not in block else ()


@rule(
    "accelerate-value",
    looks_at="every key",
    why="accelerate hands the value on as it stands: it fails at start, in another program's words, or counts as true; in YAML "
    "no and off are false, and 0 is no text",
    role="accelerate",
)
def accelerate_value(context: Context) -> Iterator[Fault]:
    for prefix, held, section in (("", context.accelerate or {}, CLUSTER), (f"{IN_BLOCK}.", _block(context), BLOCK)):
        for name, value in held.items():
            key = section.keys.get(name)
            if isinstance(key, Section):
                if value is not None and not isinstance(value, Mapping):
                    yield name, f"{name}={show(value)}", "a block of keys", f"correct {name!r}"
            elif key is not None and not key.accepts(value):
                certain = _certain(key, value)
                fix = () if certain is None else (write(f"{prefix}{name}", certain),)
                yield f"{prefix}{name}", f"{prefix}{name}={show(value)}", key.describe(), f"correct {name!r}", *fix


def _certain(key: Key, value: Any) -> Any:
    if value is False:  # YAML reads a bare no as false
        return next((choice for choice in key.choices if str(choice).lower() == "no"), meant(key, value))
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return str(value) if is_number and key.kind == "text" and not key.choices else meant(key, value)


@rule(
    "accelerate-distributed-type",
    looks_at="distributed_type, deepspeed_config",
    why="accelerate refuses its file without distributed_type, and reads deepspeed_config for DEEPSPEED alone",
    role="accelerate",
)
def accelerate_distributed_type(context: Context) -> Iterator[Fault]:
    held = context.accelerate
    if held is None or is_deepspeeds(held) or held.get("compute_environment") == "AMAZON_SAGEMAKER":
        return
    kind = held.get("distributed_type")
    by_trainer = context.training_args is not None and bool(context.training_args.get("deepspeed"))
    if "distributed_type" not in held:
        what = "distributed_type is missing: accelerate refuses the file"
        yield "distributed_type", what, "DEEPSPEED", "write distributed_type: DEEPSPEED"
    elif _block(context):
        what = f"distributed_type={show(kind)}: accelerate does not look at deepspeed_config"
        yield "distributed_type", what, "DEEPSPEED", "write distributed_type: DEEPSPEED, or remove deepspeed_config"
    elif not by_trainer:
        what = f"distributed_type={show(kind)}: accelerate does not start DeepSpeed"
        yield "distributed_type", what, "DEEPSPEED", "write distributed_type: DEEPSPEED"


@rule(
    "accelerate-beside-a-file",
    looks_at=f"{IN_BLOCK}.*, mixed_precision",
    why="beside a DeepSpeed JSON, also the Trainer's own, accelerate raises ValueError for values of its own file that the JSON "
    "holds (DeepSpeedPlugin._deepspeed_config_checks)",
    role="accelerate",
)
def accelerate_beside_a_file(context: Context) -> Iterator[Fault]:
    held = context.accelerate
    if held is None or not context.config or not is_deepspeeds(held) or not _has_file(context, held):
        return
    for name in _block(context):
        if name in OVERRULED:
            yield _overruled(context, f"{IN_BLOCK}.{name}", _block(context)[name], OVERRULED[name])
    if held.get("mixed_precision") is not None:
        kind = mixed_precision(held)
        same = kind == {"fp32": "no"}.get(context.dtype, context.dtype)
        fix = (remove("mixed_precision"),) if same else ()
        what = f"mixed_precision={show(held['mixed_precision'])} beside a DeepSpeed JSON: accelerate refuses it"
        do = "remove it, and see that the JSON says what you want (bf16, fp16)"
        yield "mixed_precision", what, 'no such key, and "bf16" or "fp16" in the JSON', do, *fix


def _has_file(context: Context, held: Mapping[str, Any]) -> bool:
    """Whether a DeepSpeed JSON is in force, named by this file, by the Trainer's arguments or on the Trainer's command line."""
    told = context.training_args is not None and bool(context.config) and not context.is_made
    return named_file(held) is not None or told


def _overruled(context: Context, where: str, value: Any, key: str) -> Fault:
    written = context.raw(key)
    same = written == value or (written is None and value in (None, "none", False))
    has = f"={show(written)} there" if context.has(key) else " is missing there"
    what = f"{where}={show(value)} beside a DeepSpeed JSON: accelerate refuses it ({key}{has})"
    fix = (remove(where),) if same else ()
    return (where, what, "no such key", f"remove it, and see that the JSON says what you want ({key})", *fix)


@rule(
    "accelerate-processes",
    looks_at="num_processes, num_machines",
    why="num_processes counts the processes of all machines: accelerate starts num_processes // num_machines on each and drops "
    "the rest; without it every start needs the flag",
    role="accelerate",
)
def accelerate_processes(context: Context) -> Iterator[Fault]:
    held = context.accelerate
    if held is None or not is_deepspeeds(held):
        return
    number, machines = processes(held), sound(held, "num_machines") or 1
    if number is None:
        if held.get("num_processes", -1) in (-1, None):
            what = "num_processes is missing: accelerate launch stops without --num_processes"
            yield "num_processes", what, "the processes of all machines", "write it", "warning"
        return
    if number % machines:
        what = f"num_processes={number} with num_machines={machines}: {number // machines * machines} are started"
        yield "num_processes", what, f"a multiple of {machines}", "count the processes of all machines"
    if context.target is not None and context.target.world_size != number:
        what = f"num_processes={number}, but the world size is {context.target.world_size} (--world-size)"
        yield "num_processes", what, f"{context.target.world_size}", "correct one of the two"


@rule(
    "accelerate-machines",
    looks_at=f"num_machines, machine_rank, main_process_ip, {IN_BLOCK}.deepspeed_multinode_launcher, {IN_BLOCK}.deepspeed_hostfile",
    why="several machines meet at main_process_ip; every launcher but standard is DeepSpeed's own and, without a hostfile, "
    "starts on one machine alone",
    role="accelerate",
)
def accelerate_machines(context: Context) -> Iterator[Fault]:
    held = context.accelerate
    machines = None if held is None else sound(held, "num_machines")
    if held is None or machines is None or machines == 1 or not is_deepspeeds(held):
        return
    rank = sound(held, "machine_rank") or 0
    if rank >= machines:
        what = f"machine_rank={rank} with num_machines={machines}"
        yield "machine_rank", what, f"0 to {machines - 1}", "correct it"
    launcher = sound(held, "deepspeed_multinode_launcher") or "pdsh"
    if launcher == "standard" and not held.get("main_process_ip"):
        what = f"main_process_ip is missing with num_machines={machines}"
        yield "main_process_ip", what, "name or address of the first machine", "write it, or give --main_process_ip"
    if launcher not in ("standard", "slurm") and not _block(context).get("deepspeed_hostfile"):
        where = f"{IN_BLOCK}.deepspeed_hostfile"
        default = "" if _block(context).get("deepspeed_multinode_launcher") else ", the default"
        what = f"{where} is missing for the launcher {launcher!r}{default}: one machine is started"
        yield where, what, "a hostfile, or the launcher 'standard'", "write deepspeed_multinode_launcher: standard"


@rule(
    "accelerate-zero3-init",
    looks_at=f"{IN_BLOCK}.zero3_init_flag",
    why="accelerate switches it off below stage 3, with a warning in the log (DeepSpeedPlugin.__post_init__)",
    severity="warning",
    role="accelerate",
)
def accelerate_zero3_init(context: Context) -> Iterator[Fault]:
    where = f"{IN_BLOCK}.zero3_init_flag"
    if (
        context.accelerate is not None
        and context.config
        and _block(context).get("zero3_init_flag") is True
        and context.stage != 3
    ):
        what = f"{where}=true has no effect at stage {context.stage}"
        yield where, what, "stage 3, or false", "write false", write(where, False)


@rule(
    "accelerate-offload",
    looks_at=f"{IN_BLOCK}.offload_*",
    why="accelerate writes the path 'none' where device is nvme and no path is given, and DeepSpeed makes a folder of that name; "
    "a path for another device is left out",
    role="accelerate",
)
def accelerate_offload(context: Context) -> Iterator[Fault]:
    held = context.accelerate
    if held is None or not is_deepspeeds(held) or _has_file(context, held):
        return
    for name in ("optimizer", "param"):
        device, path = sound(held, f"offload_{name}_device"), sound(held, f"offload_{name}_nvme_path")
        where = f"{IN_BLOCK}.offload_{name}_nvme_path"
        if device == "nvme" and path in (None, "none"):
            yield where, f"{where} is missing for device 'nvme'", "a directory on a local NVMe disk", "write it"


@rule(
    "accelerate-clipping",
    looks_at=f"{IN_BLOCK}.gradient_clipping",
    why="accelerate leaves 0 out, and DeepSpeed clips at 1.0 where the key is absent (DeepSpeedPlugin.__post_init__)",
    role="accelerate",
)
def accelerate_clipping(context: Context) -> Iterator[Fault]:
    held, where = context.accelerate, f"{IN_BLOCK}.gradient_clipping"
    if held is None or not is_deepspeeds(held) or _has_file(context, held):
        return
    if sound(held, "gradient_clipping") == 0:
        what = f"{where}={exact(_block(context)['gradient_clipping'])}: accelerate leaves it out, and DeepSpeed clips at 1.0"
        yield where, what, "a norm above 0", 'for no clipping name a JSON with "gradient_clipping": 0.0'


@rule(
    "accelerate-mixed-precision",
    looks_at="mixed_precision, bf16, fp16",
    why="the Trainer's own bf16 and fp16 go before accelerate's mixed_precision (TrainingArguments.__post_init__)",
    role="accelerate",
)
def accelerate_mixed_precision(context: Context) -> Iterator[Fault]:
    held, arguments = context.accelerate, context.training_args
    if held is None or arguments is None or _has_file(context, held):
        return
    kind, asked = mixed_precision(held), number_format(arguments)
    if kind in ("bf16", "fp16") and asked not in ("fp32", kind):
        what = f"mixed_precision={kind!r}, but {asked}={show(argument(arguments, asked))} among the arguments: {asked} is trained"
        yield "mixed_precision", what, f"{asked!r}", "make the two equal"


@rule(
    "accelerate-scheduler-steps",
    looks_at="scheduler.params.total_num_steps, num_processes",
    why="accelerate writes the steps of its DummyScheduler divided by the number of processes, but its warm-up undivided, unless "
    "split_batches is set (Accelerator._prepare_deepspeed)",
    severity="warning",
)
def accelerate_scheduler_steps(context: Context) -> Iterator[Fault]:
    where = "scheduler.params.total_num_steps"
    number = None if context.accelerate is None else processes(context.accelerate)
    if context.training_args is None and context.raw(where) == "auto" and number is not None and number > 1:
        what = f'{where}="auto": accelerate writes the total of DummyScheduler / {number}, the number of processes'
        yield (
            where,
            what,
            "the optimizer steps of the run",
            f"write them, or give DummyScheduler {number} times as many",
        )


ACCELERATE_RULES = (
    accelerate_unknown_key,
    accelerate_value,
    accelerate_distributed_type,
    accelerate_beside_a_file,
    accelerate_processes,
    accelerate_machines,
    accelerate_zero3_init,
    accelerate_offload,
    accelerate_clipping,
    accelerate_mixed_precision,
    accelerate_scheduler_steps,
)
