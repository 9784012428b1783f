"""Whisper and CTC: rows, labels, features, masks, scores, and what is said of rows and checkpoints that do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
import soxr
import torch
from transformers import AutoModelForCTC, AutoModelForSpeechSeq2Seq, WhisperForConditionalGeneration
from transformers.models.whisper.modeling_whisper import _compute_mask_indices

from tests import speech
from tests.speech import RATE, encoded, tone
from toolkit.data.packing import Counts
from toolkit.errors import DataError, ModelError, RecipeError
from toolkit.models.config import load_config
from toolkit.models.latent_frames import LatentFrames, num_frames
from toolkit.models.speech_processor import load_speech_processor
from toolkit.recipe import Batch, Data, Model, Optimizer, Recipe, SpeechCTC, SpeechSeq2Seq
from toolkit.tasks.metrics.transcripts import compared, normalizer, transcript_scores
from toolkit.tasks.speech.ctc import SpeechCTCTask
from toolkit.tasks.speech.masks import stretches
from toolkit.tasks.speech.whisper import SpeechSeq2SeqTask

Task = SpeechSeq2SeqTask | SpeechCTCTask
ONE_SECOND = {"max_duration_s": 1.0, "target_length": 20}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("speech")
    return {
        "english": speech.whisper(folder / "english"),
        "multilingual": speech.whisper(folder / "multilingual", multilingual=True),
        "ctc": speech.wav2vec2(folder / "ctc"),
    }


def whisper(model: Path, **fields: Any) -> SpeechSeq2SeqTask:
    options = SpeechSeq2Seq(**{**ONE_SECOND, **fields})
    return SpeechSeq2SeqTask(options, SpeechSeq2SeqTask.load_processor(Model(path=str(model))))


def ctc(model: Path, **fields: Any) -> SpeechCTCTask:
    found = SpeechCTCTask(SpeechCTC(**fields), SpeechCTCTask.load_processor(Model(path=str(model))))
    found.meet(load_config(Model(path=str(model)), vocabulary_size=None, overrides={}), Batch(global_size=1))
    return found


def row(text: str = "abc", **more: Any) -> dict[str, Any]:
    return {"audio": {"bytes": encoded(tone(text)), "path": "x.wav"}, "text": text, **more}


def random(number: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(number))


# Rows


def test_a_recording_in_every_form_is_the_same_example(models: dict[str, Path], tmp_path: Path) -> None:
    task = whisper(models["english"])
    (tmp_path / "sound").mkdir()
    content = encoded(tone("abc"), subtype="FLOAT")
    (tmp_path / "sound" / "x.wav").write_bytes(content)
    values = [
        content,
        {"bytes": content, "path": None},
        {"bytes": None, "path": "sound/x.wav"},
        "sound/x.wav",
        str(tmp_path / "sound" / "x.wav"),
        {"array": tone("abc").tolist(), "sampling_rate": RATE, "path": "gone.wav"},
    ]
    found = []
    for value in values:
        located = task.located({"audio": value, "text": "abc"}, tmp_path)
        [example] = task.encode(located)
        task.examine(example)
        found.append(task.transform(example, random(), is_trained=False)["input_features"])
        assert task.size(example) == len(tone("abc")) // 160
    assert all((features == found[0]).all() for features in found)


def test_what_is_wrong_with_a_row_is_said(models: dict[str, Path], tmp_path: Path) -> None:
    task = whisper(models["english"])
    cases: list[tuple[dict[str, Any], str]] = [
        ({"text": "a"}, "task.audio_field='audio' is not there; the columns are text"),
        ({"audio": b"x"}, "task.text_field='text' is not there; the columns are audio"),
        (row(text="abc") | {"text": ""}, "task.text_field='text' is empty"),
        (row(text="abc") | {"text": None}, "task.text_field='text' is null"),
        (row(text="abc") | {"text": 7}, "task.text_field='text' gives 7; columns with text here are"),
        ({"audio": None, "text": "a"}, "task.audio_field='audio' is null"),
        ({"audio": 3.5, "text": "a"}, "task.audio_field='audio' is 3.5"),
        ({"audio": {}, "text": "a"}, "task.audio_field='audio' is {}"),
        ({"audio": "http://there/x.wav", "text": "a"}, "task.audio_field='audio' is the address 'http://there/x.wav'"),
        ({"audio": str(tmp_path / "no.wav"), "text": "a"}, "no.wav' cannot be read: No such file or directory"),
        ({"audio": {"bytes": b"", "path": "e.wav"}, "text": "a"}, "task.audio_field='audio' (e.wav) is empty (0 bytes)"),
        ({"audio": {"array": [0.1]}, "text": "a"}, "task.audio_field='audio' has sampling_rate=None"),
        ({"audio": {"array": [0.1], "sampling_rate": 0}, "text": "a"}, "task.audio_field='audio' has sampling_rate=0"),
    ]  # fmt: skip
    for wrong, what in cases:
        with pytest.raises(DataError) as caught:
            task.encode(wrong)
        assert what in caught.value.what


def test_labels_are_the_tokenizers_but_for_what_the_model_puts_before_them(models: dict[str, Path]) -> None:
    english = whisper(models["english"])
    ids = english.tokenizer.get_vocab()
    [example] = english.encode(row("abc"))
    assert example["labels"].tolist() == [ids["<|notimestamps|>"], ids["a"], ids["b"], ids["c"], ids["<|endoftext|>"]]
    [spaced] = whisper(models["english"], text_prefix=" ").encode(row("abc"))
    assert spaced["labels"].tolist() == [example["labels"][0], ids["\u0120"], *example["labels"][1:]]
    assert spaced["reference"].tobytes() == b"abc", "what is written is compared without it"
    for language in ("german", "de", "German"):
        task = whisper(models["multilingual"], language=language, task="translate")
        [example] = task.encode(row("abc"))
        assert task.tokenizer.decode(example["labels"]) == "<|de|><|translate|><|notimestamps|>abc<|endoftext|>"
        assert task.prefix == [ids["<|startoftranscript|>"], *example["labels"].tolist()[:3]]
        assert task.stop_tokens([]) == (ids["<|endoftext|>"],)


def test_the_loss_is_that_of_transformers_with_the_same_labels(models: dict[str, Path]) -> None:
    """As the model computes it from labels alone: those of language and task count, what fills up does not."""
    task = whisper(models["multilingual"], language="en")
    batch = task.collate(
        [[task.transform(task.encode(row(text))[0], random(), is_trained=False)] for text in ("ab", "abcdefg")]
    )
    plain, ours = (AutoModelForSpeechSeq2Seq.from_pretrained(models["multilingual"]) for _ in range(2))
    task.prepare(ours)
    wanted = plain(input_features=batch["input_features"], labels=batch["labels"]).loss
    found = task.loss(ours, batch, 1.0).total / task.count(batch)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6) and task.count(batch) == 6 + 11
    wanted.backward()
    found.backward()
    total = torch.nn.utils.get_total_norm(
        [parameter.grad for parameter in plain.parameters() if parameter.grad is not None]
    )
    for (name, one), (_, other) in zip(plain.named_parameters(), ours.named_parameters(), strict=True):
        if other.grad is None:
            assert name == "model.encoder.embed_positions.weight", "fixed sinusoids"
        else:
            assert torch.norm(one.grad - other.grad) < 1e-6 * total, name


def test_features_are_the_extractors(models: dict[str, Path]) -> None:
    content = encoded(tone("abcd", 8000), 8000, subtype="FLOAT")
    for task in (whisper(models["english"]), ctc(models["ctc"])):
        [example] = task.encode({"audio": content, "text": "abcd"})
        found = task.transform(example, random(), is_trained=False)
        samples = soxr.resample(tone("abcd", 8000), 8000, RATE)
        wanted = task.extractor(samples, sampling_rate=RATE, return_tensors="np")[task.reads][0]
        assert found[task.reads] == pytest.approx(wanted, abs=1e-6)
        assert task.samples(example) == len(samples)


# SpecAugment


def test_stretches_are_those_of_transformers_in_number_and_place() -> None:
    """The same mean share, the same most of it, every place as often, at least so many."""
    ours = np.stack([stretches(200, 0.2, 10, random(number), least=2) for number in range(3000)])
    np.random.seed(0)
    theirs = np.concatenate([_compute_mask_indices((1, 200), 0.2, 10, min_masks=2) for _ in range(3000)])
    assert ours.mean() == pytest.approx(theirs.mean(), rel=0.02)
    assert ours.sum(1).max() == theirs.sum(1).max() == 40
    assert np.abs(ours.mean(0) - theirs.mean(0)).max() < 0.04
    assert stretches(9, 0.5, 10, random(), least=2).sum() == 0 and stretches(10, 0.01, 10, random(), least=2).all()
    assert not stretches(100, 0.0, 10, random(), least=2).any()


def test_what_is_hidden_follows_from_the_examples_own_generator(models: dict[str, Path]) -> None:
    fields = {"mask_time_prob": 0.3, "mask_time_length": 4, "mask_feature_prob": 0.3, "mask_feature_length": 3}
    hiding, plain = whisper(models["english"], **fields), whisper(models["english"])
    [example] = hiding.encode(row("abcdefgh"))
    whole = plain.transform(example, random(), is_trained=True)["input_features"]
    one, again, other = (hiding.transform(example, random(n), is_trained=True)["input_features"] for n in (1, 1, 2))
    assert (one == again).all() and (one != other).any()
    assert (hiding.transform(example, random(1), is_trained=False)["input_features"] == whole).all()
    changed = one != whole
    assert (one[changed] == 0.0).all() and changed.any()
    frames = hiding.size(example)
    bands = changed[:, frames:].all(axis=1)
    assert bands.sum() % 3 == 0 or bands.sum() > 3
    assert not changed[~bands][:, frames:].any(), "silence behind the end is left alone"
    assert changed[~bands][:, :frames].all(axis=0).any(), "whole frames"


def test_a_models_own_masks_are_off_whatever_its_config_says(tmp_path: Path) -> None:
    folder = speech.whisper(tmp_path, apply_spec_augment=True, mask_time_prob=0.9, mask_time_length=3)
    task, model = whisper(folder), WhisperForConditionalGeneration.from_pretrained(folder).train()
    task.prepare(model)
    batch = task.collate([[task.transform(task.encode(row())[0], random(), is_trained=True)]])
    assert task.loss(model, batch, 1.0).total.item() == task.loss(model, batch, 1.0).total.item()


def test_frames_and_features_of_a_latent_are_hidden(models: dict[str, Path]) -> None:
    """Frames behind the model's own vector, as transformers does; features at 0."""
    model = AutoModelForCTC.from_pretrained(models["ctc"])
    frames = LatentFrames(model)
    hidden = torch.randn(2, 5, 16)
    times, features = torch.rand(2, 5) < 0.5, torch.rand(2, 16) < 0.5
    frames.expect([800, 800], times, features)
    found = frames._masked(hidden.clone())
    wanted = hidden.clone()
    wanted[times] = model.wav2vec2.masked_spec_embed
    wanted[features[:, None].expand(-1, 5, -1)] = 0
    assert torch.equal(found, wanted)
    frames.expect([800, 800])
    assert torch.equal(frames._masked(hidden), hidden)


# Lengths


def test_recordings_and_texts_are_dropped_or_refused_and_never_cut(models: dict[str, Path]) -> None:
    task = whisper(models["english"], max_duration_s=0.5, target_length=6)
    fits, long_sound, long_text = (task.encode(row(text))[0] for text in ("abcd", "abcdefghab", "abcde"))
    counts = Counts()
    assert task.fitted(fits, 3, "drop", counts) == [fits] and counts == Counts()
    assert task.fitted(long_sound, 3, "drop", counts) == task.fitted(long_text, 3, "drop", counts) == []
    assert (counts.long_recordings, counts.long_targets, counts.left_out) == (1, 1, 2)
    assert "1 longer than task.max_duration_s" in counts.describe()
    with pytest.raises(DataError, match=r"\(x\.wav\) lasts 0\.6 s\n  expected: at most 0\.5, task\.max_duration_s"):
        task.fitted(long_sound, 3, "error", counts)
    with pytest.raises(DataError, match=r"the text has 7 tokens\n  expected: at most 6, task\.target_length"):
        task.fitted(long_text, 3, "error", counts)


def test_a_recording_needs_a_frame_for_each_token(models: dict[str, Path]) -> None:
    """And one between two that are the same: otherwise the text cannot be had, and its loss is infinite."""
    task, counts = ctc(models["ctc"]), Counts()
    frames = num_frames(len(tone("ab")), task._config)
    text = "ab" * (frames // 2)
    [enough] = task.encode(row("ab") | {"text": text[:frames]})
    [doubled] = task.encode(row("ab") | {"text": text[: frames - 1] + text[frames - 2]})
    assert task.fitted(enough, 0, "error", counts) == [enough]
    assert task.fitted(doubled, 0, "drop", counts) == [] and counts.short_recordings == 1
    with pytest.raises(DataError, match=rf"has {frames} frames, and its text needs {frames + 1}"):
        task.fitted(doubled, 0, "error", counts)


# CTC


def test_texts_that_the_tokenizer_cannot_spell_are_refused(models: dict[str, Path]) -> None:
    with pytest.raises(DataError) as caught:
        ctc(models["ctc"]).tokens("AbX, c")
    assert "the tokenizer does not know A, X, ," in caught.value.what
    assert "task.text_case" in caught.value.do and "task.chars_to_ignore" in caught.value.do
    task = ctc(models["ctc"], text_case="lower", chars_to_ignore=",!")
    ids = task.tokenizer.get_vocab()
    assert task.tokens("Ab,  c!") == [ids[token] for token in "ab|c"]
    with pytest.raises(DataError, match="gives ''"):
        task.tokens("!")


def test_padding_changes_nothing(models: dict[str, Path]) -> None:
    """A batch gives what each recording gives alone, although this model's first norm looks at a whole recording."""
    task = ctc(models["ctc"])
    model, plain = (AutoModelForCTC.from_pretrained(models["ctc"]).eval() for _ in range(2))
    task.prepare(model)
    examples = [
        task.transform(task.encode(row(text))[0], random(), is_trained=False) for text in ("ab", "abcdefgh", "abcde")
    ]
    with torch.no_grad():
        logits, frames = task._logits(model, task.collate([[example] for example in examples]))
        for one, example, count in zip(logits, examples, frames, strict=True):
            alone = plain(torch.from_numpy(example["input_values"])[None]).logits[0]
            assert alone.shape[0] == count
            assert torch.dist(one[:count], alone) < 1e-6 * alone.norm()
        records = task.predict(model, task.collate([[example] for example in examples]), examples, None)  # type: ignore[arg-type]
        for record, example in zip(records, examples, strict=True):
            best = plain(torch.from_numpy(example["input_values"])[None]).logits[0].argmax(-1)
            assert record["prediction"] == task.tokenizer.decode(best).strip()
    filler = task.ignored(examples[0])
    alone, filled = task.collate([[examples[1]]]), task.collate([[examples[1]], [filler]])
    with torch.no_grad():
        assert task.evaluate(model, filled) == pytest.approx(task.evaluate(model, alone), rel=1e-6)
    assert task.count(filled) == 8


def test_convolutions_stay_as_they_are(models: dict[str, Path]) -> None:
    for frozen in (True, False):
        model = AutoModelForCTC.from_pretrained(models["ctc"])
        ctc(models["ctc"], freeze_feature_encoder=frozen).prepare(model)
        convolutions = model.wav2vec2.feature_extractor.parameters()
        assert {parameter.requires_grad for parameter in convolutions} == {not frozen}


def test_a_head_of_another_vocabulary_is_new(models: dict[str, Path]) -> None:
    task, config = ctc(models["ctc"]), load_config(Model(path=str(models["ctc"])), vocabulary_size=None, overrides={})
    task.fit([], config)
    assert not task.new_head and task.config_overrides() == {"vocab_size": 13, "layerdrop": 0.0}
    config.vocab_size = 32
    task.fit([], config)
    assert task.new_head


# Checkpoints and recipes


def test_checkpoints_that_do_not_fit(models: dict[str, Path], tiny_llama_dir: Path) -> None:
    for reads, name, what in (
        ("input_values", "english", "has a WhisperFeatureExtractor, which gives input_features"),
        ("input_features", "ctc", "has a Wav2Vec2FeatureExtractor, which gives input_values"),
    ):
        with pytest.raises(ModelError, match=what):
            load_speech_processor(Model(path=str(models[name])), reads)
    with pytest.raises(ModelError, match=r"which reads no sound|its processor cannot be loaded"):
        load_speech_processor(Model(path=str(tiny_llama_dir)), "input_features")
    config = load_config(Model(path=str(models["english"])), vocabulary_size=None, overrides={})
    config.num_mel_bins = 128
    with pytest.raises(ModelError, match="gives 16 bands of 100 frames, the model reads 128 of 100"):
        whisper(models["english"]).meet(config, Batch(global_size=1))
    config = load_config(Model(path=str(models["english"])), vocabulary_size=None, overrides={})
    with pytest.raises(RecipeError, match=r"task\.target_length=40: the decoder has 32 positions"):
        whisper(models["english"], target_length=40).meet(config, Batch(global_size=1))
    with pytest.raises(RecipeError, match=r"task\.max_duration_s=2: the model reads 1 s"):
        whisper(models["english"], max_duration_s=2.0)


def test_languages(models: dict[str, Path]) -> None:
    def settings(name: str, **fields: Any) -> dict[str, Any]:
        stated = json.loads((models[name] / "generation_config.json").read_text())
        return whisper(models[name], **fields).generation_settings(stated)

    with pytest.raises(RecipeError, match=r"task\.language='en': the checkpoint knows English alone"):
        settings("english", language="en")
    with pytest.raises(RecipeError, match=r"task\.language=None: the checkpoint is multilingual"):
        settings("multilingual")
    with pytest.raises(RecipeError, match=r"task\.language='french': the tokenizer has no token for it"):
        whisper(models["multilingual"], language="french")
    with pytest.raises(RecipeError, match=r"task\.language='germn'.*did you mean 'german'"):
        whisper(models["multilingual"], language="germn")
    found = settings("multilingual", language="German", task="translate")
    assert (found["language"], found["task"], found["forced_decoder_ids"]) == ("german", "translate", None)
    assert settings("english")["forced_decoder_ids"] == [[1, 266]]


def test_recipes_that_would_cut_recordings_are_refused() -> None:
    def recipe(task: Any, **data: Any) -> Recipe:
        return Recipe(
            model=Model(path="x"),
            data=Data(**{"train": "y", "packing": False, "overlong": "drop", **data}),
            task=task,
            batch=Batch(global_size=1),
            optimizer=Optimizer(),
            steps=1,
        )

    for task, field in ((SpeechSeq2Seq(freeze_encoder=True), "encoder"), (SpeechCTC(), "feature_encoder")):
        with pytest.raises(RecipeError, match=rf"task\.freeze_{field}=True with model\.weights='random'"):
            task.check_with(recipe(task).model_copy(update={"model": Model(path="x", weights="random")}))
    for task in (SpeechSeq2Seq(), SpeechCTC()):
        recipe(task)
        for overlong in ("truncate", "split"):
            with pytest.raises(RecipeError, match=rf"data\.overlong='{overlong}' with task\.name='{task.name}'"):
                recipe(task, overlong=overlong)
    with pytest.raises(RecipeError, match=r"evaluation\.metric='exact_match'.*task\.scores"):
        SpeechSeq2Seq().check_metric("exact_match")
    with pytest.raises(RecipeError, match=r"names one twice"):
        SpeechCTC(scores=("wer", "wer"))


# Scores


def test_scores_are_those_of_jiwer_over_all_texts() -> None:
    pairs = [("one to tree", "one two three"), ("", "four"), ("five six", "five"), ("Seven!", "seven")]
    records = [compared(told, meant, normalizer("none")) for told, meant in pairs]
    told, meant = zip(*pairs, strict=True)
    found = transcript_scores(records, ("wer", "cer", "exact_match"), normalizer("none"))
    assert found == {
        "wer": jiwer.wer(list(meant), list(told)),
        "cer": jiwer.cer(list(meant), list(told)),
        "exact_match": 0.0,
    }
    assert found["wer"] == pytest.approx((2 + 1 + 1 + 1) / 6)
    assert transcript_scores(records, ("exact_match",), normalizer("basic")) == {"exact_match": 0.25}


def test_normalizers(models: dict[str, Path]) -> None:
    english, basic, none = (normalizer(kind) for kind in ("english", "basic", "none"))
    text = "I won't  pay twenty-five dollars, Mr. M\u00fcller [noise]!"
    assert english(text) == "i will not pay $25 mister muller"
    assert basic(text) == "i won t pay twenty five dollars mr m\u00fcller"
    assert none(text) == "I won't pay twenty-five dollars, Mr. M\u00fcller [noise]!"
    assert normalizer("english", {"colour": "color"})("a colour") == "a color"
    assert whisper(models["english"]).normalize("Four.") == "4"
    assert whisper(models["multilingual"], language="de").normalize("Four.") == "four"
    assert whisper(models["multilingual"], language="de", task="translate").normalize("Four.") == "4"
    assert whisper(models["english"], normalizer="basic").normalize("Four.") == "four"
