"""Adam whose two moments take a byte each: blocks of 256 numbers share a scale (Dettmers et al. 2022, "8-bit Optimizers
via Block-wise Quantization"). Quantisation is torchao's; what is ours is that it runs on ZeRO's flat slices, whose
lengths are no multiple of a block, and in pieces, so that no fp32 copy of a whole slice is ever made."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from toolkit.errors import LaunchError

MOMENTS = ("exp_avg", "exp_avg_sq")

BLOCK = 256
"""Numbers that share a scale, counted from the start of the slice that this rank updates."""

SMALLEST = 4096
"""Elements from which on states are quantised, as in torchao and bitsandbytes: what is smaller costs nothing in fp32."""

PIECE = 2**24
"""Elements updated at a time, a multiple of BLOCK: bounds the fp32 copies."""


class Adam8bit(torch.optim.Optimizer):
    """Adam, or AdamW if `decoupled`, on parameters of any length in fp32 or 16 bits; the update is computed in fp32."""

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        *,
        decoupled: bool,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.decoupled = decoupled
        _torchao()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state |= {"step": 0, **{name: new_moment(weight, name) for name in MOMENTS}}
                state["step"] += 1
                self._update(group, weight.view(-1), weight.grad.view(-1), state)

    def _update(
        self, group: dict[str, Any], weight: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any]
    ) -> None:
        first, second = group["betas"]
        # Tensors: a number that changes would be compiled in, anew at every step.
        rate, scale, decay = (
            torch.tensor(value, dtype=torch.float32)
            for value in (
                group["lr"] / (1 - first ** state["step"]),
                (1 - second ** state["step"]) ** -0.5,
                group["lr"] * group["weight_decay"] if self.decoupled else group["weight_decay"],
            )
        )
        fixed = (rate, scale, decay, first, second, group["eps"], self.decoupled)
        update, moments = _update_piece(weight.device.type), [state[name] for name in MOMENTS]
        for start in range(0, weight.numel(), PIECE):
            size = min(PIECE, weight.numel() - start)
            piece, slope = weight.narrow(0, start, size), gradient.narrow(0, start, size)
            if isinstance(moments[0], torch.Tensor):
                cut, rest = [moment.narrow(0, start, size) for moment in moments], 0
            else:
                cut, rest = [moment.piece(start, start + size) for moment in moments], -size % BLOCK
            if rest == 0:
                update(piece, slope, *cut, *fixed)
                continue
            # The last block is filled up with zeros, which stay zero.
            filled, slope = (torch.nn.functional.pad(part, (0, rest)) for part in (piece, slope))
            update(filled, slope, *cut, *fixed)
            piece.copy_(filled[:size])


@dataclass(frozen=True)
class Moment:
    """A moment of a flat parameter, quantised. Not a tensor: DeepSpeed would cut it as if it were one of numbers."""

    codes: torch.Tensor
    """uint8 [N], N a multiple of BLOCK."""
    scale: torch.Tensor
    """fp32 [N / BLOCK]."""
    values: torch.Tensor
    """fp32 [256]: code -> share of the scale, ascending."""

    def piece(self, start: int, end: int) -> Moment:
        """A view of the blocks that hold numbers [start, end)."""
        first, last = start // BLOCK, -(-end // BLOCK)
        return Moment(self.codes[first * BLOCK : last * BLOCK], self.scale[first:last], self.values)

    def dequantised(self) -> torch.Tensor:
        """fp32 [N]."""
        whole: torch.Tensor = _torchao().dequant_with_qmap(self.codes, self.values, self.scale)
        return whole

    def quantise(self, numbers: torch.Tensor) -> None:
        """Take over `numbers` fp32 [N]."""
        blocks = numbers.view(-1, BLOCK)
        # What is largest becomes a value of the map, of either sign: numbers read and stored again stay the same.
        largest = torch.maximum(blocks.amax(1), blocks.amin(1) / torch.clamp(self.values[0], max=-0.5))
        scale = largest.clamp(min=torch.finfo(torch.float32).tiny)
        self.codes.copy_(_torchao().quantize_8bit_with_qmap((blocks / scale[:, None]).view(-1), self.values))
        self.scale.copy_(scale)


Stored = torch.Tensor | Moment
"""A moment: quantised, or the fp32 numbers themselves."""


def new_moment(weight: torch.Tensor, name: str) -> Stored:
    """Zeros for the moment `name` of `weight`."""
    numel, device = weight.numel(), weight.device
    if numel < SMALLEST:
        return torch.zeros(numel, dtype=torch.float32, device=device)
    blocks = -(-numel // BLOCK)
    values = torch.tensor(_torchao().create_dynamic_map(signed=name == "exp_avg"), dtype=torch.float32, device=device)
    moment = Moment(
        torch.empty(blocks * BLOCK, dtype=torch.uint8, device=device), torch.zeros(blocks, device=device), values
    )
    # A scale of 0 makes every code a zero; this is the code of zero.
    moment.codes.fill_(int((values == 0).nonzero()[0]))
    return moment


def read_moment(moment: Stored, start: int, length: int) -> torch.Tensor:
    """Numbers [start, start + length) in fp32; a view where they are stored so."""
    if isinstance(moment, torch.Tensor):
        return moment.narrow(0, start, length)
    return moment.piece(start, start + length).dequantised().narrow(0, start % BLOCK, length)


def write_moment(moment: Stored, parts: Iterable[tuple[int, torch.Tensor]]) -> None:
    """Store (start, numbers) for each of `parts`, which rise and do not overlap; between them are zeros.

    A block that two of them share is quantised once, when it is whole: what was read from a moment is stored as it was.
    """
    if isinstance(moment, torch.Tensor):
        for start, numbers in parts:
            moment.narrow(0, start, numbers.numel()).copy_(numbers)
        return
    device = moment.codes.device
    open_at, open_block = 0, torch.zeros(BLOCK, device=device)
    for start, numbers in parts:
        end, first = start + numbers.numel(), start // BLOCK * BLOCK
        buffer = torch.zeros(-(-end // BLOCK) * BLOCK - first, device=device)
        if first == open_at:
            buffer[:BLOCK] = open_block
        else:
            moment.piece(open_at, open_at + BLOCK).quantise(open_block)
        buffer.narrow(0, start - first, numbers.numel()).copy_(numbers)
        open_at = end // BLOCK * BLOCK
        if open_at > first:
            moment.piece(first, open_at).quantise(buffer[: open_at - first])
        rest = buffer[open_at - first :]
        open_block = rest if rest.numel() else torch.zeros(BLOCK, device=device)
    if open_at < moment.codes.numel():
        moment.piece(open_at, open_at + BLOCK).quantise(open_block)


def _adam(
    weight: torch.Tensor,
    gradient: torch.Tensor,
    first: Stored,
    second: Stored,
    rate: torch.Tensor,
    scale: torch.Tensor,
    decay: torch.Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    decoupled: bool,
) -> None:
    """One step in place. `rate` is the learning rate over the first moment's bias correction, `scale` one over the root
    of the second's, `decay` what the weight loses (decoupled) or adds to its gradient."""
    value, slope = weight.float(), gradient.float()
    if decoupled:
        value = value - decay * value
    else:
        slope = slope + decay * value
    mean = _numbers(first).lerp(slope, 1 - beta1)
    square = _numbers(second).lerp(slope * slope, 1 - beta2)
    weight.copy_(value - rate * mean / (square.sqrt() * scale + eps))
    for stored, numbers in ((first, mean), (second, square)):
        if isinstance(stored, torch.Tensor):
            stored.copy_(numbers)
        else:
            stored.quantise(numbers)


def _numbers(stored: Stored) -> torch.Tensor:
    return stored if isinstance(stored, torch.Tensor) else stored.dequantised()


_compiled: list[Callable[..., None]] = []


def _update_piece(device: str) -> Callable[..., None]:
    """`_adam`, compiled on CUDA: as separate kernels it reads and writes each number some forty times."""
    if device == "cpu":
        return _adam
    if not _compiled:
        _compiled.append(torch.compile(_adam, fullgraph=True, dynamic=False))
    return _compiled[0]


def _torchao() -> Any:
    try:
        from torchao.optim import quant_utils
    except ImportError:
        raise LaunchError(
            "precision.state_dtype='8bit' needs the package torchao",
            expected="torchao, which quantises the states",
            do="run pip install 'toolkit[torchao]'",
        ) from None
    return quant_utils
