"""Rows of a data set of the hub, as datasets loads it: from its cache where the hub is out of reach."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import constants

from toolkit.data.content import combined
from toolkit.errors import DataError, innermost, one_line
from toolkit.hub_reach import CURE, why_out_of_reach


def open_hub(
    location: str, split: str, subset: str | None, *, streaming: bool, field: str, cache_dir: Path
) -> tuple[Any, str]:
    """The rows of the data set `location`, and the digest of what they are.

    A hub that does not answer is noticed in seconds; then the data set is taken from `cache_dir` or from the cache of
    datasets (in HF_HOME), where it was loaded before. Raises
    DataError, about the recipe's `field`, for what is in neither and for a split or a subset it does not have.
    """
    problem = why_out_of_reach()
    ours, common = cache_dir / "datasets", Path(datasets.config.HF_DATASETS_CACHE)
    try:
        if problem is None:
            rows = datasets.load_dataset(location, subset, split=split, streaming=streaming, cache_dir=str(ours))
        else:
            rows = _cached(location, subset, split, streaming, ours, common)
    except (OSError, datasets.exceptions.DatasetsError) as error:
        if problem is not None:
            raise DataError(
                f"{field}={location!r} is no local file or directory, and of the caches {ours} and {common} none has a data "
                f"set of this name; the hub: {problem}",
                expected="an existing path, a name that `toolkit fetch` knows, or the name of a hub data set and a network",
                do=f"correct the name, or run `toolkit fetch NAME`; without a network, {CURE}",
            ) from None
        raise DataError(
            f"{field}={location!r} is no local file or directory, and the hub did not give it: {one_line(innermost(error))}",
            expected="an existing path, a name that `toolkit fetch` knows, or the name of a hub data set",
            do="correct the name; for a private or gated data set log in with `hf auth login`",
        ) from None
    except ValueError as error:  # an unknown split or subset: the message lists those there are
        raise DataError(
            f"{field}={location!r} with split {split!r} and data.subset={subset!r}: {one_line(innermost(error))}",
            expected="a split and a subset that the data set has",
            do="correct the split or data.subset",
        ) from None
    # Its own fingerprint follows from the hub's revision, the files and the split; a stream has only its name.
    identity = None if streaming else rows._fingerprint
    return rows, combined("hub", identity or [location, subset, split])


def _cached(location: str, subset: str | None, split: str, streaming: bool, *caches: Path) -> Any:
    """The rows of `location` from the first of `caches` that has them. Raises the last one's error where none has."""
    with _offline():
        for cache in caches[:-1]:
            with contextlib.suppress(OSError, datasets.exceptions.DatasetsError):
                return datasets.load_dataset(location, subset, split=split, streaming=streaming, cache_dir=str(cache))
        return datasets.load_dataset(location, subset, split=split, streaming=streaming, cache_dir=str(caches[-1]))


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """As under HF_HUB_OFFLINE=1: the libraries do not try for themselves what is known to fail."""
    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
