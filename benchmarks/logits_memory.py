"""Memory and time of a language model's loss: the toolkit's linear_cross_entropy against the full logits.

Forward and backward of the output head and the loss alone, from hidden states to their gradient and the head's. The
full logits go the usual way: a matrix product, a copy in fp32, torch's cross entropy. Each side runs in a process of
its own; memory is the peak above what the process holds with the inputs in place, the gradients included.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import Any

from harness.page import parser, publish, table
from harness.ranks import is_rank, measure, report

SIDES = {"full": "full logits", "fused": "linear_cross_entropy"}
ROUNDS = 3


def main(arguments: list[str]) -> None:
    """Measure and publish."""
    made = parser(__doc__, __file__)
    made.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    made.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help=argparse.SUPPRESS)
    options = made.parse_args(arguments)
    tokens, vocabulary, width = (256, 2048, 64) if options.tiny else (4096, 49152, 576)
    if is_rank():
        report(measure_side(options.side, options.dtype, tokens, vocabulary, width))
        return
    rows, rounds = [], 1 if options.tiny else ROUNDS
    for dtype in ("bfloat16",) if options.tiny else ("bfloat16", "float32"):
        found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
        for _ in range(rounds):
            for side, results in found.items():
                results += measure(__file__, [*arguments, "--side", side, "--dtype", dtype], 1)
        full, fused = (_medians(found[side]) for side in SIDES)
        for side, (memory, seconds, loss) in zip(SIDES, (full, fused), strict=True):
            rows.append([f"{SIDES[side]}, {dtype}", f"{memory:.2f}", f"{seconds:.2f}", f"{loss:.5f}"])
        rows.append([f"ratio, {dtype}", f"**{full[0] / fused[0]:.1f}**", f"{full[1] / fused[1]:.2f}", ""])
    lines = table(["", "peak memory, GiB", "time, s", "loss per token"], rows)
    setting = f"{tokens:,} tokens, vocabulary {vocabulary:,}, width {width}; medians of {rounds} processes each, taking turns."
    publish(options, "Memory of the loss", [str(__doc__).strip(), lines, setting])


def _medians(results: list[dict[str, Any]]) -> tuple[float, float, float]:
    memory, seconds, loss = (statistics.median(result[key] for result in results) for key in ("gib", "seconds", "loss"))
    return memory, seconds, loss


def measure_side(side: str, dtype: str, tokens: int, vocabulary: int, width: int) -> dict[str, float]:
    """Peak memory in GiB above the inputs, seconds of the second pass, loss per token."""
    import torch
    from harness.memory import peak_gib_of
    from torch.nn.functional import cross_entropy

    from toolkit.models.cross_entropy import linear_cross_entropy

    torch.manual_seed(0)
    place = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = {"bfloat16": torch.bfloat16, "float32": torch.float32}[dtype]
    hidden = torch.randn(tokens, width, device=place).to(kind).requires_grad_()
    weight = (torch.randn(vocabulary, width, device=place) / width**0.5).to(kind).requires_grad_()
    targets = torch.randint(vocabulary, (tokens,), device=place)

    def loss() -> torch.Tensor:
        if side == "fused":
            return linear_cross_entropy(hidden, weight, None, targets, gradient_scale=1.0 / tokens) / tokens
        return cross_entropy((hidden @ weight.T).float(), targets)

    # A first small pass: threads and kernels are set up, and counted in neither side.
    (hidden[:2] @ weight[:16].T).float().sum().backward()
    hidden.grad = weight.grad = None
    losses: list[float] = []

    def work() -> None:
        value = loss()
        value.backward()
        losses.append(float(value.detach()))

    peak = peak_gib_of(work)
    hidden.grad = weight.grad = None
    began = time.perf_counter()
    work()
    return {"gib": peak, "seconds": time.perf_counter() - began, "loss": losses[0]}


if __name__ == "__main__":
    main(sys.argv[1:])
