"""Rules about the optimizer section."""

from __future__ import annotations

from collections.abc import Iterator

from toolkit.ds_config.edits import write
from toolkit.ds_config.rules.context import Context, Fault, rule
from toolkit.ds_config.schema_optimizers import CLASS_DEFAULTS
from toolkit.ds_config.values import exact, show

TESTED = (
    "torch.optim.Adam",
    "torch.optim.AdamW",
    "torch.optim.Adagrad",
    "FusedAdam",
    "DeepSpeedCPUAdam",
    "DeepSpeedCPUAdagrad",
    "FusedLion",
    "DeepSpeedCPULion",
    "MuonWithAuxAdam",
)
"""Classes that ZeRO takes without zero_allow_untested_optimizer (runtime/zero/utils.py)."""

COMPILED = ("FusedAdam", "DeepSpeedCPUAdam", "DeepSpeedCPUAdagrad", "FusedLion", "DeepSpeedCPULion", "FusedLamb")
"""Classes whose kernel is built at first use."""

GPU_COMPILED = ("FusedAdam", "FusedLion", "FusedLamb")
"""Those of COMPILED whose kernel, on a GPU, nvcc builds."""

SHAPED = {"torch.optim.Adafactor": "row and column statistics", "FusedLamb": "the norm of each layer"}
"""Classes that need whole parameters -> what for. ZeRO hands the optimizer flat slices of many parameters."""

NO_AMSGRAD = ("FusedAdam", "FusedLamb", "DeepSpeedCPUAdam", "DeepSpeedCPUAdagrad")


@rule(
    "learning-rate-unwritten",
    looks_at="optimizer.params.lr",
    why="the class's own default (often 0.001) is used, not the Trainer's learning_rate: Hugging Face fills in only "
    "keys that are written",
    severity="warning",
)
def learning_rate_unwritten(context: Context) -> Iterator[Fault]:
    split = context.has("optimizer.params.muon_lr") and context.has("optimizer.params.adam_lr")
    if context.training_args is not None and context.optimizer_class in CLASS_DEFAULTS:
        return  # trainer-optimizer-values names the rate that is lost
    if context.optimizer is not None and not context.has("optimizer.params.lr") and not split:
        what = "optimizer.params.lr is missing: the optimizer's own default is used"
        yield "optimizer.params.lr", what, "the learning rate", 'write "lr"'


@rule(
    "adam-or-adamw",
    looks_at="optimizer.type, optimizer.params.adam_w_mode, optimizer.params.weight_decay",
    why="'Adam' means AdamW unless adam_w_mode is false, and 'AdamW' ignores adam_w_mode (engine.py)",
    severity="warning",
)
def adam_or_adamw(context: Context) -> Iterator[Fault]:
    mode, decay = context.raw("optimizer.params.adam_w_mode"), context.number("optimizer.params.weight_decay", 0.0)
    name = (context.optimizer or "").lower()
    if name == "adam" and mode is None and decay:
        what = f"optimizer.type={context.optimizer!r} with weight_decay={exact(decay)}: DeepSpeed runs AdamW"
        yield (
            "optimizer.type",
            what,
            "'AdamW', or 'Adam' with adam_w_mode false",
            "write 'AdamW', or \"adam_w_mode\": false",
        )
    if name == "adamw" and mode is False:
        what = "optimizer.params.adam_w_mode=false is ignored with optimizer.type='AdamW'"
        yield "optimizer.params.adam_w_mode", what, "type 'Adam' with adam_w_mode false", 'write "type": "Adam"'


@rule(
    "untested-optimizer",
    looks_at="optimizer.type, zero_allow_untested_optimizer",
    why="ZeRO asserts the flag for every class that is not on its list (runtime/zero/utils.py)",
)
def untested_optimizer(context: Context) -> Iterator[Fault]:
    name, where = context.optimizer_class, "zero_allow_untested_optimizer"
    allowed = context.flag(where) or name in TESTED or name in SHAPED
    if name is not None and context.stage > 0 and not allowed:
        what = f"optimizer.type={context.optimizer!r} at stage {context.stage} without {where}"
        yield where, what, "true for a class that is not on ZeRO's list", f'add "{where}": true'


@rule(
    "optimizer-needs-shapes",
    looks_at="optimizer.type, zero_optimization.stage",
    why="ZeRO hands the optimizer flat slices of many parameters, so an update that needs each parameter's shape or "
    "norm becomes another algorithm, in silence (stage_1_and_2.py, stage3.py)",
)
def optimizer_needs_shapes(context: Context) -> Iterator[Fault]:
    need = SHAPED.get(context.optimizer_class or "")
    if need is not None and context.stage > 0:
        what = (
            f"optimizer.type={context.optimizer!r} at stage {context.stage}: it needs {need}, ZeRO hands it flat slices"
        )
        yield "optimizer.type", what, "stage 0, or another optimizer", "use AdamW, or stage 0 in fp32"


@rule(
    "optimizer-on-cpu",
    looks_at="optimizer.type, zero_optimization.offload_optimizer.device",
    why="FusedLamb and FusedLion are not implemented on a CPU device; Lion runs there only as an offloaded optimizer (run)",
)
def optimizer_on_cpu(context: Context) -> Iterator[Fault]:
    if not context.on_cpu:
        return
    if context.optimizer_class == "FusedLamb":
        what = f"optimizer.type={context.optimizer!r} on a CPU device: its kernel is not implemented there"
        yield "optimizer.type", what, "another optimizer", "use AdamW"
    if context.optimizer_class == "FusedLion":
        what = f"optimizer.type={context.optimizer!r} on a CPU device without offload_optimizer"
        do = 'add "offload_optimizer": {"device": "cpu"} (stage 1-3)'
        yield "optimizer.type", what, "offload_optimizer.device 'cpu', whose kernel runs on a CPU", do


@rule(
    "optimizer-needs-compiler",
    looks_at="optimizer.type, optimizer.params.torch_adam",
    why="DeepSpeed builds its kernels at first use: all with a C++ compiler, those for a GPU with nvcc of torch's CUDA "
    "version too; without it every rank stops with a build traceback or CUDAMismatchException (ops/op_builder/builder.py)",
)
def optimizer_needs_compiler(context: Context) -> Iterator[Fault]:
    target, name = context.target, context.optimizer_class
    if target is None or name not in COMPILED:
        return
    missing = tool = ""
    if target.device == "cuda" and name in GPU_COMPILED and target.nvcc_fault:
        missing, tool = target.nvcc_fault, "nvcc of torch's CUDA version"
    if not target.compiler:
        missing, tool = "there is no C++ compiler", "a C++ compiler"
    if missing:
        what = f"optimizer.type={context.optimizer!r} needs {name}, and {missing}"
        adam = "Adam" in str(name)
        do = 'add "torch_adam": true to optimizer.params' if adam else f"install {tool}, or use AdamW with torch_adam"
        yield "optimizer.type", what, f"{tool}, or torch's own class", do


@rule(
    "amsgrad",
    looks_at="optimizer.params.amsgrad",
    why="DeepSpeed's Adam and Lamb kernels raise on amsgrad, its CPU Adagrad ignores it",
)
def amsgrad(context: Context) -> Iterator[Fault]:
    where = "optimizer.params.amsgrad"
    if context.flag(where) and context.optimizer_class in NO_AMSGRAD:
        what = f"{where}=true with {context.optimizer_class}, which has no such variant"
        yield where, what, "false, or torch's Adam (torch_adam true)", "remove 'amsgrad'"


@rule(
    "torch-optimizer-twice",
    looks_at="optimizer.params.{fused, foreach, differentiable}",
    why="torch's optimizers raise RuntimeError where two of their implementations are asked for at once",
)
def torch_optimizer_twice(context: Context) -> Iterator[Fault]:
    asked = [name for name in ("fused", "foreach", "differentiable") if context.flag(f"optimizer.params.{name}")]
    if (context.optimizer_class or "").startswith("torch.optim.") and len(asked) > 1:
        where = f"optimizer.params.{asked[0]}"
        what = f"{' and '.join(f'{name}=true' for name in asked)} in optimizer.params"
        yield where, what, "one of them at most", f"remove {asked[1]!r}"


@rule(
    "nesterov",
    looks_at="optimizer.params.{nesterov, momentum, dampening}",
    why="torch's SGD raises ValueError for Nesterov without momentum, or with dampening",
)
def nesterov(context: Context) -> Iterator[Fault]:
    where = "optimizer.params.nesterov"
    if context.optimizer_class != "torch.optim.SGD" or not context.flag(where):
        return
    momentum, dampening = (context.number(f"optimizer.params.{name}", 0.0) for name in ("momentum", "dampening"))
    if not momentum or dampening:
        what = f"{where}=true with momentum={exact(momentum or 0)} and dampening={exact(dampening or 0)}"
        yield where, what, "a momentum above 0 and no dampening", "write 'momentum', or remove 'nesterov'"


@rule(
    "lamb-loss-scale",
    looks_at="optimizer.type, fp16.loss_scale",
    why="DeepSpeed asserts dynamic loss scaling for Lamb (engine.py, _do_sanity_check)",
)
def lamb_loss_scale(context: Context) -> Iterator[Fault]:
    scale = context.number("fp16.loss_scale", 0.0)
    if context.optimizer_class == "FusedLamb" and scale:
        what = f"fp16.loss_scale={show(scale)} with optimizer.type={context.optimizer!r}"
        yield "fp16.loss_scale", what, "0 (dynamic)", "write 0"


@rule(
    "muon-at-stage-3",
    looks_at="optimizer.type, zero_optimization.{stage, reduce_scatter, zero_quantized_gradients}",
    why="Muon orthogonalises whole gradients; stage 3 has them only without reduce-scatter and raises otherwise (stage3.py)",
)
def muon_at_stage_3(context: Context) -> Iterator[Fault]:
    if context.optimizer_class != "MuonWithAuxAdam" or context.stage != 3:
        return
    scatter, quantized = "zero_optimization.reduce_scatter", "zero_optimization.zero_quantized_gradients"
    if context.flag(scatter, True):
        fix = () if context.has(scatter) else (write(scatter, False),)
        yield scatter, f"{scatter} is not false for Muon at stage 3", "false", 'write "reduce_scatter": false', *fix
    if context.flag(quantized):
        yield quantized, f"{quantized}=true for Muon at stage 3", "false", "remove 'zero_quantized_gradients'"


OPTIMIZER_RULES = (
    learning_rate_unwritten,
    adam_or_adamw,
    untested_optimizer,
    optimizer_needs_shapes,
    optimizer_on_cpu,
    optimizer_needs_compiler,
    amsgrad,
    torch_optimizer_twice,
    nesterov,
    lamb_loss_scale,
    muon_at_stage_3,
)
