"""A sequence-to-sequence checkpoint assembled from an encoder's: its layers are both the encoder and the decoder.

Rothe, Narayan and Severyn, "Leveraging Pre-trained Checkpoints for Sequence Generation Tasks", 2020, call it BERT2BERT.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoTokenizer, EncoderDecoderModel, GenerationConfig

from toolkit.models.quiet import silent

_SEED = 0


def assemble(encoder: Path, out: Path) -> None:
    """Write an EncoderDecoderModel made of the BERT checkpoint `encoder` to the directory `out`, in its precision.

    Encoder, the decoder's self-attention, its feed-forward layers and both embeddings are those of the checkpoint. New, and
    drawn from a fixed seed, are the cross-attention and the head before the tied embeddings. Sequences to write begin
    with [CLS] and end with [SEP].
    """
    with silent(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        model = EncoderDecoderModel.from_encoder_decoder_pretrained(str(encoder), str(encoder))
        tokenizer = AutoTokenizer.from_pretrained(encoder)
        tokens = {
            "decoder_start_token_id": tokenizer.cls_token_id,
            "eos_token_id": tokenizer.sep_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        model.config.update(tokens | {"vocab_size": model.config.decoder.vocab_size})
        for part in (model.config.encoder, model.config.decoder):
            part.update({"_name_or_path": ""})  # a path of this host
        model.generation_config = GenerationConfig(**tokens, max_length=model.config.decoder.max_position_embeddings)
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
