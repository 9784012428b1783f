"""The files of a checkpoint before transformers reads them, and the true cause when it cannot."""

from __future__ import annotations

from pathlib import Path

import transformers
from transformers.utils import CONFIG_NAME

from toolkit.errors import ModelError, first_few
from toolkit.git_lfs import is_pointer
from toolkit.models.stored_tensors import DAMAGE, open_tensors
from toolkit.models.weight_files import ORDER, chosen, shards

PATTERNS = ("*.json", "*.safetensors", "*.bin", "*.model", "*.txt", "*.jinja")
"""What a checkpoint directory holds: configuration, weights, tokenizer, templates."""

ADAPTER_CONFIG = "adapter_config.json"
"""peft's own file beside an adapter's weights."""

NEEDED = {
    "configuration": (CONFIG_NAME,),
    "tokenizer": ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt"),
    "model": ORDER,
}
"""One of these has to be there."""


def check_files(field: str, source: str) -> None:
    """Raise ModelError for a directory without a model, or with Git LFS pointers; any other place is left to transformers."""
    directory = Path(source)
    if not directory.is_dir():
        return
    if field == "model.path" and not (directory / CONFIG_NAME).is_file():
        raise _no_model(directory)
    pointers = [file for pattern in PATTERNS for file in sorted(directory.glob(pattern)) if is_pointer(file)]
    if pointers:
        raise ModelError(
            f"{field}={source!r}: {pointers[0].name} is a Git LFS pointer, not the file itself",
            expected="the files' contents; a clone without git-lfs leaves pointers of a few lines",
            do=f"run `git lfs install && git -C {source} lfs pull`",
        )


def _no_model(directory: Path) -> ModelError:
    """The message for a folder that describes no model, with the one that was perhaps meant."""
    if (directory / ADAPTER_CONFIG).is_file():
        return ModelError(
            f"model.path={str(directory)!r} holds an adapter, not a model: it has no {CONFIG_NAME}",
            expected="a whole model, for instance an adapter merged into its base model",
            do="write one with `toolkit export --merge RUN OUT`, or peft's merge_and_unload, and set model.path to it; "
            "the run that trained the adapter goes on with --resume auto",
        )
    names = sorted(entry.name for entry in directory.iterdir())
    models = sorted(file.parent for file in directory.glob(f"*/{CONFIG_NAME}"))
    # Of a run, what may be trained on.
    meant = next((model for model in models if model.name == "export"), models[0] if models else None)
    return ModelError(
        f"model.path={str(directory)!r} holds no model: it has no {CONFIG_NAME}, "
        + (f"only {first_few(names)}" if names else "it is empty"),
        expected=f"a Hugging Face directory: {CONFIG_NAME}, weights and a tokenizer",
        do="set model.path to the folder of the model" + (f", such as {meant}" if meant else ""),
    )


def check_weights(source: str) -> None:
    """Raise ModelError when a file that the index names is missing, or a file of weights is cut off or damaged.

    Reads the files' headers alone.
    """
    first = chosen(Path(source))
    if first is None:
        return
    files = _shards(first)
    for file in files:
        if not file.is_file():
            raise ModelError(
                f"model.path={source!r}: {first.name} lists {file.name}, which is not there",
                expected=f"all of its {len(files)} files",
                do=f"download {file.name} into the same directory",
            )
        try:
            with open_tensors(file):
                pass
        except DAMAGE as error:
            is_safe = file.suffix == ".safetensors"
            state = "is cut off or damaged" if is_safe else "cannot be read"
            raise ModelError(
                f"model.path={source!r}: {file.name} ({file.stat().st_size:,} bytes) {state}: {' '.join(str(error).split())[:300]}",
                expected="a whole safetensors file" if is_safe else "a whole file of tensors, as torch.save writes it",
                do=f"download {file.name} again",
            ) from None


def _shards(first: Path) -> list[Path]:
    try:
        return shards(first)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model.path={str(first.parent)!r}: {first.name} cannot be read: {error}",
            expected='a JSON object with a "weight_map" from tensors to files',
            do=f"download {first.name} again",
        ) from None


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
