"""How long the sequences, how large the batch and how long the run: arithmetic on what was measured. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from toolkit.data.packing import best_fit, efficiency

SHARE_WHOLE = 0.99
"""Share of the examples that a sequence should hold whole."""
LONGEST = 8192
"""Tokens beyond which a sequence is not drafted: its activations rarely fit. Longer ones are the user's decision."""
LONGEST_PIECE = 1024
"""Tokens of the pieces that plain text is cut into, where its texts are longer."""
FULL = 0.9
"""Share of a packed sequence that should be no padding."""
MICRO_TOKENS = 4096
"""Tokens of a micro-batch, where one sequence has no more than that."""
LARGEST_BATCH = 32
"""Sequences of the largest drafted batch."""
LEAST_STEPS_PER_EPOCH = 8
"""Batches are kept so small that a pass over the data has as many steps."""
LEAST_STEPS, MOST_EPOCHS = 30, 10
"""Small data is passed over so often, but no more often, that a run has as many steps."""
LARGEST_INTERVAL = 500
"""Steps between two checkpoints in the longest run."""


@dataclass(frozen=True)
class SequenceLength:
    """A choice of batch.sequence_length."""

    tokens: int
    too_long: int
    """Of the measured examples, those that are longer."""
    full: float | None
    """Share of the packed sequences that is no padding; None without packing."""


def round_up(tokens: int) -> int:
    """The next multiple of 64, of 128 beyond 1,024."""
    step = 64 if tokens <= 1024 else 128
    return max(64, math.ceil(tokens / step) * step)


def needed(lengths: Sequence[int]) -> int:
    """Tokens that SHARE_WHOLE of `lengths` do not pass."""
    return sorted(lengths)[math.ceil(SHARE_WHOLE * len(lengths)) - 1]


def choose_length(lengths: Sequence[int], limit: int | None, *, packing: bool, splits: bool) -> SequenceLength:
    """The shortest sequence that holds SHARE_WHOLE of the examples whole and, packed, is FULL, within `limit` tokens.

    Where `splits`, longer examples are cut into several and none is lost: then LONGEST_PIECE tokens are enough.
    """
    most = min(limit or LONGEST, LONGEST_PIECE if splits else LONGEST)
    # All of them, where the longest needs hardly more than most do.
    longest = max(lengths)
    need = longest if longest <= 1.25 * needed(lengths) else needed(lengths)
    tokens, full = min(round_up(need), most), None
    if packing:
        tries = [(tokens, _full(lengths, tokens)) for tokens in _longer(tokens, most)]
        tokens, full = next((found for found in tries if found[1] >= FULL), max(tries, key=lambda found: found[1]))
    return SequenceLength(tokens, sum(length > tokens for length in lengths), full)


def _longer(tokens: int, most: int) -> Iterator[int]:
    """`tokens`, and lengths up to four times that, at most `most`."""
    for quarters in (4, 5, 6, 8, 12, 16):
        longer = min(round_up(tokens * quarters // 4), most)
        yield longer
        if longer == most:
            return


def _full(lengths: Sequence[int], capacity: int) -> float:
    pieces = [min(length, capacity) for length in lengths]
    return efficiency(pieces, best_fit(pieces, capacity), capacity)


@dataclass(frozen=True)
class BatchSize:
    """A choice of batch.global_size and batch.micro_size."""

    global_size: int
    micro_size: int


def choose_batch(
    sequences: int, replicas: int, sequence_length: int, *, largest_micro: int, stages: int = 1
) -> BatchSize:
    """Sequences per optimizer step and per rank and pass, for data of so many `sequences` on so many `replicas`.

    `sequences` must be at least `replicas`. Each of the `stages` of a pipeline has a micro-batch, where there are as many.
    """
    wanted = max(replicas, min(LARGEST_BATCH, sequences // LEAST_STEPS_PER_EPOCH), replicas * min(stages, sequences))
    per_replica = _power_of_two(wanted // replicas)
    largest_micro = max(1, min(largest_micro, per_replica // stages))
    micro = min(per_replica, _power_of_two(largest_micro), _power_of_two(max(1, MICRO_TOKENS // sequence_length)))
    return BatchSize(per_replica * replicas, micro)


def _power_of_two(number: int) -> int:
    """The largest that is not above `number`."""
    return int(2 ** (max(1, number).bit_length() - 1))


def choose_epochs(steps_per_epoch: float, *, usual: int) -> int:
    """Passes over the data: `usual`, more where that is less than LEAST_STEPS steps, one where it is very long."""
    if steps_per_epoch * usual > 20 * LARGEST_INTERVAL:
        return 1
    return min(MOST_EPOCHS, max(usual, math.ceil(LEAST_STEPS / max(steps_per_epoch, 1e-9))))


def choose_warmup(steps: int, most: int) -> int:
    """Steps of warm-up: a twentieth of the run, at most `most`; none in a run of a few steps."""
    return min(most, steps // 20) if steps >= 10 else 0


def choose_interval(steps: int, times: int) -> int:
    """Steps between two events that should come about `times` times: 1, 2 or 5 times a power of ten; 0 in a short run."""
    if steps < 2 * times:
        return 0
    wanted = min(LARGEST_INTERVAL, steps / times)
    power = 10 ** math.floor(math.log10(wanted))
    return int(next(digit * power for digit in (5, 2, 1) if digit * power <= wanted))


def choose_held_out(rows: int) -> int:
    """Rows to hold out of so many: a twentieth, at most 256; none where that would be fewer than 5."""
    count = min(256, rows // 20)
    return count if count >= 5 else 0


RATES = ((1e8, 1.0), (5e8, 1e-4), (2e9, 5e-5), (math.inf, 2e-5))
"""Below how many parameters which rate."""


ADAPTERS_RATE = 10.0
"""How many times larger steps low-rank adapters take than all weights (Schulman et al. 2025, "LoRA Without Regret")."""


def learning_rate_for(parameters: int, *, adapters: bool = False) -> float:
    """The highest rate at which a model of this size, or `adapters` beside it, is fine-tuned without a second thought (Adam)."""
    return next(rate for size, rate in RATES if parameters < size) * (ADAPTERS_RATE if adapters else 1.0)
