"""States: the bytes that a plan says a rank's tensors hold, against those that they do hold, by component.

A small Llama is trained for two steps on real CPU ranks by the toolkit's engine, once for each configuration. Measured
between steps are weights, gradients, masters, optimizer states, averages, staging buffers and buckets; each storage
counts once. Predicted is DeepSpeed's own arithmetic on the rendered configuration, without a process. The last two
columns but two are the most that was held in a step, activations included: planned, and counted operation by operation.
The last two are what a rank sends to others in a step, without norms, losses and counts. Muon's own exchanges at stage 3,
of whole matrices, are not in the plan.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness.page import parser, publish, table, tracked
from harness.problem import recipe_of, write_problem
from harness.ranks import is_rank, measure, report, shared_folder
from harness.traffic import Traffic

BF16, FP32 = {"dtype": "bf16"}, {"dtype": "fp32"}
SUMS16 = {**BF16, "accumulation_dtype": "bf16"}
ALL16 = {**BF16, "master_dtype": "bf16", "state_dtype": "bf16"}
HOST = {"offload_optimizer": "cpu"}
KERNEL = {"optimizer": {"type": "adamw"}}

CASES: dict[str, tuple[int, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "stage 0, fp32": (1, {"zero_stage": 0}, FP32, {}),
    "stage 0, fp32, 2 ranks": (2, {"zero_stage": 0}, FP32, {}),
    "stage 1, fp32": (2, {"zero_stage": 1}, FP32, {}),
    "stage 2, fp32": (2, {"zero_stage": 2}, FP32, {}),
    "stage 3, fp32": (2, {"zero_stage": 3}, FP32, {}),
    "stage 1, bf16": (2, {"zero_stage": 1}, BF16, {}),
    "stage 1, bf16, 1 rank": (1, {"zero_stage": 1}, BF16, {}),
    "stage 2, bf16": (2, {"zero_stage": 2}, BF16, {}),
    "stage 3, bf16": (2, {"zero_stage": 3}, BF16, {}),
    "stage 2, bf16, 4 ranks": (4, {"zero_stage": 2}, BF16, {}),
    "stage 3, bf16, 4 ranks": (4, {"zero_stage": 3}, BF16, {}),
    "stage 1, sums in bf16": (2, {"zero_stage": 1}, SUMS16, {}),
    "stage 2, sums in bf16": (2, {"zero_stage": 2}, SUMS16, {}),
    "stage 3, sums in bf16": (2, {"zero_stage": 3}, SUMS16, {}),
    "stage 1, optimizer offloaded": (2, {"zero_stage": 1, **HOST}, BF16, {}),
    "stage 2, optimizer offloaded": (2, {"zero_stage": 2, **HOST}, BF16, {}),
    "stage 2, optimizer offloaded, DeepSpeed's kernel": (2, {"zero_stage": 2, **HOST}, BF16, KERNEL),
    "stage 2, optimizer offloaded, fp32": (2, {"zero_stage": 2, **HOST}, FP32, {}),
    "stage 3, optimizer offloaded": (2, {"zero_stage": 3, **HOST}, BF16, {}),
    "stage 3, optimizer offloaded, fp32": (2, {"zero_stage": 3, **HOST}, FP32, {}),
    "stage 3, half of the optimizer offloaded": (2, {"zero_stage": 3, **HOST, "offload_ratio": 0.5}, BF16, KERNEL),
    "stage 3, all offloaded": (2, {"zero_stage": 3, **HOST, "offload_param": "cpu"}, BF16, {}),
    "stage 2, bf16 masters and states": (2, {"zero_stage": 2}, ALL16, {}),
    "stage 3, bf16 masters and states": (2, {"zero_stage": 3}, ALL16, {}),
    "stage 2, bf16 masters and states, offloaded": (2, {"zero_stage": 2, **HOST}, ALL16, KERNEL),
    "stage 2, 8-bit states": (2, {"zero_stage": 2}, {**BF16, "state_dtype": "8bit"}, {}),
    "stage 3, 8-bit states": (2, {"zero_stage": 3}, {**BF16, "state_dtype": "8bit"}, {}),
    "2 tensor ranks": (2, {"zero_stage": 1, "tensor": 2}, BF16, {}),
    "2 tensor ranks, stage 3": (4, {"zero_stage": 3, "tensor": 2}, BF16, {}),
    "2 pipeline stages": (2, {"zero_stage": 1, "pipeline": 2}, BF16, {}),
    "2 pipeline stages, fp32": (2, {"zero_stage": 1, "pipeline": 2}, FP32, {}),
    "2 pipeline stages x 2 tensor ranks": (4, {"zero_stage": 1, "pipeline": 2, "tensor": 2}, BF16, {}),
    "2 sequence ranks": (2, {"zero_stage": 2, "sequence": 2}, BF16, {}),
    "2 sequence ranks, stage 3": (2, {"zero_stage": 3, "sequence": 2}, BF16, {}),
    "LoRA, stage 2": (2, {"zero_stage": 2}, BF16, {"lora": {"rank": 16}}),
    "LoRA, stage 3": (2, {"zero_stage": 3}, BF16, {"lora": {"rank": 16}}),
    "DoRA, stage 2": (2, {"zero_stage": 2}, BF16, {"lora": {"rank": 16, "use_dora": True}}),
    "LoRA, 2 tensor ranks": (2, {"zero_stage": 1, "tensor": 2}, BF16, {"lora": {"rank": 16}}),
    "LoRA, 2 pipeline stages": (2, {"zero_stage": 1, "pipeline": 2}, BF16, {"lora": {"rank": 16}}),
    "average weights": (2, {"zero_stage": 2}, BF16, {"optimizer": {"ema_decay": 0.99}}),
    "SGD with momentum, stage 1": (2, {"zero_stage": 1}, BF16, {"optimizer": {"type": "sgd_momentum"}}),
    "Adagrad, stage 1": (2, {"zero_stage": 1}, BF16, {"optimizer": {"type": "adagrad"}}),
    "Adagrad, stage 2": (2, {"zero_stage": 2}, BF16, {"optimizer": {"type": "adagrad"}}),
    "Lion, stage 2": (2, {"zero_stage": 2}, BF16, {"optimizer": {"type": "lion"}}),
    "Muon, stage 1": (2, {"zero_stage": 1}, BF16, {"optimizer": {"type": "muon", "max_grad_norm": 0}}),
    "Muon, stage 3": (2, {"zero_stage": 3}, BF16, {"optimizer": {"type": "muon", "max_grad_norm": 0}}),
}
"""Name -> ranks, the recipe's parallel and precision sections, and what else it says."""

TINY = (
    *("stage 0, fp32", "stage 2, fp32", "stage 1, bf16", "stage 3, bf16", "stage 2, optimizer offloaded"),
    *("2 tensor ranks", "2 pipeline stages", "LoRA, stage 2", "Muon, stage 3", "Adagrad, stage 1"),
)
LARGEST_ERROR = 0.01
LENGTH, GLOBAL_SIZE, STEPS = 64, 4, 2


def main(arguments: list[str]) -> None:
    """Measure and publish."""
    made = parser(__doc__, __file__)
    made.add_argument("--ranks", type=int, help=argparse.SUPPRESS)
    made.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = made.parse_args(arguments)
    if is_rank():
        report([measure_case(name, options.folder) for name in names_of(options)])
        return
    with tempfile.TemporaryDirectory(prefix="plan_states_") as folder:
        build_problem(options, Path(folder))
        found: dict[str, Any] = {}
        for ranks in tracked(sorted({CASES[name][0] for name in names_of(options)}), "world sizes"):
            reported = measure(__file__, [*arguments, "--ranks", str(ranks), "--folder", folder], ranks)
            of_ranks = names_of(argparse.Namespace(tiny=options.tiny, ranks=ranks))
            found |= {name: [one[index] for one in reported] for index, name in enumerate(of_ranks)}
    rows, worst = [], 0.0
    for name in names_of(options):
        cells, error = row(name, found[name])
        worst = max(worst, error)
        rows.append(cells)
    header = ["", "ranks", "components", "predicted, MiB", "measured, MiB", "largest error"]
    header += ["peak of a step predicted, MiB", "measured", "sent in a step predicted, MiB", "measured"]
    said = f"{len(rows)} configurations; largest error of a component {worst:.2%}."
    publish(options, "Predicted and measured states", [str(__doc__).strip(), table(header, rows), said])
    if worst > LARGEST_ERROR:
        raise SystemExit(f"a component is off by {worst:.1%}")


def names_of(options: argparse.Namespace) -> list[str]:
    """The cases that are measured, or those of one world size."""
    names = TINY if options.tiny else tuple(CASES)
    return [name for name in names if getattr(options, "ranks", None) in (None, CASES[name][0])]


def row(name: str, ranks: list[dict[str, Any]]) -> tuple[list[str], float]:
    """One row, and the largest error of a component on any rank; what is less than 0.1% of all is left out."""
    worst, fullest = 0.0, max(ranks, key=lambda rank: sum(rank["measured"].values()))
    for rank in ranks:
        least = 0.001 * sum(rank["measured"].values())
        for component in {*rank["measured"], *rank["predicted"]}:
            real, wanted = (rank[side].get(component, 0) for side in ("measured", "predicted"))
            if max(real, wanted) > least:
                worst = max(worst, abs(wanted - real) / max(real, 1))
    parts = [component for component, size in fullest["measured"].items() if size]
    predicted, measured = (sum(fullest[side].values()) / 2**20 for side in ("predicted", "measured"))
    peaks = [f"{fullest[side] / 2**20:.1f}" if fullest[side] else "" for side in ("planned_peak", "peak")]
    sent = [f"{fullest[side] / 2**20:.2f}" for side in ("planned_sent", "sent")]
    cells = [name, str(CASES[name][0]), ", ".join(parts), f"{predicted:.2f}", f"{measured:.2f}", f"{worst:.2%}"]
    cells += [*peaks, *sent]
    return cells, worst


def build_problem(options: argparse.Namespace, folder: Path) -> None:
    """Model, tokenizer and rows."""
    write_problem(
        folder,
        rows=40,
        longest=64,
        split=True,
        vocab_size=512 if options.tiny else 2048,
        hidden_size=128 if options.tiny else 256,
        intermediate_size=384 if options.tiny else 768,
        num_hidden_layers=4 if options.tiny else 6,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=False,
    )


def recipe_for(name: str, folder: Path) -> Any:
    """The recipe of a case."""
    from toolkit import LoRA, Optimizer, Precision
    from toolkit.recipe.dotted import flat, recipe_of

    _, parallel, precision, other = CASES[name]
    plain = recipe_of_problem(folder, parallel)
    changes: dict[str, Any] = {"precision": Precision(**precision)}
    if "optimizer" in other:
        kernel = {} if other is KERNEL or "type" in other["optimizer"] else {"implementation": "torch"}
        changes["optimizer"] = Optimizer(**other["optimizer"], **kernel)
    if "lora" in other:
        changes["tuning"] = LoRA(**other["lora"])
    return recipe_of(flat(plain.model_copy(update=changes)))


def recipe_of_problem(folder: Path, parallel: dict[str, Any]) -> Any:
    """What all cases share."""
    return recipe_of(folder, parallel, global_size=GLOBAL_SIZE, length=LENGTH, steps=STEPS + 1)


def measure_case(name: str, folder: Path) -> dict[str, Any]:
    """Train two steps, and compare."""
    import gc

    from harness.engine import configured

    from toolkit.ds_config.model_size import UNKNOWN
    from toolkit.engine import process
    from toolkit.engine.held import held_bytes
    from toolkit.models.dtypes import dtype_of
    from toolkit.plan.live_bytes import LiveBytes
    from toolkit.plan.memory import Flight, put_together
    from toolkit.plan.states import count_states
    from toolkit.plan.strategy import hidden_bytes
    from toolkit.plan.subject import Subject, way_of
    from toolkit.plan.volumes import volumes
    from toolkit.train.build import build_engine
    from toolkit.train.inputs import prepare_inputs
    from toolkit.train.progress import Display
    from toolkit.train.run_folder import RunFolder

    os.environ["TOOLKIT_CACHE"] = str(folder / "cache")
    recipe = recipe_for(name, folder)
    me = process.from_environment(recipe.parallel)
    process.start(me)
    display = Display(is_main=False)
    inputs = prepare_inputs(recipe, me.data_rank, me.mesh.data, display)
    trained = None if inputs.adapters is None else inputs.adapters.trained
    config = configured(recipe, me.world_size, inputs.model_config, trained)
    subject = Subject(inputs.task, inputs.model_config, inputs.adapters, UNKNOWN)
    stage = me.mesh.coordinate(me.rank, "pipeline")
    inventory = subject.inventory(me.mesh, stage)
    averages = bool(recipe.optimizer.ema_decay)
    states = count_states(inventory, config, me.mesh.gradient_ranks, "cpu", averages=averages)
    live = LiveBytes()
    with live:
        engine = build_engine(recipe, inputs, config, me, RunFolder(shared_folder() / "run"), display)
        for batch in inputs.batches.iterate(0, STEPS):
            live.begin_peak()
            with Traffic() as traffic:
                engine.train_step(batch.micro_batches, range(len(batch.micro_batches)))
            micro_batch = batch.micro_batches[0]
            accumulation = len(batch.micro_batches)
            mean_length = sum(one["input_ids"].shape[1] for one in batch.micro_batches) / accumulation
            del batch
    gc.collect()
    measured = held_bytes(engine.engine, engine.model, engine._averages)
    engine.close()
    predicted: dict[str, int] = {}
    for place in (states.steady.device, states.steady.host, states.steady.nvme):
        for component, size in place.items():
            component = component.replace("persistent parameters", "parameters")
            predicted[component] = predicted.get(component, 0) + size
    layers = inputs.model_config.num_hidden_layers // me.mesh.pipeline
    hidden = hidden_bytes(subject, recipe, config) * mean_length / LENGTH
    sent = volumes(inventory, config, me.mesh, hidden, layers, recomputes=recipe.model.activation_checkpointing)
    found: dict[str, Any] = {"measured": measured, "predicted": predicted, "peak": live.peak, "planned_peak": 0}
    found |= {"sent": traffic.sent, "planned_sent": sent.of_step(accumulation)}
    if me.mesh.is_plain:
        subject.take_batch(micro_batch, recipe)
        way = way_of(recipe, inputs.model_config, dtype_of(config), "cpu", has_head=True)
        activations = subject.trace(recipe, me.mesh, way).whole
        planned = put_together(states, activations, Flight(accumulation), inventory.trained, is_cpu=True, ranks=1)
        found["planned_peak"] = planned.tensors
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
