"""Download one pinned package of Debian through apt. It is an archive of files to us: nothing is installed, and none of its code runs."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from toolkit.cache import cache_dir
from toolkit.downloads import check_download, last_words, run_with_bar
from toolkit.errors import DataError, StorageError
from toolkit.install import disk_full, install

_UNREACHABLE = ("Could not resolve", "Could not connect", "Failed to fetch", "Temporary failure")


@dataclass(frozen=True)
class DebianPackage:
    """A package of Debian's main, the same file for every architecture."""

    name: str
    version: str
    sha256: str
    """Of the .deb file."""
    download_bytes: int
    """Its size."""
    unpacked_bytes: int

    @property
    def pin(self) -> str:
        """`name=version`, as apt-get takes it."""
        return f"{self.name}={self.version}"

    @property
    def facts(self) -> tuple[str, ...]:
        """What the README beside the rows says of it."""
        return (f"Source: {self.pin} of Debian, .deb with sha256 {self.sha256}.",)

    def fetch(self, console: Console) -> Path:
        """Put the files of the package into the cache, unless they are there, and return the folder that stands for "/".

        Raises DataError when it cannot be had or its hash is not the pinned one, StorageError for a full disk.
        """
        place = cache_dir() / "sources" / f"debian-{self.name}-{self.version.replace('~', '-')}"
        stamp: dict[str, object] = {"from": self.pin, "sha256": self.sha256}
        needed = self.download_bytes + self.unpacked_bytes
        install(place, stamp, lambda out: self._unpack(out, console), disk_bytes=needed)
        return place

    def _unpack(self, out: Path, console: Console) -> None:
        if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
            raise DataError(
                f"cannot download {self.pin}: this host has no apt",
                expected="Debian, or a distribution made of it",
                do="make it on a Debian host and copy its directory, or choose a data set that needs no apt (`toolkit fetch` lists them)",
            )
        work = out.parent / "apt"
        work.mkdir()
        console.print(f"downloading {self.pin} ({self.download_bytes / 1e6:.0f} MB)", highlight=False, soft_wrap=True)
        # Where root calls, no other user has to write to our folder.
        command = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", self.pin]
        code, output = run_with_bar(
            ["sh", "-c", 'cd "$0" && exec "$@"', str(work), *command],
            work, self.download_bytes, f"downloading {self.name}", console, {"LC_ALL": "C"},
        )  # fmt: skip
        found = next(iter(work.glob("*.deb")), None)
        if code != 0 or found is None:
            raise self._missing(output, work)
        check_download(found, self.sha256, "the archive", DataError)
        subprocess.run(["dpkg-deb", "-x", str(found), str(out)], check=True, capture_output=True)
        shutil.rmtree(work)

    def _missing(self, said: str, folder: Path) -> DataError | StorageError:
        if "No space left on device" in said:
            return disk_full(folder)
        if any(mark in said for mark in _UNREACHABLE):
            return DataError(
                f"cannot download {self.pin}: apt's sources do not answer: {last_words(said)}",
                expected="sources of packages that apt-get can reach",
                do="check the network and apt's sources (`apt-get update`), then run the command again",
            )
        return DataError(
            f"cannot download {self.pin}: apt-get says: {last_words(said)}",
            expected="Debian among the sources of apt, with this version",
            do="run `apt-get update`, then the command again; see `apt-cache policy "
            + self.name
            + "` for the versions there are",
        )
