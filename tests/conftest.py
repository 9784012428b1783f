"""The session's fixtures: tokenizers, models and data files of tests/tiny.py, written once."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before any test imports transformers: no look-ups on a hub, and no threads that a later fork would lose.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell has what it starts in the background ignore Ctrl-C, and every process that a test starts would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from tests import tiny


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes are numbered, not shown: a compressed file holds the second it was written in, and two workers then
    collect tests of different names, which xdist refuses."""
    return argname if isinstance(val, bytes) else None  # pytest adds the row's number where names repeat


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say last what was skipped, why, and what to do for it to run: each reason holds both."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(
        (str(report.nodeid).partition("::")[0], str(report.longrepr[2]).removeprefix("Skipped: ")) for report in skipped
    )
    if reasons:
        terminalreporter.section(f"{len(skipped)} skipped")
    for (file, reason), count in sorted(reasons.items()):
        terminalreporter.write_line(f"{count} in {file}: {reason}")


SET_BY_LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def no_launcher_is_left_behind() -> Iterator[None]:
    """Fail the test that leaves a launcher's variables behind: what a later test starts would take itself for a rank."""
    before = {name: os.environ.get(name) for name in SET_BY_LAUNCHERS}
    yield
    after = {name: os.environ.get(name) for name in SET_BY_LAUNCHERS}
    for name, value in before.items():
        os.environ.pop(name, None)
        os.environ.update({name: value} if value is not None else {})
    assert after == before


@pytest.fixture(scope="session")
def tiny_tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Byte-level BPE of 640 tokens with a ChatML template."""
    directory = tmp_path_factory.mktemp("tiny_tokenizer")
    tiny.byte_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_llama_dir(tiny_tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random Llama in fp32 with that tokenizer: 2 layers, width 64, 4 heads, 2 key-value heads, tied embeddings."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
    return tiny.save(tiny.llama(tokenizer), tokenizer, tmp_path_factory.mktemp("tiny_llama"))


@pytest.fixture(scope="session")
def tiny_bert_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random BERT encoder in fp32, without a classifier, with its own WordPiece tokenizer: 2 layers, width 64."""
    tokenizer = tiny.wordpiece_tokenizer()
    return tiny.save(tiny.bert(tokenizer), tokenizer, tmp_path_factory.mktemp("tiny_bert"))


@pytest.fixture(scope="session")
def chat_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 chats of very different lengths as jsonl; every fourth has a system message, every fifth a second turn."""
    return tiny.write_lines(tmp_path_factory.mktemp("data") / "chats.jsonl", tiny.chats())


@pytest.fixture(scope="session")
def classification_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 docstring openings as jsonl, labelled "class" or "function", half and half."""
    return tiny.write_lines(tmp_path_factory.mktemp("data") / "classes.jsonl", tiny.openings())
