"""The processor of a speech model: the feature extractor that its sound goes through, and the tokenizer of its texts."""

from __future__ import annotations

from typing import Any

from transformers import AutoProcessor, PreTrainedTokenizerBase

from toolkit.errors import ModelError
from toolkit.models.loading import ProcessorFiles
from toolkit.recipe import Model


def load_speech_processor(model: Model, reads: str) -> Any:
    """The recipe's processor, whose features are called `reads`. Raises ModelError where there is none of that kind."""
    files = ProcessorFiles.of(model)
    with files.reading("processor"):
        processor = AutoProcessor.from_pretrained(files.folder)
    extractor = getattr(processor, "feature_extractor", None)
    tokenizer = getattr(processor, "tokenizer", None)
    if extractor is None or not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ModelError(
            f"{files.field}={files.name!r} has a {type(processor).__name__}, which reads no sound",
            expected="a feature extractor (preprocessor_config.json or processor_config.json) beside the tokenizer",
            do=f"set {files.field} to a checkpoint of speech recognition, with these files",
        )
    found = extractor.model_input_names[0]
    if found != reads:
        raise ModelError(
            f"{files.field}={files.name!r} has a {type(extractor).__name__}, which gives {found}",
            expected=f"one that gives {reads}",
            do="choose the task of this checkpoint: speech_seq2seq for Whisper, speech_ctc for wav2vec 2.0 and its kin",
        )
    if getattr(extractor, "dither", 0.0):
        raise ModelError(
            f"{files.field}={files.name!r}: its feature extractor has dither={extractor.dither}",
            expected="0.0: noise drawn outside the run's seed would make no run like another",
            do="set dither to 0.0 in its preprocessor_config.json or processor_config.json",
        )
    return processor
