"""Sequence-to-sequence: rows, messages, batches, and the loss of plain transformers."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, GenerationConfig

from tests import tiny
from tests.architectures import VOCABULARY, tiny_config
from toolkit.data.packing import Counts
from toolkit.errors import DataError, ModelError, RecipeError
from toolkit.models.config import load_config
from toolkit.models.flops import Uncountable, count_model_flops
from toolkit.models.heads import is_plain_head, token_loss, use_loss_head
from toolkit.models.inner_heads import hands_logits_on, has_inner_loss
from toolkit.models.neftune import add_neftune
from toolkit.recipe import Batch, Data, Model, Optimizer, Recipe, Seq2Seq
from toolkit.tasks.decoder_targets import decoder_inputs
from toolkit.tasks.seq2seq import Seq2SeqTask
from toolkit.train.generation import decide_generation

BYTES, PIECES = tiny.byte_tokenizer(), tiny.wordpiece_tokenizer()
TOKENIZERS = {"t5": BYTES, "bart": BYTES, "bert2bert": PIECES}
PLAIN = ("bart", "marian", "pegasus", "m2m_100", "mbart")
INNER = ("t5", "mt5", "umt5")
LOGITS = ("prophetnet",)


def task(tokenizer: Any = BYTES, **fields: Any) -> Seq2SeqTask:
    return Seq2SeqTask(Seq2Seq(**fields), tokenizer)


def wanted_error(kind: type[Exception], function: Any, *arguments: Any) -> Any:
    with pytest.raises(kind) as caught:
        function(*arguments)
    return caught.value


def test_the_target_ends_with_the_end_token_whether_the_tokenizer_puts_it_there_or_not() -> None:
    row = {"source": "a b", "target": "c d"}
    plain = task().encode(row)[0]
    assert plain["labels"].tolist() == [*BYTES("c d")["input_ids"], BYTES.eos_token_id]
    assert plain["input_ids"].tolist() == BYTES("a b")["input_ids"]
    framed = task(PIECES).encode(row)[0]
    assert framed["labels"].tolist() == PIECES("c d")["input_ids"]
    assert framed["labels"][-1] == PIECES.sep_token_id
    assert task().stop_tokens([row]) == (BYTES.eos_token_id,)
    assert task(PIECES).stop_tokens([row]) == (PIECES.sep_token_id,)


def test_columns_by_name_by_language_and_with_a_prefix() -> None:
    prefixed = task(source_field="en", target_field="de", source_prefix="translate: ")
    found = prefixed.encode({"en": "house", "de": "Haus"})[0]
    assert BYTES.decode(found["input_ids"]) == "translate: house"
    assert found["reference"].tobytes().decode() == "Haus"
    assert task(PIECES).encode({"source": "a", "target": "A Class-File"})[0]["reference"].tobytes() == b"a class - file"
    nested = task(source_language="de", target_language="en")
    row = {"translation": {"en": "house", "de": "Haus", "fr": "maison"}, "id": 3}
    found = nested.encode(row)[0]
    assert BYTES.decode(found["input_ids"]) == "Haus" and found["reference"].tobytes() == b"house"
    assert nested.columns(row) == ("translation",)
    assert nested.encode({"source": "a", "target": "b"})[0]["reference"].tobytes() == b"b"
    assert task().columns({"source": "a", "target": "b", "id": 1}) == ("source", "target")


@pytest.mark.parametrize(
    ("fields", "row", "what"),
    [
        ({}, {"text": "a", "target": "b"}, "task.source_field='source' is not there; the columns are text, target"),
        ({}, {"source": "a", "target": None}, "task.target_field='target' is null"),
        ({}, {"source": "  ", "target": "b"}, "task.source_field='source' is empty"),
        (
            {},
            {"source": ["a"], "target": "b"},
            "task.source_field='source' gives ['a']; columns with text here are target",
        ),
        (
            {"source_language": "en", "target_language": "ru"},
            {"translation": {"en": "a", "de": "b"}},
            "task.translation_field='translation' has no 'ru', task.target_language; it has 'en', 'de'",
        ),
        (
            {"source_language": "en", "target_language": "de"},
            {"translation": {"en": "a", "de": ""}},
            "task.translation_field='translation', 'de', is empty",
        ),
        (
            {"source_language": "en", "target_language": "de"},
            {"translation": "a"},
            "task.translation_field='translation' gives 'a'",
        ),
    ],
)
def test_a_row_that_cannot_be_used(fields: dict[str, str], row: dict[str, Any], what: str) -> None:
    assert wanted_error(DataError, task(**fields).encode, row).what == what


def test_one_language_alone_has_no_effect() -> None:
    from tests.unit.test_effect import recipe

    with pytest.raises(RecipeError, match=r"task.source_language='en' has no effect with task.target_language=None"):
        recipe({"task": Seq2Seq(source_language="en")})
    with pytest.raises(RecipeError, match="names one twice"):
        Seq2Seq(scores=("bleu", "bleu"))


def test_languages_that_nobody_knows_have_no_effect() -> None:
    plain, pair = {"source": "a", "target": "b"}, {"translation": {"en": "a", "de": "b"}}
    german = task(source_language="en", target_language="de")
    error = wanted_error(RecipeError, german.fit, [plain, plain])
    assert error.what.startswith("task.source_language='en' and task.target_language='de' have no effect: no row has")
    german.fit([plain, pair])
    task().fit([plain])
    # BLEU of Chinese is counted by characters.
    task(source_language="en", target_language="zh", scores=("bleu",)).fit([plain])
    wanted_error(RecipeError, task(source_language="en", target_language="zh").fit, [plain])


def test_a_metric_that_no_score_gives_is_asked_for_by_its_score() -> None:
    Seq2Seq(scores=("rouge",)).check_metric("rougeL")
    error = wanted_error(RecipeError, Seq2Seq(scores=("bleu",)).check_metric, "rougeL")
    assert error.do == "set task.scores to bleu rouge, or another evaluation.metric"
    assert "correct evaluation.metric" in str(wanted_error(RecipeError, Seq2Seq().check_metric, "accuracy"))


def test_both_texts_are_cut_and_keep_their_ends() -> None:
    long = task(PIECES, target_length=6)
    example = long.encode({"source": "a class of the file " * 8, "target": "the type of an object is its class " * 4})[
        0
    ]
    counts = Counts()
    (cut,) = long.fitted(example, 10, "truncate", counts)
    for name, length in (("input_ids", 10), ("labels", 6)):
        assert cut[name].tolist() == [*example[name][: length - 1].tolist(), PIECES.sep_token_id]
    assert (counts.truncated, counts.cut_targets) == (1, 1) and long.size(cut) == 16 and long.targets(cut) == 6
    assert long.fitted(example, 10, "drop", counts) == [] and counts.dropped == 1
    assert long.fitted(example, 500, "drop", counts) == [] and counts.long_targets == 1
    counts.kept = 1
    assert counts.describe() == (
        "1 kept, 1 of them cut to batch.sequence_length, 1 with a target cut to task.target_length; "
        "left out: 1 longer than batch.sequence_length, 1 with a target longer than task.target_length"
    )
    assert long.fitted(cut, 10, "error", counts) == [cut]
    short = task(PIECES, target_length=500)
    what = wanted_error(DataError, short.fitted, example, 10, "error", counts).what
    assert what == f"a source has {len(example['input_ids'])} tokens and batch.sequence_length is 10"
    what = wanted_error(DataError, long.fitted, example, 500, "error", counts).what
    assert what == f"a target has {len(example['labels'])} tokens and task.target_length is 6"


def test_missing_special_tokens() -> None:
    endless = tiny.byte_tokenizer()
    endless.eos_token = None
    assert "no token that ends a text" in wanted_error(RecipeError, task, endless).what
    unpadded = tiny.byte_tokenizer()
    unpadded.pad_token = None
    assert "no padding token" in wanted_error(RecipeError, task, unpadded).what
    config = tiny.encoder_decoder("t5", BYTES).config
    config.decoder_start_token_id = None
    sizes = Batch(global_size=2, micro_size=1, sequence_length=64)
    assert "no decoder_start_token_id" in wanted_error(ModelError, task().meet, config, sizes).what


@pytest.mark.parametrize("kind", ["bart", "bert2bert"])
def test_positions_of_both_sides(kind: str) -> None:
    config = tiny.encoder_decoder(kind, TOKENIZERS[kind]).config
    sizes = Batch(global_size=2, micro_size=1, sequence_length=256)
    task(target_length=256, max_new_tokens=256).meet(config, sizes)
    longer = sizes.model_copy(update={"sequence_length": 257})
    assert wanted_error(ModelError, task().meet, config, longer).what.startswith("batch.sequence_length=257")
    found = wanted_error(ModelError, task(target_length=257).meet, config, sizes)
    assert found.what.startswith("task.target_length=257") and found.do == "set task.target_length=256 or less"


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_loss_and_gradient_are_those_of_transformers(kind: str, smoothing: float) -> None:
    """Text by text, without padding and mask, from the model's own logits."""
    tokenizer = TOKENIZERS[kind]
    model, judge = (tiny.encoder_decoder(kind, tokenizer).eval() for _ in range(2))
    ours = task(tokenizer, label_smoothing=smoothing)
    examples = [ours.encode(row)[0] for row in tiny.summaries()[:5]]
    batch = ours.collate([[example] for example in examples])
    assert batch["labels"].shape[1] < max(map(ours.size, examples))
    total = ours.count(batch)
    total_wanted = torch.zeros((), dtype=torch.float64)
    for example in examples:
        ids, labels = (torch.from_numpy(example[name].astype(np.int64))[None] for name in ("input_ids", "labels"))
        shifted = judge.prepare_decoder_input_ids_from_labels(labels)
        logits = judge(input_ids=ids, decoder_input_ids=shifted).logits.double()
        total_wanted = total_wanted + torch.nn.functional.cross_entropy(
            logits[0], labels[0], reduction="sum", label_smoothing=smoothing
        )
    (total_wanted / total).backward()
    ours.prepare(model)
    assert has_inner_loss(model) == (kind != "bart")
    loss = ours.loss(model, batch, 1.0 / total).total
    (loss / total).backward()
    assert float(loss.detach()) == pytest.approx(float(total_wanted.detach()), rel=1e-6)
    for (name, found), wanted in zip(model.named_parameters(), judge.parameters(), strict=True):
        assert (found.grad is None) == (wanted.grad is None) == ("pooler" in name), name
        if found.grad is not None:
            assert (found.grad - wanted.grad).norm() <= 1e-6 * max(1.0, wanted.grad.norm()), name
    with torch.no_grad():
        sums = ours.evaluate(model, batch)
    assert sums["targets"] == total
    if not smoothing:
        assert ours.metrics(sums)["loss"] == pytest.approx(float(total_wanted.detach()) / total, rel=1e-6)


@pytest.mark.parametrize("architecture", [*PLAIN, *INNER, *LOGITS])
def test_no_head_changes_the_loss(architecture: str) -> None:
    """Whichever of the three ways computes it; the vector that BART's kin add to the logits is part of them."""
    sides = dict.fromkeys(("num_decoder_layers", "encoder_layers", "decoder_layers"), 2)
    sides |= {"d_model": 32, "d_ff": 48, "d_kv": 8, "decoder_attention_heads": 4, "decoder_ffn_dim": 48}
    config = tiny_config(architecture)
    for name in filter(partial(hasattr, config), sides):
        setattr(config, name, sides[name])
    config.decoder_start_token_id = 0
    torch.manual_seed(0)
    model: Any = AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for values in [*model.parameters(), getattr(model, "final_logits_bias", torch.zeros(1))]:
            values.add_(torch.randn_like(values) * 0.05)
    source = (torch.arange(9) * 7 + 1)[None] % VOCABULARY
    labels = (torch.arange(6) * 5 + 3)[None] % VOCABULARY
    inputs = {"input_ids": source, "decoder_input_ids": decoder_inputs(model, labels)}
    with torch.no_grad():
        logits = model(**inputs).logits[0]
        wanted = torch.nn.functional.cross_entropy(logits, labels[0], reduction="sum")
        # With labels transformers shifts them itself.
        assert torch.equal(model(input_ids=source, labels=labels).logits[0], logits)
        assert is_plain_head(model) == (architecture in PLAIN)
        assert hands_logits_on(model) == (architecture in INNER)
        assert use_loss_head(model) == (architecture not in LOGITS)
        found = token_loss(model, inputs, labels, label_smoothing=0.0, gradient_scale=1.0)
        again = model(**inputs).logits[0]
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)
    assert torch.equal(again, logits), "without a loss asked for, the head is what it was"


def test_scores_are_those_of_the_libraries() -> None:
    records = [
        {"prediction": "the cat sat on the mat", "reference": "the cat sat on a mat"},
        {"prediction": "a house by the sea", "reference": "a house near the sea"},
    ]
    import sacrebleu

    found = task(scores=("chrf", "rouge", "bleu")).score(records)
    assert list(found) == ["chrf", "rouge1", "rouge2", "rougeL", "bleu"]
    predictions, references = ([record[name] for record in records] for name in ("prediction", "reference"))
    assert found["bleu"] == sacrebleu.corpus_bleu(predictions, [references]).score
    assert found["chrf"] == sacrebleu.corpus_chrf(predictions, [references]).score
    options = Seq2Seq(scores=("rouge",))
    assert list(options.metrics) == ["loss", "perplexity", "rouge1", "rouge2", "rougeL"]
    assert options.higher_is_better("rougeL") and not options.higher_is_better("loss")


def test_the_preview_marks_the_target() -> None:
    shown = task().show(task().encode({"source": "a b", "target": "c d"})[0])
    assert shown.parts == [("a b\n-> ", False), ("c d<|im_end|>", True)]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_noise_reaches_what_the_encoder_reads(kind: str) -> None:
    """T5 and BART name a table as theirs that is only shared, and never called."""
    model: Any = tiny.encoder_decoder(kind, TOKENIZERS[kind])
    add_neftune(model, 50.0)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.config.dropout = 0.0
    model.train()
    for part in model.modules():
        if isinstance(getattr(part, "dropout", None), float):
            part.dropout = 0.0
    source = torch.arange(8)[None] + 3
    one, two = (model(input_ids=source, decoder_input_ids=source).encoder_last_hidden_state for _ in range(2))
    assert not torch.allclose(one, two)
    again = [model.eval()(input_ids=source, decoder_input_ids=source).encoder_last_hidden_state for _ in range(2)]
    assert torch.equal(*again)


def test_a_decoder_that_sees_ahead_is_refused() -> None:
    model: Any = tiny.encoder_decoder("bert2bert", PIECES).eval()
    ours = task(PIECES)
    with torch.no_grad():
        ours.settle(model)
        for module in model.decoder.modules():
            if hasattr(module, "is_causal"):
                module.is_causal = False
        model.decoder.config.is_decoder = False
        found = wanted_error(ModelError, ours.settle, model)
    assert "lets a token see those after it" in found.what and "task.name='seq2seq'" in found.expected


def test_dropout_reaches_both_sides(tmp_path: Path) -> None:
    tiny.save(tiny.encoder_decoder("bert2bert", PIECES), PIECES, tmp_path)
    config = load_config(Model(path=str(tmp_path), dropout=0.25), vocabulary_size=len(PIECES), overrides={})
    for side in (config.encoder, config.decoder):
        assert side.hidden_dropout_prob == side.attention_probs_dropout_prob == 0.25
    assert config.decoder.is_decoder and config.decoder_start_token_id == PIECES.cls_token_id


@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_special_tokens_of_a_new_language(architecture: str, tmp_path: Path) -> None:
    """From scratch, targets begin with the tokenizer's first token and end with its end token, in training and after it."""
    recipe = Recipe(
        model=Model(architecture=architecture, weights="random", tokenizer=str(tmp_path)),
        data=Data(train="none", packing=False),
        task=Seq2Seq(),
        batch=Batch(global_size=1),
        optimizer=Optimizer(learning_rate=1e-3),
        steps=100,
    )
    BYTES.save_pretrained(tmp_path)
    config = load_config(recipe.model, vocabulary_size=len(BYTES), overrides={})
    rows = [{"source": "a", "target": "b"}]
    generation = decide_generation(recipe, task(), config, rows, [].append)
    assert generation is not None
    for found in (config.to_dict(), generation):
        assert found["decoder_start_token_id"] == BYTES.bos_token_id
        assert (found["pad_token_id"], found["eos_token_id"]) == (BYTES.pad_token_id, BYTES.eos_token_id)


def test_settings_of_a_checkpoint_stay_and_get_its_start(tmp_path: Path) -> None:
    """[SEP], which training teaches, is where the export stops, and what begins a target is written down."""
    model: Any = tiny.encoder_decoder("bert2bert", PIECES)
    model.generation_config = GenerationConfig(no_repeat_ngram_size=3)
    tiny.save(model, PIECES, tmp_path)
    recipe = Recipe(
        model=Model(path=str(tmp_path)),
        data=Data(train="none", packing=False),
        task=Seq2Seq(),
        batch=Batch(global_size=1),
        optimizer=Optimizer(learning_rate=1e-3),
        steps=100,
    )
    config = load_config(recipe.model, vocabulary_size=len(PIECES), overrides={})
    generation = decide_generation(recipe, task(PIECES), config, [{"source": "a", "target": "b"}], [].append)
    assert generation is not None and generation["no_repeat_ngram_size"] == 3
    assert generation["decoder_start_token_id"] == PIECES.cls_token_id
    assert generation["eos_token_id"] == PIECES.sep_token_id


def test_flops_are_not_guessed() -> None:
    with pytest.raises(Uncountable, match="two lengths"):
        count_model_flops(AutoModelForSeq2SeqLM, tiny.encoder_decoder("t5", BYTES).config, 64, is_causal=False)
