"""Ranks that share the encoding of a stream: the same batches as alone, a part of the work each, and none waits for ever."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import run_distributed
from tests.parity.strategies import recipe
from tests.parity.worker import run_recipe
from tests.unit.test_data_batches import LENGTHS, encode, streamed, tokens
from toolkit.errors import DataError
from toolkit.recipe import Checkpoint, Data, Schedule

BAD_ROW = 37


def batches(rank: int, world_size: int, prefetch: int, stop: int, state: dict[str, Any] | None, team: bool) -> Any:
    """(steps' micro-batches, state after `stop` steps, row numbers this rank encoded, counts)."""
    from toolkit.engine.process import GlooExchange

    encoded: list[int] = []

    def noted(row: Any) -> Any:
        encoded.append(row["number"])
        return encode(row)

    source = streamed(rank, world_size, encode=noted)
    source.exchange = GlooExchange() if team else None
    found = []
    reader = source.iterate(state["step"] if state else 0, 24, prefetch, state)
    for batch in reader:
        found.append(tokens(batch))
        if batch.step + 1 == stop:
            break
    last = source.state(stop)
    reader.close()
    return found, last, encoded, source.encoder.counts


def both(rank: int, world_size: int) -> list[tuple[Any, Any]]:
    """What the team and a lone process give, for unequal ways of reading ahead, an early end and a resumed one."""
    pairs = []
    for prefetch, stop in ((0, 24), (2, 24), (8 if rank else 1, 7)):
        pairs.append(tuple(batches(rank, world_size, prefetch, stop, None, team) for team in (True, False)))
    state = pairs[-1][0][1]
    pairs.append(tuple(batches(rank, world_size, 2, 24, state, team) for team in (True, False)))
    return pairs


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_order_is_that_of_a_lone_process_and_the_work_is_shared(world_size: int) -> None:
    """Whatever each rank reads ahead, also after an early end and when resumed in the middle of a window."""
    ranks = run_distributed(both, world_size)
    for pairs in ranks:
        for (team, team_state, _, _), (alone, alone_state, _, _) in pairs:
            assert team == alone and team_state == alone_state
    whole = [pairs[0] for pairs in ranks]
    for (_, _, encoded, counts), (_, _, everything, expected) in whole:
        assert counts == expected
        # Windows of 16 rows, the last of a pass has 12; each is cut into consecutive parts.
        assert len(encoded) == pytest.approx(len(everything) / world_size, abs=len(everything) / 20)
    assert sorted(row for (_, _, encoded, _), _ in whole for row in encoded) == sorted(whole[0][1][2])


def failing(rank: int, world_size: int, only_rank: int | None) -> tuple[str, float]:
    """The message each rank gets for a bad row, or when one of them fails alone; and after how long."""
    from toolkit.engine.process import GlooExchange

    def picky(row: Any) -> Any:
        if row["number"] == BAD_ROW:
            raise DataError("no text", expected="text", do="repair it")
        return encode(row)

    source = streamed(rank, world_size, encode=picky if only_rank is None else encode)
    source.exchange = GlooExchange()
    began = time.monotonic()
    reader = source.iterate(0, 100, 2)
    try:
        for batch in reader:
            if rank == only_rank and batch.step == 3:
                raise MemoryError("alone")
    except (DataError, MemoryError) as error:
        reader.close()
        return str(error), time.monotonic() - began
    raise AssertionError("read to the end")


def test_a_bad_row_and_a_lost_rank_end_every_rank_with_a_message() -> None:
    """The row is named alike on all; a rank that fails alone lets the others go at once."""
    for message, _ in run_distributed(failing, 4, None):
        assert message.startswith(f"row {BAD_ROW + 1} of data.train: no text")
    messages = run_distributed(failing, 4, 1)
    assert messages[1][0] == "alone"
    for message, seconds in (messages[0], messages[2], messages[3]):
        assert message.startswith("rank 1 has stopped reading data.train") and seconds < 30
    assert len(LENGTHS) > BAD_ROW


def test_a_run_from_a_stream_is_the_same_on_two_ranks(tiny_llama_dir: Path, chat_file: Path, tmp_path: Path) -> None:
    """One rank straight through; two ranks, interrupted by the end of a shorter run and resumed."""
    streamed_data = Data(train=str(chat_file), streaming=True)
    runs = {
        steps: recipe("causal_lm", tiny_llama_dir, chat_file, data=streamed_data, schedule=Schedule(type="constant"),
                      steps=steps, checkpoint=Checkpoint(export=False))
        for steps in (4, 8)
    }  # fmt: skip
    [[alone]] = run_distributed(run_recipe, 1, [(runs[8], str(tmp_path / "one"), None)])
    folder = str(tmp_path / "two")
    [[_, team], _] = run_distributed(run_recipe, 2, [(runs[4], folder, None), (runs[8], folder, "auto")])
    assert [record["step"] for record in team] == list(range(1, 9))
    for one, two in zip(alone, team, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-6)
        assert two["tokens"] == one["tokens"] and two["samples"] == one["samples"]
