"""Speech to text by CTC: an encoder of raw sound gives each frame a token or a blank, repeats are one (Graves et al. 2006)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCTC

from toolkit.data.example import IGNORED, Example
from toolkit.data.packing import Counts
from toolkit.errors import DataError, RecipeError, first_few
from toolkit.models.decoding import Generate
from toolkit.models.latent_frames import LatentFrames, check_frames, num_frames
from toolkit.recipe import Batch as BatchSizes
from toolkit.recipe import SpeechCTC
from toolkit.tasks.base import NO_FIELDS, TRAINED, Batch, Loss, Record, Sums
from toolkit.tasks.decoder_targets import padded_labels
from toolkit.tasks.metrics.transcripts import Normalize, normalizer
from toolkit.tasks.speech.masks import hidden_parts, hides, padded_masks
from toolkit.tasks.speech.recordings import SpeechTask, left_out

VALUES = "input_values"
LENGTHS = "lengths"
TIMES, HIDDEN = "masked_frames", "masked_features"


class SpeechCTCTask(SpeechTask):
    """Rows hold a recording and its text, whose characters are the tokenizer's. The blank is the padding token."""

    auto_class = AutoModelForCTC
    reads = VALUES
    reads_padding = True
    may_lack_head = True
    answers = frozenset({"labels"})

    def __init__(self, options: SpeechCTC, processor: Any) -> None:
        super().__init__(options, processor)
        self.frames: LatentFrames | None = None
        self._config: Any = None
        self._stored_size: int | None = None
        if self.tokenizer.pad_token_id is None:
            raise RecipeError(
                f"the tokenizer at {self.tokenizer.name_or_path!r} has no padding token",
                expected="one: it stands for the blank, which a frame gives that adds nothing",
                do="add pad_token to tokenizer_config.json",
            )

    # The rows as a whole, and the model's config

    def fit(
        self, rows: Any, checkpoint: Any = None, fields: Mapping[str, Any] = NO_FIELDS, row_name: Any = TRAINED
    ) -> None:
        """Look at how many tokens the checkpoint's head knows."""
        self._stored_size = getattr(checkpoint, "vocab_size", None)

    @property
    def new_head(self) -> bool:
        """Whether the tokenizer has other tokens than the checkpoint's head."""
        return self._stored_size not in (None, len(self.tokenizer))

    def config_overrides(self) -> dict[str, Any]:
        """A head for the tokenizer's tokens; and no layer is skipped at random, for which ranks would wait."""
        return {"vocab_size": len(self.tokenizer), "layerdrop": 0.0}

    def meet(self, config: Any, batch: BatchSizes) -> None:
        """Raise where the architecture is another kind, or has no vector to hide frames behind."""
        check_frames(config)
        self._config = config
        if self.options.mask_time_prob and not (config.mask_time_prob or config.mask_feature_prob):
            raise RecipeError(
                f"task.mask_time_prob={self.options.mask_time_prob}: the model's config has mask_time_prob=0, and so no vector "
                "that stands for what is hidden",
                expected="mask_time_prob above 0 in the config, or nothing to hide",
                do="set task.mask_time_prob=0.0, or, from scratch, model.config={'mask_time_prob': 0.05}",
            )

    def describe(self) -> dict[str, Any]:
        """The fields, and how samples become frames."""
        config = self._config
        return {**super().describe(), "frames": [list(config.conv_kernel), list(config.conv_stride)]}

    # One row

    def tokens(self, text: str) -> list[int]:
        """The tokenizer's own, of the text in task.text_case without task.chars_to_ignore."""
        text = written(text, self.options.text_case, self.options.chars_to_ignore)
        ids: list[int] = self.tokenizer(text, truncation=False, verbose=False)["input_ids"]
        if self.tokenizer.unk_token_id in ids or self.tokenizer.pad_token_id in ids or not ids:
            raise self._unwritable(text)
        return ids

    def _unwritable(self, text: str) -> DataError:
        strange = [char for char in dict.fromkeys(text) if self._is_strange(char)]
        known = sorted(token for token in self.tokenizer.get_vocab() if len(token) == 1)
        return DataError(
            f"task.text_field={self.options.text_field!r} gives {text!r:.60}: the tokenizer does not know "
            f"{first_few(strange, 8) if strange else 'what it says'}",
            expected=f"texts of its characters: {' '.join(known)[:80]}",
            do="set task.text_case to that of these letters, name what is not spoken in task.chars_to_ignore, or spell it out",
        )

    def _is_strange(self, char: str) -> bool:
        ids = self.tokenizer(f"{char}", verbose=False)["input_ids"]
        return bool(char.strip()) and (not ids or self.tokenizer.unk_token_id in ids)

    def size(self, example: Example) -> int:
        """Frames that the model makes of the recording."""
        return max(1, num_frames(self.samples(example), self._config))

    def fitted(self, example: Example, capacity: int, overlong: str, counts: Counts) -> list[Example]:
        """As for all recordings; and there must be a frame for each token, and one between two that are the same."""
        labels = example["labels"]
        needed = len(labels) + int((labels[1:] == labels[:-1]).sum())
        found = num_frames(self.samples(example), self._config)
        if found < needed:
            counts.short_recordings += overlong == "drop"
            what = f"{self.called(example)} has {found} frames, and its text needs {needed}"
            return left_out(
                overlong, what, f"recordings that are long enough for their texts ({len(labels)} tokens here)"
            )
        return super().fitted(example, capacity, overlong, counts)

    def transform(self, example: Example, random: np.random.Generator, *, is_trained: bool) -> Example:
        """The samples, by the feature extractor, and what of their frames and features SpecAugment hides."""
        values = self.extractor(self.sound(example), sampling_rate=self.rate, return_tensors="np")[VALUES][0]
        found = {**example, VALUES: values.astype(np.float32)}
        if is_trained and hides(self.options):
            frames = num_frames(len(values), self._config)
            times, hidden = hidden_parts(self.options, frames, self._config.hidden_size, random)
            found |= {TIMES: times, HIDDEN: hidden}
        return found

    # A batch

    def collate(self, sequences: list[list[Example]]) -> Batch:
        """input_values [B, S], 0 behind the end of each; lengths [B]; labels [B, N] with -100 behind a text's end.

        In training, where anything is hidden, masked_frames [B, T] and masked_features [B, H] besides.
        """
        examples = [sequence[0] for sequence in sequences]
        values = [torch.from_numpy(example[VALUES]) for example in examples]
        batch = {
            VALUES: nn.utils.rnn.pad_sequence(values, True, 0.0),
            LENGTHS: torch.tensor([len(value) for value in values]),
            "labels": padded_labels(examples),
        }
        if TIMES in examples[0]:
            batch[TIMES] = torch.from_numpy(padded_masks([example[TIMES] for example in examples]))
            batch[HIDDEN] = torch.from_numpy(np.stack([example[HIDDEN] for example in examples]))
        return batch

    # The model

    def prepare(self, model: nn.Module) -> None:
        """Compute each recording as if it were alone, and leave the convolutions as they are where that is asked for."""
        self.frames = LatentFrames(model)
        if self.options.freeze_feature_encoder:
            model.freeze_feature_encoder()  # type: ignore[operator]

    def _logits(self, model: Any, batch: Batch) -> tuple[torch.Tensor, list[int]]:
        """Logits [B, T, V], and how many frames each recording has."""
        assert self.frames is not None
        values, samples = batch[VALUES], batch[LENGTHS].tolist()
        self.frames.expect(samples, batch.get(TIMES), batch.get(HIDDEN))
        is_real = torch.arange(values.shape[1], device=values.device) < batch[LENGTHS].unsqueeze(1)
        logits = model(values.to(model.dtype), attention_mask=is_real.long()).logits
        return logits, [num_frames(count, model.config) for count in samples]

    def _loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        logits, frames = self._logits(model, batch)
        labels = batch["labels"]
        lengths = (labels != IGNORED).sum(1)
        # In fp64: sums of probabilities go through all frames, one after the other. The alphabet is small.
        losses = nn.functional.ctc_loss(
            logits.double().log_softmax(-1).transpose(0, 1),
            labels.clamp(min=0),
            torch.tensor(frames, device=labels.device),
            lengths,
            blank=self.tokenizer.pad_token_id,
            reduction="none",
        )
        # What only fills a batch up has no text, and would have to be silent.
        return torch.where(lengths > 0, losses, 0.0).sum().float()

    def loss(self, model: nn.Module, batch: Batch, gradient_scale: float) -> Loss:
        """Minus the log-probabilities of the texts, over all ways to spread their tokens over the frames."""
        return Loss(self._loss(model, batch))

    def evaluate(self, model: nn.Module, batch: Batch) -> Sums:
        """The same, and tokens."""
        return {"loss": float(self._loss(model, batch)), "targets": self.count(batch)}

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """loss per token of the texts."""
        return {"loss": sums["loss"] / max(1.0, sums["targets"])}

    # Texts that are read off

    @cached_property
    def normalize(self) -> Normalize:
        """By task.normalizer."""
        return normalizer(self.options.normalizer)

    def predict(self, model: nn.Module, batch: Batch, examples: Sequence[Example], generate: Generate) -> list[Record]:
        """The likeliest token of each frame, repeats and blanks taken out by the tokenizer."""
        logits, frames = self._logits(model, batch)
        best = logits.argmax(-1).tolist()
        texts = [self.tokenizer.decode(row[:count]).strip() for row, count in zip(best, frames, strict=True)]
        return self.records(examples, texts)

    def reference_text(self, example: Example) -> str:
        """As it is trained: in task.text_case, without task.chars_to_ignore."""
        return written(super().reference_text(example), self.options.text_case, self.options.chars_to_ignore)


def written(text: str, case: str, ignored: str) -> str:
    """`text` in `case`, without the characters `ignored`, and with one space between words."""
    text = text.upper() if case == "upper" else text.lower() if case == "lower" else text
    return " ".join("".join(char for char in text if char not in ignored).split())
