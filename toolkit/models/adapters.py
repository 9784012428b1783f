"""Low-rank adapters beside frozen weights, by peft: built into a model that has its weights, in place.

A layer `q_proj` becomes peft's layer around it (`q_proj.base_layer`) with `q_proj.lora_A.default` [rank, inputs] and
`q_proj.lora_B.default` [outputs, rank]. It comes last, on weights that are there already: whatever reads, draws, fuses,
cuts or partitions weights knows nothing of adapters. Every adapter is drawn from the run's seed and its own name, as
peft draws it: the same values whoever holds which part of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.errors import ModelError
from toolkit.library_messages import are_shown
from toolkit.models.adapter_plan import AdapterPlan, sides
from toolkit.models.assets import ASSETS, resolve
from toolkit.models.partial import Placed, place
from toolkit.models.quiet import quiet
from toolkit.models.random_weights import generator_of
from toolkit.models.shards import Shard
from toolkit.recipe import Model

ADAPTER = "default"
"""peft's name of the one adapter."""


def add_adapters(model: nn.Module, plan: AdapterPlan) -> None:
    """Build the layers of `plan` that `model`, or this part of one, has; freeze everything that `plan` does not train.

    A and B are on the meta device until `fill_adapters`; DoRA's lengths are those of the weights as they are.
    """
    peft = peft_library()
    present = [name for name in plan.targets if _has(model, name)]
    if not present:
        raise ModelError(
            f"this part of {type(model).__name__} has none of the layers that tuning.target_modules names",
            expected="an adapter in every pipeline stage: a stage without one has nothing to train",
            do="set tuning.target_modules='all-linear', or parallel.pipeline=1",
        )
    config = adapter_config(plan, base=None)
    config.target_modules = set(present)
    config.modules_to_save = None  # trained where they are: no copy beside the original
    with quiet("peft"):
        # DoRA measures the weights beside A and B, which must be there for that.
        peft.inject_adapter_in_model(config, model, ADAPTER, low_cpu_mem_usage=not plan.tuning.use_dora)
    del model.peft_config  # the model is no PeftModel to transformers: it saves and generates as before
    for name, parameter in model.named_parameters():
        if name in plan.whole:
            parameter.requires_grad_(True)


def _has(model: nn.Module, name: str) -> bool:
    try:
        layer = model.get_submodule(name)
    except AttributeError:
        return False
    return isinstance(getattr(layer, "weight", None), Tensor)


def peft_library() -> Any:
    """peft, imported where it is needed: it takes seconds."""
    # torchao, where it is installed, reports at import which of its kernels it cannot load.
    if are_shown():
        import peft
    else:
        with quiet("torchao"), quiet("torch.utils._pytree"):
            import peft
    return peft


def adapter_config(plan: AdapterPlan, base: str | None, task_type: str | None = None) -> Any:
    """peft's LoraConfig for `plan`, for adapters of the checkpoint `base`."""
    tuning = plan.tuning
    return peft_library().LoraConfig(
        r=tuning.rank,
        lora_alpha=int(tuning.alpha) if tuning.alpha == int(tuning.alpha) else tuning.alpha,
        lora_dropout=tuning.dropout,
        target_modules=list(plan.short),
        modules_to_save=list(plan.modules) or None,
        use_rslora=tuning.use_rslora,
        use_dora=tuning.use_dora,
        fan_in_fan_out=plan.transposed,
        init_lora_weights=True if tuning.initialisation == "kaiming" else "gaussian",
        base_model_name_or_path=base,
        task_type=task_type,
        inference_mode=base is not None,
    )


def base_name(model: Model) -> str | None:
    """What an adapter's file calls the checkpoint beside which it is trained; None: random weights, which nobody has."""
    if model.weights == "random" or model.path is None:
        return None
    is_ours = Path(model.path).is_dir() or model.path in ASSETS
    return str(Path(resolve(model.path)).absolute()) if is_ours else model.path


def task_type(kind: Any) -> str | None:
    """peft's word for what models of the auto class `kind` do."""
    return {
        "AutoModelForCausalLM": "CAUSAL_LM",
        "AutoModelForImageTextToText": "CAUSAL_LM",
        "AutoModelForSequenceClassification": "SEQ_CLS",
        "AutoModelForTokenClassification": "TOKEN_CLS",
        "AutoModelForQuestionAnswering": "QUESTION_ANS",
        "AutoModelForSeq2SeqLM": "SEQ_2_SEQ_LM",
        "AutoModel": "FEATURE_EXTRACTION",
    }.get(kind.__name__)


def merge_adapters(model: nn.Module, folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Add what was trained to the weights of `model`, the base model in fp32, in place.

    `folder` has the adapters' config, `weights` every trained parameter by the name that it has beside the frozen ones.
    """
    peft = peft_library()
    config = peft.LoraConfig.from_pretrained(folder)
    config.modules_to_save = None
    with quiet("peft"):
        tuned = peft.LoraModel(model, config, ADAPTER)
        for name, value in weights.items():
            place(model, name, value)
        tuned.merge_and_unload()


def adapter_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """(name, peft's layer) of every layer with an adapter; none in a model that `add_adapters` has not seen."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Module) and hasattr(module, "lora_A") and hasattr(module, "base_layer"):
            yield name, module


def fill_adapters(
    model: nn.Module,
    plan: AdapterPlan,
    seed: int,
    *,
    shards: Mapping[str, Shard] | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    placed: Placed | None = None,
) -> None:
    """Draw the adapters in `model`, of which `shards` says where this rank holds a part, as `random_weights.fill` does."""
    for name, layer in list(adapter_layers(model)):
        inputs, outputs = sides(layer.base_layer)
        values = {
            f"{name}.lora_A.{ADAPTER}.weight": _drawn(f"{name}.lora_A", plan, seed, inputs),
            f"{name}.lora_B.{ADAPTER}.weight": torch.zeros(outputs, plan.tuning.rank),
        }
        if plan.tuning.use_dora:
            values[f"{name}.lora_magnitude_vector.{ADAPTER}.weight"] = layer.lora_magnitude_vector[ADAPTER].weight.data
        for full, value in values.items():
            shard = shards.get(full) if shards else None
            local = value if shard is None else shard.cut(value).clone()
            parameter = place(model, full, local.to(device, dtype))
            if placed is not None and parameter is not None:
                placed(parameter)


def _drawn(name: str, plan: AdapterPlan, seed: int, inputs: int) -> Tensor:
    """A [rank, inputs], in fp32 on the CPU. As peft's reset_lora_parameters (tuners/lora/layer.py)."""
    value = torch.empty(plan.tuning.rank, inputs)
    with generator_of(seed, name):
        if plan.tuning.initialisation == "gaussian":
            return nn.init.normal_(value, std=1 / plan.tuning.rank)
        return nn.init.kaiming_uniform_(value, a=math.sqrt(5))


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Let `model` compute as its checkpoint does, without its adapters: the reference of preference tuning.

    Raises ModelError for a model whose weights are, beside the adapters, trained whole: the old ones are gone.
    """
    layers = [layer for _, layer in adapter_layers(model)]
    whole = [name for name, parameter in model.named_parameters() if parameter.requires_grad and not is_adapter(name)]
    if whole or not layers:
        raise ModelError(
            f"{whole[0]} is trained whole" if layers else f"{type(model).__name__} has no adapters to switch off",
            expected="a model of which the adapters alone are trained: without them it is the one the run began with",
            do="set tuning=LoRA(...) without tuning.modules_to_save",
        )
    before = [layer._disable_adapters for layer in layers]
    for layer in layers:
        # Not peft's enable_adapters: it takes requires_grad away, on which ZeRO's hooks hang.
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, was in zip(layers, before, strict=True):
            layer._disable_adapters = was


def is_adapter(name: str) -> bool:
    """Whether the parameter `name` is part of an adapter."""
    return f".{ADAPTER}." in name and ".lora_" in name


def file_name(name: str) -> str:
    """What peft's adapter file calls the trained parameter `name`."""
    if is_adapter(name):
        name = name.replace(f".{ADAPTER}.", ".").replace(".lora_magnitude_vector.weight", ".lora_magnitude_vector")
    return f"base_model.model.{name}"
