"""Hidden states pass from stage to stage without a message about their shape, which every rank knows by itself.

DeepSpeed's pipeline either fixes one shape for the whole run or (`dynamic_shape`) sends 256 integers ahead of every
hidden state, of which the receiver reads the shape: on a GPU each of these reads waits for all work queued so far
(runtime/pipe/engine.py, _recv_tensor_meta). Here every rank of a pipeline has the micro-batches of its replica, so
that only what no batch tells, the format and the dimensions behind [B, T], is learned from the first such message.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

Layout = tuple[torch.Size, torch.dtype]
"""Shape and number format."""


class _Link:
    """What travels on one side of a stage, in the order of the micro-batches."""

    def __init__(self) -> None:
        self._shapes: Iterator[torch.Size] = iter(())
        self._rest: Layout | None = None

    def expect(self, shapes: Sequence[torch.Size]) -> None:
        self._shapes = iter(shapes)

    def next(self) -> tuple[torch.Size, Layout | None]:
        """[B, T] of the next micro-batch, and the layout of its hidden states once it is known."""
        tokens = next(self._shapes)
        return tokens, None if self._rest is None else (tokens + self._rest[0], self._rest[1])

    def learn(self, tokens: torch.Size, hidden: torch.Tensor) -> None:
        """Take format and trailing dimensions from `hidden`; where it does not begin with [B, T], ask every time."""
        if hidden.shape[:2] == tokens:
            self._rest = (hidden.shape[2:], hidden.dtype)


class KnownShapes:
    """Takes the place of the messages of a DeepSpeed PipelineEngine with `dynamic_shape`."""

    def __init__(self, engine: Any) -> None:
        self._say, self._ask = engine._send_tensor_meta, engine._recv_tensor_meta
        self._allocate = engine._allocate_or_extend_buffers
        self._sent, self._received = _Link(), _Link()
        engine._send_tensor_meta, engine._recv_tensor_meta = self._before_sending, self._before_receiving

    def expect(self, shapes: Sequence[torch.Size]) -> None:
        """Set the [B, T] of the micro-batches that the next schedule runs on."""
        self._sent.expect(shapes)
        self._received.expect(shapes)

    def _before_sending(self, hidden: torch.Tensor, stage: int) -> None:
        tokens, layout = self._sent.next()
        if layout is None:
            self._say(hidden, stage)
            self._sent.learn(tokens, hidden)
        elif layout != (hidden.shape, hidden.dtype):
            # The next stage would wait for ever for the rest, or take what is too much for the next micro-batch.
            raise RuntimeError(
                f"a stage made hidden states {list(hidden.shape)} in {hidden.dtype} of tokens {list(tokens)}, "
                f"where the next one expects {list(layout[0])} in {layout[1]}"
            )

    def _before_receiving(self, stage: int) -> torch.Tensor:
        tokens, layout = self._received.next()
        if layout is not None:
            known: torch.Tensor = self._allocate(0, list(layout[0]), layout[1])
            return known
        told: torch.Tensor = self._ask(stage)
        self._received.learn(tokens, told)
        return told
