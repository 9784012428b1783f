"""Activations of a micro-batch as numbers: bytes that are there at its fullest moments, and how they add up over layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from toolkit.plan.depth import Layer
from toolkit.plan.work import Work


@dataclass(frozen=True)
class Moment:
    """What is there at one moment of a micro-batch."""

    live: float
    """Bytes of activations and temporaries."""
    graded: float
    """Gradient elements that have come."""

    def plus(self, other: Moment, factor: float) -> Moment:
        """This and `factor` times `other`."""
        return Moment(self.live + factor * other.live, self.graded + factor * other.graded)


@dataclass(frozen=True)
class Activations:
    """Of one micro-batch on one rank."""

    turn: tuple[Moment, ...]
    """While the activations of all layers are there, to the end of the last layer's backward pass: the fullest between one
    gradient and the next."""
    layers: Mapping[Layer, Moment]
    """The fullest of the backward pass of each other layer that was traced."""
    tail: Moment
    """The fullest after the first layer's."""
    kept: float
    """Bytes that a forward pass leaves for its backward pass."""
    work: Work
    host: float = 0.0
    """Of what is kept, bytes that lie on the host meanwhile."""

    @property
    def moments(self) -> list[Moment]:
        """All of them."""
        return [*self.turn, *self.layers.values(), self.tail]

    def elsewhere(self) -> Activations:
        """The same with what is kept on the host (`toolkit.models.activation_offload`)."""

        # A moment at which a layer adds less than it keeps is one at which its input is gone already.
        def without(moment: Moment) -> Moment:
            return Moment(max(0.0, moment.live - self.kept), moment.graded)

        layers = {layer: without(moment) for layer, moment in self.layers.items()}
        turn = tuple(map(without, self.turn))
        return Activations(turn, layers, without(self.tail), 0.0, self.work, self.kept)

    def plus(self, other: Activations, factor: float) -> Activations:
        """This and `factor` times `other`, as far as both have seen the same layers."""
        layers = {
            layer: moment.plus(other.layers[layer], factor)
            for layer, moment in self.layers.items()
            if layer in other.layers
        }
        # Of a last layer of another kind there are other gradients: all of it counts as one moment.
        both = (self.turn, other.turn) if len(self.turn) == len(other.turn) else (_whole(self.turn), _whole(other.turn))
        return Activations(
            tuple(moment.plus(more, factor) for moment, more in zip(*both, strict=True)),
            layers,
            self.tail.plus(other.tail, factor),
            self.kept + factor * other.kept,
            self.work.plus(other.work, factor),
            self.host + factor * other.host,
        )


def _whole(turn: tuple[Moment, ...]) -> tuple[Moment, ...]:
    """The fullest of these, alone."""
    return (max(turn, key=lambda moment: moment.live),)
