"""A Whisper of CTranslate2 becomes an ordinary directory: the same numbers under transformers' names, a processor beside them."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor, WhisperForConditionalGeneration

from tests import speech
from toolkit.models.converters.whisper_ct2 import convert, read_arrays, state_dict

Arrays = dict[str, np.ndarray]


def ct2(model: Any) -> Arrays:
    """The arrays of `model` as CTranslate2 has them: its own names, projections of one attention in one array, fp16."""
    weights = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    found: Arrays = {}

    def layer(theirs: str, *ours: str) -> None:
        found[f"{theirs}/weight"] = np.concatenate([weights[f"{name}.weight"] for name in ours])
        biases = [weights.get(f"{name}.bias", np.zeros(len(weights[f"{name}.weight"]), np.float32)) for name in ours]
        found[f"{theirs}/bias"] = np.concatenate(biases)

    def norm(theirs: str, ours: str) -> None:
        found[f"{theirs}/gamma"], found[f"{theirs}/beta"] = weights[f"{ours}.weight"], weights[f"{ours}.bias"]

    for number in (1, 2):
        layer(f"encoder/conv{number}", f"model.encoder.conv{number}")
    found["decoder/embeddings/weight"] = weights["model.decoder.embed_tokens.weight"]
    for side in ("encoder", "decoder"):
        found[f"{side}/num_heads"] = np.array(2, np.int16)
        found[f"{side}/position_encodings/encodings"] = weights[f"model.{side}.embed_positions.weight"]
        norm(f"{side}/layer_norm", f"model.{side}.layer_norm")
        for index in range(2):
            theirs, ours = f"{side}/layer_{index}", f"model.{side}.layers.{index}"
            norm(f"{theirs}/self_attention/layer_norm", f"{ours}.self_attn_layer_norm")
            layer(f"{theirs}/self_attention/linear_0", *(f"{ours}.self_attn.{part}_proj" for part in "qkv"))
            layer(f"{theirs}/self_attention/linear_1", f"{ours}.self_attn.out_proj")
            if side == "decoder":
                norm(f"{theirs}/attention/layer_norm", f"{ours}.encoder_attn_layer_norm")
                layer(f"{theirs}/attention/linear_0", f"{ours}.encoder_attn.q_proj")
                layer(f"{theirs}/attention/linear_1", f"{ours}.encoder_attn.k_proj", f"{ours}.encoder_attn.v_proj")
                layer(f"{theirs}/attention/linear_2", f"{ours}.encoder_attn.out_proj")
            norm(f"{theirs}/ffn/layer_norm", f"{ours}.final_layer_norm")
            layer(f"{theirs}/ffn/linear_0", f"{ours}.fc1")
            layer(f"{theirs}/ffn/linear_1", f"{ours}.fc2")
    return {name: array.astype(np.float16) if array.dtype == np.float32 else array for name, array in found.items()}


def write(path: Path, arrays: Arrays, spec: str = "WhisperSpec") -> None:
    codes = {np.dtype(np.int8): 1, np.dtype(np.int16): 2, np.dtype(np.float16): 4}

    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    with path.open("wb") as file:
        file.write(struct.pack("<I", 6) + text(spec) + struct.pack("<II", 3, len(arrays)))
        for name, array in arrays.items():
            shape = struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
            content = array.tobytes()
            file.write(text(name) + shape + struct.pack("<BI", codes[array.dtype], len(content)) + content)
        file.write(struct.pack("<I", 1) + text("decoder/projection/weight") + text("decoder/embeddings/weight"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A model, its weights such as fp16 has, and the folder of its file."""
    folder = tmp_path_factory.mktemp("ct2")
    model = WhisperForConditionalGeneration.from_pretrained(speech.whisper(folder / "plain"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half().float())
    write(folder / "model.bin", ct2(model))
    (folder / "tokenizer.json").write_text((folder / "plain" / "tokenizer.json").read_text())
    stated = {"suppress_ids": [1, 2], "suppress_ids_begin": [3], "alignment_heads": [[1, 0]]}
    (folder / "config.json").write_text(json.dumps(stated))
    return model, folder / "model.bin"


def test_the_same_numbers_and_settings(source: tuple[Any, Path], tmp_path: Path) -> None:
    model, file = source
    convert(file, tmp_path)
    found = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path)
    wanted = model.state_dict()
    assert found.state_dict().keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.state_dict().items())
    assert found.proj_out.weight is found.model.decoder.embed_tokens.weight
    config = found.config.to_dict()
    for name in ("d_model", "encoder_ffn_dim", "num_mel_bins", "max_source_positions", "decoder_start_token_id"):
        assert config[name] == getattr(model.config, name), name
    stated = found.generation_config.to_dict()
    assert (stated["suppress_tokens"], stated["begin_suppress_tokens"]) == ([1, 2], [3])
    assert stated["forced_decoder_ids"] == [[1, 266]] and stated["is_multilingual"] is False
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert processor.tokenizer("abc")["input_ids"] == [
        257,
        266,
        *processor.tokenizer.convert_tokens_to_ids(list("abc")),
        256,
    ]
    assert processor.feature_extractor.feature_size == 16


def test_files_of_another_kind_are_refused(source: tuple[Any, Path], tmp_path: Path) -> None:
    arrays, file = read_arrays(source[1]), tmp_path / "model.bin"
    whole = state_dict(arrays)
    assert len(whole) == len(source[0].state_dict())
    with pytest.raises(ValueError, match="the model also has extra/weight"):
        state_dict({**arrays, "extra/weight": arrays["encoder/conv1/bias"]})
    with pytest.raises(ValueError, match="conv1/bias is quantised"):
        state_dict({**arrays, "encoder/conv1/bias": arrays["encoder/conv1/bias"].astype(np.int8)})
    biased = arrays["encoder/layer_0/self_attention/linear_0/bias"].copy()
    biased[16:32] = 1
    with pytest.raises(ValueError, match="has a bias of keys"):
        state_dict({**arrays, "encoder/layer_0/self_attention/linear_0/bias": biased})
    write(file, {}, "TransformerSpec")
    with pytest.raises(ValueError, match="has version 6 and holds TransformerSpec"):
        read_arrays(file)
