"""How the weights of a Hugging Face model are divided among the ranks of a tensor group, by the model's own plan.

Attention is cut by heads and feed-forwards by features where the plan allows it, experts of a mixture each by
features; the output head and the embedding by rows of the vocabulary, where the logits are the head's output as it is.
Norms, routers and whatever the plan does not name stay whole: all ranks of a group compute them alike and have their
complete gradient, which must therefore not be summed over the group.
Needs no process group and no memory: the model may be a skeleton on the meta device, or one stage of a pipeline.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from toolkit.errors import ModelError
from toolkit.models.absent import Absent
from toolkit.models.heads import is_plain_head
from toolkit.models.shards import Shard
from toolkit.models.tensor_layouts import LAYOUTS
from toolkit.models.tensor_styles import STYLES, WHOLE, Boundary, Cut, Enter, Leave, Style
from toolkit.models.vocabulary import even_sizes

HEAD_COUNTS = ("num_heads", "num_attention_heads", "num_key_value_heads", "num_kv_heads", "n_heads")
"""Attributes by which attention modules count heads."""


@dataclass(frozen=True)
class PerHead:
    """An attention's arguments that may have one entry per head, and the number of heads of the whole model."""

    arguments: tuple[str, ...]
    heads: int


@dataclass
class TensorPlan:
    """The division of one model among `degree` ranks."""

    degree: int
    shards: dict[str, tuple[Shard, ...]] = field(default_factory=dict)
    """Parameter -> what each rank holds of it. Parameters not named here are whole on every rank."""
    boundaries: dict[str, Boundary] = field(default_factory=dict)
    """Module -> what happens at its edges."""
    partial: set[str] = field(default_factory=set)
    """Whole parameters that see local activations only: their gradients are summed over the group."""
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    """Module -> attribute -> its value on each rank; "config.x" is a field of the module's own config."""
    per_head: dict[str, PerHead] = field(default_factory=dict)
    """Module -> arguments to cut by heads."""
    head: str | None = None
    """The output head, where the ranks divide its rows."""
    embedding: str | None = None
    """The embedding of the tokens, where the ranks divide its rows as they do the head's."""
    vocabulary: tuple[int, ...] = ()
    """Rows of each rank, where they divide them."""

    def within(self, stage: nn.Module) -> TensorPlan:
        """What this plan of a whole model says of one of its pipeline stages."""
        modules = {name for name, module in stage.named_modules() if not isinstance(module, Absent)}
        parameters = {name for name, _ in stage.named_parameters()}
        return replace(
            self,
            shards=_only(self.shards, parameters),
            boundaries=_only(self.boundaries, modules),
            partial=self.partial & parameters,
            counts=_only(self.counts, modules),
            per_head=_only(self.per_head, modules),
            head=self.head if self.head in modules else None,
            embedding=self.embedding if self.embedding in modules else None,
        )

    def of_rank(self, rank: int) -> dict[str, Shard]:
        """What rank `rank` of the group holds of each cut parameter."""
        return {name: shards[rank] for name, shards in self.shards.items()}


def _only(entries: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in entries.items() if name in names}


def tensor_plan(model: nn.Module, degree: int) -> TensorPlan:
    """Divide `model` among `degree` ranks.

    Of a pipeline stage alone it cannot be said which vocabulary its other end shares: take the plan of the whole model
    and then `TensorPlan.within`.

    Raises ModelError when the architecture cannot be cut, or not into so many parts; the message names the degrees
    that work.
    """
    return _Planner(model, degree).run()


@dataclass(frozen=True)
class _ParameterCut:
    """One parameter to be cut along `dim`, because the plan has `style` at `name`."""

    name: str
    style: Style
    shape: tuple[int, ...]
    dim: int

    @property
    def width(self) -> int:
        return self.shape[self.dim]

    @property
    def owner(self) -> str:
        """The module that computes with it: an attention, a feed-forward, a set of experts."""
        return self.name.rpartition(".")[0]


class _Planner:
    """Builds one TensorPlan."""

    def __init__(self, model: nn.Module, degree: int) -> None:
        self.model, self.degree = model, degree
        self.config: Any = model.config.get_text_config()  # type: ignore[operator, union-attr]
        self.modules = dict(model.named_modules())
        self.parameters = dict(model.named_parameters())
        self.layouts = {
            f"{name}." if name else "": LAYOUTS[module.config.model_type]
            for name, module in self.modules.items()
            if isinstance(module, PreTrainedModel)
            and module.base_model is module
            and module.config.model_type in LAYOUTS
        }

    def run(self) -> TensorPlan:
        self._refuse_by_config()
        styles = self._styles()
        cuts = {parameter: cut for name, style in styles.items() for parameter, cut in self._cuts(name, style)}
        self._check_divisible(cuts)
        shards = {name: self._shards(name, cut) for name, cut in cuts.items()}
        boundaries = {
            name: Boundary(style.enter, style.leave, self._rotary_width(style))
            for name, style in styles.items()
            if name in self.modules and (style.enter, style.leave) != (Enter.AS_IS, Leave.AS_IS)
        }
        partial = {parameter for name, style in styles.items() if style.partial for parameter in self._own(name)}
        plan = TensorPlan(self.degree, shards, boundaries, partial, self._counts(cuts), self._per_head())
        self._cut_vocabulary(plan)
        self._check_sums(plan)
        return plan

    def _unsupported(self, reason: str) -> ModelError:
        return ModelError(
            f"parallel.tensor={self.degree}: {self.config.model_type} cannot be cut: {reason}",
            expected="an architecture whose tensor plan can be followed exactly",
            do="set parallel.tensor=1; parallel.zero_stage=3 saves the most memory",
        )

    def _refuse_by_config(self) -> None:
        for base, layout in self.layouts.items():
            config = self.modules[base.removesuffix(".")].config
            for name, reason in layout.refused.items():
                if getattr(config, name, None):
                    raise self._unsupported(f"{name}={getattr(config, name)}: {reason}")

    def _styles(self) -> dict[str, Style]:
        """Module or bare parameter -> style, without those that stay whole."""
        words = dict(getattr(self.model, "_tp_plan", None) or {})
        for base, layout in self.layouts.items():
            words |= {f"{base}{pattern}": word for pattern, word in layout.styles.items()}
        if not words:
            raise self._unsupported("transformers has no tensor plan for it, and the toolkit has none")
        head = getattr(self.model, "get_output_embeddings", lambda: None)()
        found = {}
        for name in [*self.modules, *self.parameters]:
            word = words.get(_pattern(name))
            if word is None or (head is not None and self.modules.get(name) is head):
                continue
            if word not in STYLES:
                raise self._unsupported(f"its plan asks for {word!r} at {name}")
            if STYLES[word] is not WHOLE and not self._stays_whole(name, STYLES[word]):
                found[name] = STYLES[word]
        if not any(style.cut is not Cut.NONE for style in found.values()):
            raise self._unsupported("its plan cuts none of its modules")
        return found

    def _stays_whole(self, name: str, style: Style) -> bool:
        # A module between whole activations only saves memory by being cut: where it does not divide, nothing is lost.
        return style.is_optional and any(cut.width % self.degree for _, cut in self._cuts(name, style))

    def _own(self, name: str) -> list[str]:
        """Names of the parameters that a style at `name` means."""
        if name in self.parameters:
            return [name]
        return [f"{name}.{parameter}" for parameter, _ in self.modules[name].named_parameters(recurse=False)]

    def _cuts(self, name: str, style: Style) -> Iterator[tuple[str, _ParameterCut]]:
        """Which parameters `style` cuts, and how. Weights are [..., output, input], those of Conv1D [input, output]."""
        if style.cut is Cut.NONE:
            return
        module = self.modules.get(name)
        for parameter in self._own(name):
            shape = tuple(self.parameters[parameter].shape)
            is_bias = module is not None and len(shape) == 1
            if is_bias and style.cut is Cut.INPUT:
                continue
            first = (style.cut is Cut.OUTPUT) != isinstance(module, Conv1D)
            dim = 0 if len(shape) == 1 else len(shape) - (2 if first else 1)
            yield parameter, _ParameterCut(name, style, shape, dim)

    def _parts(self, cut: _ParameterCut) -> list[int]:
        """Widths of the blocks that are cut each for itself."""
        parts = cut.style.parts
        if isinstance(parts, int):
            return [cut.width // parts] * parts
        owner: Any = self.modules[cut.owner]
        queries = self.config.num_attention_heads * owner.head_dim
        keys = self.config.num_key_value_heads * owner.head_dim
        return [queries, keys, cut.width - queries - keys]

    def _shards(self, name: str, cut: _ParameterCut) -> tuple[Shard, ...]:
        return even_shards(cut.shape, cut.dim, self._parts(cut), self.degree)

    def _check_divisible(self, cuts: dict[str, _ParameterCut]) -> None:
        units = dict.fromkeys(unit for cut in cuts.values() for unit in self._units(cut))
        common = math.gcd(*(number for _, number in units))
        if common % self.degree == 0:
            return
        what, number = next((what, number) for what, number in units if number % self.degree)
        working = [str(degree) for degree in range(1, common + 1) if common % degree == 0]
        raise ModelError(
            f"parallel.tensor={self.degree} does not divide this {self.config.model_type}'s {what} ({number})",
            expected=f"a degree that divides every such count: {', '.join(working)}",
            do=f"set parallel.tensor={working[-1]}",
        )

    def _units(self, cut: _ParameterCut) -> Iterator[tuple[str, int]]:
        """What must divide, and its number."""
        owner: Any = self.modules[cut.owner]
        # Heads first: they are what the reader knows of the model.
        if (
            cut.style.leave is Leave.AS_IS
            and cut.style.cut is Cut.OUTPUT
            and re.search("attn|attention", cut.owner, re.I)
        ):
            config = getattr(owner, "config", self.config)
            counted = {count: getattr(owner, count, None) for count in HEAD_COUNTS}
            counted["num_attention_heads"] = getattr(config, "num_attention_heads", None)
            yield from ((count, number) for count, number in counted.items() if isinstance(number, int))
            head_dim = getattr(owner, "head_dim", None)
            last = cut.name.rpartition(".")[2]
            if last in ("q_proj", "k_proj", "v_proj") and isinstance(head_dim, int) and cut.width % head_dim == 0:
                yield f"heads of {last}", cut.width // head_dim
        for part in self._parts(cut):
            yield f"features of {_pattern(cut.name)}", part

    def _rotary_width(self, style: Style) -> int:
        return int(self.config.qk_rope_head_dim) if style.leave is Leave.LATENT else 0

    def _counts(self, cuts: dict[str, _ParameterCut]) -> dict[str, dict[str, int]]:
        counts = {}
        for base, layout in self.layouts.items():
            for pattern, attributes in layout.counts.items():
                for name in self._matching(base, pattern):
                    counts[name] = {path: _attribute(self.modules[name], path) // self.degree for path in attributes}
        for cut in cuts.values():
            module = self.modules.get(cut.name)
            if isinstance(module, Conv1D) and cut.style.cut is Cut.OUTPUT:
                counts[cut.name] = {"nf": module.nf // self.degree}
        return counts

    def _per_head(self) -> dict[str, PerHead]:
        return {
            name: PerHead(arguments, self.config.num_attention_heads)
            for base, layout in self.layouts.items()
            for pattern, arguments in layout.per_head.items()
            for name in self._matching(base, pattern)
        }

    def _matching(self, base: str, pattern: str) -> list[str]:
        return [name for name in self.modules if _pattern(name) == f"{base}{pattern}"]

    def _cut_vocabulary(self, plan: TensorPlan) -> None:
        """Divide the rows of the head, and of the embedding, which may be the same weights.

        Only where the toolkit computes the loss inside the head, so that its logits need not be gathered.
        """
        names = {id(module): name for name, module in self.modules.items()}
        output: Any = getattr(self.model, "get_output_embeddings", lambda: None)()
        head = names.get(id(output))
        # An encoder-decoder looks up tokens in up to three modules.
        if head is None or self.model.config.is_encoder_decoder or not is_plain_head(self.model):  # type: ignore[union-attr]
            return
        embedding: Any = self.model.get_input_embeddings()  # type: ignore[operator]
        total = output.weight.shape[0]
        if not isinstance(embedding, nn.Embedding) or embedding.weight.shape[0] != total or total < self.degree:
            return
        plan.head, plan.embedding, plan.vocabulary = head, names[id(embedding)], even_sizes(total, self.degree)
        plan.boundaries[head] = Boundary(Enter.SUM_GRADIENT, Leave.GATHER, widths=plan.vocabulary)
        ours = {id(parameter) for name in (head, plan.embedding) for parameter in self.modules[name].parameters()}
        for name, parameter in self.parameters.items():
            if id(parameter) in ours:
                plan.shards[name] = row_shards(tuple(parameter.shape), plan.vocabulary)

    def _check_sums(self, plan: TensorPlan) -> None:
        """Refuse experts that add or normalise with whole weights: summed over the ranks, those would count several times."""
        for name, boundary in plan.boundaries.items():
            if (boundary.enter, boundary.leave) != (Enter.SUM_GRADIENT, Leave.SUM):
                continue
            whole = [key for key in self.parameters if key.startswith(f"{name}.") and key not in plan.shards]
            if whole:
                raise self._unsupported(f"{whole[0]} is whole inside a module whose output is a sum over the ranks")


def even_shards(shape: tuple[int, ...], dim: int, parts: list[int], degree: int) -> tuple[Shard, ...]:
    """Each rank's equal share of every block of widths `parts` that lie one after the other along `dim`."""
    starts = [sum(parts[:index]) for index in range(len(parts))]
    shards = []
    for rank in range(degree):
        spans = tuple(
            (start + rank * (part // degree), part // degree) for start, part in zip(starts, parts, strict=True)
        )
        shards.append(Shard(shape, dim, spans))
    return tuple(shards)


def row_shards(shape: tuple[int, ...], sizes: tuple[int, ...]) -> tuple[Shard, ...]:
    """Each rank's `sizes` rows, one after the other."""
    return tuple(Shard(shape, 0, ((sum(sizes[:rank]), size),)) for rank, size in enumerate(sizes))


def _pattern(name: str) -> str:
    """`name` with "*" for each number between dots, as transformers writes plans."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)


def _attribute(module: Any, path: str) -> int:
    for part in path.split("."):
        module = getattr(module, part)
    return int(module)
