"""What travels between pipeline stages: hidden states and their gradients, and the shape of the first one only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed import run_distributed
from tests.parity.strategies import recipe
from tests.parity.worker import reference_curve, run_recipe
from toolkit.engine.known_shapes import KnownShapes
from toolkit.parity.report import deviation
from toolkit.parity.strategies import STRATEGIES
from toolkit.recipe import Batch, Data, Evaluation, Recipe

STEPS, SEQUENCES = 4, 4

Message = tuple[tuple[int, ...], torch.dtype]


def messages_of_a_run(rank: int, world_size: int, run: Recipe, folder: str) -> tuple[list[float], list[Message]]:
    """Losses, and everything that this rank sends to another stage."""
    from deepspeed.runtime.pipe import p2p

    sent: list[Message] = []
    plain = p2p.send

    def recorded(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        sent.append((tuple(tensor.shape), tensor.dtype))
        return plain(tensor, *args, **kwargs)

    p2p.send = recorded
    try:
        (records,) = run_recipe(rank, world_size, [(run, folder, None)])
    finally:
        p2p.send = plain
    return [record["loss"] for record in records], sent


def test_one_message_about_shapes_in_a_whole_run(tiny_llama_dir: Path, chat_file: Path, tmp_path: Path) -> None:
    """Micro-batches of many lengths, training and evaluation in turns: nobody asks for a shape twice."""
    run = recipe(
        "causal_lm",
        tiny_llama_dir,
        chat_file,
        parallel=STRATEGIES["pp2"].parallel,
        data=Data(train=str(chat_file), evaluation=str(chat_file), packing=False, prefetch=0),
        batch=Batch(global_size=SEQUENCES, micro_size=1, sequence_length=128),
        evaluation=Evaluation(every_steps=1, max_sequences=SEQUENCES),
        steps=STEPS,
    )
    (losses, first), (_, last) = run_distributed(messages_of_a_run, 2, run, str(tmp_path / "run"))
    (wanted,) = run_distributed(reference_curve, 1, run)
    assert deviation(losses, wanted.losses) < 1e-6
    hidden, gradients = ([shape for shape, dtype in sent if dtype == torch.float32] for sent in (first, last))
    assert len(gradients) == STEPS * SEQUENCES and len(set(gradients)) > 3
    assert len(hidden) > len(gradients) and set(gradients) <= set(hidden)
    about_shapes = [[shape for shape, dtype in sent if dtype == torch.int32] for sent in (first, last)]
    assert [len(messages) for messages in about_shapes] == [1, 0]


class Engine:
    """What KnownShapes sees of DeepSpeed's engine; a message is a tensor in a list."""

    def __init__(self) -> None:
        self.said: list[torch.Tensor] = []

    def _send_tensor_meta(self, hidden: torch.Tensor, stage: int) -> None:
        self.said.append(hidden)

    def _recv_tensor_meta(self, stage: int) -> torch.Tensor:
        return torch.empty_like(self.said.pop())

    def _allocate_or_extend_buffers(self, index: int, shape: list[int], dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype)


def tokens(*shapes: tuple[int, int]) -> list[torch.Size]:
    return [torch.Size(shape) for shape in shapes]


def test_what_is_expected_is_what_comes() -> None:
    """Also four-dimensional hidden states; a stage that makes others than the next one expects is told so."""
    engine = Engine()
    known = KnownShapes(engine)
    known.expect(tokens((2, 5), (1, 7), (1, 3)))
    for shape in ((2, 5), (1, 7)):
        engine._send_tensor_meta(torch.zeros(*shape, 4, 8, dtype=torch.bfloat16), 1)
        buffer = engine._recv_tensor_meta(0)
        assert buffer.shape == (*shape, 4, 8) and buffer.dtype == torch.bfloat16 and engine.said == []
    with pytest.raises(RuntimeError, match=r"made hidden states \[1, 4, 4, 8\] in torch.bfloat16 of tokens \[1, 3\]"):
        engine._send_tensor_meta(torch.zeros(1, 4, 4, 8, dtype=torch.bfloat16), 1)


def test_shapes_that_do_not_follow_from_the_tokens_are_asked_for() -> None:
    engine = Engine()
    known = KnownShapes(engine)
    known.expect(tokens((2, 5), (2, 5)))
    for length in (10, 9):
        engine._send_tensor_meta(torch.zeros(length, 8), 1)
        assert len(engine.said) == 1
        assert engine._recv_tensor_meta(0).shape == (length, 8)
