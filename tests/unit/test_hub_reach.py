"""A hub out of reach is noticed in seconds, whatever is asked of it; what a cache holds is used."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
from datasets.packaged_modules.json.json import Json

from tests.unit.test_data_sources import ROWS, opened, refused, write
from tests.unit.test_hub import NAME, put
from toolkit import hub_reach
from toolkit.errors import ModelError
from toolkit.models.assets import resolve
from toolkit.models.loading import load_tokenizer
from toolkit.recipe import Model


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Libraries that believe in a network, and caches of their own."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf" / "datasets")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    hub_reach._asked.cache_clear()


@pytest.fixture(params=["closed", "silent", "failing"])
def endpoint(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, online: None) -> Iterator[str]:
    """The address of a hub whose port is closed, that takes a connection and never answers, or that answers 503."""
    monkeypatch.setattr(hub_reach, "WAIT_S", 0.5)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        if request.param != "closed":
            listening.listen(50)
        if request.param == "failing":
            threading.Thread(target=fail, args=(listening,), daemon=True).start()
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        yield address


def fail(listening: socket.socket) -> None:
    while True:
        try:
            connection, _ = listening.accept()
        except OSError:
            return
        with connection:
            connection.recv(1 << 16)
            connection.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


def test_a_hub_out_of_reach_is_said_in_seconds_with_what_helps(endpoint: str, tmp_path: Path) -> None:
    began = time.monotonic()
    messages = [
        refused("someone/rows", tmp_path),
        refused("someone/rows", tmp_path, streaming=True, field="data.evaluation"),
    ]
    for load in (resolve, lambda name: load_tokenizer(Model(path=".", tokenizer=name))):
        with pytest.raises(ModelError) as caught:
            load("someone/absent")
        messages.append(str(caught.value))
    assert time.monotonic() - began < 5
    fields = [
        "data.train='someone/rows'",
        "data.evaluation='someone/rows'",
        "model.path='someone/absent'",
        "model.tokenizer='someone/absent'",
    ]
    for field, message in zip(fields, messages, strict=True):
        assert message.startswith(field) and f"the hub: {endpoint} cannot be reached: " in message
        assert "the path of a local copy" in message and "toolkit fetch" in message
        assert "HF_HOME" in message and "HF_HUB_OFFLINE=1" in message and "HF_ENDPOINT" in message


def test_what_was_loaded_before_is_used_without_the_hub(endpoint: str, tmp_path: Path, tiny_llama_dir: Path) -> None:
    snapshot = put(tiny_llama_dir, tmp_path / "hf" / "hub")
    assert resolve(NAME, weights=True) == str(snapshot)
    path = str(write(tmp_path / "rows.jsonl"))
    for name, cache in (("ours", tmp_path / "cache" / "datasets"), ("common", tmp_path / "hf" / "datasets")):
        # As a data set of the hub lies in the cache of datasets, whose builders ask the hub for the files.
        builder = Json(cache_dir=str(cache), dataset_name=name, hash="a", data_files={"train": [path]})
        builder.repo_id = f"someone/{name}"
        builder._cache_dir = builder._build_cache_dir()
        builder.download_and_prepare()
        configuration = Path(builder._cache_dir).parents[1]
        configuration.rename(configuration.with_name("default"))
        for streaming in (False, True):
            assert list(opened(f"someone/{name}", tmp_path, streaming=streaming)) == ROWS
    assert not datasets.config.HF_HUB_OFFLINE


def test_a_name_whose_address_is_not_found_in_time(online: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's own look-up has no time limit."""
    monkeypatch.setattr(hub_reach, "GIVE_UP_S", 0.2)
    monkeypatch.setattr(hub_reach, "_ask", lambda _: time.sleep(5))
    assert (
        hub_reach._asked("https://slow.example") == "https://slow.example cannot be reached: no answer within 0 seconds"
    )
