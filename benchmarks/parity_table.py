"""How far the loss curves of every ZeRO stage and offload are from plain single-process PyTorch.

A tiny Llama is trained for 20 steps on packed chats of very different lengths, with the loss on the answers, weight
decay, warm-up, decay and gradient clipping that bites, through the toolkit's own `train`, as 1 and 2 ranks with 1 and
4 micro-batches per rank and step, which together make the same global batch of 8 sequences. Each number is the
largest relative deviation of any step's loss, or gradient norm, in these four layouts from the reference
(tests/parity/reference.py, which uses neither DeepSpeed nor the toolkit's engine, loss or schedule) on the same
micro-batches, in the same number format with fp32 master weights. "Spread" is the largest relative deviation of any two strategies from each other.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for the tests' reference and their server, which forks the ranks
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
# Ranks end without unwinding, which Python's resource tracker would remark on at the end.
os.environ["PYTHONWARNINGS"] = "ignore:resource_tracker:UserWarning"

from harness.page import parser, publish, table  # noqa: E402

DTYPES = ("fp32", "bf16", "fp16")
STEPS = 20
Curves = dict[str, list[float]]
""""loss" and "grad_norm" of each step."""


def main(arguments: list[str]) -> None:
    """Measure and publish."""
    options = parser(__doc__, __file__).parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="parity_table_") as folder:
        os.environ["TOOLKIT_CACHE"] = str(Path(folder) / "cache")
        found = {dtype: deviations(options, dtype, Path(folder)) for dtype in (DTYPES[:1] if options.tiny else DTYPES)}
    header = ["", *(f"{dtype} {what}" for dtype in found for what in ("loss", "grad norm"))]
    names = list(next(iter(found.values())))
    rows = [[name, *(f"{value:.1e}" for dtype in found for value in found[dtype][name])] for name in names]
    publish(options, "Parity with plain PyTorch", [str(__doc__).strip(), table(header, rows)])


def deviations(options: argparse.Namespace, dtype: str, folder: Path) -> dict[str, tuple[float, float]]:
    """Strategy -> largest relative deviation of loss and gradient norm; the last entry is the spread."""
    from tests.distributed import run_distributed
    from tests.parity.strategies import STRATEGIES

    strategies = dict(list(STRATEGIES.items())[:2]) if options.tiny else STRATEGIES
    layouts = {(1, 1): 8} if options.tiny else {(1, 1): 8, (1, 4): 2, (2, 1): 4, (2, 4): 1}
    steps = 4 if options.tiny else STEPS
    problem = build_problem(folder)
    worst: dict[str, tuple[float, float]] = dict.fromkeys([*strategies, "spread"], (0.0, 0.0))
    for (world_size, accumulation), micro_size in layouts.items():
        place = folder / f"{dtype}-{world_size}-{accumulation}"
        # The same micro-batches: in 16 bits, how many rows share a matrix product already moves the last digits.
        (reference,) = run_distributed(reference_curves, 1, build_recipe(problem, dtype, steps, micro_size, {}))
        recipes = [build_recipe(problem, dtype, steps, micro_size, parallel) for parallel in strategies.values()]
        curves = dict(zip(strategies, train_all(recipes, place, world_size), strict=True))
        for name, curve in curves.items():
            worst[name] = _larger(worst[name], _distance(curve, reference))
        for one, other in itertools.combinations(curves.values(), 2):
            worst["spread"] = _larger(worst["spread"], _distance(one, other))
    return worst


def _larger(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    return max(one[0], other[0]), max(one[1], other[1])


def _distance(ours: Curves, wanted: Curves) -> tuple[float, float]:
    loss, norm = (
        max(abs(one - other) / abs(other) for one, other in zip(ours[key], wanted[key], strict=True))
        for key in ("loss", "grad_norm")
    )
    return loss, norm


def train_all(recipes: Sequence[Any], folder: Path, world_size: int) -> list[Curves]:
    """Train the recipes one after the other in the same ranks."""
    from tests.distributed import run_distributed
    from tests.parity.worker import run_recipe

    runs = [(recipe, str(folder / str(number)), None) for number, recipe in enumerate(recipes)]
    records = run_distributed(run_recipe, world_size, runs, timeout_s=600)[0]
    return [{key: [record[key] for record in run] for key in ("loss", "grad_norm")} for run in records]


def reference_curves(rank: int, world_size: int, recipe: Any) -> Curves:
    """The judge's curves; runs in a rank of the tests' server."""
    import torch
    from tests.parity.reference import train
    from transformers import AutoModelForCausalLM

    from tests.parity.worker import global_batches
    from toolkit.recipe.schedules import factor

    _, steps = global_batches(recipe, recipe.steps)
    optimizer = recipe.optimizer
    curve = train(
        AutoModelForCausalLM.from_pretrained(recipe.model.path, dtype=torch.float32),
        steps,
        lambda groups: torch.optim.AdamW(groups, lr=1.0),
        lambda step: optimizer.learning_rate * factor(recipe.schedule, step, recipe.steps),
        dtype=recipe.precision.dtype,
        max_grad_norm=optimizer.max_grad_norm,
        weight_decay=optimizer.weight_decay,
    )
    return {"loss": curve.losses, "grad_norm": curve.norms}


def build_recipe(
    problem: tuple[Path, Path], dtype: Any, steps: int, micro_size: int, parallel: Mapping[str, Any]
) -> Any:
    """The recipe of the parity tests, in one number format, strategy and layout."""
    from tests.parity.strategies import recipe
    from toolkit import Batch, Parallel, Precision

    return recipe(
        "causal_lm",
        *problem,
        batch=Batch(global_size=8, micro_size=micro_size, sequence_length=128),
        # No overflow in the first steps: the reference does not skip any.
        precision=Precision(dtype=dtype, initial_scale_power=8),
        parallel=Parallel(**parallel),
        steps=steps,
    )


def build_problem(folder: Path) -> tuple[Path, Path]:
    """A Llama in fp32 with random weights and a tokenizer of 640 tokens, and 200 chats about the standard library."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils.logging import disable_progress_bar

    from tests.conftest import documented, write_lines

    model, data = folder / "model", folder / "chats.jsonl"
    if data.exists():
        return model, data
    tokenizer = build_tokenizer([text for _, _, text in documented()])
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    disable_progress_bar()
    LlamaForCausalLM(config).save_pretrained(model)
    tokenizer.save_pretrained(model)
    turns = [
        [
            {"role": "user", "content": f"What does {name} do?"},
            {"role": "assistant", "content": text.partition("\n\n")[0]},
        ]
        for name, _, text in documented()[:200]
    ]
    write_lines(data, [{"messages": messages} for messages in turns])
    return model, data


def build_tokenizer(texts: Sequence[str]) -> Any:
    """Byte-level BPE learned from `texts`, with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from tests.conftest import CHAT_TEMPLATE

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


if __name__ == "__main__":
    main(sys.argv[1:])
