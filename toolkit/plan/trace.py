"""Activations of one micro-batch: the real model's forward and backward pass on tensors without values, bytes counted.

torch's fake tensors have shapes, formats and storages, and no memory: the model's own code runs on them as it will run
in training, with the task's own loss, checkpointing, tiles and adapters, and every storage is counted from the operation
that makes it until nobody refers to it. Deep stacks are traced twice, with one layer more the second time, and carried
over to their whole depth. Weights are not counted, nor are their gradients, which ZeRO takes away as they come; how many
had come by each moment is noted instead.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from toolkit.ds_config.target import Device
from toolkit.engine.part import Part, Shards, finish_part
from toolkit.errors import ModelError
from toolkit.models.alike import planned_for, times
from toolkit.models.attention import DOCUMENTS, is_lengths, set_attention, tell_documents
from toolkit.models.document_choice import unfit
from toolkit.models.kernels import fuse
from toolkit.models.neftune import add_neftune
from toolkit.models.quiet import quiet
from toolkit.models.stages import base_states, build_skeleton
from toolkit.models.tiling import tile_mlps
from toolkit.plan.activations import Activations, Moment
from toolkit.plan.depth import SEEN, Depths, Layer, layers_by_parameter
from toolkit.plan.live_bytes import LiveBytes
from toolkit.plan.planned_attention import PLANNED, planned_attention, windows_noted
from toolkit.plan.planned_kernels import planned_kernels
from toolkit.plan.side_by_side import side_by_side
from toolkit.plan.whole import Whole
from toolkit.plan.work import NOTHING, Work, work_of
from toolkit.processor import MAPPED, RETURNED
from toolkit.tasks.base import Batch, Task


@dataclass(frozen=True)
class Way:
    """How a micro-batch is computed, as far as its activations depend on it."""

    dtype: torch.dtype
    device: Device
    checkpointing: bool = False
    offload: bool = False
    """What checkpointing keeps lies on the host."""
    tiles: int = 1
    attention: str = "auto"
    """model.attention."""
    packing: bool = False
    neftune_alpha: float = 0.0
    fused: bool = False
    """With liger-kernel's kernels."""
    has_head: bool = True
    """Whether the loss is computed; without it a pipeline stage that is not the last."""


class Untraceable(Exception):
    """A model does not run without values; `str` says why."""


@dataclass(frozen=True)
class Traced:
    """Activations of a model of any number of layers."""

    base: Activations
    """With the layers of the shallowest trace."""
    layers: Mapping[Any, Activations]
    """Kind of layer -> what one more of it adds."""
    depths: Depths

    def towards(self, other: Traced, factor: float) -> Traced:
        """This and `factor` times what `other`, of the same layers, has more."""
        layers = {kind: layer.plus(other.layers[kind].plus(layer, -1.0), factor) for kind, layer in self.layers.items()}
        return Traced(self.base.plus(other.base.plus(self.base, -1.0), factor), layers, self.depths)

    @property
    def whole(self) -> Activations:
        """Of all layers."""
        return self.within(lambda _: True)

    def within(self, is_there: Callable[[Layer], bool]) -> Activations:
        """Of those layers that `is_there`, and of what is around them."""
        found = self.base
        for kind, layer in self.layers.items():
            count = sum(map(is_there, self.depths.kinds[kind]))
            found = found.plus(layer, float(count - min(SEEN, len(self.depths.kinds[kind]))))
        return found


def trace_activations(
    part: Part, task: Task, batch: Batch, way: Way, whole: Whole | None = None, cores: int = 1
) -> Traced:
    """Trace `batch`, whose values do not matter, through `part`, one without pipeline stages, in training.

    Tensors on the CPU; about 0.1 s per layer. The `whole` model may be built already. Raises Untraceable, and ModelError where the model cannot be divided.
    """
    whole = Whole(build_skeleton(part.auto_class, part.config)) if whole is None else whole
    kinds = whole.depths.repeated
    try:
        with quiet():
            traces = [partial(_trace, part, task, batch, way, whole, kind) for kind in (None, *kinds)]
            base, *deeper = side_by_side(traces, cores)
    except Untraceable:
        if not way.fused:
            raise
        # liger has kernels for some architectures that nothing here stands for: the plan is then of the model's own code.
        return trace_activations(part, task, batch, replace(way, fused=False), whole, cores)
    layers = {kind: found.plus(base, -1.0) for kind, found in zip(kinds, deeper, strict=True)}
    if way.offload:
        layers = {kind: layer.elsewhere() for kind, layer in layers.items()}
    return Traced(base, layers, whole.depths)


def _trace(part: Part, task: Task, batch: Batch, way: Way, whole: Whole, one_more: Any) -> Activations:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    task = copy.copy(task)  # prepare leaves its marks on it
    try:
        model = _model(part, task, way, whole, one_more, mode)
        mine = task.split(batch, 0, part.mesh.sequence) if part.mesh.sequence > 1 else batch
        fake = {name: value if is_lengths(name) else mode.from_tensor(value) for name, value in mine.items()}
        kernels = planned_kernels() if way.fused else nullcontext()
        with mode, _any_experts(), planned_for(way.device), kernels:
            return measure(model, task, fake, way)
    except ModelError:
        raise
    except Exception as error:  # the model's own code, which was not written to run without values
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise Untraceable(f"{type(error).__name__}: {lines[0][:200]}") from error


def _model(part: Part, task: Task, way: Way, whole: Whole, one_more: Any, mode: FakeTensorMode) -> nn.Module:
    """The part with fake parameters, prepared as `toolkit.train.build` prepares it."""

    def fill_in(model: nn.Module, _: Shards) -> None:
        _make_fake(model, way.dtype, mode)

    model = whole.thinned(one_more)
    if way.fused:
        fuse(model)
    finish_part(part, model, whole.tensor_plan(part.mesh.tensor), fill_in, fill_in)
    prepare(model, task, way)
    if part.mesh.sequence > 1:
        _share_sequences(model, task, part, way)
    return model


def _share_sequences(model: nn.Module, task: Task, part: Part, way: Way) -> None:
    """Let attention exchange tokens for heads, as `toolkit.engine.sequence` does."""
    from toolkit.engine.grid import Grid
    from toolkit.engine.sequence import SequenceAttention

    config = copy.deepcopy(model.config)
    config._attn_implementation = "sdpa"  # type: ignore[union-attr]
    task.sequence_group = Grid(part.mesh, part.rank).sequence
    attention = SequenceAttention(config, task.sequence_group, core=planned_attention if _is_flash(way) else None)
    model.set_attn_implementation(attention.name)  # type: ignore[operator]


def _is_flash(way: Way) -> bool:
    """Whether a variable-length kernel computes attention."""
    return way.device == "cuda" and way.dtype in (torch.bfloat16, torch.float16)


def prepare(model: nn.Module, task: Task, way: Way) -> None:
    """Let `model` compute as `way` says, in training."""
    if way.checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    if way.tiles > 1:
        tile_mlps(model, way.tiles)
    if way.neftune_alpha:
        add_neftune(model, way.neftune_alpha)
    task.prepare(model)
    _choose_attention(model, task, way)
    model.train()


def _make_fake(model: nn.Module, dtype: torch.dtype, mode: FakeTensorMode) -> None:
    """Put fake tensors in the place of parameters on the meta device, and of buffers; what is shared stays shared."""
    made: dict[int, nn.Parameter] = {}
    with mode, torch.no_grad():
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is None or not parameter.is_meta:
                    continue
                if id(parameter) not in made:
                    kind = dtype if parameter.is_floating_point() else parameter.dtype
                    fake = nn.Parameter(torch.empty(parameter.shape, dtype=kind), requires_grad=parameter.requires_grad)
                    fake.__dict__.update(parameter.__dict__)
                    made[id(parameter)] = fake
                module._parameters[name] = made[id(parameter)]
            for name, buffer in module._buffers.items():
                if buffer is not None and type(buffer).__name__ != "FakeTensor":
                    kind = dtype if buffer.is_floating_point() else buffer.dtype
                    module._buffers[name] = torch.empty(buffer.shape, dtype=kind)


def _choose_attention(model: nn.Module, task: Task, way: Way) -> None:
    """What `toolkit.train.build` would choose, as far as it can be known without asking the model."""
    implementation = model.config._attn_implementation  # type: ignore[union-attr]
    if way.attention.startswith("flash"):
        set_attention(model, PLANNED)
    if implementation != "sdpa" or way.attention not in ("auto", "varlen") or not task.options.has_length:
        return
    is_computed = _is_flash(way)
    if (way.packing or is_computed or way.attention == "varlen") and unfit(model) is None:
        set_attention(model, PLANNED if is_computed else DOCUMENTS)


@contextmanager
def _any_experts() -> Iterator[None]:
    """Let products of groups of tokens with experts' weights have shapes in every format: torch knows those of bf16 alone."""
    plain = nn.functional.grouped_mm

    def grouped(tokens: Tensor, weight: Tensor, *, offs: Tensor, **_: Any) -> Tensor:
        found: Tensor = torch.ops.transformers.grouped_mm_fallback(tokens, weight, offs=offs)
        return found

    nn.functional.grouped_mm = grouped  # type: ignore[assignment]
    try:
        yield
    finally:
        nn.functional.grouped_mm = plain


def measure(model: nn.Module, task: Task, batch: Mapping[str, Any], way: Way) -> Activations:
    """What one forward and backward pass of `model` holds, of fake tensors or real ones."""
    live = _Watched()
    live.expect(layers_by_parameter(model))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(live.take)  # type: ignore[no-untyped-call]
    live.add([list(model.parameters()), list(model.buffers()), list(batch.values())])
    live.begin()
    with live, windows_noted() as windows:
        found = _looked_ahead(model, task, dict(batch)) if way.has_head else {}
        before = live.now
        loss = _loss(model, task, {**batch, **found}, way)
        kept = live.now - before
        loss.backward()  # type: ignore[no-untyped-call]
    live.work = windows.applied_to(live.work)
    return live.activations(float(kept))


def _looked_ahead(model: nn.Module, task: Task, batch: Batch) -> Batch:
    """What a step asks of a micro-batch before any is trained (`toolkit.engine.zero`), and what it finds for the loss.

    A comparison is with the others of the micro-batch; with those of the global batch it is hardly more work.
    """
    with torch.no_grad():
        if task.surveys:
            model.eval()
            task.survey(model, batch)
            model.train()
        return task.compare(task.look(model, batch)) if task.compares else {}


def _loss(model: nn.Module, task: Task, batch: dict[str, Any], way: Way) -> Tensor:
    if way.has_head:
        return task.loss(model, batch, 1.0).trained
    hidden = base_states(model, tell_documents(model, task.inputs(batch)))
    # The gradient that the next stage sends back has the size of what it got.
    return (hidden * torch.empty_like(hidden)).sum()


class _Watched(LiveBytes):  # type: ignore[no-untyped-call]
    """Live bytes above those at the beginning, and the gradients that have come, layer by layer."""

    def expect(self, layers: Mapping[int, Layer]) -> None:
        """`layers`: the layer that each parameter with a gradient belongs to, by its `id`; others belong to none."""
        self.layer_of = layers
        self.missing = Counter(layers.values())

    def begin(self) -> None:
        """From now on."""
        self.base = self.begin_peak()
        self.graded = 0
        self.work = Work()
        self.fullest = Moment(0.0, 0.0)
        self.turn: list[Moment] = []
        self.done: dict[Layer, Moment] = {}
        self.latest: Layer | None = None

    def take(self, parameter: nn.Parameter) -> None:
        """A gradient is complete: ZeRO takes it away."""
        layer = self.layer_of.get(id(parameter))
        if layer is not None:
            if self.latest is not None and layer != self.latest:
                self._end(self.latest)  # an expert that saw no token has no gradient
            self.latest = layer
            self.missing[layer] -= 1
        if not self.done:
            self.turn.append(self.fullest)
            self.fullest = Moment(0.0, 0.0)
        self.graded += parameter.numel()
        parameter.grad = None
        if layer is not None and not self.missing[layer]:
            self._end(layer)

    def _end(self, layer: Layer) -> None:
        """The backward pass of `layer` is over."""
        if layer not in self.done:
            self.done[layer], self.fullest = self.fullest, Moment(0.0, 0.0)

    def activations(self, kept: float) -> Activations:
        """What was seen; `kept` is what the forward pass left."""
        layers = dict(self.done)
        last = layers.pop(next(iter(layers))) if layers else self.fullest
        tail = self.fullest if self.done else Moment(0.0, 0.0)
        return Activations((*self.turn, last), layers, tail, kept, self.work)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(function, types, args, kwargs)
        asked = work_of(function, args, kwargs or {}, result)
        if asked is not NOTHING:
            self.work = self.work.plus(asked, times())
        return result

    def made(self, size: int) -> None:
        """Memory of a tensor that none had before."""
        if hasattr(self, "work") and size >= RETURNED:
            made = Work(mapped=float(size)) if size >= MAPPED else Work(returned=float(size))
            self.work = self.work.plus(made, times())

    def _count(self, storage: torch.UntypedStorage) -> None:
        super()._count(storage)
        if hasattr(self, "base") and self.now - self.base >= self.fullest.live:
            self.fullest = Moment(float(self.now - self.base), float(self.graded))
