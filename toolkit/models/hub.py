"""Checkpoints by hub name: the hub's library puts them into its cache, and whoever reads them reads a directory there.

Every rank calls this for itself, before there is a process group: the library locks each file, so that one process of
a host downloads it while the others wait. Imports neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from toolkit.errors import ModelError, StorageError, ToolkitError, did_you_mean, one_line
from toolkit.hub_reach import cure, why_out_of_reach
from toolkit.models.quiet import quiet
from toolkit.models.weight_files import FORMS, candidates, weight_files
from toolkit.storage import CLOSED, FULL, number_of

DESCRIPTION = ("*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken", "*.bpe")
"""All of a checkpoint but its weights: configuration, tokenizer, templates, the index of the weights."""

COMMIT_DIGITS = 40


def snapshot(name: str, field: str, known: Sequence[str], *, weights: bool) -> Path:
    """The folder of the hub's cache with the files of the model `name`, downloaded where they are not there yet.

    Without `weights`, only its description. The hub is asked once in a process; out of its reach, what the cache holds is
    taken. Raises ModelError, about the recipe's `field`, for what is in neither (`known` are names that were perhaps
    meant), StorageError for a full disk.
    """
    from huggingface_hub import constants

    try:
        with quiet("huggingface_hub"):
            return _snapshot(name, str(constants.HF_HUB_CACHE), weights)
    except Exception as error:
        # The hub's errors, its HTTP library's and the disk's have nothing in common.
        raise _not_given(name, field, known, error) from None


@cache
def _snapshot(name: str, cache_dir: str, weights: bool) -> Path:
    if not weights:
        return _download(name, cache_dir, None, DESCRIPTION)
    folder = _snapshot(name, cache_dir, False)
    # The same commit, should the branch have moved since. A name that is no commit's was put there by hand.
    revision = folder.name if len(folder.name) == COMMIT_DIGITS else None
    for names in candidates(folder):
        _download(name, cache_dir, revision, names)
        if weight_files(folder):
            return folder
    raise FileNotFoundError(f"{folder} has no weights: none of {', '.join(file for form in FORMS for file in form)}")


def _download(name: str, cache_dir: str, revision: str | None, patterns: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                cache_dir=cache_dir,
                allow_patterns=list(patterns),
                local_files_only=why_out_of_reach() is not None,
            )
        )
    except FileNotFoundError as error:
        # Out of reach, and the cache is known to lack files that the hub has. They need not be any that matter:
        # who misses one says which.
        partial = getattr(error, "snapshot_path", None)
        if partial is None:
            raise
        return Path(partial)


def _not_given(name: str, field: str, known: Sequence[str], error: Exception) -> ToolkitError:
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    place = constants.HF_HUB_CACHE
    if number_of(error) in (*FULL, *CLOSED):
        return StorageError(
            f"{field}={name!r} cannot be downloaded to {place}: {error}",
            expected="a cache folder of your own, with room for the files",
            do="set HF_HOME to a folder that you can write to, on a larger disk if this one is full",
        )
    begin = f"{field}={name!r}{did_you_mean(name, known)}: there is no such directory, and"
    do = "check the path, or run `toolkit fetch NAME`"
    if same := [other for other in known if other.casefold() == name.rpartition("/")[2].casefold()]:
        do = f"set {field}={same[0]!r}, after `toolkit fetch {same[0]}`: the same model from a package; or check the path"
    problem = why_out_of_reach()
    if isinstance(error, HFValidationError):
        what = f"{begin} it is not the name of a hub model either"
    elif isinstance(error, LocalEntryNotFoundError):
        what = f"{begin} the hub's cache, {place}, has no model of this name; the hub: {problem or one_line(error.__cause__ or error)}"
    else:
        what = f"{begin} the hub did not give it: {one_line(error)}"
    if problem is not None and not isinstance(error, HFValidationError):
        do += f"; without a network, {cure()}"
    return ModelError(
        what,
        expected="a Hugging Face directory (config.json, model.safetensors, tokenizer.json), a name `toolkit fetch` knows, or a reachable hub name",
        do=do,
    )
