"""The files of a checkpoint before transformers reads them, and the true cause when it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import transformers
from safetensors import SafetensorError, safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from toolkit.errors import ModelError

PATTERNS = ("*.json", "*.safetensors", "*.bin", "*.model", "*.txt", "*.jinja")
"""What a checkpoint directory holds: configuration, weights, tokenizer, templates."""

POINTER = b"version https://git-lfs.github.com/spec/"
"""How Git LFS begins what it leaves in the place of a large file."""

LARGEST_POINTER = 1024
"""Bytes; by the specification a pointer is smaller."""

NEEDED = {
    "configuration": ("config.json",),
    "tokenizer": ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt"),
    "model": (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, "pytorch_model.bin", "pytorch_model.bin.index.json"),
}
"""One of these has to be there."""


def check_files(field: str, source: str) -> None:
    """Raise ModelError for a directory some of whose files are Git LFS pointers; any other place is left to transformers."""
    directory = Path(source)
    if not directory.is_dir():
        return
    pointers = [file for pattern in PATTERNS for file in sorted(directory.glob(pattern)) if is_pointer(file)]
    if pointers:
        raise ModelError(
            f"{field}={source!r}: {pointers[0].name} is a Git LFS pointer, not the file itself",
            expected="the files' contents; a clone without git-lfs leaves pointers of a few lines",
            do=f"run `git lfs install && git -C {source} lfs pull`",
        )


def is_pointer(file: Path) -> bool:
    """Whether `file` is a Git LFS pointer and not the content it stands for."""
    if not file.is_file() or file.stat().st_size >= LARGEST_POINTER:
        return False
    with file.open("rb") as opened:
        return opened.read(len(POINTER)) == POINTER


def check_weights(source: str) -> None:
    """Raise ModelError when a shard that the index names is missing, or a safetensors file is cut off or damaged.

    Reads the files' headers alone.
    """
    directory = Path(source)
    index = directory / SAFE_WEIGHTS_INDEX_NAME
    files = _shards(index) if index.is_file() else [directory / SAFE_WEIGHTS_NAME]
    for file in files:
        if index.is_file() and not file.is_file():
            raise ModelError(
                f"model.path={source!r}: {index.name} lists {file.name}, which is not there",
                expected=f"all of its {len(files)} files",
                do=f"download {file.name} into the same directory",
            )
        if not file.is_file():
            continue
        try:
            with safe_open(file, "pt"):
                pass
        except (OSError, SafetensorError) as error:
            raise ModelError(
                f"model.path={source!r}: {file.name} ({file.stat().st_size:,} bytes) is cut off or damaged: {error}",
                expected="a whole safetensors file",
                do=f"download {file.name} again",
            ) from None


def _shards(index: Path) -> list[Path]:
    """The files that hold the tensors of `index`."""
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"model.path={str(index.parent)!r}: {index.name} cannot be read: {error}",
            expected='a JSON object with a "weight_map" from tensors to files',
            do=f"download {index.name} again",
        ) from None
    return [index.parent / name for name in sorted(names)]


def unreadable(what: str, field: str, name: str, source: str, error: Exception) -> ModelError:
    """The message for `error`, raised by transformers while it read the `what` ("model", ...) of the checkpoint `name`.

    `source` is the directory of that checkpoint.
    """
    reason = next((line.strip()[:300] for line in str(error).splitlines() if line.strip()), type(error).__name__)
    begin = f"{field}={name!r}: its {what} cannot be loaded"
    if isinstance(error, ImportError):
        return ModelError(
            f"{begin}: {reason}",
            expected="the optional package that it is read with",
            do="install the package that is named",
        )
    needed = NEEDED[what]
    if not any((Path(source) / file).is_file() for file in needed):
        where = "model.tokenizer" if what == "tokenizer" else "model.path"
        return ModelError(
            f"{begin}: the directory has no {needed[0]}",
            expected=f"one of {', '.join(needed)} in it",
            do=f"set {where} to the directory that holds it",
        )
    return ModelError(
        f"{begin}: {reason}",
        expected=f"files that transformers {transformers.__version__} can read",
        do="repair what is named, download the files again, or update transformers if they are newer than it",
    )
