"""`toolkit new` on data files of different shapes: what it writes trains to a finished export, as it stands."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from tests.distributed import run_distributed
from tests.launch.runs import records, train
from tests.tiny import chats, documented, openings, write_lines
from toolkit.cli import verbs
from toolkit.recipe.load import load_recipe
from toolkit.train.inputs import prepare_inputs
from toolkit.train.progress import Display

STEPS = 4


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def pairs(question: str, answer: str, **more: str) -> list[dict[str, Any]]:
    return [
        {question: row["messages"][-2]["content"], **more, answer: row["messages"][-1]["content"], "nr": number}
        for number, row in enumerate(chats()[:120])
    ]


def texts() -> list[str]:
    return [" ".join(text.split()) for _, _, text in documented()[:160]]


FILES: dict[str, Callable[[Path], object]] = {
    "chats.jsonl": lambda path: write_lines(path, chats()[:120]),
    "pairs.csv": lambda path: write_table(path, pairs("Query", "Reply")),
    "lines.txt": lambda path: path.write_text("\n".join(texts()) + "\n", encoding="utf-8"),
    "bodies.parquet": lambda path: pyarrow.parquet.write_table(
        pyarrow.table({"id": list(range(160)), "body": texts()}), path
    ),
    "tickets.csv": lambda path: write_table(
        path, [{"sentence": row["text"], "category": row["label"]} for row in openings()]
    ),
    "alpaca.json": lambda path: path.write_text(json.dumps(pairs("instruction", "output", input="")), encoding="utf-8"),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_llama_dir: Path, tiny_bert_dir: Path) -> Path:
    """A folder in which `toolkit new` has written a recipe for each file, and one more with its own length."""
    home = tmp_path_factory.mktemp("home")
    with contextlib.chdir(home), pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOOLKIT_CACHE", str(home / "cache"))
        for name, write in FILES.items():
            write(home / name)
            model = tiny_bert_dir if name == "tickets.csv" else tiny_llama_dir
            words = ["--model", str(model), "--data", str(home / name), "--tracking.tensorboard", "False"]
            stem = name.replace(".", "_")
            assert verbs.main(["new", f"new_{stem}_natural", *words]) == 0
            assert verbs.main(["new", f"new_{stem}_short", *words, "--steps", str(STEPS)]) == 0
    return home


def recipe_file(home: Path, name: str, kind: str) -> Path:
    return home / "recipes" / f"new_{name.replace('.', '_')}_{kind}.py"


def train_all(rank: int, world_size: int, files: list[str], output: str, cache: str) -> list[int]:
    """The recipes in `files`, one after the other in the same processes; their exit codes."""
    codes = []
    with contextlib.redirect_stdout(io.StringIO()):
        for file in files:
            codes.append(train(load_recipe(file), f"{output}/{Path(file).stem}", cache, None))
    return codes


def test_each_trains_to_an_export(home: Path) -> None:
    """Two ranks, under the strategy of the source."""
    files = [recipe_file(home, name, "short") for name in FILES]
    results = run_distributed(
        train_all, 2, [str(file) for file in files], str(home / "runs"), str(home / "cache"), timeout_s=280
    )
    assert results == [[0] * len(FILES)] * 2
    for file in files:
        run = home / "runs" / file.stem
        assert [record["step"] for record in records(run)] == [*range(1, STEPS + 1)]
        assert (run / "export/model.safetensors").is_file()


@pytest.mark.parametrize("name", FILES)
def test_the_length_that_was_foreseen_is_the_length(name: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows prepared as a start does: everything fits into the run, and its steps are as many as were said."""
    monkeypatch.setenv("TOOLKIT_CACHE", str(home / "cache"))
    file = recipe_file(home, name, "natural")
    said = int(
        file.read_text(encoding="utf-8").partition("# epochs: about ")[2].partition(" steps")[0].replace(",", "")
    )
    inputs = prepare_inputs(load_recipe(file), 0, 1, Display(is_main=False))
    assert abs(inputs.total_steps - said) <= max(1, 0.1 * said)
    assert inputs.held_out is not None
