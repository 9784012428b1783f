"""The "optimizer" section: which class DeepSpeed builds for a recipe's optimizer, and with what."""

from __future__ import annotations

from typing import Any

from toolkit.ds_config.target import Target
from toolkit.errors import RecipeError
from toolkit.recipe import Optimizer, Recipe
from toolkit.recipe.optimizers import optimizer_parameters

TORCH_NAMES = {"sgd": "SGD", "sgd_momentum": "SGD", "rmsprop": "RMSprop"}
"""Optimizers that DeepSpeed takes from torch.optim by exact name and does not list as tested with ZeRO."""

HOST_KERNELS = {
    "adam": "DeepSpeedCPUAdam",
    "adamw": "DeepSpeedCPUAdam",
    "adagrad": "DeepSpeedCPUAdagrad",
    "lion": "DeepSpeedCPULion",
}
"""Optimizer -> the class for states in host memory, whose kernel a C++ compiler builds."""

DEVICE_KERNELS = {"adam": "FusedAdam", "adamw": "FusedAdam", "lion": "FusedLion"}
"""Optimizer -> the class for states on the device. On a GPU nvcc builds its kernel."""


def optimizer_block(recipe: Recipe, target: Target, stage: int) -> dict[str, Any]:
    """The {"type", "params"} that DeepSpeed reads (deepspeed/runtime/engine.py, _configure_basic_optimizer).

    Raises RecipeError for a kernel that this target cannot run.
    """
    optimizer = recipe.optimizer
    own = optimizer_parameters(optimizer.type, optimizer.model_dump())
    params: dict[str, Any] = {"lr": optimizer.learning_rate, "weight_decay": optimizer.weight_decay}
    for name, value in own.items():
        params[name] = list(value) if isinstance(value, tuple) else value
    if optimizer.type in TORCH_NAMES:
        _refuse_kernel(optimizer)
        return {"type": TORCH_NAMES[optimizer.type], "params": params}
    if optimizer.type in ("adam", "adamw"):
        return _adam(recipe, target, params)
    if optimizer.type == "adagrad":
        return _adagrad(recipe, target, params)
    if optimizer.type == "lion":
        return _lion(recipe, target, stage, params)
    return _muon(recipe, stage, params)


def needs_untested_flag(recipe: Recipe) -> bool:
    """Whether ZeRO refuses the class unless `zero_allow_untested_optimizer` is set (runtime/zero/utils.py)."""
    return recipe.optimizer.type in TORCH_NAMES


def wants_host_optimizer(recipe: Recipe, target: Target) -> bool:
    """Lion on a CPU device: DeepSpeed's only kernel for it there is the one for offloaded states."""
    return recipe.optimizer.type == "lion" and target.device == "cpu"


def _offloads(recipe: Recipe) -> bool:
    return recipe.parallel.offload_optimizer != "none"


def uses_kernel(recipe: Recipe, target: Target) -> bool:
    """Whether Adam runs in DeepSpeed's kernel. Raises RecipeError where it is asked for and cannot be built."""
    wanted = recipe.optimizer.implementation
    if wanted == "auto":
        return _offloads(recipe) and target.compiler
    if wanted == "deepspeed":
        _require_kernel(recipe, target, on_host=_offloads(recipe))
    return wanted == "deepspeed"


def _adam(recipe: Recipe, target: Target, params: dict[str, Any]) -> dict[str, Any]:
    decoupled = recipe.optimizer.type == "adamw"
    kernel = uses_kernel(recipe, target)
    # "Adam" means AdamW to DeepSpeed unless adam_w_mode says otherwise.
    params |= {"torch_adam": not kernel, "adam_w_mode": decoupled}
    if not kernel:
        params["fused"] = True
    return {"type": "AdamW" if decoupled else "Adam", "params": params}


def _adagrad(recipe: Recipe, target: Target, params: dict[str, Any]) -> dict[str, Any]:
    if not _offloads(recipe):
        _refuse_kernel(recipe.optimizer)
        return {"type": "Adagrad", "params": params}
    _require_kernel(recipe, target, on_host=True)
    for name in ("lr_decay", "initial_accumulator_value"):
        if params.pop(name):
            raise RecipeError(
                f"optimizer.{name}={getattr(recipe.optimizer, name)} with parallel.offload_optimizer={recipe.parallel.offload_optimizer!r}",
                expected=f"0: DeepSpeed's Adagrad for offloaded states has no {name}",
                do=f"remove optimizer.{name}, or set parallel.offload_optimizer='none'",
            )
    return {"type": "Adagrad", "params": params}


def _lion(recipe: Recipe, target: Target, stage: int, params: dict[str, Any]) -> dict[str, Any]:
    on_host = _offloads(recipe) or wants_host_optimizer(recipe, target)
    if on_host and stage == 0:
        raise RecipeError(
            "optimizer.type='lion' with parallel.zero_stage=0 on a CPU device",
            expected="zero_stage 1, 2 or 3: DeepSpeed's Lion runs on a CPU only as an offloaded optimizer",
            do="set parallel.zero_stage=1",
        )
    _require_kernel(recipe, target, on_host=on_host)
    return {"type": "Lion", "params": params}


def _muon(recipe: Recipe, stage: int, params: dict[str, Any]) -> dict[str, Any]:
    if stage == 0:
        raise RecipeError(
            "optimizer.type='muon' with parallel.zero_stage=0",
            expected="zero_stage 1, 2 or 3: DeepSpeed computes Muon's update inside ZeRO",
            do="set parallel.zero_stage=1",
        )
    if recipe.optimizer.max_grad_norm:
        raise RecipeError(
            f"optimizer.max_grad_norm={recipe.optimizer.max_grad_norm} with optimizer.type='muon'",
            expected="0: DeepSpeed clips Muon's orthogonalised update instead of the gradient, differently at each stage",
            do="set optimizer.max_grad_norm=0",
        )
    _refuse_kernel(recipe.optimizer)
    rate = params.pop("adam_learning_rate")
    return {
        "type": "Muon",
        "params": {
            **params,
            "adam_lr": params["lr"] if rate is None else rate,
            "muon_lr": params["lr"],
            "torch_adam": True,
            # The iteration of torch.optim.Muon; DeepSpeed's default "gram" is another approximation.
            "ns_method": "standard",
        },
    }


def _refuse_kernel(optimizer: Optimizer) -> None:
    if optimizer.implementation == "deepspeed":
        raise RecipeError(
            f"optimizer.implementation='deepspeed' with optimizer.type={optimizer.type!r}",
            expected=f"'auto' or 'torch': DeepSpeed has no kernel of its own here (it has {', '.join(sorted(HOST_KERNELS))})",
            do="set optimizer.implementation='auto'",
        )


def _require_kernel(recipe: Recipe, target: Target, *, on_host: bool) -> None:
    """Raise RecipeError where DeepSpeed's kernel for the recipe's optimizer cannot be built on this target."""
    name = recipe.optimizer.type
    kernel = (HOST_KERNELS if on_host else DEVICE_KERNELS)[name]
    needs = f"optimizer.type={name!r} needs {kernel}, which is built at first use, and "
    other = "set optimizer.implementation='torch'" if name in ("adam", "adamw") else "choose another optimizer"
    if not target.compiler:
        raise RecipeError(
            f"{needs}there is no C++ compiler",
            expected="g++ (or the compiler named in CXX) on PATH",
            do=f"install g++, or {other}",
        )
    if not on_host and target.device == "cuda" and target.nvcc_fault:
        raise RecipeError(
            f"{needs}{target.nvcc_fault}",
            expected="nvcc of torch's CUDA version, on PATH or under CUDA_HOME",
            do=f"install that CUDA toolkit, set parallel.offload_optimizer='cpu' (its kernel needs g++ only), or {other}",
        )
