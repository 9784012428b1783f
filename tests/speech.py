"""Tiny speech models with their own processors, and recordings whose sound says what is said: a tone for each letter."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

RATE = 16_000
LETTERS = "abcdefgh "
LANGUAGES = ("en", "zh", "de")
"""Of a tiny Whisper: the first of the real one's, in its order."""
WINDOW_S = 1
"""Seconds that a tiny Whisper reads; 30 would take 30 times as long."""


def tone(text: str, rate: int = RATE, letter_s: float = 0.06) -> np.ndarray:
    """A sine for each letter, a little noise over all; the same for the same text."""
    times = np.arange(int(letter_s * rate)) / rate
    pieces = [np.sin(2 * np.pi * (300 + 220 * LETTERS.index(letter)) * times) for letter in text]
    noise = np.random.default_rng(len(text)).normal(0, 0.01, len(pieces) * len(times))
    return (0.5 * np.concatenate(pieces) + noise).astype(np.float32)


def encoded(samples: np.ndarray, rate: int = RATE, kind: str = "WAV", subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


def texts(count: int) -> list[str]:
    """Of very different lengths, none with a letter twice in a row."""
    random = np.random.default_rng(7)
    found = []
    for number in range(count):
        letters = [LETTERS[random.integers(8)]]
        while len(letters) < 3 + number * 5 % 9:
            letter = LETTERS[random.integers(8)]
            if letter != letters[-1]:
                letters.append(letter)
        found.append("".join(letters))
    return found


def recordings(folder: Path, count: int = 24, rate: int = RATE, *, other: bool = False) -> Path:
    """A folder of WAV files, and a JSONL file that names them, which is returned; `other`: a second column that does, too."""
    (folder / "sound").mkdir(parents=True, exist_ok=True)
    rows = []
    for number, text in enumerate(texts(count)):
        (folder / "sound" / f"{number}.wav").write_bytes(encoded(tone(text, rate), rate))
        more = {"other": f"sound/{count - 1 - number}.wav"} if other else {}
        rows.append({"audio": f"sound/{number}.wav", "text": text, **more})
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def whisper_tokenizer(folder: Path) -> Any:
    from tokenizers import pre_tokenizers
    from transformers import WhisperTokenizer

    special = ["<|endoftext|>", "<|startoftranscript|>", *(f"<|{code}|>" for code in LANGUAGES)]
    special += [
        "<|translate|>",
        "<|transcribe|>",
        "<|startoflm|>",
        "<|startofprev|>",
        "<|nospeech|>",
        "<|notimestamps|>",
    ]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    # As in the real ones the special tokens follow the others, that of no times last of all.
    vocabulary = {token: number for number, token in enumerate([*letters, *special])}
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = WhisperTokenizer(
        vocab=vocabulary, merges=[], pad_token="<|endoftext|>", additional_special_tokens=special[1:]
    )
    assert len(tokenizer) == len(vocabulary)
    return tokenizer


def whisper_processor(folder: Path) -> Any:
    from transformers import WhisperFeatureExtractor, WhisperProcessor

    return WhisperProcessor(WhisperFeatureExtractor(feature_size=16, chunk_length=WINDOW_S), whisper_tokenizer(folder))


def ctc_processor(folder: Path, norm: str = "group") -> Any:
    from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2Processor

    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=norm == "layer")
    return Wav2Vec2Processor(extractor, ctc_tokenizer(folder))


def whisper(folder: Path, *, multilingual: bool = False, **fields: Any) -> Path:
    """Random Whisper of 2 + 2 layers, width 16, that reads one second."""
    import torch
    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

    processor = whisper_processor(folder)
    tokenizer = processor.tokenizer
    ids = tokenizer.get_vocab()
    end, start, no_times = (ids[f"<|{name}|>"] for name in ("endoftext", "startoftranscript", "notimestamps"))
    config = WhisperConfig(
        vocab_size=len(tokenizer), num_mel_bins=16, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_source_positions=50 * WINDOW_S,
        max_target_positions=32, pad_token_id=end, bos_token_id=end, eos_token_id=end, decoder_start_token_id=start,
        begin_suppress_tokens=None, init_std=0.3, **fields,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = WhisperForConditionalGeneration(config)
    stated = {"is_multilingual": False, "forced_decoder_ids": [[1, no_times]]}
    if multilingual:
        languages = {f"<|{code}|>": ids[f"<|{code}|>"] for code in LANGUAGES}
        tasks = {name: ids[f"<|{name}|>"] for name in ("transcribe", "translate")}
        forced = [[1, None], [2, tasks["transcribe"]]]
        stated = {"is_multilingual": True, "lang_to_id": languages, "task_to_id": tasks, "forced_decoder_ids": forced}
    model.generation_config = GenerationConfig(
        bos_token_id=end, eos_token_id=end, pad_token_id=end, decoder_start_token_id=start, max_length=32,
        suppress_tokens=[ids["z"]], begin_suppress_tokens=[ids["q"], end], no_timestamps_token_id=no_times,
        return_timestamps=False, **stated,
    )  # fmt: skip
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def ctc_tokenizer(folder: Path) -> Any:
    from transformers import Wav2Vec2CTCTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    tokens = ["<pad>", "<s>", "</s>", "<unk>", "|", *LETTERS.strip()]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    return Wav2Vec2CTCTokenizer(folder / "vocab.json")


def wav2vec2(folder: Path, kind: str = "wav2vec2", *, norm: str = "group", **fields: Any) -> Path:
    """Random wav2vec2 or hubert of 2 layers, width 16, with a head; a frame is 10 ms."""
    import torch
    from transformers import AutoConfig, AutoModelForCTC

    processor = ctc_processor(folder, norm)
    tokenizer = processor.tokenizer
    config = AutoConfig.for_model(kind, **{
        "vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "conv_dim": [16, 16], "conv_kernel": [40, 8], "conv_stride": [40, 4],
        "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "feat_extract_norm": norm,
        "do_stable_layer_norm": norm == "layer", "pad_token_id": tokenizer.pad_token_id, "initializer_range": 0.2,
        "num_feat_extract_layers": 2, **fields,
    })  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCTC.from_config(config)
        with torch.no_grad():  # so strong that frames differ
            for name, parameter in model.named_parameters():
                if "layer_norm" in name and name.endswith("bias"):
                    parameter.normal_(0.0, 0.1)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
