"""The processor of a speech model: the feature extractor that its sound goes through, and the tokenizer of its texts."""

from __future__ import annotations

from typing import Any

from transformers import AutoProcessor, PreTrainedTokenizerBase

from toolkit.errors import ModelError
from toolkit.models.assets import resolve
from toolkit.models.files import check_files, unreadable
from toolkit.models.loading import READ_ERRORS
from toolkit.models.quiet import quiet
from toolkit.recipe import Model


def load_speech_processor(model: Model, reads: str) -> Any:
    """The recipe's processor, whose features are called `reads`. Raises ModelError where there is none of that kind."""
    field = "model.path" if model.tokenizer is None else "model.tokenizer"
    name = model.tokenizer or model.path or ""
    source = resolve(name, field)
    check_files(field, source)
    try:
        with quiet():
            processor = AutoProcessor.from_pretrained(source)
    except READ_ERRORS as error:
        raise unreadable("processor", field, name, source, error) from None
    extractor = getattr(processor, "feature_extractor", None)
    tokenizer = getattr(processor, "tokenizer", None)
    if extractor is None or not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ModelError(
            f"{field}={name!r} has a {type(processor).__name__}, which reads no sound",
            expected="a feature extractor (preprocessor_config.json or processor_config.json) beside the tokenizer",
            do=f"set {field} to a checkpoint of speech recognition, with these files",
        )
    found = extractor.model_input_names[0]
    if found != reads:
        raise ModelError(
            f"{field}={name!r} has a {type(extractor).__name__}, which gives {found}",
            expected=f"one that gives {reads}",
            do="choose the task of this checkpoint: speech_seq2seq for Whisper, speech_ctc for wav2vec 2.0 and its kin",
        )
    if getattr(extractor, "dither", 0.0):
        raise ModelError(
            f"{field}={name!r}: its feature extractor has dither={extractor.dither}",
            expected="0.0: noise drawn outside the run's seed would make no run like another",
            do="set dither to 0.0 in its preprocessor_config.json or processor_config.json",
        )
    return processor
