"""model.attention="varlen" and "auto" in whole runs: the curve of plain PyTorch, or why it is not to be had."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import run_distributed
from tests.parity.strategies import recipe
from tests.parity.worker import read_metrics, reference_curve
from toolkit.errors import ToolkitError
from toolkit.models.attention import DOCUMENTS
from toolkit.parity.report import deviation
from toolkit.recipe import Batch, Data, Model, Recipe
from toolkit.train.run import RunOptions, train

TOLERANCE = 1e-5
STEPS = 4


def attentions(rank: int, world_size: int, runs: list[tuple[Recipe, str]]) -> list[tuple[str | None, str]]:
    """Of each run: the implementation that its model has in training, and what was printed or refused."""

    from toolkit.tasks.labels.sequence_classification import SequenceClassificationTask
    from toolkit.tasks.language.causal_lm import CausalLMTask

    found, seen = [], []
    patch = pytest.MonkeyPatch()
    for task in (CausalLMTask, SequenceClassificationTask):
        loss = task.loss

        def watched(self: Any, model: Any, *rest: Any, loss: Any = loss) -> Any:
            seen.append(model.config._attn_implementation)
            return loss(self, model, *rest)

        patch.setattr(task, "loss", watched)
    for run, folder in runs:
        seen.clear()
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            try:
                train(run, RunOptions("test", Path(folder)), keep_group=True)
            except ToolkitError as error:
                print(error)
        found.append((seen[-1] if seen else None, printed.getvalue()))
    patch.undo()
    return found


def test_runs(
    tiny_llama_dir: Path,
    tiny_bert_dir: Path,
    tiny_tokenizer_dir: Path,
    chat_file: Path,
    classification_file: Path,
    tmp_path: Path,
) -> None:
    """On a CPU "varlen" is one document, or padded row, after the other; "auto" only where documents are packed."""
    several = {"batch": Batch(global_size=8, micro_size=4, sequence_length=128), "steps": STEPS}
    apart = Data(train=str(chat_file), packing=False, prefetch=0)
    tiny = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
    # Its attention makes a mask of its own from states of the layer.
    doge = Model(architecture="doge", weights="random", tokenizer=str(tiny_tokenizer_dir), config=tiny)
    llama, bert = ({"path": str(path)} for path in (tiny_llama_dir, tiny_bert_dir))
    bert["dropout"] = 0.0
    runs = {
        "rows": recipe(
            "causal_lm", tiny_llama_dir, chat_file, model=Model(attention="varlen", **llama), data=apart, **several
        ),
        "texts": recipe(
            "sequence_classification",
            tiny_bert_dir,
            classification_file,
            model=Model(attention="varlen", **bert),
            **several,
        ),
        "packed": recipe("causal_lm", tiny_llama_dir, chat_file, **several),
        "padded": recipe("causal_lm", tiny_llama_dir, chat_file, data=apart, **several),
        "masked": recipe("causal_lm", tiny_llama_dir, chat_file, model=Model(attention="sdpa", **llama), **several),
        "own mask": recipe("causal_lm", tiny_llama_dir, chat_file, model=doge, **several),
        "refused": recipe(
            "causal_lm", tiny_llama_dir, chat_file, model=doge.model_copy(update={"attention": "varlen"}), **several
        ),
    }
    folders = {name: str(tmp_path / name) for name in runs}
    (found,) = run_distributed(attentions, 1, [(run, folders[name]) for name, run in runs.items()])
    results = dict(zip(runs, found, strict=True))
    used = {name: attention for name, (attention, _) in results.items()}
    ours = dict.fromkeys(("rows", "texts", "packed"), DOCUMENTS)
    assert used == {**ours, "padded": "sdpa", "masked": "sdpa", "own mask": "sdpa", "refused": None}, results
    assert "varlen does not fit DogeForCausalLM: its hidden states would be others" in results["own mask"][1]
    assert "model.attention='varlen' does not fit DogeForCausalLM" in results["refused"][1]
    assert "attention:" not in "".join(results[name][1] for name in ("rows", "texts", "packed", "padded", "masked"))
    for name in ("rows", "texts"):
        (wanted,) = run_distributed(reference_curve, 1, runs[name])
        losses = [record["loss"] for record in read_metrics(folders[name])]
        assert len(losses) == STEPS and deviation(losses, wanted.losses) < TOLERANCE, name
