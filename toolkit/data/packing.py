"""Fill sequences of fixed capacity with several examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FULL_ENOUGH = 0.99
"""Share of the tokens that is no padding from which on no second way of packing is tried."""
MOST_FIRSTS = 8
"""First lengths tried for a closing triple; more fill little better and take longer."""


@dataclass
class Counts:
    """What became of the examples on their way in."""

    kept: int = 0
    """In the result, after truncating and splitting."""
    truncated: int = 0
    """Of those kept: cut to the capacity."""
    cut_targets: int = 0
    """Of those kept: with a target cut to task.target_length."""
    split: int = 0
    """Cut into several, which are kept."""
    empty: int = 0
    """Left out: rows that have no tokens."""
    dropped: int = 0
    """Left out because longer than the capacity."""
    long_targets: int = 0
    """Left out because of a target longer than task.target_length."""
    cut_off: int = 0
    """Left out because none of the tokens that fit carries loss, while later ones do."""
    masked: int = 0
    """Left out because no token of theirs carries loss."""
    long_recordings: int = 0
    """Left out because longer than task.max_duration_s."""
    short_recordings: int = 0
    """Left out because a recording has too few frames for its text."""
    unreadable: int = 0
    """Left out because an image or a recording of theirs cannot be used."""

    def add(self, *others: Counts) -> None:
        """Add what others have counted."""
        for other in others:
            for name, count in vars(other).items():
                setattr(self, name, getattr(self, name) + count)

    @property
    def left_out(self) -> int:
        """Rows, or examples of them, that are not in the result."""
        found = self.empty + self.dropped + self.long_targets + self.long_recordings + self.short_recordings
        return found + self.cut_off + self.masked + self.unreadable

    def describe(self) -> str:
        """One line for a reader, `120 kept, 3 of them cut ...; left out: 2 empty`; empty when all were kept as they are."""
        reasons = {
            "empty": self.empty,
            "longer than batch.sequence_length": self.dropped,
            "with a target longer than task.target_length": self.long_targets,
            "longer than task.max_duration_s": self.long_recordings,
            "too short for their text": self.short_recordings,
            "with all there is to learn beyond batch.sequence_length": self.cut_off,
            "with nothing to learn": self.masked,
            "unreadable": self.unreadable,
        }
        kept = [f"{self.kept:,} kept"] if self.kept else []
        kept += [f"{self.truncated:,} of them cut to batch.sequence_length"] if self.truncated else []
        kept += [f"{self.cut_targets:,} with a target cut to task.target_length"] if self.cut_targets else []
        kept += [f"with the parts of {self.split:,} longer than batch.sequence_length"] if self.split else []
        left_out = [f"{count:,} {reason}" for reason, count in reasons.items() if count]
        if not left_out and len(kept) <= 1:
            return ""
        return "; ".join(filter(None, [", ".join(kept), f"left out: {', '.join(left_out)}" if left_out else ""]))


def best_fit(lengths: Sequence[int] | np.ndarray, capacity: int) -> list[list[int]]:
    """Indices of `lengths` grouped so that no group's sum passes `capacity` (tokens).

    Longest first, as in best-fit-decreasing (Johnson 1974), one group after the other; a group that has room for two
    of the shortest is closed by the pair that leaves the least. Where that fills less than FULL_ENOUGH, examples are
    also taken in their order, each group closed by three or two, and the better of both results counts. Groups and the
    indices in them are in rising order, so the result is deterministic and near the input's order.
    Every length must be between 1 and `capacity` (ValueError).
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    if sizes.size and (sizes.min() < 1 or sizes.max() > capacity):
        raise ValueError(f"lengths between {sizes.min()} and {sizes.max()} do not fit a capacity of {capacity}")
    groups = _longest_first(sizes.tolist(), capacity)
    if sizes.sum() < FULL_ENOUGH * len(groups) * capacity:
        # Longest first leaves the short ones to the end, where only near-equal lengths are left to fill gaps with.
        groups = min(groups, _in_order(sizes.tolist(), capacity), key=len)
    return sorted(sorted(group) for group in groups)


def _longest_first(sizes: list[int], capacity: int) -> list[list[int]]:
    waiting = _Waiting(sizes)
    groups: list[list[int]] = []
    while waiting.present:
        group: list[int] = []
        free = capacity
        while fitting := waiting.fitting(free):
            largest, smallest = fitting.bit_length() - 1, (fitting & -fitting).bit_length() - 1
            # Between two and three of the smallest: whatever closes the group best is a single one or a pair.
            closing = largest < free and free // smallest == 2
            for size in waiting.best_pair(fitting, free) if closing else (largest,):
                group.append(waiting.take(size))
                free -= size
        groups.append(group)
    return groups


def _in_order(sizes: list[int], capacity: int) -> list[list[int]]:
    """Groups that start with the longest example left and go on in the input's order, so that the mix of lengths stays."""
    waiting = _Waiting(sizes)
    groups: list[list[int]] = []
    taken = [False] * len(sizes)
    next_index = 0
    while waiting.present:
        group: list[int] = []
        free = capacity
        while fitting := waiting.fitting(free):
            largest, smallest = fitting.bit_length() - 1, (fitting & -fitting).bit_length() - 1
            chosen: tuple[int, ...] = (largest,)
            if largest < free and free // smallest in (2, 3):
                best = waiting.best_pair if free // smallest == 2 else waiting.good_triple
                chosen = best(fitting, free)
            elif group and fitting == waiting.present:  # any example fits
                while taken[next_index]:
                    next_index += 1
                chosen = (sizes[next_index],)
            for size in chosen:
                group.append(waiting.take(size))
                taken[group[-1]] = True
                free -= size
        groups.append(group)
    return groups


class _Waiting:
    """The examples not yet in a group, by length. Bit L of `present` is set while there is one of length L."""

    def __init__(self, sizes: list[int]) -> None:
        self._of_length: dict[int, list[int]] = {}
        for index in range(len(sizes) - 1, -1, -1):  # backwards: the first of a length is taken first
            self._of_length.setdefault(sizes[index], []).append(index)
        self.present = 0
        for size in self._of_length:
            self.present |= 1 << size

    def fitting(self, free: int) -> int:
        """Bit set of the lengths of at most `free`."""
        return self.present & ((2 << free) - 1)

    def take(self, size: int) -> int:
        """Remove one example of length `size` and return its index."""
        left = self._of_length[size]
        index = left.pop()
        if not left:
            self.present ^= 1 << size
        return index

    def best_pair(self, fitting: int, free: int, used: int = 0) -> tuple[int, ...]:
        """One or two of the lengths in the bit set `fitting` whose sum is nearest to `free` without passing it.

        One example of length `used` is spoken for.
        """
        best: tuple[int, ...] = (fitting.bit_length() - 1,)
        candidates = fitting
        while candidates and sum(best) < free:
            longer = candidates.bit_length() - 1
            if 2 * longer <= sum(best):  # every pair from here on is smaller
                break
            shorter = candidates & ((2 << (free - longer)) - 1)
            if len(self._of_length[longer]) - (longer == used) < 2:
                shorter &= ~(1 << longer)
            if shorter and longer + shorter.bit_length() - 1 > sum(best):
                best = (longer, shorter.bit_length() - 1)
            candidates ^= 1 << longer
        return best

    def good_triple(self, fitting: int, free: int) -> tuple[int, ...]:
        """Up to three of the lengths in `fitting` that fill `free` well: the best over MOST_FIRSTS choices of the longest."""
        best: tuple[int, ...] = (fitting.bit_length() - 1,)
        firsts = fitting
        for _ in range(MOST_FIRSTS):
            if not firsts or sum(best) == free:
                break
            first = firsts.bit_length() - 1
            firsts ^= 1 << first
            others = fitting if len(self._of_length[first]) > 1 else fitting & ~(1 << first)
            others &= (2 << (free - first)) - 1
            found = (first, *self.best_pair(others, free - first, used=first)) if others else (first,)
            best = max(best, found, key=sum)
        return best


def one_each(num_examples: int) -> list[list[int]]:
    """The sequences of a run without packing: one example in each."""
    return [[index] for index in range(num_examples)]


def efficiency(lengths: Sequence[int] | np.ndarray, sequences: Sequence[Sequence[int]], capacity: int) -> float:
    """Share of the tokens in `sequences` of `capacity` tokens that is not padding, 0 to 1."""
    if not sequences:
        return 0.0
    sizes = np.asarray(lengths, dtype=np.int64)
    return float(sum(int(sizes[list(group)].sum()) for group in sequences)) / (len(sequences) * capacity)
