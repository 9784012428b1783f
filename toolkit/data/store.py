"""All examples of a data set, encoded once and kept as memory-mapped files that every process on the host shares."""

from __future__ import annotations

import contextlib
import copy
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import filelock
import numpy as np
from numpy.typing import NDArray

from toolkit.data.columns import ColumnReader, ColumnWriter, GrowingArray, update_digest
from toolkit.data.encoding import Encoder
from toolkit.data.example import Example, Kind, Row
from toolkit.data.forms.recognised import Recognised
from toolkit.data.packing import Counts
from toolkit.errors import DataError, StorageError
from toolkit.storage import CLOSED, FULL

_FORMAT = 9  # part of every fingerprint: raise it when the files or the encoding in this package change

Progress = Callable[[int, int | None], None]
"""Called now and then with the rows encoded so far and, where known, the rows there are."""


class Extensible:
    """Examples to which arrays can be added that are not on disk with them."""

    _beside: Mapping[str, NDArray[Any]] = MappingProxyType({})

    def extended(self, name: str, values: NDArray[Any]) -> Self:
        """The same examples with an array `name` more, which is values[index] of each."""
        found = copy.copy(self)
        found._beside = {**self._beside, name: values}
        return found

    def beside(self, index: int) -> Example:
        """What was added to example `index`."""
        return {name: values[index] for name, values in self._beside.items()}


Reread = Callable[[int], Example]
"""Index of a row -> the arrays of its example that are not on disk with the others."""


class Store(Extensible):
    """Examples by index, with their lengths; what `prepare` returns."""

    def __init__(self, directory: Path, reread: Reread | None = None) -> None:
        summary = json.loads((directory / "summary.json").read_text())
        self.directory = directory
        self.num_rows: int = summary["num_rows"]
        self.num_trained_tokens: int = summary["num_trained_tokens"]
        self.counts = Counts(**summary["counts"])
        self.digest: str = summary["digest"]
        """SHA-256 of the encoded examples: the same wherever their source lies and whoever encoded it."""
        self.unused: dict[str, int] = summary["unused"]
        """Columns that were not read, by name, and the rows in which they hold something."""
        self.forms = {
            Recognised(name, tuple(columns), remark): count for name, columns, remark, count in summary["forms"]
        }
        """The rows of each format, where the task knows several."""
        self.skipped: list[str] = summary["skipped"]
        """What is said of the first examples that were left out as unreadable."""
        self._columns, self._reread = ColumnReader(directory), reread
        self._rows: NDArray[np.int64] = np.load(directory / "rows.npy", mmap_mode="r")
        """Index of the row that each example comes from."""
        self.lengths: NDArray[np.int64] = np.load(directory / "sizes.npy")
        """Size of each example."""
        self.digests: NDArray[np.int64] = np.load(directory / "digests.npy")
        """One of each example: equal where all arrays are."""

    def __len__(self) -> int:
        return len(self._columns)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        again = {} if self._reread is None else self._reread(int(self._rows[index]))
        return self._columns[index] | again | self.beside(index)

    @property
    def num_tokens(self) -> int:
        """Tokens of all examples."""
        return int(self.lengths.sum())


def prepare(
    rows: Iterable[Row],
    encoder: Encoder,
    *,
    cache_dir: Path,
    fingerprint: str,
    progress: Progress | None = None,
) -> Store:
    """The store of `rows` at `cache_dir`/`fingerprint`, encoded now, by `encoder`, unless it is there already.

    Several processes may ask at once: one writes, the others wait. A killed writer leaves nothing that counts.
    Raises DataError for a bad row, for a data set without a token to train on and for a cache directory that cannot be
    written; StorageError when the disk is full.
    """
    final = cache_dir / fingerprint
    if not final.exists():
        with _storage_errors(cache_dir), _lock(cache_dir, fingerprint):
            if not final.exists():
                _write(rows, encoder, final, progress)
    return Store(final, None if encoder.source is None else _reread(rows, encoder.source))


def _reread(rows: Any, source: Callable[[Row], Example]) -> Reread:
    return lambda index: source(rows[index])


def fingerprint(content: Any, processor: Any, **options: Any) -> str:
    """A name for the result of encoding: 24 hex digits that change when the data, the processor or an option does.

    `content` says which rows (the digest of a source); it and `options` are JSON-able.
    """
    parts = {
        "format": _FORMAT,
        "rows": content,
        "tokenizer": processor_hash(processor),
        "options": options,
        "versions": [version("transformers"), version("tokenizers")],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def processor_hash(processor: Any) -> str:
    """SHA-256 of what decides how a row becomes what the model reads: of a tokenizer, or of other settings; of each part."""
    if hasattr(processor, "get_vocab"):
        return _tokenizer_hash(processor)
    names = processor.get_attributes() if hasattr(processor, "get_attributes") else getattr(processor, "attributes", ())
    parts = {name: processor_hash(getattr(processor, name)) for name in names}
    settings = {} if processor is None else processor.to_dict()
    template = getattr(processor, "chat_template", None)
    return hashlib.sha256(json.dumps([parts, settings, template], sort_keys=True, default=str).encode()).hexdigest()


def _tokenizer_hash(tokenizer: Any) -> str:
    """Of vocabulary, rules, special tokens and chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
    if backend is not None:
        # Left behind by the last call; they do not belong to the tokenizer.
        rules.pop("truncation", None)
        rules.pop("padding", None)
    specials = {key: str(value) for key, value in tokenizer.special_tokens_map.items()}
    parts = [type(tokenizer).__name__, rules, specials, tokenizer.chat_template]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _write(rows: Iterable[Row], encoder: Encoder, final: Path, progress: Progress | None) -> None:
    """Encode into a temporary directory beside `final`, then rename it. The caller holds the lock."""
    for left_over in final.parent.glob(f"{final.name}.tmp-*"):
        shutil.rmtree(left_over, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f"{final.name}.tmp-", dir=final.parent))
    try:
        summary = _encode_into(temporary, rows, encoder, progress)
        _write_durably(temporary / "summary.json", json.dumps(summary, indent=1))
        temporary.chmod(0o755)  # mkdtemp makes it private; a cache is shared
        # Where file locks do not reach (some network file systems) another host may have been faster: keep its result.
        with contextlib.suppress(FileExistsError):
            _rename_unless_there(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _encode_into(directory: Path, rows: Iterable[Row], encoder: Encoder, progress: Progress | None) -> dict[str, Any]:
    """Write the columns of all examples into `directory`; returns the store's summary."""
    total = len(rows) if isinstance(rows, Sized) else None
    num_rows, num_trained = 0, 0
    with (
        contextlib.closing(ColumnWriter(directory, encoder.kind.sourced)) as writer,
        contextlib.closing(GrowingArray(directory / "digests.npy", np.int64)) as digests,
        contextlib.closing(GrowingArray(directory / "rows.npy", np.int64)) as places,
        contextlib.closing(GrowingArray(directory / "sizes.npy", np.int64)) as sizes,
    ):
        for num_rows, found in encoder.all_examples(rows):
            for example in (content_of(example, encoder.kind) for example in found):
                writer.append(example)
                places.append(np.array([num_rows - 1]))
                digests.append(np.array([_digest(example)]))
                sizes.append(np.array([encoder.kind.size(example)]))
                num_trained += encoder.kind.targets(example)
            if progress is not None and (num_rows % 100 == 0 or num_rows == total):
                progress(num_rows, total)
        encoder.check(num_rows)
        digest = writer.digest
    counts = asdict(encoder.counts)
    return {
        "num_rows": num_rows,
        "num_trained_tokens": num_trained,
        "counts": counts,
        "skipped": encoder.skipped,
        "digest": digest,
        "unused": dict(encoder.unused),
        "forms": [[form.name, form.columns, form.remark, count] for form, count in encoder.forms.items()],
    }


def content_of(example: Example, kind: Kind) -> Example:
    """`example` without what only says where it comes from."""
    return {name: values for name, values in example.items() if name not in kind.provenance}


def _digest(example: Example) -> int:
    content = hashlib.blake2b(digest_size=8)
    update_digest(content, example)
    return int.from_bytes(content.digest(), "little", signed=True)


def _rename_unless_there(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise FileExistsError(target) from error
        raise


def _write_durably(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _lock(cache_dir: Path, fingerprint: str) -> Iterator[None]:
    cache_dir.mkdir(parents=True, exist_ok=True)
    # The operating system releases it when its holder dies.
    with filelock.FileLock(cache_dir / f"{fingerprint}.lock"):
        yield


@contextlib.contextmanager
def _storage_errors(cache_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise StorageError(
                f"no space left under {cache_dir} while encoding the data",
                expected="room for about 8 bytes per token",
                do="free some space, or set TOOLKIT_CACHE to a directory on a larger disk",
            ) from None
        if error.errno in CLOSED:
            raise DataError(
                f"the cache directory {cache_dir} cannot be written ({error.strerror})",
                expected="a directory this user may write to",
                do="set TOOLKIT_CACHE to such a directory",
            ) from None
        raise
