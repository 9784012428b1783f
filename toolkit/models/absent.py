"""Stand-ins without parameters for what lies on other pipeline stages, and the two places where a stage begins and ends."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Absent(nn.Module):
    """Passes its first input on: a norm, a dropout, a projection, a head."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if args else next(iter(kwargs.values()))


class AbsentEmbedding(Absent):
    """Adds nothing, whatever the positions: what it would add is thrown away on this stage."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return torch.zeros(())


class AbsentLayer(Absent):
    """A layer of another stage. Keeps the plain attributes of `layer` (its kind of attention), which the model's loop may read."""

    def __init__(self, layer: nn.Module, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs
        for name, value in vars(layer).items():
            if not name.startswith("_") and name != "training" and isinstance(value, str | int | float | None):
                setattr(self, name, value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden = self.state(super().forward(*args, **kwargs))
        return hidden if self.outputs == 1 else (hidden, *[None] * (self.outputs - 1))

    def state(self, hidden: Tensor) -> Tensor:
        """The hidden states that the next layer sees."""
        return hidden


class Entry(AbsentLayer):
    """The last layer before the stage's own: puts the received hidden states in the place of whatever has been computed."""

    received: Tensor | None = None

    def receive(self, base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Forward pre-hook of the base model: takes `inputs_embeds`, leaves their shape for masks and positions, and
        takes the tokens away, which the caller's head may want but its layers must not see."""
        hidden = kwargs.get("inputs_embeds")
        if hidden is None:
            raise RuntimeError("a later stage is called with inputs_embeds=..., the hidden states of the stage before")
        self.received = hidden
        # Several residual streams [B, T, copies, D] travel as they are; the model's own code expands [B, T, D].
        alike = hidden if hidden.dim() == 3 else hidden[:, :, 0]
        # transformers' models have their main input first.
        without = {name: value for name, value in kwargs.items() if name != base.main_input_name}
        return (None, *args[1:]) if args else args, {**without, "inputs_embeds": alike.detach()}

    def receive_inside(self, stack: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The same of a model inside the base model that owns the layers: some heads call it themselves (OPT's)."""
        return (args, kwargs) if self.received is not None else self.receive(stack, args, kwargs)

    def state(self, hidden: Tensor) -> Tensor:
        """The received hidden states; they are held no longer than needed."""
        received, self.received = self.received, None
        assert received is not None
        return received

    def check(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the stage's first layer: `outputs` said wrongly would hand it a part of the hidden states."""
        hidden = args[0] if args else next(iter(kwargs.values()))
        if hidden.dim() < 3:
            raise RuntimeError(f"layers return {self.outputs} values by the outline, another number by their code")


class Exit(AbsentLayer):
    """The first layer after the stage's own: keeps what they return, before any norm."""

    leaving: Tensor | None = None

    def state(self, hidden: Tensor) -> Tensor:
        """Unchanged, and remembered."""
        self.leaving = hidden
        return hidden

    def hand_over(self, stack: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Forward hook of the module that owns the layers: its last_hidden_state becomes what left the stage's last layer."""
        output.last_hidden_state, self.leaving = self.leaving, None
