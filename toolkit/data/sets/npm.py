"""Download one pinned package of npm. It is an archive of files to us: nothing is installed and none of its code runs."""

from __future__ import annotations

import configparser
import http.client
import os
import shutil
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from toolkit.cache import cache_dir
from toolkit.downloads import check_download, last_words, run_with_bar, sha256_of
from toolkit.errors import DataError, StorageError
from toolkit.install import disk_full, install

_ROOT = "package/"  # of every archive that npm makes
# What npm and urllib write when no registry answered.
_UNREACHABLE = ("ECONNREFUSED", "ECONNRESET", "ENOTFOUND", "ETIMEDOUT", "EAI_AGAIN", "ERR_SOCKET_TIMEOUT", "SSL")
_SETTINGS = {
    "npm_config_update_notifier": "false",
    "npm_config_ignore_scripts": "true",
    "npm_config_loglevel": "error",
    "npm_config_fetch_retries": "1",
    "npm_config_fetch_retry_mintimeout": "1000",
}


@dataclass(frozen=True)
class NpmPackage:
    """A package of npm's registry."""

    name: str
    version: str
    sha256: str
    """Of the archive."""
    download_bytes: int
    """Size of the archive."""

    @property
    def pin(self) -> str:
        """`name@version`, as npm takes it."""
        return f"{self.name}@{self.version}"

    @property
    def facts(self) -> tuple[str, ...]:
        """What the README beside the rows says of it."""
        return (f"Source: {self.pin} of npm's registry, archive with sha256 {self.sha256}.",)

    def fetch(self, console: Console) -> Path:
        """Put the archive into the cache, unless it is there, and return its path.

        Raises DataError when it cannot be had or its hash is not the pinned one, StorageError for a full disk.
        """
        place = cache_dir() / "sources" / f"npm-{self._stem}"
        stamp: dict[str, object] = {"from": self.pin, "sha256": self.sha256}
        install(place, stamp, lambda out: self._download(out, console), disk_bytes=3 * self.download_bytes)
        if (found := sha256_of(place / self._file)) != self.sha256:  # it lies there since who knows when
            raise DataError(
                f"{place / self._file} has sha256 {found}",
                expected=f"{self.sha256}, as when it was downloaded",
                do=f"remove {place} and run the command again",
            )
        return place / self._file

    def read(self, archive: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
        """Name and content of each file in `archive` whose name, the package's folder left out, is `wanted`."""
        with tarfile.open(archive, "r|gz") as stream:
            for member in stream:
                name = member.name.removeprefix(_ROOT)
                if member.isfile() and wanted(name):
                    file = stream.extractfile(member)
                    assert file is not None
                    yield name, file.read()

    @property
    def _stem(self) -> str:
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}"

    @property
    def _file(self) -> str:
        return f"{self._stem}.tgz"

    def _download(self, out: Path, console: Console) -> None:
        console.print(f"downloading {self.pin} ({self.download_bytes / 1e6:.0f} MB)", highlight=False, soft_wrap=True)
        if shutil.which("npm"):
            self._with_npm(out, console)
        else:
            self._without_npm(out / self._file, _registry(self.pin), console)
        check_download(out / self._file, self.sha256, "the registry", DataError)

    def _with_npm(self, out: Path, console: Console) -> None:
        work = out.parent / "npm"
        work.mkdir()
        # npm's cache in our folder: there the room was checked, and the bar can see it.
        environment = {**_SETTINGS, "npm_config_cache": str(work / "cache")}
        command = ["npm", "pack", self.pin, "--pack-destination", str(work)]
        code, output = run_with_bar(command, work, self.download_bytes, f"downloading {self.pin}", console, environment)
        if code != 0:
            raise self._error(output, work)
        next(work.glob("*.tgz")).rename(out / self._file)
        shutil.rmtree(work)

    def _without_npm(self, file: Path, registry: str, console: Console) -> None:
        address = f"{registry}/{self.name}/-/{self.name.rpartition('/')[2]}-{self.version}.tgz"
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        try:
            with (
                urllib.request.urlopen(address, timeout=60) as source,
                file.open("wb") as target,
                Progress(*columns, console=console, disable=not console.is_terminal) as progress,
            ):
                task = progress.add_task(f"downloading {self.pin}", total=self.download_bytes)
                while block := source.read(1 << 16):
                    progress.update(task, advance=target.write(block))
        except urllib.error.HTTPError as error:
            raise self._error(f"E{error.code} {error.reason}", file.parent) from None
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            raise self._error(f"ECONNREFUSED {error}", file.parent) from None

    def _error(self, output: str, folder: Path) -> DataError | StorageError:
        if "ENOSPC" in output:
            return disk_full(folder)
        if any(mark in output for mark in _UNREACHABLE):
            return DataError(
                f"cannot download {self.pin}: npm's registry does not answer",
                expected="a registry that npm can reach",
                do="check the network or point npm at a mirror (`npm config set registry URL`), then run the command again",
            )
        if "E404" in output or "ETARGET" in output:
            return DataError(
                f"cannot download {self.pin}: npm's registry does not have it",
                expected="a registry that carries it, as the public one does",
                do="see `npm config get registry` for the registry in use; a mirror may leave small packages out",
            )
        return DataError(
            f"cannot download {self.pin}: npm says: {last_words(output)}",
            expected="`npm pack` to succeed",
            do=f"run `npm pack {self.pin}` to see all of it",
        )


def _registry(pin: str) -> str:
    """The registry that npm would use, where npm itself is not installed. Raises DataError when nothing names one."""
    settings = {name.lower(): value for name, value in os.environ.items()}  # npm reads either case
    chosen = settings.get("npm_config_registry") or _from_npmrc()
    if not chosen:
        raise DataError(
            f"cannot download {pin}: npm is not installed, and nothing says where its registry is",
            expected="npm on PATH, or a registry in NPM_CONFIG_REGISTRY or in ~/.npmrc",
            do="install npm (`apt-get install npm`, for instance), or set NPM_CONFIG_REGISTRY to the registry's address",
        )
    return chosen.rstrip("/")


def _from_npmrc() -> str | None:
    """The registry in the user's own settings of npm, which have the form of an ini file without sections."""
    file = Path(os.environ.get("NPM_CONFIG_USERCONFIG") or Path.home() / ".npmrc")
    parser = configparser.ConfigParser(interpolation=None, strict=False, allow_no_value=True, delimiters=("=",))
    try:
        parser.read_string("[npm]\n" + file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, configparser.Error):
        return None
    return parser.get("npm", "registry", fallback=None)
