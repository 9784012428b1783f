"""Where data sets come from: a registry of npm on this host, asked by the real npm and without it, and apt's own sources."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.server
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from toolkit.cli import fetch as verb
from toolkit.data.sets import apt, catalog, rows
from toolkit.data.sets.apt import DebianIndex
from toolkit.data.sets.catalog import DataSet
from toolkit.data.sets.npm import NpmPackage
from toolkit.errors import DataError

QUIET = Console(quiet=True)
NAME, VERSION = "@some/mails", "1.2.3"

with_npm = pytest.mark.skipif(shutil.which("npm") is None, reason="needs npm")
with_apt = pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs apt")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and none of this host's settings of npm."""
    for name in [name for name in os.environ if name.lower().startswith("npm_config_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("npm_config_userconfig", str(tmp_path / "npmrc"))
    monkeypatch.setenv("NPM_CONFIG_USERCONFIG", str(tmp_path / "npmrc"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def no_npm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


def packed() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as stream:
        for name, content in {
            "package.json": json.dumps({"name": NAME, "version": VERSION}),
            "a.txt": "one\ntwo",
        }.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            stream.addfile(member, io.BytesIO(content.encode()))
    return buffer.getvalue()


ARCHIVE = packed()
PACKAGE = NpmPackage(NAME, VERSION, hashlib.sha256(ARCHIVE).hexdigest(), len(ARCHIVE))


@pytest.fixture
def registry() -> Iterator[str]:
    """The address of a registry that holds the package, as npm's protocol has it."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            address = f"http://127.0.0.1:{server.server_port}"
            if self.path == f"/{NAME}/-/mails-{VERSION}.tgz":
                answer = ARCHIVE
            elif self.path.lower() == "/@some%2fmails":
                integrity = {
                    "shasum": hashlib.sha1(ARCHIVE).hexdigest(),
                    "tarball": f"{address}/{NAME}/-/mails-{VERSION}.tgz",
                }
                version = {"name": NAME, "version": VERSION, "dist": integrity}
                answer = json.dumps(
                    {"name": NAME, "versions": {VERSION: version}, "dist-tags": {"latest": VERSION}}
                ).encode()
            else:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def fetched(package: NpmPackage) -> dict[str, bytes]:
    return dict(package.read(package.fetch(QUIET), lambda name: name.endswith(".txt")))


@with_npm
def test_with_npm(registry: str, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", registry)
    assert fetched(PACKAGE) == {"a.txt": b"one\ntwo"}
    assert sorted(path.name for path in (own_cache / "sources" / f"npm-some-mails-{VERSION}").iterdir()) == [
        "SOURCE",
        f"some-mails-{VERSION}.tgz",
    ]
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "http://127.0.0.1:9")
    assert fetched(PACKAGE) == {"a.txt": b"one\ntwo"}  # there already: nothing is asked


def test_without_npm_the_settings_say_where(
    registry: str, no_npm: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError) as caught:
        fetched(PACKAGE)
    assert caught.value.what.endswith("npm is not installed, and nothing says where its registry is")
    assert "NPM_CONFIG_REGISTRY" in caught.value.expected
    (tmp_path / "npmrc").write_text(f"; mine\n//host/:_authToken=x\nregistry={registry}/\n")
    assert fetched(PACKAGE) == {"a.txt": b"one\ntwo"}


@pytest.mark.parametrize("npm", [pytest.param(True, marks=with_npm), False])
def test_registries_that_do_not_help(
    registry: str, npm: bool, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not npm:
        request.getfixturevalue("no_npm")
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "http://127.0.0.1:9")  # nothing listens on the discard port
    with pytest.raises(DataError) as caught:
        fetched(PACKAGE)
    assert caught.value.what == "cannot download @some/mails@1.2.3: npm's registry does not answer"
    assert "npm config set registry" in caught.value.do
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", registry)
    with pytest.raises(DataError) as caught:
        fetched(dataclasses.replace(PACKAGE, version="9.9.9"))
    assert caught.value.what == "cannot download @some/mails@9.9.9: npm's registry does not have it"
    with pytest.raises(DataError) as caught:
        fetched(dataclasses.replace(PACKAGE, sha256="f" * 64))
    assert caught.value.what == f"some-mails-1.2.3.tgz has sha256 {PACKAGE.sha256}"
    assert caught.value.expected.startswith("f" * 64) and "do not use it" in caught.value.do


def test_an_archive_that_was_damaged_in_the_cache(
    registry: str, no_npm: None, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", registry)
    file = PACKAGE.fetch(QUIET)
    file.write_bytes(ARCHIVE[:-10])
    with pytest.raises(DataError, match=r"tgz has sha256 [0-9a-f]{64}") as caught:
        PACKAGE.fetch(QUIET)
    assert caught.value.do == f"remove {file.parent} and run the command again"


# apt


@contextlib.contextmanager
def repository(tmp_path: Path, origin: str) -> Iterator[str]:
    """A repository of Debian's form in a folder; the value for APT_CONFIG that makes it the only source of apt."""
    main = tmp_path / "repo" / "dists" / "stable" / "main"
    files = {
        "binary-amd64/Packages": "Package: alpha\nVersion: 1\nArchitecture: amd64\nSection: games\nDescription-md5: 1\n\n",
        "i18n/Translation-en": "Package: alpha\nDescription-md5: 1\nDescription-en: a game\n A game.\n\n",
        "i18n/Translation-de": "Package: alpha\nDescription-md5: 1\nDescription-de: ein Spiel\n Ein Spiel.\n\n",
    }
    listed = []
    for name, text in files.items():
        (main / name).parent.mkdir(parents=True, exist_ok=True)
        (main / name).write_text(text)
        listed.append(f" {hashlib.sha256(text.encode()).hexdigest()} {len(text)} main/{name}")
    head = f"Origin: {origin}\nLabel: {origin}\nSuite: stable\nVersion: 99.1\nCodename: testing-toy\nArchitectures: amd64\n"
    release = head + "Components: main\nDate: Sat, 04 Jul 2026 10:00:00 UTC\nSHA256:\n" + "\n".join(listed) + "\n"
    (main.parent / "Release").write_text(release)
    (tmp_path / "sources.list").write_text(f"deb [trusted=yes arch=amd64] file:{tmp_path}/repo stable main\n")
    settings = tmp_path / "apt.conf"
    settings.write_text(
        f'Dir::Etc::sourcelist "{tmp_path}/sources.list";\nDir::Etc::sourceparts "/dev/null";\nDir::Etc::parts "/dev/null";\n'
        'APT::Architecture "amd64";\n'
    )
    yield str(settings)


@with_apt
def test_the_index_of_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = DebianIndex(("en", "de"), 1000)
    with repository(tmp_path, "Debian") as settings:
        monkeypatch.setenv("APT_CONFIG", settings)
        place = index.fetch(QUIET)
    assert sorted(path.name for path in place.iterdir()) == [
        "Packages.gz",
        "SOURCE",
        "Translation-de.gz",
        "Translation-en.gz",
        "facts.json",
    ]
    digest = hashlib.sha256((tmp_path / "repo/dists/stable/main/i18n/Translation-de").read_bytes()).hexdigest()
    assert index.facts[2] == (
        f"Source: Translation-de of Debian 99.1 (testing-toy), main, of Sat, 04 Jul 2026 10:00:00 UTC, sha256 {digest}."
    )


@with_apt
def test_another_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with repository(tmp_path, "Other") as settings:
        monkeypatch.setenv("APT_CONFIG", settings)
        with pytest.raises(DataError, match="apt's sources have no Packages of Debian's main") as caught:
            DebianIndex(("en", "de"), 1000).fetch(QUIET)
    assert caught.value.expected == "Debian among the sources of apt"


@with_apt
def test_sources_that_do_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with repository(tmp_path, "Debian") as settings:
        monkeypatch.setenv("APT_CONFIG", settings)
        (tmp_path / "sources.list").write_text("deb [trusted=yes] http://127.0.0.1:9/debian stable main\n")
        with pytest.raises(DataError, match="apt's sources do not answer") as caught:
            DebianIndex(("en", "de"), 1000).fetch(QUIET)
    assert "apt-get update" in caught.value.do


def test_a_host_without_apt(no_npm: None) -> None:
    with pytest.raises(DataError) as caught:
        DebianIndex(("en", "de"), 1000).fetch(QUIET)
    assert caught.value.what.endswith("this host has no apt")
    assert "`toolkit fetch` lists them" in caught.value.do


# Data sets made of them


def lines(archive: Path) -> rows.Splits:
    """{"text"}: lines of a text. The first is held out."""
    [(_, content)] = PACKAGE.read(archive, lambda name: name == "a.txt")
    first, *others = content.decode().splitlines()
    return {"train": [{"text": text} for text in others], "test": [{"text": first}]}


def toy(code: str = "1") -> DataSet:
    return DataSet("lines of text", lines, PACKAGE, "CC0-1.0", code)


def test_a_data_set_has_a_readme_and_is_made_again_offline(
    registry: str, no_npm: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", registry)
    monkeypatch.setitem(catalog.DATA_SETS, "toy", toy())
    with pytest.raises(DataError, match="'toy' is not fetched yet"):
        catalog.resolve("toy")
    assert verb.fetch(["toy"], QUIET) == 0
    place = Path(capsys.readouterr().out.strip())
    assert catalog.resolve("toy") == str(place)
    assert (place / "train.jsonl").read_text() == '{"text": "two"}\n'
    assert (place / "README.md").read_text() == (
        "# toy\n\nLines of text.\n\nLicence: CC0-1.0.\n\n"
        f"Source: @some/mails@1.2.3 of npm's registry, archive with sha256 {PACKAGE.sha256}.\n\n"
        "Rows: train.jsonl 1 row, test.jsonl 1 row.\n\n"
        '{"text"}: lines of a text. The first is held out.\n'
    )
    assert verb.names()["toy"] == "lines of text; licence: CC0-1.0; 0 MB to download"
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "http://127.0.0.1:9")
    monkeypatch.setitem(catalog.DATA_SETS, "toy", toy("2"))
    (place / "train.jsonl").write_text("made by an older toolkit")
    assert verb.fetch(["toy"], QUIET) == 0  # the archive is in the cache
    assert (place / "train.jsonl").read_text() == '{"text": "two"}\n'


FETCH = """
import os, sys
from rich.console import Console
from toolkit.data.sets import catalog, rows
if sys.argv[1] == "kill":
    rows.write = lambda *_: os.kill(os.getpid(), 9)
elif sys.argv[1] == "replace":  # an installation that changes while the program runs
    for module in (catalog.docstrings, catalog.rows):
        module.__file__ = "/not/there.py"
for name in ("docstring-pairs", "docstring-questions"):
    print(catalog.fetch(name, Console(quiet=True)))
"""


def test_killed_while_rows_are_written(own_cache: Path) -> None:
    assert subprocess.run([sys.executable, "-c", FETCH, "kill"]).returncode == -signal.SIGKILL
    assert not (own_cache / "data" / "docstring-pairs").exists()
    # Files of the toolkit may go away after the program started: it fetched names one after the other and broke off here.
    done = subprocess.run([sys.executable, "-c", FETCH, "replace"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [
        str(own_cache / "data" / name) for name in ("docstring-pairs", "docstring-questions")
    ]
    assert [path.name for path in (own_cache / "data").glob(".*.partial-*")] == []
    catalog.resolve("docstring-pairs")


def test_names_of_apt_s_files() -> None:
    assert apt._date("/nowhere/host_debian_dists_stable_main_binary-amd64_Packages") == "of a date that it does not say"


def test_every_data_set_says_what_it_is() -> None:
    for name, data_set in catalog.DATA_SETS.items():
        text = catalog.readme(
            name, dataclasses.replace(data_set, source=catalog.DATA_SETS["brown-tags"].source), {"test": 1}
        )
        assert "is held out" in text or "held out" in text, name
        assert "Licence: " in text and '{"' in text, name


def test_the_guide_lists_every_data_set() -> None:
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    assert re.findall(r"^\| `([\w-]+)` \|", text, re.MULTILINE) == list(catalog.DATA_SETS)
