"""Time of pipeline, tensor and sequence parallelism against DeepSpeed's own engines.

Each kind trains the same Llama in fp32 from the same weights on the same random tokens (unpacked sequences), on two
ranks, with ZeRO-1 and the same DeepSpeed configuration. The bare side is what a user of DeepSpeed writes: pipeline, a
PipelineModule over the same two stages with a loss function; tensor, `deepspeed.initialize` with
`tensor_parallel.autotp_size`; sequence, the loop of DeepSpeed's Ulysses tutorial with its attention, its loader and its
gathered loss. All bare sides compute full logits (of a small vocabulary). The toolkit's side is the engine's `train_step`, without
data loading and metrics, which step_overhead.py measures.

The two sides are processes of their own. They take steps in turns and with a changing order, so that a slow moment of
the machine hits both, and neither computes while the other does. GiB is the peak of the rank that needs most, above what
the process held before it loaded the model; what a rank saves shows at a larger model (parallel_memory.py).
"""

from __future__ import annotations

import argparse
import operator
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from harness.engine import built, configured
from harness.page import parser, publish, table, tracked
from harness.problem import recipe_of, write_problem
from harness.ranks import is_rank, measure, report, shared_folder
from harness.tokens import Batches, random_steps

DEGREE = 2
KINDS = ("pipeline", "tensor", "sequence")
"""Fields of the recipe's parallel section."""
SIDES = ("toolkit", "bare")
ACCUMULATION = 4
WARM_UP = 2
"""Steps not counted: allocators and kernels settle."""


def main(arguments: list[str]) -> None:
    """Measure and publish."""
    made = parser(__doc__, __file__)
    made.add_argument("--steps", type=int, help="steps of each side that count (default 20; 2 with --tiny)")
    made.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    made.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = made.parse_args(arguments)
    options.steps = options.steps or (2 if options.tiny else 20)
    if is_rank():
        report(measure_rank(options))
        return
    with tempfile.TemporaryDirectory(prefix="parallel_overhead_") as folder:
        about = build_problem(options, Path(folder))
        found = {
            kind: measure(__file__, [*arguments, "--kind", kind, "--folder", folder], 2 * DEGREE)
            for kind in tracked(KINDS, "kinds of parallelism")
        }
    _publish(options, about, found)


def _publish(options: argparse.Namespace, about: str, found: dict[str, list[dict[str, Any]]]) -> None:
    rows = []
    for kind, ranks in found.items():
        ours, bare = ([rank for rank in ranks if rank["side"] == side] for side in SIDES)
        # A step is over when the slowest rank is done; of processor time the step takes what all ranks take.
        (our_time, bare_time), (our_cpu, bare_cpu) = (
            [_over_ranks(side, key, join) for side in (ours, bare)] for key, join in (("seconds", max), ("cpu", sum))
        )
        low, _, high = statistics.quantiles(map(operator.truediv, our_time, bare_time), n=4)
        our_gib, bare_gib = (max(rank["gib"] for rank in side) for side in (ours, bare))
        apart = max(abs(one - other) / other for one, other in zip(ours[0]["losses"], bare[0]["losses"], strict=True))
        rows.append(
            [
                kind,
                f"{statistics.median(our_time):.3f}",
                f"{statistics.median(bare_time):.3f}",
                f"**{statistics.median(our_time) / statistics.median(bare_time):.3f}**",
                f"{low:.3f} to {high:.3f}",
                f"{statistics.median(our_cpu) / statistics.median(bare_cpu):.3f}",
                f"{our_gib:.2f}",
                f"{bare_gib:.2f}",
                f"{apart:.1e}",
            ]
        )
    header = ["", "toolkit, s", "bare, s", "ratio", "quartiles of pairs", "processor time", "toolkit, GiB", "bare, GiB"]
    header += ["losses apart"]
    setting = (
        f"{DEGREE} ranks, {about}; {options.steps} pairs of steps. s: median seconds per step. ratio: of the medians; processor time: the same of what the processors worked, which other programs on the machine disturb less. "
        "losses apart: largest relative difference of any step's loss between the sides."
    )
    parts = [str(__doc__).strip(), table(header, rows), setting]
    publish(options, "Parallelism against DeepSpeed's own engines", parts)


def _over_ranks(ranks: list[dict[str, Any]], key: str, join: Callable[[Iterable[float]], float]) -> list[float]:
    return [join(step) for step in zip(*(rank[key] for rank in ranks), strict=True)]


def build_problem(options: argparse.Namespace, folder: Path) -> str:
    """Model, tokenizer and the rows that a recipe must name, in `folder`; says what they are."""
    size = sizes(options)
    model = write_problem(
        folder,
        rows=20,
        longest=64,
        split=True,
        vocab_size=size["vocabulary"],
        hidden_size=size["width"],
        intermediate_size=3 * size["width"],
        num_hidden_layers=size["layers"],
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=512,
        tie_word_embeddings=False,
    )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return (
        f"a Llama with {size['layers']} layers and {parameters / 1e6:.0f} M parameters, "
        f"{ACCUMULATION} micro-batches of {size['length']} tokens per step"
    )


def sizes(options: argparse.Namespace) -> dict[str, int]:
    """Of the model and its sequences; a micro-batch is one sequence."""
    if options.tiny:
        return {"width": 64, "layers": 2, "vocabulary": 128, "length": 32}
    return {"width": 512, "layers": 8, "vocabulary": 8192, "length": 256}


def build_recipe(options: argparse.Namespace) -> Any:
    """What both sides train; the bare one takes its DeepSpeed configuration from it."""
    parallel = {"zero_stage": 1, options.kind: DEGREE}
    steps, length = WARM_UP + options.steps, sizes(options)["length"]
    return recipe_of(options.folder, parallel, global_size=ACCUMULATION, length=length, steps=steps)


def measure_rank(options: argparse.Namespace) -> dict[str, Any]:
    """One rank of one side: seconds and loss of every counted step, and the peak of memory."""
    # What is imported is not the model's memory.
    import harness.bare  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401
    from harness.memory import peak_gib_of

    number = int(os.environ["RANK"])
    side = SIDES[number // DEGREE]
    join_side(side, number % DEGREE)
    os.environ["TOOLKIT_CACHE"] = str(options.folder / "cache")
    found: dict[str, Any] = {"side": side, "seconds": [], "cpu": [], "losses": []}
    found["gib"] = peak_gib_of(lambda: _take_steps(options, side, found))
    return found


def join_side(side: str, rank: int) -> None:
    """Make this process rank `rank` of `side`, which the other side knows nothing of."""
    from toolkit.engine import process

    # Where the ranks were forked from a server, they are in one group already; none may leave it before all have come.
    process.barrier()
    process.stop()
    size = str(DEGREE)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=size, LOCAL_WORLD_SIZE=size)
    process.start(process.from_environment(), init_method=f"file://{shared_folder()}/{side}")


def _take_steps(options: argparse.Namespace, side: str, found: dict[str, Any]) -> None:
    from harness.turns import Turns

    from toolkit.engine import device, process

    turns = Turns(shared_folder() / "turns", SIDES, DEGREE, side)
    step = toolkit_step(options) if side == "toolkit" else bare_step(options)
    size = sizes(options)
    drawn = random_steps(WARM_UP + options.steps, ACCUMULATION, size["length"], size["vocabulary"])
    for index, batches in enumerate(drawn):
        with turns.turn(index):
            process.barrier()
            began, began_cpu = time.perf_counter(), time.process_time()
            loss = step(batches)
            device.synchronize()
            seconds, cpu = time.perf_counter() - began, time.process_time() - began_cpu
        if index >= WARM_UP:
            for key, value in (("seconds", seconds), ("cpu", cpu), ("losses", loss)):
                found[key].append(value)
    process.stop()


def toolkit_step(options: argparse.Namespace) -> Callable[[Batches], float]:
    """The engine that the toolkit builds for the recipe."""
    engine = built(build_recipe(options))
    return lambda batches: engine.train_step(batches, range(len(batches))).loss


def bare_step(options: argparse.Namespace) -> Callable[[Batches], float]:
    """DeepSpeed's own engine for the same configuration."""
    from harness.bare import BARE
    from transformers import AutoConfig

    recipe = build_recipe(options)
    path = recipe.model.path
    return BARE[options.kind](path, configured(recipe, DEGREE, AutoConfig.from_pretrained(path)), DEGREE)


if __name__ == "__main__":
    main(sys.argv[1:])
