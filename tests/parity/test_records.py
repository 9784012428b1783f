"""Records of held-out examples: each once, in data order, the same on any topology and with any micro-batch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import tiny
from tests.distributed import run_distributed
from tests.parity.strategies import recipe
from tests.parity.worker import run_recipe
from toolkit.data.example import IGNORED, Example
from toolkit.models.attention import DOCUMENT_LENGTHS, tell_documents
from toolkit.models.decoding import GenerationSettings, left_padded
from toolkit.parity.strategies import STRATEGIES, Strategy
from toolkit.recipe import Batch, Checkpoint, Data, Evaluation, Parallel, Recipe
from toolkit.tasks.language.causal_lm import CausalLMTask

TOPOLOGIES = {
    "one rank": Strategy(1, {"zero_stage": 0}),
    **{name: STRATEGIES[name] for name in ("zero3", "pp2", "tp2", "sp2_zero3")},
}
MICRO_SIZES = (1, 3)
MAX_SEQUENCES = 7
"""Packs of several examples; not a multiple of any rank's micro-batch."""
NEW_TOKENS = 6

Found = tuple[dict[str, float], str]
"""Metrics, and the text of the file of records."""


class AnsweringTask(CausalLMTask):
    """Answers the prompt of every example, and counts what the model would have said at each target."""

    makes_records = True  # type: ignore[assignment]

    def predict(self, model: Any, batch: Any, examples: Sequence[Example], generate: Any) -> list[dict[str, Any]]:
        inputs = {name: batch[name] for name in ("input_ids", "position_ids", DOCUMENT_LENGTHS)}
        guesses = model(**tell_documents(model, inputs)).logits.argmax(-1).flatten()
        rights = (guesses == batch["targets"].flatten()).cpu()
        answers = generate(left_padded([prompt_of(example) for example in examples], 0), GenerationSettings(NEW_TOKENS))
        places = places_of(batch["input_ids"].tolist(), examples)
        return [
            {"prediction": answer, "right": int(rights[place : place + len(example["input_ids"])].sum())}
            for example, answer, place in zip(examples, answers, places, strict=True)
        ]

    def score(self, records: Sequence[dict[str, Any]]) -> dict[str, float]:
        # The last one tells the order.
        return {
            "right": float(sum(record["right"] for record in records)),
            "examples": float(len(records)),
            "order": float(sum(place * record["prediction"][0] for place, record in enumerate(records))),
        }


def places_of(rows: list[list[int]], examples: Sequence[Example]) -> list[int]:
    """Where each example begins in the flattened batch."""
    left, places = [example["input_ids"].tolist() for example in examples], []
    for row, tokens in enumerate(rows):
        place = 0
        while left and tokens[place : place + len(left[0])] == left[0]:
            places.append(row * len(tokens) + place)
            place += len(left.pop(0))
    return places


def prompt_of(example: Example) -> list[int]:
    """The tokens before the first that is trained."""
    tokens: list[int] = example["input_ids"][: int(np.argmax(example["labels"] != IGNORED))].tolist()
    return tokens


def make_records(rank: int, world_size: int, recipes: list[Recipe], folder: str) -> list[list[Found]]:
    """What each of MICRO_SIZES gives, for each recipe's starting weights."""
    from dataclasses import replace

    from toolkit.ds_config.render import render
    from toolkit.engine import device, process
    from toolkit.recipe.mesh import model_ranks
    from toolkit.train.build import build_engine
    from toolkit.train.evaluate import held_out
    from toolkit.train.inputs import prepare_inputs
    from toolkit.train.progress import Display
    from toolkit.train.run_folder import RunFolder

    found, display = [], Display(is_main=False)
    for index, run in enumerate(recipes):
        me = process.from_environment(run.parallel)
        config = render(run, device.target(world_size, wanted="cpu", model_ranks=model_ranks(run.parallel)))
        inputs = prepare_inputs(run, me.data_rank, me.mesh.data, display)
        inputs.task = AnsweringTask(run.task, inputs.task.tokenizer)
        process.start(me)
        place = RunFolder(Path(folder) / f"{world_size}-{index}")
        if me.is_main:
            place.path.mkdir()
        process.barrier()
        engine = build_engine(run, inputs, config, me, place, display)
        evaluation = held_out(run, inputs, engine, me, place, display)
        assert evaluation is not None
        of_recipe = []
        for micro_size in MICRO_SIZES:
            metrics = replace(evaluation, micro_size=micro_size)(micro_size)
            process.barrier()
            of_recipe.append((metrics, (place.predictions / f"step-{micro_size:08d}.jsonl").read_text()))
        engine.close()
        found.append(of_recipe)
    return found


@pytest.fixture(scope="module")
def run(chat_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    tokenizer = tiny.byte_tokenizer()
    llama = tiny.save(tiny.lively(tiny.llama(tokenizer)), tokenizer, tmp_path_factory.mktemp("llama"))
    return recipe(
        "causal_lm",
        llama,
        chat_file,
        data=Data(train=str(chat_file), evaluation_examples=40, packing=True, prefetch=0),
        batch=Batch(global_size=4, micro_size=1, sequence_length=256),
        evaluation=Evaluation(max_sequences=MAX_SEQUENCES),
        steps=4,
    )


@pytest.fixture(scope="module")
def found(run: Recipe, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], list[Found]]:
    """(topology, micro_size) -> what each rank has found."""
    results: dict[tuple[str, int], list[Found]] = {}
    for world_size in (1, 2):
        names = [name for name, strategy in TOPOLOGIES.items() if strategy.world_size == world_size]
        runs = [run.model_copy(update={"parallel": TOPOLOGIES[name].parallel}) for name in names]
        folder = str(tmp_path_factory.mktemp("records"))
        ranks = run_distributed(make_records, world_size, runs, folder, timeout_s=240)
        for index, name in enumerate(names):
            for place, size in enumerate(MICRO_SIZES):
                results[name, size] = [rank[index][place] for rank in ranks]
    return results


def test_records_are_one_answer_per_example_whatever_computes_them(
    run: Recipe, found: dict[tuple[str, int], list[Found]]
) -> None:
    from transformers import AutoModelForCausalLM

    from toolkit.train.inputs import prepare_inputs
    from toolkit.train.progress import Display

    inputs = prepare_inputs(run, 0, 1, Display(is_main=False))
    assert inputs.held_out is not None and len(inputs.held_out_sequences) > MAX_SEQUENCES
    chosen = inputs.held_out_sequences[:MAX_SEQUENCES]
    assert max(map(len, chosen)) > 1, "packs"
    model = AutoModelForCausalLM.from_pretrained(str(run.model.path), dtype=torch.float32)
    wanted = []
    for number in sorted(number for sequence in chosen for number in sequence):
        example = inputs.held_out[number]
        prompt = torch.tensor([prompt_of(example)])
        answer = model.generate(prompt, max_new_tokens=NEW_TOKENS, do_sample=False)[0, prompt.shape[1] :].tolist()
        with torch.no_grad():
            guesses = model(torch.as_tensor(example["input_ids"]).long().unsqueeze(0)).logits[0, :-1].argmax(-1)
        right = int((guesses == torch.as_tensor(example["labels"][1:])).sum())
        wanted.append({"example": number, "prediction": answer, "right": right})
    assert len({tuple(record["prediction"]) for record in wanted}) > len(wanted) // 2, "different answers"
    first, text = found["one rank", 1][0]
    assert [json.loads(line) for line in text.splitlines()] == wanted
    assert first["examples"] == len(wanted) and first["right"] == sum(record["right"] for record in wanted)
    assert first["order"] == sum(place * record["prediction"][0] for place, record in enumerate(wanted))
    for key, ranks in found.items():
        for metrics, of_rank in ranks:
            assert metrics == pytest.approx(first, rel=1e-6), key
            assert of_rank == text, key


def answering(rank: int, world_size: int, jobs: list[Any]) -> list[list[dict[str, Any]]]:
    """`run_recipe` with a causal language model that makes records."""
    for name in ("predict", "score", "makes_records"):
        setattr(CausalLMTask, name, getattr(AnsweringTask, name))
    return run_recipe(rank, world_size, jobs)


def test_a_run_keeps_its_records_and_a_resumed_one_writes_those_after_it_again(run: Recipe, tmp_path: Path) -> None:
    changes = {
        "evaluation": Evaluation(every_steps=2, max_sequences=MAX_SEQUENCES),
        "checkpoint": Checkpoint(every_steps=2, export=False),
        "parallel": Parallel(zero_stage=2),
    }
    two = Recipe(**{**dict(run), **changes})
    folder = tmp_path / "run"
    run_distributed(answering, 2, [(two, str(folder), None)])
    predictions = folder / "predictions"
    names = ["step-00000000.jsonl", "step-00000002.jsonl", "step-00000004.jsonl"]
    assert sorted(file.name for file in predictions.iterdir()) == names
    texts = {name: (predictions / name).read_text() for name in names}
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for record in (record for record in records if "eval" in record):
        lines = texts[f"step-{record['step']:08d}.jsonl"].splitlines()
        assert record["eval"]["right"] == sum(json.loads(line)["right"] for line in lines)
        assert record["eval"]["examples"] == len(lines)
    (predictions / "notes.txt").write_text("a reader's own")
    (predictions / "step-00000006.jsonl").write_text("of a run that went further")
    (predictions / "step-00000000.jsonl").write_text("stays")
    import shutil

    shutil.rmtree(folder / "checkpoints" / "step-00000004")
    run_distributed(answering, 2, [(two, str(folder), "auto")])
    assert sorted(file.name for file in predictions.iterdir()) == ["notes.txt", *names]
    assert (predictions / names[0]).read_text() == "stays"
    assert (predictions / names[2]).read_text() == texts[names[2]]
