"""Where an architecture can be cut into pipeline stages, and where it should be for stages that cost the same.

Nothing is built here. Most architectures say themselves what lies before, in and after their stack of layers
(`base_model_pp_plan` of a transformers configuration); OUTLINES has a line for those that do not, or not all of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import nn
from transformers import PretrainedConfig

from toolkit.errors import ModelError
from toolkit.models.shards import Shard


@dataclass(frozen=True)
class Outline:
    """What lies before, in and after the stack of layers; dotted names below the base model."""

    first: tuple[str, ...]
    layers: str
    last: tuple[str, ...]
    layer_outputs: int = 1
    """1 where a layer returns the hidden states, n where it returns a tuple of n that begins with them."""


_EMBEDDINGS = tuple(
    f"embeddings.{name}"
    for name in ("word_embeddings", "position_embeddings", "token_type_embeddings", "LayerNorm", "dropout")
)
_BERT = Outline(_EMBEDDINGS, "encoder.layer", ("pooler",))

OUTLINES = {
    "bert": _BERT,
    "bloom": Outline(("word_embeddings", "word_embeddings_layernorm"), "h", ("ln_f",), layer_outputs=2),
    "camembert": _BERT,
    "deepseek_v4": Outline(("embed_tokens",), "layers", ("hc_head", "norm")),
    "distilbert": Outline(_EMBEDDINGS, "transformer.layer", ()),
    "electra": Outline((*_EMBEDDINGS, "embeddings_project"), "encoder.layer", ()),
    "ernie": Outline((*_EMBEDDINGS, "embeddings.task_type_embeddings"), "encoder.layer", ("pooler",)),
    "falcon": Outline(("word_embeddings",), "h", ("ln_f",), layer_outputs=2),
    "gemma3": Outline(
        ("vision_tower", "multi_modal_projector", "language_model.embed_tokens"),
        "language_model.layers",
        ("language_model.norm",),
    ),
    "glm_moe_dsa": Outline(("embed_tokens",), "layers", ("norm",), layer_outputs=2),
    "gpt2": Outline(("wte", "wpe", "drop"), "h", ("ln_f",)),
    "hy_v4": Outline(("embed_tokens",), "layers", ("hc_head", "norm"), layer_outputs=2),
    "modernbert": Outline(
        ("embeddings.tok_embeddings", "embeddings.norm", "embeddings.drop"), "layers", ("final_norm",)
    ),
    "opt": Outline(
        ("decoder.embed_tokens", "decoder.embed_positions", "decoder.project_in"),
        "decoder.layers",
        ("decoder.final_layer_norm", "decoder.project_out"),
    ),
    "phi4_multimodal": Outline(("embed_tokens", "embed_tokens_extend"), "layers", ("norm",)),
    "roberta": _BERT,
    "xlm-roberta": _BERT,
}
"""By model_type; comes before the configuration's own plan."""

UNCUT = {
    "albert": "all its layers are one and the same",
    "deberta": "all its layers read one table of relative positions, which is trained",
    "deberta-v2": "all its layers read one table of relative positions, which is trained",
    "hrm_text": "it runs two stacks of layers in turns, not one stack once",
    "mpnet": "all its layers read one table of relative positions, which is trained",
}
"""Architectures that have no place to cut, with the reason."""


@dataclass(frozen=True)
class StagePlan:
    """How one configuration can be cut."""

    outline: Outline
    num_layers: int
    joined: frozenset[int]
    """Layers that cannot begin a stage: they take more from the layers before them than the hidden states."""


def stage_plan(config: PretrainedConfig) -> StagePlan:
    """Where a model of this configuration can be cut. Raises ModelError, with the reason, where it cannot."""
    text = config.get_text_config()
    kind = str(config.model_type)
    reason = UNCUT.get(kind)
    if reason is None and config.is_encoder_decoder:
        reason = "each layer of its decoder reads what its encoder returns, and hidden states alone travel"
    if reason is None and getattr(text, "hidden_size_per_layer_input", None):
        reason = "each of its layers reads an embedding of the input tokens of its own"
    if reason is None and getattr(text, "layerdrop", None):
        reason = f"layerdrop={text.layerdrop} skips whole layers at random"
    outline = OUTLINES.get(kind) or _from_plan(config.base_model_pp_plan)
    if reason is None and outline is None:
        reason = "its configuration has no pipeline plan"
    if reason is not None or outline is None:
        raise ModelError(
            f"{kind} cannot be cut into pipeline stages: {reason}",
            expected=f"an architecture with a pipeline plan (llama, qwen3, mistral, ...) or one of {', '.join(OUTLINES)}",
            do="set parallel.pipeline=1 and divide the model with parallel.zero_stage=3 or parallel.tensor",
        )
    num_layers = int(getattr(text, "num_layers", None) or text.num_hidden_layers)
    return StagePlan(outline, num_layers, frozenset(_joined(text, num_layers)))


def _from_plan(plan: dict[str, Any] | None) -> Outline | None:
    if not plan or "layers" not in plan:
        return None
    names = list(plan)
    place = names.index("layers")
    return Outline(tuple(names[:place]), "layers", tuple(names[place + 1 :]))


def _joined(config: Any, num_layers: int) -> set[int]:
    """Layers that need what only an earlier stage would have."""
    joined: set[int] = set()
    # Sparse attention whose "shared" layers reuse the token selection of the layer before.
    indexers = getattr(config, "indexer_types", None) or []
    joined.update(index for index, kind in enumerate(indexers) if kind == "shared")
    # Routing by a table of token ids: later stages receive no token ids.
    routers = getattr(config, "mlp_layer_types", None) or []
    hashed = [index for index, kind in enumerate(routers) if kind == "hash_moe"]
    joined.update(range(1, max(hashed, default=0) + 1))
    # The last layers reuse keys and values of the last layer of their kind that computes its own.
    sharing = getattr(config, "num_kv_shared_layers", None) or 0
    if sharing:
        kinds = config.layer_types
        own, reused = kinds[: num_layers - sharing], set(kinds[num_layers - sharing :])
        sources = [max(index for index, kind in enumerate(own) if kind == wanted) for wanted in reused]
        joined.update(range(min(sources) + 1, num_layers))
    return joined


def balance(model: nn.Module, num_stages: int, shards: Mapping[str, Shard] | None = None) -> list[tuple[int, int]]:
    """(first layer, layer after the last) of each stage, so that the most expensive stage is as cheap as can be.

    `model` is whole, and may be a skeleton on the meta device. `shards` says what a rank will hold of the parameters
    that tensor parallelism is going to cut: what stays whole then weighs the more against it. Raises ModelError when it has too few layers to cut between.
    """
    plan = stage_plan(model.config)
    starts = [index for index in range(plan.num_layers) if index == 0 or index not in plan.joined]
    if not 1 <= num_stages <= len(starts):
        joined = f", {plan.num_layers - len(starts)} of which need the layer before them" if plan.joined else ""
        raise ModelError(
            f"parallel.pipeline={num_stages}: the model has {plan.num_layers} layers{joined}",
            expected=f"1 to {len(starts)} stages",
            do=f"set parallel.pipeline={len(starts)} or less",
        )
    costs = layer_costs(model, plan, shards)
    if num_stages == 1:
        return [(0, plan.num_layers)]
    edges = _partition(costs, starts, num_stages)
    return list(zip(edges, [*edges[1:], plan.num_layers], strict=True))


def layer_costs(model: nn.Module, plan: StagePlan, shards: Mapping[str, Shard] | None = None) -> list[float]:
    """FLOPs of the matrix products per token and rank, forward and backward: 6 per weight that a token meets (Kaplan et
    al. 2020, arXiv 2001.08361, section 2.1), of those in `shards` the rank's part.

    Head and final norm are added to the last layer (all of a head, though one that pools meets one token of a text). What precedes the layers is free: a token looks its embedding
    up, and towers for images or sound see no tokens.
    """
    base: Any = model.base_model
    share = _expert_share(model.config)
    cut = shards or {}
    shares = {parameter: cut[name].share for name, parameter in model.named_parameters() if name in cut}
    costs = [_flops(layer, share, shares) for layer in base.get_submodule(plan.outline.layers)]
    after = [module for name in plan.outline.last if (module := _find(base, name)) is not None]
    heads = [model.get_submodule(name) for name in beside_base(model)]
    costs[-1] += sum(_flops(module, share, shares) for module in [*after, *heads])
    return costs


def beside_base(model: nn.Module) -> list[str]:
    """Names of the modules that the model has beside its base model: its head, with all that belongs to it."""
    names = {id(module): name for name, module in model.named_modules()}
    found, path = [], ""
    for part in names[id(model.base_model)].split("."):
        found += [f"{path}{name}" for name, _ in model.get_submodule(path.rstrip(".")).named_children() if name != part]
        path += f"{part}."
    return found


def _find(base: nn.Module, name: str) -> nn.Module | None:
    """The submodule, or None where this configuration has none (OPT's project_out)."""
    parent, _, leaf = name.rpartition(".")
    module: nn.Module | None = getattr(base.get_submodule(parent), leaf, None)
    return module


def _flops(module: nn.Module, expert_share: float, shares: Mapping[nn.Parameter, float]) -> float:
    total = 0.0
    for name, parameter in module.named_parameters():
        met = expert_share if "experts." in f"{name}." and "shared" not in name else 1.0
        total += 6.0 * parameter.numel() * shares.get(parameter, 1.0) * met
    return total


def _expert_share(config: Any) -> float:
    """The share of a layer's experts that a token meets; 1 without experts."""
    text = config.get_text_config()
    chosen = [getattr(text, name, None) for name in ("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts")]
    there = [
        getattr(text, name, None)
        for name in ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
    ]
    numbers = [
        next((value for value in values if isinstance(value, int) and value > 0), 0) for values in (chosen, there)
    ]
    return min(1.0, numbers[0] / numbers[1]) if all(numbers) else 1.0


def _partition(costs: list[float], starts: list[int], num_stages: int) -> list[int]:
    """First layers of the stages: least maximum, and among those the most even, by dynamic programming."""
    before = [0.0]
    for cost in costs:
        before.append(before[-1] + cost)

    @cache
    def best(place: int, stages: int) -> tuple[float, float, tuple[int, ...]]:
        begin = starts[place]
        if stages == 1:
            cost = before[-1] - before[begin]
            return cost, cost**2, (begin,)
        options = []
        for following in range(place + 1, len(starts) - stages + 2):
            cost = before[starts[following]] - before[begin]
            most, squares, edges = best(following, stages - 1)
            options.append((max(cost, most), cost**2 + squares, (begin, *edges)))
        return min(options)

    return list(best(0, num_stages)[2])
