"""Checkpoints by hub name: from a hub on this host into an empty cache, from a cache without a hub, and from neither."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from toolkit.errors import ModelError, StorageError
from toolkit.models import hub
from toolkit.models.assets import resolve
from toolkit.models.contents import compare
from toolkit.models.loading import load_tokenizer
from toolkit.models.weights_digest import weights_digest
from toolkit.recipe import Model

NAME = "someone/tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def put(source: Path, cache: Path, *, commit: str = COMMIT) -> Path:
    """Lay the checkpoint `source` into the hub cache `cache`, as a download leaves it; returns its snapshot folder."""
    repo = cache / f"models--{NAME.replace('/', '--')}"
    shutil.copytree(source, repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    return repo / "snapshots" / commit


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache; the tests run with HF_HUB_OFFLINE=1."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.parametrize("commit", [COMMIT, "by-hand"])
def test_the_cache_alone(cache: Path, tiny_llama_dir: Path, commit: str) -> None:
    snapshot = put(tiny_llama_dir, cache, commit=commit)
    assert resolve(NAME) == resolve(NAME, weights=True) == str(snapshot)
    assert weights_digest(NAME) == weights_digest(str(tiny_llama_dir)) is not None
    assert len(load_tokenizer(Model(path=NAME))) == 640


def test_files_that_no_weight_is_read_from_do_not_count(cache: Path, tiny_llama_dir: Path) -> None:
    """Another program may have asked for more of the same snapshot."""
    snapshot = put(tiny_llama_dir, cache)
    (snapshot / "consolidated.safetensors").write_bytes(b"more")
    assert weights_digest(NAME) == weights_digest(str(tiny_llama_dir))


def test_a_hub_checkpoint_is_compared(cache: Path, tiny_llama_dir: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    file = put(tiny_llama_dir, cache) / "model.safetensors"
    held = load_file(file)
    save_file(held | {"lm_head.weight": torch.ones(640, 64), "more": torch.ones(2)}, file, {"format": "pt"})
    source = resolve(NAME, weights=True)
    found = compare(AutoModelForCausalLM, AutoConfig.from_pretrained(source), source)
    assert found.untied == [("lm_head.weight", "model.embed_tokens.weight")] and found.unexpected == ["more"]


@pytest.mark.parametrize(
    ("name", "what", "do"),
    [
        ("someone/absent", "there is no such directory, and the hub's cache, {cache}, has no model of this name", "unset HF_HUB_OFFLINE"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "has no model of this name", "='smollm2-135m-instruct', after `toolkit fetch smollm2-135m-instruct`"),
        ("minilm-l7", " (did you mean 'minilm-l6'?): there is no such directory", "run `toolkit fetch NAME`"),
        ("/a/b/c", "there is no such directory, and it is not the name of a hub model either", "check the path"),
    ],
)  # fmt: skip
def test_in_neither(cache: Path, name: str, what: str, do: str) -> None:
    for field, load in (
        ("model.path", resolve),
        ("model.tokenizer", lambda name: load_tokenizer(Model(path=".", tokenizer=name))),
    ):
        with pytest.raises(ModelError) as refused:
            load(name)
        assert refused.value.what.startswith(f"{field}={name!r}")
        assert what.format(cache=cache) in refused.value.what and do in refused.value.do
    assert ("HF_HUB_OFFLINE" in refused.value.do) == (name != "/a/b/c")


def test_a_snapshot_without_weights(cache: Path, tiny_llama_dir: Path) -> None:
    snapshot = put(tiny_llama_dir, cache)
    (snapshot / "model.safetensors").unlink()
    assert resolve(NAME) == str(snapshot)
    with pytest.raises(ModelError, match=rf"{snapshot} has no weights: none of model\.safetensors, ") as refused:
        weights_digest(NAME)
    assert "unset HF_HUB_OFFLINE" in refused.value.do


def test_no_room_in_the_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's own error, as a full disk makes it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "/dev/full/hub")
    error = hub._not_given(NAME, "model.path", [], OSError(28, "No space left on device"))
    assert isinstance(error, StorageError) and "/dev/full/hub" in error.what and "HF_HOME" in error.do


class Hub(BaseHTTPRequestHandler):
    """What the library asks a hub: the commit of a branch, its files, and each file."""

    folder: Path
    asked: Counter[str]

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path, headers = self.path.partition("?")[0], {}
        if path.startswith(f"/api/models/{NAME}/tree/"):
            files = sorted(file for file in self.folder.rglob("*") if file.is_file())
            names = [(file.relative_to(self.folder).as_posix(), file.stat().st_size) for file in files]
            body = json.dumps([{"type": "file", "path": at, "size": n, "oid": at.replace("/", "-")} for at, n in names])
        elif path in (f"/api/models/{NAME}", f"/api/models/{NAME}/revision/main"):
            body = json.dumps({"id": NAME, "sha": COMMIT, "siblings": []})
        elif path.startswith(f"/{NAME}/resolve/{COMMIT}/"):
            name = path.removeprefix(f"/{NAME}/resolve/{COMMIT}/")
            self.asked[f"{self.command} {name}"] += 1
            headers = {"ETag": f'"{name.replace("/", "-")}"', "X-Repo-Commit": COMMIT}
            body = (self.folder / name).read_bytes()
        else:
            headers, body = {"X-Error-Code": "RepoNotFound"}, b""
        content = body if isinstance(body, bytes) else body.encode()
        self.send_response(404 if "X-Error-Code" in headers else 200)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing on the screen."""


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, Counter[str]]]:
    asked: Counter[str] = Counter()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Here", (Hub,), {"folder": folder, "asked": asked}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    server.server_close()


RANK = """
import sys
from toolkit.errors import ModelError
from toolkit.models.assets import resolve
from toolkit.models.weight_files import weight_files
print(resolve({name!r}))
print(len(weight_files(__import__("pathlib").Path(resolve({name!r})))))
print(resolve({name!r}, weights=True))
print([name for name in ("torch", "transformers") if name in sys.modules])
try:
    resolve("someone/absent")
except ModelError as error:
    print(error.what)
"""


def test_a_cold_cache_and_two_ranks(tmp_path: Path, tiny_llama_dir: Path) -> None:
    """Each file that is needed comes once, whoever of the two asks first; no other form of the weights comes at all."""
    served = tmp_path / "served"
    shutil.copytree(tiny_llama_dir, served)
    (served / "pytorch_model.bin").write_bytes(b"the same weights again")
    (served / "model.safetensors.old").write_bytes(b"something else")
    with serving(served) as (address, asked):
        # An endpoint on this host needs no proxy.
        environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        environment |= {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HUB_CACHE": str(tmp_path / "hub")}
        command = [sys.executable, "-c", RANK.format(name=NAME)]
        ranks = [
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        printed = [rank.communicate(timeout=60) for rank in ranks]
    snapshot = tmp_path / "hub" / "models--someone--tiny" / "snapshots" / COMMIT
    for out, problems in printed:
        lines = out.splitlines()
        assert lines[:1] + lines[2:4] == [str(snapshot), str(snapshot), "[]"], problems
        assert lines[4].startswith(
            "model.path='someone/absent': there is no such directory, and the hub did not give it: 404 Client Error. Repository Not Found"
        )
    fetched = {name.removeprefix("GET "): count for name, count in asked.items() if name.startswith("GET ")}
    described = {file.name for file in tiny_llama_dir.iterdir()}
    assert fetched == dict.fromkeys(described, 1)
    assert (snapshot / "model.safetensors").read_bytes() == (tiny_llama_dir / "model.safetensors").read_bytes()
