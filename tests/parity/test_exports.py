"""Every export, loaded by stock transformers, is the model in training: logits, special ids, labels, generation, template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, GenerationConfig

from tests import tiny
from tests.distributed import run_distributed
from tests.parity.exports import Trained, texts_of_three, train_all
from tests.parity.worker import export_weights
from toolkit.checkpoint.export import DTYPES, export, find_checkpoint
from toolkit.checkpoint.reader import CheckpointReader
from toolkit.recipe import (
    Batch,
    CausalLM,
    Checkpoint,
    Data,
    Model,
    Optimizer,
    Parallel,
    Precision,
    Recipe,
    SequenceClassification,
    Tracking,
)

TEXTS = ["A text.", "A text that is a little longer than the first of them.", "Return the number of items in a list."]
END_OF_TEXT, START, END_OF_TURN = 0, 1, 2
"""Ids of the tiny tokenizer."""
ZERO3 = {"zero_stage": 3, "param_persistence_threshold": 100}


def a_recipe(model: Model, data: Path, /, **changes: Any) -> Recipe:
    fields: dict[str, Any] = {
        "model": model,
        "data": Data(train=str(data), packing=False, evaluation_examples=8),
        "batch": Batch(global_size=4, sequence_length=128),
        "optimizer": Optimizer(learning_rate=1e-2),
        "precision": Precision(dtype="fp32"),
        "parallel": Parallel(zero_stage=0),
        "checkpoint": Checkpoint(export_dtype="fp32"),
        "tracking": Tracking(tensorboard=False),
        "steps": 2,
    }
    return Recipe(**(fields | changes))


def classifier(model: Path, data: Path, /, **changes: Any) -> Recipe:
    return a_recipe(Model(path=str(model), dropout=0.0), data, task=SequenceClassification(), **changes)


class Ground:
    """Checkpoints and data, and the runs on them by name."""

    def __init__(self, folder: Path, tokenizer_dir: Path, bert_dir: Path, chats: Path, openings: Path) -> None:
        self.folder, self.tokenizer_dir, self.bert_dir = folder, tokenizer_dir, bert_dir
        self.chats, self.openings = chats, openings
        self.tokenizer: Any = AutoTokenizer.from_pretrained(tokenizer_dir)
        self.results: dict[str, Trained] = {}

    def export(self, name: str) -> Path:
        return self.folder / name / "export"

    def llama(self, name: str, *, tied: bool, ends: int) -> Path:
        """A base model that ends texts with the token `ends`, and samples; its chat tokenizer ends turns otherwise."""
        model = tiny.llama(self.tokenizer)
        if not tied:
            model.config.tie_word_embeddings = False
            torch.manual_seed(1)
            model = type(model)(model.config)
        model.config.eos_token_id, model.config.pad_token_id = ends, None
        model.generation_config = GenerationConfig(eos_token_id=ends, do_sample=True, temperature=0.7, top_p=0.9)
        return tiny.save(model, self.tokenizer, self.folder / name)

    def head(self, name: str, names: list[str], *, described: bool = True) -> Path:
        """A BERT with a head for `names`, whose outputs are about equally frequent on the openings."""
        labels = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
        torch.manual_seed(2)
        model = AutoModelForSequenceClassification.from_pretrained(
            self.bert_dir, **(labels if described else {"num_labels": len(names)})
        )
        with torch.no_grad():
            model.classifier.weight.mul_(100)
            model.classifier.bias.sub_(self.logits(model, self.bert_dir, self.texts()).mean(0))
        return tiny.save(model, AutoTokenizer.from_pretrained(self.bert_dir), self.folder / name)

    def texts(self) -> list[str]:
        return [json.loads(line)["text"] for line in self.openings.read_text().splitlines()]

    @staticmethod
    def logits(model: Any, tokenizer_dir: Path, texts: list[str]) -> torch.Tensor:
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
        encoded = tokenizer(texts, padding=True, truncation=True, max_length=128, return_tensors="pt")
        with torch.no_grad():
            logits: torch.Tensor = model.eval()(encoded["input_ids"], attention_mask=encoded["attention_mask"]).logits
        return logits

    def answers(self, checkpoint: Path) -> list[int]:
        """What the head says of every opening."""
        model = AutoModelForSequenceClassification.from_pretrained(checkpoint)
        return self.logits(model, checkpoint, self.texts()).argmax(-1).tolist()

    def labelled(self, name: str, labels: list[Any]) -> Path:
        rows = [{"text": text, "label": label} for text, label in zip(self.texts(), labels, strict=True)]
        return tiny.write_lines(self.folder / name, rows)

    def train(self, world_size: int, recipes: dict[str, Recipe]) -> None:
        jobs = [
            (recipe, str(self.folder / name), self._batch(recipe) if name in COMPARED else None)
            for name, recipe in recipes.items()
        ]
        found = run_distributed(train_all, world_size, jobs, timeout_s=240)[0]
        self.results |= dict(zip(recipes, found, strict=True))

    @staticmethod
    def _batch(recipe: Recipe) -> dict[str, list[list[int]]]:
        return texts_of_three(AutoTokenizer.from_pretrained(recipe.model.tokenizer or recipe.model.path), TEXTS)


NAMES = ["zebra", "apple", "mango"]


@pytest.fixture(scope="module")
def ground(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_tokenizer_dir: Path,
    tiny_bert_dir: Path,
    chat_file: Path,
    classification_file: Path,
) -> Ground:
    ground = Ground(
        tmp_path_factory.mktemp("exports"), tiny_tokenizer_dir, tiny_bert_dir, chat_file, classification_file
    )
    tied, untied = (
        ground.llama("tied", tied=True, ends=END_OF_TEXT),
        ground.llama("untied", tied=False, ends=END_OF_TEXT),
    )
    yes = [{"prompt": f"Is {number} a number?", "completion": "yes"} for number in range(24)]
    one_answer = tiny.write_lines(ground.folder / "yes.jsonl", yes)
    named, nameless = ground.head("named", NAMES), ground.head("nameless", NAMES, described=False)
    answers = ground.answers(named)
    ask = CausalLM(sample_prompt="Is 7 a number?", sample_tokens=12)
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    scratch = Model(
        architecture="llama",
        weights="random",
        tokenizer=str(tiny_tokenizer_dir),
        config={**size, "num_key_value_heads": 2, "head_dim": 16, "bos_token_id": 5},
    )
    ground.train(
        1,
        {
            "chat": a_recipe(Model(path=str(untied)), one_answer, task=ask, steps=25),
            "scratch": a_recipe(scratch, chat_file),
            "perfect": classifier(named, ground.labelled("names.jsonl", [NAMES[index] for index in answers])),
            "other size": classifier(nameless, classification_file),
            "some": classifier(named, ground.labelled("some.jsonl", [*["apple", "mangoes"] * 80])),
        },
    )
    ground.train(
        2,
        {
            "zero3": a_recipe(Model(path=str(tied)), chat_file, parallel=Parallel(**ZERO3)),
            "tensor": a_recipe(Model(path=str(untied)), chat_file, parallel=Parallel(zero_stage=1, tensor=2)),
            "pipeline": a_recipe(Model(path=str(tied)), chat_file, parallel=Parallel(zero_stage=1, pipeline=2)),
            "decoder": classifier(tied, classification_file, parallel=Parallel(**ZERO3)),
        },
    )
    return ground


GENERATING = ["chat", "scratch", "zero3", "tensor", "pipeline"]
CLASSIFYING = ["decoder", "perfect", "other size"]
COMPARED = ["chat", "zero3", "tensor", "decoder", "perfect"]
"""Runs whose last checkpoint is restored to see its logits; of all others the weights are compared."""


def load(folder: Path, name: str) -> Any:
    kind = AutoModelForCausalLM if name in GENERATING else AutoModelForSequenceClassification
    model, info = kind.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model.eval()


@pytest.mark.parametrize("name", [*GENERATING, *CLASSIFYING])
def test_the_export_computes_what_the_model_in_training_computes(name: str, ground: Ground) -> None:
    """Every weight bit by bit, and the logits of a padded batch of three within 1e-6."""
    out = ground.export(name)
    model, tokenizer = load(out, name), AutoTokenizer.from_pretrained(out)
    encoded = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]).logits
    trained = ground.results[name].logits
    assert (trained is not None) == (name in COMPARED)
    if trained is not None:
        real = encoded["attention_mask"].bool() if logits.dim() == 3 else slice(None)
        assert logits.shape == trained.shape
        assert float((logits[real] - trained[real]).abs().max()) < 1e-6
    reader = CheckpointReader(find_checkpoint(ground.folder / name))
    state = model.state_dict()
    assert all(torch.equal(state[weight], reader.weight(weight)) for weight in reader.manifest.shapes)
    assert model.config.dtype == torch.float32 and model.config.use_cache
    assert str(ground.folder) not in (out / "config.json").read_text()


def test_a_bf16_export_is_the_model_cast(ground: Ground) -> None:
    for name in ("chat", "decoder"):
        out = ground.folder / f"{name}-bf16"
        export(ground.folder / name, out, "bf16")
        whole, cast = export_weights(ground.export(name)), export_weights(out)
        assert whole.keys() == cast.keys()
        assert all(torch.equal(cast[key], whole[key].to(DTYPES["bf16"])) for key in whole)
        model = load(out, name)
        assert model.config.dtype == model.dtype == torch.bfloat16


def test_the_card_of_a_model_from_scratch_names_no_base(ground: Ground) -> None:
    assert "- base model: none: from scratch, the architecture of llama with hidden_size=32, " in (
        (ground.export("scratch") / "README.md").read_text()
    )
    assert f"- base model: {ground.folder}/untied\n" in (ground.export("chat") / "README.md").read_text()


@pytest.mark.parametrize("name", GENERATING)
def test_a_batch_of_three_is_continued(name: str, ground: Ground) -> None:
    out = ground.export(name)
    tokenizer, model = AutoTokenizer.from_pretrained(out, padding_side="left"), load(out, name)
    assert tokenizer.chat_template == tiny.CHAT_TEMPLATE
    encoded = tokenizer(TEXTS, padding=True, return_tensors="pt")
    tokens = model.generate(**encoded, max_new_tokens=2, do_sample=False)
    assert tokens.shape[0] == 3
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id == END_OF_TEXT


@pytest.mark.parametrize("name", ["chat", "zero3", "tensor", "pipeline"])
def test_generation_stops_where_training_ended_the_answers(name: str, ground: Ground) -> None:
    """The base model's settings survive, and its end token; the trained one comes on top, and is announced."""
    out = ground.export(name)
    generation, model = GenerationConfig.from_pretrained(out), load(out, name)
    assert generation.eos_token_id == model.config.eos_token_id == [END_OF_TEXT, END_OF_TURN]
    assert (generation.do_sample, generation.temperature, generation.top_p) == (True, 0.7, 0.9)
    said = "answers end with <|im_end|> (2): what the export generates stops there, as well as at <|endoftext|> (0)"
    assert said in ground.results[name].printed


def test_the_answer_ends(ground: Ground) -> None:
    out = ground.export("chat")
    tokenizer, model = AutoTokenizer.from_pretrained(out), load(out, "chat")
    turns = [{"role": "user", "content": "Is 7 a number?"}]
    encoded = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    tokens = model.generate(**encoded, max_new_tokens=12, do_sample=False)[0, encoded["input_ids"].shape[1] :]
    assert tokenizer.decode(tokens) == "yes<|im_end|>"
    assert "sample after training: Is 7 a number?\n  -> yes\n" in ground.results["chat"].printed


def test_a_model_from_scratch_has_the_ids_of_its_tokenizer(ground: Ground) -> None:
    """Llama's own defaults are 1 and 2 and no padding; what model.config sets stays."""
    out = ground.export("scratch")
    for config in (load(out, "scratch").config, GenerationConfig.from_pretrained(out)):
        assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (5, END_OF_TURN, END_OF_TEXT)


def test_a_decoder_classifies_a_padded_batch_like_single_texts(ground: Ground) -> None:
    out = ground.export("decoder")
    model, tokenizer = load(out, "decoder"), AutoTokenizer.from_pretrained(out)
    assert model.config.pad_token_id == tokenizer.pad_token_id == END_OF_TEXT
    alone = [ground.logits(model, out, [text])[0] for text in TEXTS]
    assert float((ground.logits(model, out, TEXTS) - torch.stack(alone)).abs().max()) < 1e-5
    assert model.config.id2label == {0: "class", 1: "function"}


def accuracy_before_training(ground: Ground, name: str) -> float:
    lines = (ground.folder / name / "metrics.jsonl").read_text().splitlines()
    found: float = next(record["eval"] for record in map(json.loads, lines) if "eval" in record)["accuracy"]
    return found


def test_a_perfect_head_scores_one(ground: Ground) -> None:
    """Its order is not alphabetical."""
    name = "perfect"
    assert set(ground.answers(ground.folder / "named")) == {0, 1, 2}
    assert accuracy_before_training(ground, name) == 1.0
    config = load(ground.export(name), name).config
    assert config.id2label == dict(enumerate(NAMES))
    assert config.label2id == {name: index for index, name in enumerate(NAMES)}
    said = "head kept, with the checkpoint's order: 0 = zebra, 1 = apple, 2 = mango"
    assert said in ground.results[name].printed and "new weights" not in ground.results[name].printed


def test_a_head_of_another_size_is_made_anew(ground: Ground) -> None:
    printed = ground.results["other size"].printed
    assert "new head: 2 classes (class, function) instead of the checkpoint's 3\n" in printed
    assert "new weights: classifier.bias, classifier.weight\n" in printed
    config = load(ground.export("other size"), "other size").config
    assert (config.num_labels, config.id2label) == (2, {0: "class", 1: "function"})


def test_labels_that_are_partly_the_heads_are_refused(ground: Ground) -> None:
    said = ground.results["some"].printed
    assert (
        "error: task.label_field has classes that the checkpoint's head does not have: mangoes (all: apple, mangoes)"
        in said
    )
    assert "expected: the classes of the checkpoint: 0 = zebra, 1 = apple, 2 = mango" in said
