"""Which layers of a model get an adapter, and which of its weights are trained whole: found on a skeleton without weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PretrainedConfig
from transformers.pytorch_utils import Conv1D

from toolkit.errors import ModelError, did_you_mean, first_few, not_apart
from toolkit.models.output_layer import is_of_a_head
from toolkit.models.stages import build_skeleton
from toolkit.models.stored_names import Renaming, files
from toolkit.recipe.tuning import LoRA


@dataclass(frozen=True)
class AdapterPlan:
    """Adapters of a whole model, whatever part of it a rank holds."""

    tuning: LoRA
    targets: tuple[str, ...]
    """Full names of the layers that get an adapter."""
    short: tuple[str, ...]
    """The fewest ends of names that tell these layers from all others: what peft's file says."""
    whole: tuple[str, ...]
    """Parameters that are trained as they are."""
    modules: tuple[str, ...]
    """The modules that these make up."""
    adapters: int
    """Numbers in all adapters."""
    trained: int
    """Those, and what is trained whole."""
    total: int
    """All of these, and the frozen ones."""
    transposed: bool
    """Whether the layers keep their weights as [inputs, outputs] (transformers' Conv1D)."""

    @property
    def share(self) -> float:
        """Of the model that is trained, 0 to 1."""
        return self.trained / self.total

    def describe(self) -> str:
        """For the screen."""
        tuning = self.tuning
        kind = "DoRA" if tuning.use_dora else "rsLoRA" if tuning.use_rslora else "LoRA"
        beside = f", and {', '.join(self.modules)} whole" if self.modules else ""
        return (
            f"training {_count(self.trained)} of {_count(self.total)} parameters ({self.share:.2%}): {kind} "
            f"r={tuning.rank} alpha={tuning.alpha:g} on {len(self.targets)} layers ({first_few(self.short)}){beside}"
        )


def _count(number: int) -> str:
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return str(number)


def plan_adapters(
    kind: Any,
    config: PretrainedConfig,
    tuning: LoRA,
    *,
    trains_head: bool,
    source: str | None = None,
    frozen_in: Callable[[nn.Module], Collection[str]] = lambda _: (),
) -> AdapterPlan:
    """What `tuning` means for the model that `kind` makes of `config`; no weight is needed.

    `trains_head`: the weights outside the base model, and its pooler, belong to the task that is learned; they are
    trained whole, and so are those of them that the checkpoint `source` lacks. `frozen_in` says which parameters of the
    model get no adapter. Raises ModelError where a name fits no layer, or where the adapters could not stand for what is trained.
    """
    model = build_skeleton(kind, config)
    left = frozenset(frozen_in(model))
    heads = {name for name, _ in model.named_parameters() if is_of_a_head(model, name)}
    whole = _whole(model, tuning, heads if trains_head else heads - _stored(model, source))
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and module is not output
        and f"{name}.weight" not in left
        and not any(f"{name}.{leaf}" in whole for leaf in module._parameters)
    }
    targets = tuple(linear) if tuning.target_modules == "all-linear" else _ending(linear, tuning.target_modules)
    if not targets:
        raise ModelError(
            f"tuning.target_modules={tuning.target_modules!r}: {type(model).__name__} has no linear layer beside its output layer",
            expected="a model of linear layers",
            do="set tuning=Full()",
        )
    parameters = dict(model.named_parameters())
    adapters = sum(adapter_numel(linear[name], tuning) for name in targets)
    trained = adapters + sum(parameters[name].numel() for name in whole)
    frozen = sum(parameter.numel() for name, parameter in parameters.items() if name not in whole)
    modules = _modules(model, whole)
    transposed = all(isinstance(linear[name], Conv1D) for name in targets)
    others = [name for name, _ in model.named_modules() if name and name not in targets]
    short = _shortest(targets, others)
    return AdapterPlan(tuning, targets, short, whole, modules, adapters, trained, trained + frozen, transposed)


def sides(layer: nn.Module) -> tuple[int, int]:
    """(inputs, outputs) of a whole linear layer, also where ZeRO-3 or tensor parallelism has cut its weight."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    weight: Any = layer.weight
    shard = getattr(weight, "shard", None)
    inputs, outputs = shard.shape if shard is not None else getattr(weight, "ds_shape", weight.shape)
    return int(inputs), int(outputs)


def adapter_numel(layer: nn.Module, tuning: LoRA) -> int:
    """Numbers in the adapter of `layer`."""
    inputs, outputs = sides(layer)
    return tuning.rank * (inputs + outputs) + (outputs if tuning.use_dora else 0)


def ends(name: str, endings: Iterable[str]) -> bool:
    """Whether `name` is, or ends in a dot and, one of `endings`: how peft compares names."""
    return any(name == ending or name.endswith(f".{ending}") for ending in endings)


def _ending(linear: Mapping[str, nn.Module], endings: Collection[str]) -> tuple[str, ...]:
    for ending in endings:
        if not any(ends(name, [ending]) for name in linear):
            known = sorted({name.rpartition(".")[2] for name in linear})
            raise ModelError(
                f"tuning.target_modules has {ending!r}, in which no name of a linear layer ends"
                f"{not_apart(ending) or did_you_mean(ending, known)}",
                expected=f"ends of names such as {', '.join(known[:12])}; the output layer gets no adapter "
                "(tuning.modules_to_save trains it whole), nor does what is trained whole",
                do="correct tuning.target_modules, or set it to 'all-linear'",
            )
    return tuple(name for name in linear if ends(name, endings))


def _stored(model: Any, source: str | None) -> set[str]:
    """The parameters of `model` that the checkpoint `source` has; all of them where there is no such thing to look at."""
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    stored = files(Path(source)) if source is not None else {}
    if not stored:
        return names
    renaming = Renaming(model, names)
    found = {renaming(name)[0] for name in stored}
    ties: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    return found | {origin for target, origin in ties.items() if target in found}


def _whole(model: Any, tuning: LoRA, new: Collection[str]) -> tuple[str, ...]:
    """Names of what is trained whole: `new`, and what tuning.modules_to_save names."""
    names = [name for name, _ in model.named_parameters()]
    modules = {name: module for name, module in model.named_modules() if name}
    found = set(new)
    for ending in tuning.modules_to_save:
        fitting = [name for name in modules if ends(name, [ending])]
        inside = {
            f"{name}.{leaf}" for name in fitting for leaf, _ in modules[name].named_parameters(remove_duplicate=False)
        }
        if not inside:
            known = sorted({name.rpartition(".")[2] for name, module in modules.items() if module._parameters})
            raise ModelError(
                f"tuning.modules_to_save has {ending!r}, in which no name of a module with weights ends"
                f"{not_apart(ending) or did_you_mean(ending, known)}",
                expected=f"ends of names such as {', '.join(known[:12])}",
                do="correct tuning.modules_to_save",
            )
        found |= inside
    ties: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    tied = sorted(name for name in found if name in ties or name in ties.values())
    if tied and tied[0] in new:
        raise ModelError(
            f"the checkpoint has no {tied[0]}, which has to be trained whole beside adapters, and it is one weight with "
            f"{', '.join(_partners(tied[0], ties))}",
            expected="a checkpoint that has this head, or all weights in training",
            do="take a checkpoint with the head, or set tuning=Full() (--tuning.name full)",
        )
    if tied:
        # peft keeps a copy of the one module and leaves the other at its old values: another model than the one trained.
        raise ModelError(
            f"{tied[0]} is one weight with {', '.join(_partners(tied[0], ties))}: an adapter that holds one of the two is another model",
            expected="modules in tuning.modules_to_save that share no weight with others",
            do="leave it out of tuning.modules_to_save, or train every weight with tuning.name='full'",
        )
    return tuple(name for name in names if name in found)


def _partners(name: str, ties: Mapping[str, str]) -> list[str]:
    source = ties.get(name, name)
    return [
        other for other in {*(target for target, origin in ties.items() if origin == source), source} if other != name
    ]


def _modules(model: nn.Module, whole: Collection[str]) -> tuple[str, ...]:
    """The largest modules of which every parameter is in `whole`."""
    found: list[str] = []
    for name, module in model.named_modules():
        inside = [f"{name}.{leaf}" for leaf, _ in module.named_parameters()] if name else []
        if inside and all(leaf in whole for leaf in inside) and not any(name.startswith(f"{top}.") for top in found):
            found.append(name)
    return tuple(found)


def _shortest(targets: Collection[str], others: Collection[str]) -> tuple[str, ...]:
    """The fewest endings that every target has and no other module."""
    chosen: list[str] = []
    for name in targets:
        if ends(name, chosen):
            continue
        parts = name.split(".")
        endings = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        chosen.append(next((end for end in endings if not any(ends(other, [end]) for other in others)), name))
    return tuple(sorted(set(chosen)))
