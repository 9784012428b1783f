"""Rules about what is moved to host memory or NVMe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from toolkit.ds_config.rules.context import Context, Fault, rule
from toolkit.ds_config.values import exact

PARAM = "zero_optimization.offload_param"
OPTIMIZER = "zero_optimization.offload_optimizer"


@rule(
    "offload-param-below-stage-3",
    looks_at=f"{PARAM}.device, zero_optimization.stage",
    why="below stage 3 DeepSpeed ignores offload_param in silence (run: no parameter left the device)",
)
def offload_param_below_stage_3(context: Context) -> Iterator[Fault]:
    if context.param_offload != "none" and context.stage != 3:
        what = f"{PARAM}.device={context.param_offload!r} is ignored at stage {context.stage}"
        yield f"{PARAM}.device", what, "stage 3", "set zero_optimization.stage to 3, or remove 'offload_param'"


@rule(
    "offload-optimizer-at-stage-0",
    looks_at=f"{OPTIMIZER}.device, zero_optimization.stage",
    why="stage 0 has no offload, yet DeepSpeed still picks the optimizer kernel for host memory (engine.py)",
)
def offload_optimizer_at_stage_0(context: Context) -> Iterator[Fault]:
    if context.optimizer_offload != "none" and context.stage == 0:
        what = f"{OPTIMIZER}.device={context.optimizer_offload!r} at stage 0"
        yield f"{OPTIMIZER}.device", what, "stage 1, 2 or 3", "set zero_optimization.stage to 1 or higher"


@rule(
    "nvme-optimizer-below-stage-3",
    looks_at=f"{OPTIMIZER}.device, zero_optimization.stage",
    why="below stage 3 DeepSpeed keeps 'nvme' optimizer states in host memory, in silence (run)",
)
def nvme_optimizer_below_stage_3(context: Context) -> Iterator[Fault]:
    if context.optimizer_offload == "nvme" and context.stage in (1, 2):
        what = f"{OPTIMIZER}.device='nvme' means 'cpu' at stage {context.stage}"
        yield f"{OPTIMIZER}.device", what, "stage 3, or 'cpu'", "set zero_optimization.stage to 3, or write 'cpu'"


@rule(
    "nvme-path",
    looks_at=f"{OPTIMIZER}.nvme_path, {PARAM}.nvme_path",
    why="DeepSpeed needs a directory for device 'nvme', makes one named ~ of a ~, and ignores one for any other device",
)
def nvme_path(context: Context) -> Iterator[Fault]:
    for block, device in ((OPTIMIZER, context.optimizer_offload), (PARAM, context.param_offload)):
        where, path = f"{block}.nvme_path", context.raw(f"{block}.nvme_path")
        if device == "nvme" and not path:
            yield (
                where,
                f"{where} is missing for device 'nvme'",
                "a directory on a local NVMe disk",
                "write 'nvme_path'",
            )
        if device == "nvme" and str(path).startswith("~"):
            what = f"{where}={path!r} is a folder named '~' to DeepSpeed, below the current one"
            yield where, what, "the path in full", "write out the home folder"
        if device != "nvme" and path:
            what = f"{where}={path!r} is ignored with device {device!r}"
            yield where, what, "device 'nvme', or no path", "set device to 'nvme', or remove 'nvme_path'", "warning"


@rule(
    "partial-offload",
    looks_at=f"{OPTIMIZER}.ratio, optimizer.type",
    why="DeepSpeed asserts stage 3 and its own CPU Adam for a ratio below 1 (zero/config.py, stage3.py)",
)
def partial_offload(context: Context) -> Iterator[Fault]:
    ratio, where = context.number(f"{OPTIMIZER}.ratio", 1.0), f"{OPTIMIZER}.ratio"
    if ratio is None or ratio >= 1.0:
        return
    if context.stage != 3 or context.optimizer_offload == "none":
        what = f"{where}={exact(ratio)} at stage {context.stage} with device {context.optimizer_offload!r}"
        yield where, what, "stage 3 and device 'cpu'", "remove 'ratio'"
    elif context.optimizer is not None and context.optimizer_class != "DeepSpeedCPUAdam":
        what = f"{where}={exact(ratio)} with optimizer.type={context.optimizer!r} ({context.optimizer_class})"
        yield where, what, "Adam or AdamW without torch_adam", "remove 'ratio', or change the optimizer"


@rule(
    "offload-without-optimizer",
    looks_at=f"{OPTIMIZER}.device, optimizer, zero_force_ds_cpu_optimizer",
    why="an optimizer object of torch's is refused beside offload (ZeRORuntimeException, engine.py); accelerate and the Trainer "
    "put DeepSpeedCPUAdam in its place, other scripts must",
    severity="warning",
)
def offload_without_optimizer(context: Context) -> Iterator[Fault]:
    forced = context.flag("zero_force_ds_cpu_optimizer", True)
    if context.has("optimizer") or context.for_hugging_face or not forced or context.stage == 0:
        return
    if context.optimizer_offload != "none":
        what = f"{OPTIMIZER}.device={context.optimizer_offload!r} without an optimizer section: DeepSpeed stops at one of torch's"
        do = "write the optimizer section, or pass deepspeed.ops.adam.DeepSpeedCPUAdam"
        yield "optimizer", what, "an optimizer section, or DeepSpeed's own class in the script", do


@rule(
    "super-offload",
    looks_at=f"{OPTIMIZER}.super_offload",
    why="SuperOffload asserts stage 3 and a CUDA device (superoffload_stage3.py; run on a CPU: assertion)",
)
def super_offload(context: Context) -> Iterator[Fault]:
    where = f"{OPTIMIZER}.super_offload"
    if not context.flag(where):
        return
    if context.stage != 3 or context.optimizer_offload != "cpu":
        what = f"{where}=true at stage {context.stage} with device {context.optimizer_offload!r}"
        yield where, what, "stage 3 and device 'cpu'", "remove 'super_offload'"
    elif context.on_cpu:
        yield where, f"{where}=true on a CPU device", "a CUDA device", "remove 'super_offload'"


@rule(
    "gds-on-cpu",
    looks_at="aio.use_gds",
    why="GPU-direct storage asserts a CUDA device (runtime/swap_tensor/aio_config.py)",
)
def gds_on_cpu(context: Context) -> Iterator[Fault]:
    if context.flag("aio.use_gds") and context.on_cpu:
        yield "aio.use_gds", "aio.use_gds=true on a CPU device", "false", "remove 'use_gds'"


@rule(
    "pinned-memory-unwritten",
    looks_at=f"{OPTIMIZER}.pin_memory, {PARAM}.pin_memory",
    why="absent, DeepSpeed page-locks what is offloaded; older versions did not, and a host with a small `ulimit -l` or little "
    "memory to spare kills the run (zero/offload_config.py)",
    severity="warning",
)
def pinned_memory_unwritten(context: Context) -> Iterator[Fault]:
    for block, device in ((OPTIMIZER, context.optimizer_offload), (PARAM, context.param_offload)):
        where = f"{block}.pin_memory"
        # accelerate's block has no key for it.
        if (
            device != "none"
            and not context.has(where)
            and isinstance(context.raw(block), Mapping)
            and not context.is_made
        ):
            what = f"{where} is missing: DeepSpeed page-locks the memory (true)"
            yield where, what, "true, or false on a host that cannot lock so much", "write 'pin_memory'"


OFFLOAD_RULES = (
    offload_param_below_stage_3,
    offload_optimizer_at_stage_0,
    nvme_optimizer_below_stage_3,
    nvme_path,
    partial_offload,
    offload_without_optimizer,
    super_offload,
    gds_on_cpu,
    pinned_memory_unwritten,
)
