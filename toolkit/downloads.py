"""Downloads that another program makes: it is run with a bar, and what it brought is checked by hash."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from toolkit.errors import InputError


def run_with_bar(
    command: Sequence[str], folder: Path, size: int, label: str, console: Console, environment: Mapping[str, str]
) -> tuple[int, str]:
    """Run `command`, which writes about `size` bytes under `folder`; returns its exit code and all it said.

    The bar follows the growing files, since such programs draw none for a pipe. `environment` is added to ours.
    """
    log = folder / "command.log"
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with log.open("wb") as stream, Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(label, total=size)
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
        try:
            while process.poll() is None:
                progress.update(task, completed=min(size, _bytes_under(folder)))
                time.sleep(0.1)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if process.returncode == 0:
            progress.update(task, completed=size)
    return process.returncode, log.read_text(encoding="utf-8", errors="replace")


def sha256_of(file: Path) -> str:
    """The hash of the content of `file`, in hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_download(file: Path, sha256: str, server: str, kind: type[InputError]) -> None:
    """Raise a `kind` unless the hash of `file`, which `server` has just served, is `sha256`."""
    found = sha256_of(file)
    if found != sha256:
        raise kind(
            f"{file.name} has sha256 {found}",
            expected=f"{sha256}, the file this toolkit was tested with",
            do=f"run the command again; if it says the same, {server} serves another file under this name: do not use it",
        )


def last_words(output: str) -> str:
    """The last three lines of what a program said, in one."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return " | ".join(lines[-3:]) or "nothing"


def _bytes_under(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):  # files and folders are removed while we look: os.walk passes over those
        for name in names:
            with contextlib.suppress(OSError):
                total += Path(parent, name).stat().st_size
    return total
