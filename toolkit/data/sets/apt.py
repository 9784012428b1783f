"""Download the package indexes of Debian through apt, as this host's own settings have it, into a place of our own.

Indexes change with each point release, so none can be pinned: what was read is written down with its date and hash.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from toolkit.cache import cache_dir
from toolkit.downloads import last_words, run_with_bar
from toolkit.errors import DataError, StorageError
from toolkit.install import disk_full, install

_CAT = Path("/usr/lib/apt/apt-helper")  # reads an index however apt compressed it
_FACTS = "facts.json"
_SETTINGS = """
#clear Acquire::Languages;
#clear Acquire::IndexTargets::deb::DEP-11;
#clear Acquire::IndexTargets::deb::DEP-11-icons;
#clear Acquire::IndexTargets::deb::DEP-11-icons-hidpi;
#clear Acquire::IndexTargets::deb::CNF;
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
Acquire::Languages {{ {languages} }};
Acquire::Retries "1";
Acquire::http::Timeout "30";
Acquire::https::Timeout "30";
APT::Sandbox::User "root";
Dir::State::lists "{lists}";
Dir::Cache "{cache}";
"""
"""Nothing of the host's own lists is touched, and no hook of it runs. Where root calls, no other user has to read our folder."""


@dataclass(frozen=True)
class DebianIndex:
    """The index of the component main of the Debian release that this host's apt is set up for."""

    languages: tuple[str, ...]
    """Of the descriptions: "en", "de"."""
    download_bytes: int
    """About so much comes over the network."""

    @property
    def pin(self) -> str:
        """What it is, without a version."""
        return f"Debian's package index, main, descriptions in {' and '.join(self.languages)}"

    @property
    def facts(self) -> tuple[str, ...]:
        """What the README beside the rows says of it, once it was fetched."""
        return tuple(json.loads((self._place / _FACTS).read_text(encoding="utf-8")))

    @property
    def _place(self) -> Path:
        return cache_dir() / "sources" / f"debian-index-{'-'.join(self.languages)}"

    def fetch(self, console: Console) -> Path:
        """Put Packages.gz and Translation-LANGUAGE.gz into the cache, unless they are there, and return their directory.

        Raises DataError without apt, without Debian among its sources and when those do not answer.
        """
        stamp: dict[str, object] = {"from": self.pin}
        install(self._place, stamp, lambda out: self._download(out, console), disk_bytes=6 * self.download_bytes)
        return self._place

    def _download(self, out: Path, console: Console) -> None:
        if not shutil.which("apt-get") or not _CAT.exists():
            raise DataError(
                f"cannot download {self.pin}: this host has no apt",
                expected="Debian, whose apt-get says where the index is",
                do="make it on a Debian host and copy its directory, or choose a data set that needs no apt (`toolkit fetch` lists them)",
            )
        work = out.parent / "apt"
        settings = self._settings(work)
        console.print(
            f"downloading {self.pin} (about {self.download_bytes / 1e6:.0f} MB)", highlight=False, soft_wrap=True
        )
        command = ["apt-get", "-q", "-c", str(settings), "update"]
        _, output = run_with_bar(command, work, self.download_bytes, "downloading the index", console, {"LC_ALL": "C"})
        facts = []
        for name in ("Packages", *(f"Translation-{language}" for language in self.languages)):
            facts.append(self._copy(name, settings, out, output))
        (out / _FACTS).write_text(json.dumps(facts), encoding="utf-8")
        shutil.rmtree(work)

    def _settings(self, work: Path) -> Path:
        for folder in ("lists/partial", "cache/archives/partial"):
            (work / folder).mkdir(parents=True)
        languages = " ".join(f'"{language}";' for language in self.languages)
        text = _SETTINGS.format(languages=languages, lists=work / "lists", cache=work / "cache")
        (work / "apt.conf").write_text(text, encoding="utf-8")
        return work / "apt.conf"

    def _copy(self, name: str, settings: Path, out: Path, said: str) -> str:
        """Write the index `name` to `out`, and return one line about it. `said`: what apt-get said."""
        form = "$(FILENAME)\t$(CODENAME)\t$(VERSION)"
        command = ["apt-get", "-c", str(settings), "indextargets", "--format", form]
        command += [f"ShortDesc: {name}", "Origin: Debian", "Component: main"]
        listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
        # The release itself has a version; its updates and security fixes have none, or only a few packages.
        found = sorted((line.split("\t") for line in listed), key=lambda parts: (len(parts[1]), parts))
        if not found or not Path(found[0][0]).exists():
            raise self._missing(name, said, out)
        path, codename, version = found[0]
        digest = hashlib.sha256()
        with (
            gzip.open(out / f"{name}.gz", "wb", compresslevel=3) as target,
            subprocess.Popen([str(_CAT), "cat-file", path], stdout=subprocess.PIPE) as process,
        ):
            assert process.stdout is not None
            while block := process.stdout.read(1 << 20):
                digest.update(block)
                target.write(block)
        if process.returncode != 0:
            raise self._missing(name, said, out)
        return f"Source: {name} of Debian {version} ({codename}), main, {_date(path)}, sha256 {digest.hexdigest()}."

    def _missing(self, name: str, said: str, folder: Path) -> DataError | StorageError:
        if "No space left on device" in said:
            return disk_full(folder)
        if "Failed to fetch" in said or "Could not resolve" in said or "Could not connect" in said:
            return DataError(
                f"cannot download {self.pin}: apt's sources do not answer: {last_words(said)}",
                expected="sources of packages that apt-get can reach",
                do="check the network and apt's sources (`apt-get update`), then run the command again",
            )
        return DataError(
            f"cannot download {self.pin}: apt's sources have no {name} of Debian's main; apt-get says: {last_words(said)}",
            expected="Debian among the sources of apt",
            do="see `apt-get indextargets` for the sources in use; on another distribution choose a data set that needs no apt",
        )


def _date(index: str) -> str:
    """When the release that has the index file `index` was made, as its description says."""
    # Names of apt's files: HOST_PATH_dists_RELEASE_COMPONENT_..., and HOST_PATH_dists_RELEASE_InRelease, or _Release.
    archive, mark, rest = index.rpartition("_dists_")
    for name in ("InRelease", "Release"):
        file = Path(archive + mark + rest.split("_")[0] + f"_{name}")
        if file.exists():
            for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
                if line.startswith("Date: "):
                    return f"of {line.removeprefix('Date: ')}"
    return "of a date that it does not say"
