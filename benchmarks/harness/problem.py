"""A random Llama over made-up words: what benchmarks train where only the arithmetic matters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_problem(folder: Path, *, rows: int, longest: int, split: bool, vocab_size: int, **sizes: Any) -> Any:
    """Write folder/model (fp32, `sizes` are fields of its configuration), folder/tokenizer and folder/rows.jsonl, `rows`
    texts of up to `longest` tokens (`split` as in write_rows). Returns the model."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils.logging import disable_progress_bar

    from toolkit.data.words import write_rows, write_tokenizer

    write_tokenizer(folder / "tokenizer", vocab_size)
    write_rows(folder / "rows.jsonl", "causal_lm", split=split, count=rows, longest=longest, size=vocab_size, seed=0)
    config = LlamaConfig(vocab_size=vocab_size, pad_token_id=0, bos_token_id=1, eos_token_id=2, **sizes)
    torch.manual_seed(0)
    disable_progress_bar()
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder / "model")
    return model


def recipe_of(folder: Path, parallel: Mapping[str, Any], *, global_size: int, length: int, steps: int) -> Any:
    """The recipe that trains what `write_problem` has written: fp32, AdamW, micro-batches of one unpacked sequence of
    `length` tokens; `parallel` is its parallel section."""
    from toolkit import Batch, Checkpoint, Data, Model, Optimizer, Parallel, Precision, Recipe, Schedule

    return Recipe(
        model=Model(path=str(folder / "model"), tokenizer=str(folder / "tokenizer")),
        data=Data(train=str(folder / "rows.jsonl"), packing=False, prefetch=0),
        batch=Batch(global_size=global_size, micro_size=1, sequence_length=length),
        optimizer=Optimizer(learning_rate=1e-4, implementation="torch"),
        schedule=Schedule(type="constant"),
        precision=Precision(dtype="fp32"),
        parallel=Parallel(**parallel),
        checkpoint=Checkpoint(export=False),
        steps=steps,
    )
