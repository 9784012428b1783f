"""A Whisper model of CTranslate2 -> an ordinary Hugging Face directory: config, safetensors, tokenizer, feature extractor.

model.bin is a list of named arrays (https://github.com/OpenNMT/CTranslate2, python/ctranslate2/specs/model_spec.py): lengths
are little-endian, a text is its length in 2 bytes and itself. Queries, keys and values of one attention are one array there.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from toolkit.models.quiet import silent

SPEC = "WhisperSpec"
NUMBERS = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
FLOATS = (np.float32, np.float16)
UNUSED = {"decoder/projection/weight", "decoder/alignment_heads"}
"""Of the arrays with dimensions: the first is the decoder's embedding again."""
ENGLISH_VOCABULARY = 51_864
"""Tokens of the models that know English alone; the others have more."""
END, START, NO_TIMES, BEFORE = "<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>", "<|startofprev|>"
Arrays = dict[str, NDArray[Any]]


def convert(source: Path, out: Path) -> None:
    """Write the model in the file `source`, beside which config.json and tokenizer.json lie, to the directory `out` in fp32.

    The file has fp16, so nothing is rounded.
    """
    arrays = read_arrays(source)
    stated = json.loads((source.parent / "config.json").read_text(encoding="utf-8"))
    with silent():
        shutil.copyfile(source.parent / "tokenizer.json", out / "tokenizer.json")
        tokenizer = WhisperTokenizer.from_pretrained(
            out, bos_token=END, eos_token=END, unk_token=END, pad_token=END, model_max_length=1024
        )
        ids = tokenizer.get_vocab()
        model = WhisperForConditionalGeneration(_config(arrays, ids))
        model.load_state_dict(state_dict(arrays), strict=True)
        model.tie_weights()
        model.generation_config = _generation(model.config, stated, ids)
        model.save_pretrained(out)
        extractor = WhisperFeatureExtractor(feature_size=model.config.num_mel_bins)
        WhisperProcessor(extractor, tokenizer).save_pretrained(out)


def read_arrays(path: Path) -> Arrays:
    """The arrays in `path` by their names. Raises ValueError for a file of another kind."""
    with path.open("rb") as file:
        version = _number(file, "I")
        if version < 4 or (spec := _text(file)) != SPEC:
            raise ValueError(f"{path} has version {version} and holds {spec if version >= 4 else 'something older'}")
        _number(file, "I")  # revision of the spec
        arrays: Arrays = {}
        for _ in range(_number(file, "I")):
            name = _text(file)
            shape = [_number(file, "I") for _ in range(_number(file, "B"))]
            kind = NUMBERS[_number(file, "B")]
            arrays[name] = np.frombuffer(file.read(_number(file, "I")), kind).reshape(shape)
        for _ in range(_number(file, "I")):
            alias = _text(file)
            arrays[alias] = arrays[_text(file)]
        return arrays


def _number(file: BinaryIO, kind: str) -> int:
    found: int = struct.unpack(f"<{kind}", file.read(struct.calcsize(kind)))[0]
    return found


def _text(file: BinaryIO) -> str:
    return file.read(_number(file, "H")).rstrip(b"\0").decode()


def state_dict(arrays: Arrays) -> dict[str, Tensor]:
    """The weights under transformers' names. Raises ValueError where an array is left, or is no floating-point one."""
    names = list(_names(arrays))
    weights: dict[str, Tensor] = {}
    for theirs, ours in names:
        array = arrays[theirs]
        if array.dtype not in FLOATS:
            raise ValueError(f"{theirs} is quantised ({array.dtype})")
        parts = torch.from_numpy(array.astype(np.float32)).chunk(len(ours))
        for name, part in zip(ours, parts, strict=True):
            if not name.endswith("k_proj.bias"):
                weights[name] = part.clone()
            elif part.any():
                raise ValueError(f"{theirs} has a bias of keys, for which Whisper has no place")
    weights["proj_out.weight"] = weights["model.decoder.embed_tokens.weight"]
    left = {name for name, array in arrays.items() if array.ndim} - {theirs for theirs, _ in names} - UNUSED
    if left:
        raise ValueError(f"the model also has {', '.join(sorted(left)[:4])}")
    return weights


def _names(arrays: Arrays) -> Iterator[tuple[str, list[str]]]:
    """(name of an array, transformers' names of the parts that it consists of)."""
    yield from _layer("encoder/conv1", ["model.encoder.conv1"])
    yield from _layer("encoder/conv2", ["model.encoder.conv2"])
    yield "decoder/embeddings/weight", ["model.decoder.embed_tokens.weight"]
    for side in ("encoder", "decoder"):
        yield f"{side}/position_encodings/encodings", [f"model.{side}.embed_positions.weight"]
        yield from _norm(f"{side}/layer_norm", f"model.{side}.layer_norm")
        for index in range(_depth(arrays, side)):
            theirs, ours = f"{side}/layer_{index}", f"model.{side}.layers.{index}"
            yield from _norm(f"{theirs}/self_attention/layer_norm", f"{ours}.self_attn_layer_norm")
            own = [f"{ours}.self_attn.{part}_proj" for part in "qkv"]
            yield from _layer(f"{theirs}/self_attention/linear_0", own)
            yield from _layer(f"{theirs}/self_attention/linear_1", [f"{ours}.self_attn.out_proj"])
            if side == "decoder":
                across = f"{ours}.encoder_attn"
                yield from _norm(f"{theirs}/attention/layer_norm", f"{across}_layer_norm")
                yield from _layer(f"{theirs}/attention/linear_0", [f"{across}.q_proj"])
                yield from _layer(f"{theirs}/attention/linear_1", [f"{across}.k_proj", f"{across}.v_proj"])
                yield from _layer(f"{theirs}/attention/linear_2", [f"{across}.out_proj"])
            yield from _norm(f"{theirs}/ffn/layer_norm", f"{ours}.final_layer_norm")
            yield from _layer(f"{theirs}/ffn/linear_0", [f"{ours}.fc1"])
            yield from _layer(f"{theirs}/ffn/linear_1", [f"{ours}.fc2"])


def _layer(theirs: str, ours: list[str]) -> Iterator[tuple[str, list[str]]]:
    for part in ("weight", "bias"):
        yield f"{theirs}/{part}", [f"{name}.{part}" for name in ours]


def _norm(theirs: str, ours: str) -> Iterator[tuple[str, list[str]]]:
    yield f"{theirs}/gamma", [f"{ours}.weight"]
    yield f"{theirs}/beta", [f"{ours}.bias"]


def _depth(arrays: Arrays, side: str) -> int:
    numbers = [name.split("/")[1].removeprefix("layer_") for name in arrays if name.startswith(f"{side}/layer_")]
    return 1 + max(int(number) for number in numbers if number.isdigit())


def _config(arrays: Arrays, ids: Mapping[str, int]) -> WhisperConfig:
    size, width = arrays["decoder/embeddings/weight"].shape
    return WhisperConfig(
        vocab_size=size,
        d_model=width,
        encoder_layers=_depth(arrays, "encoder"),
        decoder_layers=_depth(arrays, "decoder"),
        encoder_attention_heads=int(arrays["encoder/num_heads"]),
        decoder_attention_heads=int(arrays["decoder/num_heads"]),
        encoder_ffn_dim=len(arrays["encoder/layer_0/ffn/linear_0/weight"]),
        decoder_ffn_dim=len(arrays["decoder/layer_0/ffn/linear_0/weight"]),
        num_mel_bins=arrays["encoder/conv1/weight"].shape[1],
        max_source_positions=len(arrays["encoder/position_encodings/encodings"]),
        max_target_positions=len(arrays["decoder/position_encodings/encodings"]),
        pad_token_id=ids[END],
        bos_token_id=ids[END],
        eos_token_id=ids[END],
        decoder_start_token_id=ids[START],
        begin_suppress_tokens=None,
    )


def _generation(config: WhisperConfig, stated: Mapping[str, Any], ids: Mapping[str, int]) -> GenerationConfig:
    """As openai's checkpoints have it on the hub."""
    is_english = config.vocab_size <= ENGLISH_VOCABULARY
    settings = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
        "decoder_start_token_id": config.decoder_start_token_id,
        "max_length": config.max_target_positions,
        "suppress_tokens": stated["suppress_ids"],
        "begin_suppress_tokens": stated["suppress_ids_begin"],
        "no_timestamps_token_id": ids[NO_TIMES],
        "prev_sot_token_id": ids[BEFORE],
        "max_initial_timestamp_index": 50,
        "alignment_heads": stated["alignment_heads"],
        "return_timestamps": False,
        "is_multilingual": not is_english,
    }
    if is_english:
        # The token between the start and the text, without which the model begins with a time.
        settings["forced_decoder_ids"] = [[1, ids[NO_TIMES]]]
    else:
        settings["lang_to_id"] = {f"<|{code}|>": ids[f"<|{code}|>"] for code in LANGUAGES if f"<|{code}|>" in ids}
        settings["task_to_id"] = {name: ids[f"<|{name}|>"] for name in ("transcribe", "translate")}
    return GenerationConfig(**settings)
