"""The sections of speech recognition: Whisper, which writes what it hears, and encoders trained by CTC."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from toolkit.errors import RecipeError
from toolkit.recipe.numbers import Positive, Rate
from toolkit.recipe.tasks.base import Direction, Task
from toolkit.recipe.tasks.scored import Scored, ScoredText

if TYPE_CHECKING:
    from toolkit.recipe.recipe import Recipe

Score = Literal["wer", "cer", "exact_match"]
MEASURED: Mapping[str, Mapping[str, Direction]] = {
    "wer": {"wer": "falls"},
    "cer": {"cer": "falls"},
    "exact_match": {"exact_match": "rises"},
}
Seconds = Annotated[float, Field(gt=0.0)]


class _Speech(Scored):
    """What both have."""

    measured: ClassVar[Mapping[str, Mapping[str, Direction]]] = MEASURED
    unmeasured: ClassVar[str] = "no text is measured by it"
    cuts: ClassVar[frozenset[str]] = frozenset({"tensor"})
    has_length: ClassVar[bool] = False
    reads_media: ClassVar[bool] = True
    needs: ClassVar[Mapping[str, str]] = {
        "mask_time_length": "mask_time_prob",
        "mask_feature_length": "mask_feature_prob",
        "normalizer": "scores",
    }
    settings: ClassVar[frozenset[str]] = Task.settings | {
        "scores",
        "normalizer",
        "mask_time_prob",
        "mask_time_length",
        "mask_feature_prob",
        "mask_feature_length",
    }

    def check_with(self, recipe: Recipe) -> None:
        """As for every task; recordings are never cut, as their texts would not fit them any more."""
        super().check_with(recipe)
        if recipe.data.overlong in ("truncate", "split"):
            raise RecipeError(
                f"data.overlong={recipe.data.overlong!r} with task.name={self.name!r}",
                expected="'drop' or 'error': the text of a recording is that of the whole, and does not fit a part of it",
                do="set data.overlong='drop', which leaves out and counts recordings longer than task.max_duration_s and texts "
                "longer than task.target_length",
            )


class SpeechSeq2Seq(_Speech, ScoredText):
    """Write what is said in a recording, with an encoder of sound and a decoder of text: Whisper."""

    implementation: ClassVar[str] = "toolkit.tasks.speech.whisper:SpeechSeq2SeqTask"
    settings: ClassVar[frozenset[str]] = _Speech.settings | {"num_beams", "max_new_tokens"}
    identity: ClassVar[frozenset[str]] = frozenset({"freeze_encoder"})
    needs: ClassVar[Mapping[str, str]] = {**_Speech.needs, "task": "language"}

    name: Literal["speech_seq2seq"] = "speech_seq2seq"
    """Speech recognition by Whisper."""
    audio_field: str = "audio"
    """Column with the recording: the path of a file (WAV, FLAC, Ogg, MP3), {"bytes", "path"}, or {"array", "sampling_rate"}."""
    text_field: str = "text"
    """Column with what is said."""
    language: str | None = None
    """Language of the texts, as Whisper names it ("german") or its code ("de"): a multilingual checkpoint needs it, one of English alone takes none."""
    task: Literal["transcribe", "translate"] = "transcribe"
    """What a multilingual checkpoint is told to do: write down what is said, or write it in English."""
    text_prefix: str = ""
    """Put before every text. Whisper's own texts begin with a space, transformers' example trains them as they are; a few recordings are learned better with " "."""
    max_duration_s: Seconds = 30.0
    """Longest recording, in seconds; 30 is all that Whisper reads. Shorter ones are filled up to 30 s in any case."""
    target_length: Positive = 448
    """Longest text, in tokens, with those of language and task and its end included."""
    freeze_encoder: bool = False
    """Leave the encoder as it is: half the work, for recordings like those that the checkpoint knows and texts of another kind."""
    label_smoothing: Rate = 0.0
    """Share of the target's probability spread evenly over all tokens (Szegedy et al. 2016, arXiv 1512.00567)."""
    mask_time_prob: Rate = 0.0
    """SpecAugment (Park et al. 2019, arXiv 1904.08779): share of a recording's frames that training hides, in stretches; in place of the config's own field."""
    mask_time_length: Positive = 10
    """Frames of a hidden stretch, of 10 ms."""
    mask_feature_prob: Rate = 0.0
    """Share of the frequency bands that training hides, in stretches; in place of the config's own field."""
    mask_feature_length: Positive = 10
    """Bands of a hidden stretch."""
    scores: tuple[Score, ...] = ("wer", "cer")
    """What the texts written for the held-out set are measured by: error rates of words and of characters (jiwer), the share without an error; empty: nothing is generated."""
    normalizer: Literal["auto", "english", "basic", "none"] = "auto"
    """How texts are made alike before `scores`: Whisper's own rules for English (numbers as digits, spelling, contractions) or for all languages (case and punctuation); "auto": by language."""
    num_beams: Positive = 1
    """Beams of generation, for `scores`; 1: greedy."""
    max_new_tokens: Positive | None = None
    """Longest written text, in tokens; None: target_length, as far as the model has positions."""

    def check_with(self, recipe: Recipe) -> None:
        """As for all speech; drawn weights cannot stay as they are, and sorting by length would have no effect."""
        super().check_with(recipe)
        _check_frozen(recipe, "freeze_encoder", self.freeze_encoder)
        if recipe.data.group_by_length:
            raise RecipeError(
                f"data.group_by_length=True with task.name={self.name!r}",
                expected="False: Whisper reads 30 s of every recording, so none is padded to another",
                do="set data.group_by_length=False",
            )


class SpeechCTC(_Speech):
    """Spell what is said in a recording by an encoder of sound alone, trained by CTC: wav2vec 2.0, HuBERT and their kin."""

    implementation: ClassVar[str] = "toolkit.tasks.speech.ctc:SpeechCTCTask"
    identity: ClassVar[frozenset[str]] = frozenset({"freeze_feature_encoder"})

    name: Literal["speech_ctc"] = "speech_ctc"
    """Speech recognition by CTC (Graves et al. 2006)."""
    audio_field: str = "audio"
    """Column with the recording: the path of a file (WAV, FLAC, Ogg, MP3), {"bytes", "path"}, or {"array", "sampling_rate"}."""
    text_field: str = "text"
    """Column with what is said."""
    text_case: Literal["keep", "upper", "lower"] = "keep"
    """Write texts in the case of the tokenizer's letters."""
    chars_to_ignore: str = ""
    """Characters taken out of the texts, such as ",.?!": whatever else the tokenizer does not know is an error."""
    max_duration_s: Seconds = 20.0
    """Longest recording, in seconds."""
    target_length: Positive = 1024
    """Longest text, in tokens."""
    freeze_feature_encoder: bool = True
    """Leave the convolutions that turn samples into frames as they are, as is usual from a pretrained checkpoint."""
    mask_time_prob: Rate = 0.05
    """SpecAugment (Park et al. 2019, arXiv 1904.08779): share of a recording's frames that training hides behind the model's own mask vector, in stretches; in place of the config's own field."""
    mask_time_length: Positive = 10
    """Frames of a hidden stretch, of 20 ms."""
    mask_feature_prob: Rate = 0.0
    """Share of the features that training hides in all frames, in stretches; in place of the config's own field."""
    mask_feature_length: Positive = 10
    """Features of a hidden stretch."""
    scores: tuple[Score, ...] = ("wer", "cer")
    """What the texts read off the held-out set are measured by: error rates of words and of characters (jiwer), the share without an error."""
    normalizer: Literal["english", "basic", "none"] = "none"
    """How texts are made alike before `scores`: Whisper's own rules for English (numbers as digits, spelling, contractions) or for all languages (case and punctuation)."""

    def check_with(self, recipe: Recipe) -> None:
        """As for all speech; drawn convolutions cannot stay as they are."""
        super().check_with(recipe)
        _check_frozen(recipe, "freeze_feature_encoder", self.freeze_feature_encoder)


def _check_frozen(recipe: Recipe, field: str, is_frozen: bool) -> None:
    """Raise RecipeError where what is left as it is would be what was drawn."""
    if is_frozen and recipe.model.weights == "random":
        raise RecipeError(
            f"task.{field}=True with model.weights='random'",
            expected="False: from scratch all weights have to be learned",
            do=f"set task.{field}=False",
        )
