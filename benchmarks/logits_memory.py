"""Memory and time of a language model's loss: the toolkit's linear_cross_entropy against the full logits.

Forward and backward of the output head and the loss alone, from hidden states to their gradient and the head's. The
full logits go the usual way: a matrix product, a copy in fp32, torch's cross entropy. Memory is the peak above what a
process holds with the inputs in place, the gradients included, each side in a process of its own; for the time the
two take turns in one process, on a CPU with half of the cores, as one of two ranks has. Every token has a target here; in instruction tuning linear_cross_entropy also skips
those without.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from harness.page import number_format, parser, publish, table
from harness.ranks import is_rank, measure, report

SIDES = {"full": "full logits", "fused": "linear_cross_entropy"}


def main(arguments: list[str]) -> None:
    """Measure and publish."""
    made = parser(__doc__, __file__)
    made.add_argument("--measure", choices=[*SIDES, "time"], help=argparse.SUPPRESS)
    made.add_argument("--dtype", choices=("bfloat16", "float32"), help=argparse.SUPPRESS)
    options = made.parse_args(arguments)
    tokens, vocabulary, width = (256, 2048, 64) if options.tiny else (4096, 49152, 576)
    if is_rank():
        losses = build_losses(options.dtype, tokens, vocabulary, width)
        report(take_turns(losses) if options.measure == "time" else measure_memory(losses[options.measure]))
        return
    rows, formats = [], ["bfloat16"] if options.tiny or number_format() == "bf16" else []
    for dtype in formats if options.tiny else [*formats, "float32"]:
        memory, seconds, loss = measure_dtype(arguments, dtype)
        for side, name in SIDES.items():
            rows.append([f"{name}, {dtype}", f"{memory[side]:.2f}", f"{seconds[side]:.2f}", f"{loss[side]:.5f}"])
        less, faster = (values["full"] / values["fused"] for values in (memory, seconds))
        rows.append([f"full logits / linear_cross_entropy, {dtype}", f"**{less:.1f}**", f"{faster:.2f}", ""])
    lines = table(["", "peak memory, GiB", "time, s", "loss per token"], rows)
    setting = f"{tokens:,} tokens, vocabulary {vocabulary:,}, width {width}."
    left_out = [] if formats else ["Not measured: bfloat16, for which this processor has no instructions."]
    publish(options, "Memory of the loss", [str(__doc__).strip(), lines, setting, *left_out])


def measure_dtype(arguments: list[str], dtype: str) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """Peak memory in GiB, seconds and loss per token of both sides."""

    def ask(what: str) -> Any:
        return measure(__file__, [*arguments, "--measure", what, "--dtype", dtype], 1)[0]

    found = {side: ask(side) for side in SIDES}
    memory, loss = ({side: result[key] for side, result in found.items()} for key in ("gib", "loss"))
    return memory, ask("time"), loss


def build_losses(dtype: str, tokens: int, vocabulary: int, width: int) -> dict[str, Callable[[], float]]:
    """Side -> a function that does one forward and backward pass and returns the loss per token."""
    import torch
    from torch.nn.functional import cross_entropy

    from toolkit.models.cross_entropy import linear_cross_entropy

    # The share of one of two ranks on this host, as in training on CPUs.
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // 2))
    torch.manual_seed(0)
    place = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = {"bfloat16": torch.bfloat16, "float32": torch.float32}[dtype]
    hidden = torch.randn(tokens, width, device=place).to(kind).requires_grad_()
    weight = (torch.randn(vocabulary, width, device=place) / width**0.5).to(kind).requires_grad_()
    targets = torch.randint(vocabulary, (tokens,), device=place)

    def full() -> torch.Tensor:
        return cross_entropy((hidden @ weight.T).float(), targets)

    def fused() -> torch.Tensor:
        return linear_cross_entropy(hidden, weight, None, targets, gradient_scale=1.0 / tokens) / tokens

    def both_ways(loss: Callable[[], torch.Tensor]) -> float:
        hidden.grad = weight.grad = None
        value = loss()
        value.backward()
        if place.type == "cuda":
            torch.cuda.synchronize()
        return float(value.detach())

    # Threads and kernels are set up here, and counted in neither side.
    (hidden[:2] @ weight[:16].T).float().sum().backward()
    hidden.grad = weight.grad = None
    return {"full": lambda: both_ways(full), "fused": lambda: both_ways(fused)}


def measure_memory(loss: Callable[[], float]) -> dict[str, float]:
    """Peak memory of one pass above what is there before, and its loss."""
    from harness.memory import peak_gib_of

    losses: list[float] = []
    return {"gib": peak_gib_of(lambda: losses.append(loss())), "loss": losses[0]}


def take_turns(losses: dict[str, Callable[[], float]]) -> dict[str, float]:
    """Side -> median seconds of a pass, after one that does not count."""
    seconds: dict[str, list[float]] = {side: [] for side in losses}
    for _ in range(4):
        for side, loss in losses.items():
            began = time.perf_counter()
            loss()
            seconds[side].append(time.perf_counter() - began)
    return {side: statistics.median(values[1:]) for side, values in seconds.items()}


if __name__ == "__main__":
    main(sys.argv[1:])
