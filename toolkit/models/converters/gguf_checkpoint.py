"""A GGUF file becomes an ordinary Hugging Face directory: config, safetensors, tokenizer, chat template, generation defaults."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from toolkit.models.quiet import silent


def convert(source: Path, out: Path) -> None:
    """Write the causal language model in the GGUF file `source` to the directory `out` in bf16.

    bf16 and not fp32, because a recipe may load in either: rounded once here, fp32 and bf16 runs start from the same numbers.
    The rounding is far below the loss of the 4-bit blocks themselves, and the checkpoint has half the size.
    """
    with silent():
        loaded = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        model = _without_quantization(loaded)
        _repair_tokenizer(tokenizer, source, model.config.max_position_embeddings)
        model.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        model.to(torch.bfloat16).save_pretrained(out)
        tokenizer.save_pretrained(out)


def _without_quantization(loaded: PreTrainedModel) -> PreTrainedModel:
    """A fresh model with `loaded`'s weights: transformers keeps calling the plain fp32 model quantized and refuses to save it."""
    fields = loaded.config.to_dict()
    fields.pop("quantization_config", None)
    fields.pop("_name_or_path", None)
    fields.pop("_model_name_or_path", None)
    if "rms_norm_eps" in fields:  # stored as float32: 9.99999975e-06 is the 1e-05 of the original
        fields["rms_norm_eps"] = float(str(np.float32(fields["rms_norm_eps"])))
    model = AutoModelForCausalLM.from_config(type(loaded.config).from_dict(fields), dtype=torch.float32)
    model.load_state_dict(loaded.state_dict(), strict=True)
    return model


def _repair_tokenizer(tokenizer: PreTrainedTokenizerFast, source: Path, max_length: int) -> None:
    """Give `tokenizer` what transformers does not read from the file: the digit rule, the longest input, no path of this host."""
    field = gguf.GGUFReader(source).fields.get("tokenizer.ggml.pre")
    if field is not None and field.contents() == "smollm":
        # llama.cpp splits on "\p{N}" before the GPT-2 expression for this name, so that each digit stands alone.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    tokenizer.model_max_length = max_length
    tokenizer.init_kwargs.pop("name_or_path", None)
    tokenizer.name_or_path = ""
