"""Sentence embeddings are one curve: negatives are those of the whole global batch, whatever ranks and micro-batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from tests import tiny
from tests.distributed import run_distributed
from tests.parity.strategies import GLOBAL_SIZE, OPTIMIZER, recipe
from tests.parity.topologies import numbers, rewind
from tests.parity.worker import evaluations, read_metrics, reference_curve, run_recipe
from toolkit.parity.report import deviation
from toolkit.parity.strategies import STRATEGIES
from toolkit.recipe import Batch, Checkpoint, Data, Evaluation, Model, Recipe, SentenceEmbedding

STEPS, HALF = 4, 2
LOSSES, NORMS = 1e-6, 2e-6
"""As in test_strategies."""
HELD_OUT = 19
"""More than two groups of a global batch, and not a multiple of any micro-batch."""

CLIPPED = 0.05

CHOSEN: dict[str, tuple[int, str, int]] = {
    "one": (1, "zero0", 8),
    "accumulated": (1, "zero2", 2),
    "zero1-2": (2, "zero1", 4),
    "zero2-2": (2, "zero2", 1),
    "zero3-2": (2, "zero3", 2),
}
"""Name -> ranks, strategy, micro-batch: one micro-batch, or up to four on a rank."""
TASKS = {
    "contrastive": SentenceEmbedding(negative_field="negative", temperature=0.1),
    "dot": SentenceEmbedding(pooling="cls", normalize=False, temperature=20.0, anchor_prefix="query "),
    "cosent": SentenceEmbedding(objective="cosent", score_field="score", pooling="last"),
    "mse": SentenceEmbedding(objective="mse", score_field="score"),
}


@pytest.fixture(scope="module")
def lively_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its vectors of different texts are far from each other."""
    tokenizer = tiny.wordpiece_tokenizer()
    return tiny.save(tiny.bert(tokenizer, spread=0.1), tokenizer, tmp_path_factory.mktemp("lively_bert"))


def problem(name: str, model: Path, folder: Path, strategy: str, /, **changes: Any) -> Recipe:
    file, held_out = folder / "rows.jsonl", folder / "held_out.jsonl"
    if not file.exists():
        tiny.write_lines(held_out, tiny.text_pairs()[:HELD_OUT])
        tiny.write_lines(file, tiny.text_pairs()[HELD_OUT:])
    export = {"export": True, "export_dtype": "fp32"} if strategy == "zero2-2" else {"export": False}
    _, fields, size = CHOSEN[strategy]
    values = {
        "task": TASKS[name],
        "model": Model(path=str(model), dropout=0.0),
        "data": Data(train=str(file), evaluation=str(held_out), packing=False, prefetch=0, overlong="truncate"),
        "batch": Batch(global_size=GLOBAL_SIZE, micro_size=size, sequence_length=16),
        "evaluation": Evaluation(every_steps=HALF),
        "optimizer": OPTIMIZER.model_copy(update={"max_grad_norm": CLIPPED}),
        "parallel": STRATEGIES[fields].parallel,
        "checkpoint": Checkpoint(every_steps=HALF, **export),
        "steps": STEPS,
    }
    return recipe("sentence_embedding", model, file, **{**values, **changes})


@pytest.mark.parametrize("name", TASKS)
def test_one_curve_and_one_figure_on_every_topology(name: str, lively_bert: Path, tmp_path: Path) -> None:
    """Every step's loss and gradient norm, every evaluation, however the global batch is divided; exact resume; the export."""
    runs = {strategy: problem(name, lively_bert, tmp_path, strategy) for strategy in CHOSEN}
    wanted = run_distributed(reference_curve, 1, runs["accumulated"])[0]
    assert max(wanted.norms) > 1.1 * CLIPPED, "clipping must bite"
    for size in (1, 2):
        some = [(run, str(tmp_path / strategy), None) for strategy, run in runs.items() if CHOSEN[strategy][0] == size]
        run_distributed(run_recipe, size, some, timeout_s=300)
    one = evaluations(tmp_path / "one")
    for strategy in CHOSEN:
        records = read_metrics(tmp_path / strategy)
        assert deviation([record["loss"] for record in records], wanted.losses) < LOSSES, strategy
        assert deviation([record["grad_norm"] for record in records], wanted.norms) < NORMS, strategy
        assert {record["targets"] for record in records} == {GLOBAL_SIZE}
        found = evaluations(tmp_path / strategy)
        assert sorted(found) == [0, HALF, STEPS]
        for step, metrics in found.items():
            assert metrics == pytest.approx(one[step], rel=1e-5), (strategy, step)
    again = rewind(tmp_path / "zero2-2", tmp_path / "again", HALF)
    run_distributed(run_recipe, 2, [(runs["zero2-2"], str(again), "auto")])
    assert numbers(read_metrics(again)) == numbers(read_metrics(tmp_path / "zero2-2"))
    check_export(TASKS[name], tmp_path / "zero2-2", one[STEPS])


def check_export(options: SentenceEmbedding, run: Path, figures: dict[str, float]) -> None:
    """The folder's own description of its vectors, followed with transformers alone, gives the run's held-out figures."""
    folder = run / "export"
    model, tokenizer = (
        AutoModel.from_pretrained(folder, dtype=torch.float32).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    kinds = [part["type"].rpartition(".")[2] for part in json.loads((folder / "modules.json").read_text())]
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    longest = json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"]
    prompts = json.loads((folder / "config_sentence_transformers.json").read_text())["prompts"]
    assert pooling["word_embedding_dimension"] == model.config.hidden_size
    assert kinds == ["Transformer", "Pooling"] + ["Normalize"] * options.normalize

    def embed(text: str) -> torch.Tensor:
        ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=longest)
        with torch.no_grad():
            hidden = model(**ids).last_hidden_state[0]
        vector = {
            "pooling_mode_mean_tokens": hidden.mean(0),
            "pooling_mode_cls_token": hidden[0],
            "pooling_mode_lasttoken": hidden[-1],
        }[next(mode for mode, on in pooling.items() if on is True and mode != "include_prompt")]
        return vector / vector.norm() if "Normalize" in kinds else vector

    held_out = tiny.text_pairs()[:HELD_OUT]
    anchors = torch.stack([embed(prompts.get("query", "") + row["anchor"]) for row in held_out])
    others = [
        torch.stack([embed(row[column]) for row in held_out])
        for column in ("positive", "negative")
        if column == "positive" or options.negative_field
    ]
    if options.objective == "contrastive":
        similarities = anchors @ torch.cat(others).T
        own = similarities.diagonal()[:, None]
        places = (1 + (similarities > own + 1e-5 * own.abs()).sum(1)).tolist()  # ties as the metric counts them
        assert sum(place == 1 for place in places) / HELD_OUT == pytest.approx(figures["accuracy_at_1"])
        assert sum(1 / place for place in places) / HELD_OUT == pytest.approx(figures["mrr"])
        return
    from scipy import stats

    cosines = torch.nn.functional.cosine_similarity(anchors, others[0])
    found = stats.spearmanr(cosines.numpy(), [row["score"] for row in held_out]).statistic
    assert found == pytest.approx(figures["spearman"])


def test_dropout_is_the_same_in_both_passes(lively_bert: Path, tmp_path: Path) -> None:
    """With dropout, one micro-batch on one rank is plain autograd of one pass; several follow the same vectors."""
    run = problem("contrastive", lively_bert, tmp_path, "one", model=Model(path=str(lively_bert), dropout=0.2))
    wanted = run_distributed(one_pass, 1, run)[0]
    run_distributed(run_recipe, 1, [(run, str(tmp_path / "run"), None)])
    records = read_metrics(tmp_path / "run")
    assert deviation([record["loss"] for record in records], [loss for loss, _ in wanted]) < LOSSES
    assert deviation([record["grad_norm"] for record in records], [norm for _, norm in wanted]) < NORMS


def test_dropout_does_not_depend_on_the_number_of_ranks(lively_bert: Path, tmp_path: Path) -> None:
    """The same micro-batches on one rank and on two, recomputed in the backward pass."""
    model = Model(path=str(lively_bert), dropout=0.2, activation_checkpointing=True)
    found = {}
    for strategy in ("accumulated", "zero3-2"):
        run = problem("contrastive", lively_bert, tmp_path, strategy, model=model)
        run_distributed(run_recipe, CHOSEN[strategy][0], [(run, str(tmp_path / strategy), None)], timeout_s=300)
        found[strategy] = read_metrics(tmp_path / strategy)
    for name, most in (("loss", LOSSES), ("grad_norm", NORMS)):
        one, two = ([record[name] for record in records] for records in found.values())
        assert deviation(two, one) < most


def one_pass(rank: int, world_size: int, run: Recipe) -> list[tuple[float, float]]:
    """(loss, gradient norm) of every step of a run with one micro-batch each: plain PyTorch in one graph."""
    from tests.parity.worker import global_batches
    from toolkit.engine.seeds import mix, part_seed
    from toolkit.recipe.mesh import mesh_of
    from toolkit.recipe.schedules import factor

    inputs, steps = global_batches(run, run.steps or 0)
    model = AutoModel.from_pretrained(run.model.path, config=inputs.model_config, dtype=torch.float32).train()
    trained = [parameter for name, parameter in model.named_parameters() if "pooler" not in name]
    groups = [
        {
            "params": [p for p in trained if (p.dim() >= 2) == matrices],
            "weight_decay": run.optimizer.weight_decay * matrices,
        }
        for matrices in (True, False)
    ]
    optimizer, found = torch.optim.AdamW(groups, lr=1.0), []
    for step, (batch,) in enumerate(steps):
        torch.manual_seed(part_seed(mix(run.seed, step, 0), mesh_of(run.parallel, 1), 0))
        vectors = []  # dropout is drawn for anchors, positives, negatives, each as wide as its longest
        for text in range(3):
            mask = batch["attention_mask"][text::3]
            mask = mask[:, : int(mask.sum(1).max())]
            hidden = model(
                input_ids=batch["input_ids"][text::3, : mask.shape[1]], attention_mask=mask
            ).last_hidden_state
            pooled = (hidden * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
            vectors.append(torch.nn.functional.normalize(pooled, dim=-1))
        similarities = vectors[0] @ torch.cat(vectors[1:]).T / run.task.temperature
        loss = torch.nn.functional.cross_entropy(similarities, torch.arange(GLOBAL_SIZE))
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, run.optimizer.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = run.optimizer.learning_rate * factor(run.schedule, step, run.steps or 0)
        optimizer.step()
        found.append((float(loss.detach()), float(norm)))
    return found
