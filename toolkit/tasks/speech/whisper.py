"""Speech to text by Whisper: an encoder reads a log-mel spectrogram of 30 s, a decoder writes what is said."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForSpeechSeq2Seq
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

from toolkit.data.example import Example, Row
from toolkit.errors import ModelError, RecipeError, did_you_mean, first_few
from toolkit.models.decoding import Generate, GenerationSettings
from toolkit.models.generation import START
from toolkit.recipe import Batch as BatchSizes
from toolkit.recipe import SpeechSeq2Seq
from toolkit.tasks.base import Batch, Record
from toolkit.tasks.decoder_targets import DecoderTask
from toolkit.tasks.metrics.transcripts import Normalize, normalizer
from toolkit.tasks.speech.masks import hidden_parts, hides
from toolkit.tasks.speech.recordings import SpeechTask

FEATURES = "input_features"
NO_TIMES = "<|notimestamps|>"


class SpeechSeq2SeqTask(DecoderTask, SpeechTask):
    """Labels are the tokenizer's but for the first token, which the model puts before them itself.

    All of them carry loss, those of language and task too, as in transformers' own example of Whisper.
    """

    auto_class = AutoModelForSpeechSeq2Seq
    reads = FEATURES
    loads_by_part = True  # transformers computes the encoder's positions anew, in a weight that has no shape then

    def __init__(self, options: SpeechSeq2Seq, processor: Any) -> None:
        super().__init__(options, processor)
        if not hasattr(self.tokenizer, "set_prefix_tokens"):
            raise ModelError(
                f"the tokenizer at {self.tokenizer.name_or_path!r} is a {type(self.tokenizer).__name__}",
                expected="Whisper's, which knows the tokens that begin a text",
                do="use a checkpoint of Whisper",
            )
        self._check_duration()
        if options.language is None:
            self.tokenizer.set_prefix_tokens(predict_timestamps=False)
        else:
            self._check_language(options.language.lower())
            self.tokenizer.set_prefix_tokens(options.language, options.task, predict_timestamps=False)
        self.prefix: list[int] = self.tokenizer.prefix_tokens
        """The tokens that the decoder begins with, before the text."""

    def _check_duration(self) -> None:
        window = self.extractor.chunk_length
        if self.options.max_duration_s > window:
            raise RecipeError(
                f"task.max_duration_s={self.options.max_duration_s:g}: the model reads {window} s of a recording",
                expected=f"at most {window}: the text of what lies beyond could not be learned",
                do=f"set task.max_duration_s={window}, and cut longer recordings, with their texts, beforehand",
            )

    def _check_language(self, language: str) -> None:
        known = {**TO_LANGUAGE_CODE, **{code: code for code in LANGUAGES}}
        token = f"<|{known.get(language)}|>"
        if language not in known or token not in self.tokenizer.get_vocab():
            has = [name for name, code in known.items() if f"<|{code}|>" in self.tokenizer.get_vocab()]
            raise RecipeError(
                f"task.language={self.options.language!r}: the tokenizer has no token for it{did_you_mean(language, has)}",
                expected=f"a language of Whisper's: {first_few(has)}",
                do="correct task.language",
            )

    def generation_settings(self, stated: Mapping[str, Any]) -> dict[str, Any]:
        """Language and task in the place of what the checkpoint forces, so that the export writes as it was trained.

        Raises RecipeError for a language where the checkpoint knows English alone, and for none where it knows several.
        """
        options, given = self.options, stated.get("is_multilingual")
        is_multilingual = bool(stated.get("lang_to_id")) if given is None else bool(given)
        if given is False and options.language is not None:
            raise RecipeError(
                f"task.language={options.language!r}: the checkpoint knows English alone",
                expected="None, as it has no place for a language",
                do="take task.language out, or choose a multilingual checkpoint",
            )
        if is_multilingual and options.language is None:
            raise RecipeError(
                "task.language=None: the checkpoint is multilingual",
                expected="the language of the texts, which every text begins with",
                do="set task.language, to 'english' for instance",
            )
        vocabulary = self.tokenizer.get_vocab()
        found = {"no_timestamps_token_id": vocabulary[NO_TIMES], "return_timestamps": False, **stated}
        if options.language is None:
            return found
        languages = {f"<|{code}|>": vocabulary[f"<|{code}|>"] for code in LANGUAGES if f"<|{code}|>" in vocabulary}
        tasks = {name: vocabulary[f"<|{name}|>"] for name in ("transcribe", "translate")}
        return {
            "is_multilingual": True,
            "lang_to_id": languages,
            "task_to_id": tasks,
            **found,
            "language": options.language.lower(),
            "task": options.task,
            "forced_decoder_ids": None,
        }

    def meet(self, config: Any, batch: BatchSizes) -> None:
        """Raise ModelError for a model that is no Whisper, or does not fit the processor, or the fields."""
        if config.model_type != "whisper":
            raise ModelError(
                f"the model is a {config.model_type}, with task.name='speech_seq2seq'",
                expected="Whisper, or a model distilled from it",
                do="choose another checkpoint, or task.name='speech_ctc' for wav2vec 2.0 and its kin",
            )
        extractor = self.extractor
        frames = extractor.n_samples // extractor.hop_length
        places = (config.num_mel_bins, 2 * config.max_source_positions)
        if (extractor.feature_size, frames) != places:
            raise ModelError(
                f"the feature extractor gives {extractor.feature_size} bands of {frames:,} frames, "
                f"the model reads {places[0]} of {places[1]:,}",
                expected="the feature extractor of this model",
                do="set model.tokenizer to where it is, or correct preprocessor_config.json",
            )
        dropped = [name for name in ("encoder_layerdrop", "decoder_layerdrop") if getattr(config, name, 0)]
        if dropped:
            raise ModelError(
                f"the config of the model has {dropped[0]}={getattr(config, dropped[0])}, which skips whole layers at random",
                expected="0.0: ranks would wait for weights that others skip",
                do=f"set model.config={{{dropped[0]!r}: 0.0}}",
            )
        self._check_places(config)

    def _check_places(self, config: Any) -> None:
        """Raise where a text may be longer than the decoder has positions."""
        most = config.max_target_positions
        self.longest = self.options.max_new_tokens or min(self.options.target_length, most - len(self.prefix))
        for field, length in (
            ("target_length", self.options.target_length),
            ("max_new_tokens", self.longest + len(self.prefix)),
        ):
            if length > most:
                raise RecipeError(
                    f"task.{field}={getattr(self.options, field)}: the decoder has {most} positions, "
                    f"{len(self.prefix)} of them for the tokens that it begins with",
                    expected=f"at most {most if field == 'target_length' else most - len(self.prefix)}",
                    do=f"set task.{field} to that, or less",
                )
        if config.decoder_start_token_id != self.prefix[0]:
            raise ModelError(
                f"the tokenizer begins a text with token {self.prefix[0]}, "
                f"the config of the model with {config.decoder_start_token_id} ({START})",
                expected="the same token",
                do="set model.tokenizer to the model's own",
            )

    def stop_tokens(self, rows: Iterable[Row]) -> tuple[int, ...]:
        """The token that ends every text."""
        return (self.tokenizer.eos_token_id,)

    def tokens(self, text: str) -> list[int]:
        """The tokenizer's own, without the first: language, task, no times, the text behind task.text_prefix, its end."""
        text = self.options.text_prefix + text
        ids: list[int] = self.tokenizer(text, truncation=False, verbose=False)["input_ids"]
        return ids[1:]

    def size(self, example: Example) -> int:
        """Frames of the spectrogram that hold sound; the others, up to 30 s, are silence."""
        hop: int = self.extractor.hop_length
        return max(1, self.samples(example) // hop)

    def transform(self, example: Example, random: np.random.Generator, *, is_trained: bool) -> Example:
        """The spectrogram [bands, frames], by the feature extractor, with what SpecAugment hides set to 0."""
        spectrogram = self.extractor(self.sound(example), sampling_rate=self.rate, return_tensors="np")[FEATURES][0]
        if is_trained and hides(self.options):
            bands, frames = spectrogram.shape
            times, hidden = hidden_parts(self.options, min(self.size(example), frames), bands, random)
            spectrogram[:, : len(times)][:, times] = 0.0
            spectrogram[hidden] = 0.0
        return {**example, FEATURES: spectrogram}

    # A batch

    def stand_in(self, length: int, config: Any) -> Example:
        """The spectrogram of a whole window, and a text of `length` tokens."""
        frames = 2 * config.max_source_positions
        return {FEATURES: np.zeros((config.num_mel_bins, frames), np.float32), "labels": np.zeros(length, np.int32)}

    def collate(self, sequences: list[list[Example]]) -> Batch:
        """input_features [B, bands, frames], labels [B, N] with -100 behind a text's end, target_rows [M]."""
        examples = [sequence[0] for sequence in sequences]
        features = torch.from_numpy(np.stack([example[FEATURES] for example in examples]).astype(np.float32))
        return {FEATURES: features, **self.targets_of(examples)}

    # The model

    def prepare(self, model: nn.Module) -> None:
        """As for every decoder; hide nothing inside the model, where it would be drawn by no seed.

        The encoder's positions are fixed sinusoids: transformers says so of a new model, and forgets it of one that it loads.
        """
        super().prepare(model)
        if self.options.freeze_encoder:
            model.freeze_encoder()  # type: ignore[operator]
        model.base_model.encoder.embed_positions.requires_grad_(False)  # type: ignore[union-attr]
        model.base_model._mask_input_features = _as_it_is  # type: ignore[union-attr]

    def encoder_inputs(self, model: Any, batch: Batch) -> Batch:
        """input_features [B, bands, frames], in the number format of the model."""
        return {FEATURES: batch[FEATURES].to(model.dtype)}

    # Texts that are written

    @cached_property
    def normalize(self) -> Normalize:
        """By task.normalizer; "auto" takes the rules for English where the texts are."""
        kind, language = self.options.normalizer, self.options.language
        if kind == "auto":
            is_english = language is None or language.lower() in ("en", "english") or self.options.task == "translate"
            kind = "english" if is_english else "basic"
        return normalizer(kind, getattr(self.tokenizer, "english_spelling_normalizer", None))

    def predict(self, model: nn.Module, batch: Batch, examples: Sequence[Example], generate: Generate) -> list[Record]:
        """The text written for each recording."""
        begun = torch.tensor([self.prefix] * len(examples), device=batch[FEATURES].device)
        settings = GenerationSettings(self.longest, self.options.num_beams, pad_id=self.tokenizer.pad_token_id)
        answers = generate({**self.encoder_inputs(model, batch), "decoder_input_ids": begun}, settings)
        return self.records(examples, [self.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in answers])


def _as_it_is(features: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
    """In the place of a Whisper's own SpecAugment."""
    return features
