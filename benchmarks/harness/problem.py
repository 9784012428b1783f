"""A random Llama over made-up words: what benchmarks train where only the arithmetic matters."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def write_problem(folder: Path, *, rows: int, longest: int, split: bool, vocab_size: int, **sizes: Any) -> Any:
    """Write folder/model (fp32, `sizes` are fields of its configuration), folder/tokenizer and folder/rows.jsonl, `rows`
    texts of up to `longest` tokens (`split` as in write_rows). Returns the model."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils.logging import disable_progress_bar

    from toolkit.parity.words import write_rows, write_tokenizer

    write_tokenizer(folder / "tokenizer", vocab_size)
    write_rows(folder / "rows.jsonl", "causal_lm", split=split, count=rows, longest=longest, size=vocab_size, seed=0)
    config = LlamaConfig(vocab_size=vocab_size, pad_token_id=0, bos_token_id=1, eos_token_id=2, **sizes)
    torch.manual_seed(0)
    disable_progress_bar()
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder / "model")
    return model
