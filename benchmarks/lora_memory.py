"""Memory of LoRA on ZeRO-3 with activation checkpointing, against what its parts add up to.

A Llama in bf16 is trained with adapters on all its linear layers, by the toolkit's engine on two ranks. Counted are the
bytes of live tensors on a rank during its steps, by operation (harness/live_bytes.py). Against them stands a sum: the
rank's share of the frozen weights (2 bytes each) and of the adapters (weight, master, two moments and a gradient: 18
bytes), what DeepSpeed holds gathered at a time (the toolkit's limit: the layer that computes, and the one that is fetched
meanwhile), a bucket of gradients in fp32, and the activations, counted in one process in which plain peft runs the same
step with whole weights.
The second table has an 8B Llama: its activations are those of fake tensors at two depths, and a line through them.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.page import parser, publish, table
from harness.problem import recipe_of, write_problem
from harness.ranks import is_rank, measure, report
from harness.tokens import random_steps

STEPS = 2
RANKS = 2
RANK = 16
SMALL = {"vocab_size": 512, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "length": 128}
LARGE = {"vocab_size": 8192, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 16, "length": 512}
EIGHT_B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}
"""Llama 3 8B."""
LENGTH_8B = 4096


def main(arguments: list[str]) -> None:
    """Measure and publish."""
    made = parser(__doc__, __file__)
    made.add_argument("--measure", choices=("rank", "plain", "traced"), help=argparse.SUPPRESS)
    made.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = made.parse_args(arguments)
    if is_rank():
        report({"rank": measure_rank, "plain": measure_plain, "traced": measure_traced}[options.measure](options))
        return
    with tempfile.TemporaryDirectory(prefix="lora_memory_") as folder:
        size = sizes(options)
        length = size.pop("length")
        write_problem(
            Path(folder), rows=20, longest=32, split=True, num_attention_heads=8, num_key_value_heads=8,
            max_position_embeddings=length, tie_word_embeddings=False, **size,
        )  # fmt: skip

        def ask(what: str, ranks: int) -> list[Any]:
            return measure(__file__, [*arguments, "--measure", what, "--folder", folder], ranks)

        ranks, plain, traced = ask("rank", RANKS), ask("plain", 1)[0], ask("traced", 1)[0]
    found = max(ranks, key=lambda rank: rank["peak"])
    parts = sum_of_parts(found["about"], plain["activations"], RANKS)
    publish(options, "Memory of LoRA", [str(__doc__).strip(), compared(parts, found["peak"]), *of_8b(traced)])


def sizes(options: argparse.Namespace) -> dict[str, int]:
    """Of the model and its sequences."""
    return dict(SMALL if options.tiny else LARGE)


def sum_of_parts(about: dict[str, int], activations: float, ranks: int) -> dict[str, float]:
    """Bytes on a rank, by part."""
    return {
        "frozen weights, bf16": 2 * about["frozen"] / ranks,
        "adapters, their gradients and states": 18 * about["trained"] / ranks,
        "gathered at a time": 2.0 * about["gathered"],
        "a bucket of gradients, fp32": 4.0 * about["bucket"],
        "activations": activations,
    }


def compared(parts: dict[str, float], peak: float) -> str:
    """The parts, their sum, and what was measured."""
    total = sum(parts.values())
    rows = [[name, f"{value / 2**20:.2f}", f"{value / total:.1%}"] for name, value in parts.items()]
    rows.append(["**sum**", f"**{total / 2**20:.2f}**", "100%"])
    rows.append(["**measured**", f"**{peak / 2**20:.2f}**", f"**{peak / total:.1%}**"])
    return table(["", "MiB of a rank", "of the sum"], rows)


def of_8b(traced: dict[str, Any]) -> list[str]:
    """What an 8B model needs on 1 to 8 ranks."""
    rows = []
    for ranks in (1, 2, 4, 8):
        parts = sum_of_parts(traced, traced["activations"], ranks)
        rows.append([str(ranks), *(f"{value / 2**30:.2f}" for value in (*parts.values(), sum(parts.values())))])
    head = ["ranks", "frozen weights", "adapters", "gathered", "bucket", "activations", "GiB of a rank"]
    about = (
        f"Llama 3 8B, r={RANK} on {traced['layers']} layers: {traced['trained'] / 1e6:.1f} M of "
        f"{(traced['trained'] + traced['frozen']) / 1e9:.2f} B parameters trained; one sequence of {traced['length']:,} tokens."
    )
    return [about, table(head, rows)]


def _tuning() -> Any:
    from toolkit.recipe import LoRA

    return LoRA(rank=RANK)


def measure_rank(options: argparse.Namespace) -> dict[str, Any]:
    """Peak of live tensors on one rank of the toolkit's run, bytes; and the numbers that the sum is made of."""
    from harness.engine import built

    from toolkit.engine import process
    from toolkit.models.adapters import is_adapter
    from toolkit.plan.live_bytes import LiveBytes
    from toolkit.recipe import Checkpoint, Precision

    os.environ["TOOLKIT_CACHE"] = str(options.folder / "cache")
    length = sizes(options)["length"]
    plain = recipe_of(options.folder, {"zero_stage": 3}, global_size=RANKS, length=length, steps=STEPS)
    changes = {
        "model": plain.model.model_copy(update={"activation_checkpointing": True}),
        "tuning": _tuning(),
        "precision": Precision(dtype="bf16"),
        "checkpoint": Checkpoint(export=False),
    }
    counted = LiveBytes()
    with counted:
        engine = built(plain.model_copy(update=changes))
        counted.begin_peak()
        for batches in random_steps(STEPS, RANKS, length, sizes(options)["vocab_size"]):
            engine.train_step(batches[engine.process.data_rank :: RANKS], [0])
    named = {name: int(parameter.ds_numel) for name, parameter in engine.model.named_parameters()}
    trained = sum(count for name, count in named.items() if is_adapter(name))
    settings = engine.engine.config["zero_optimization"]
    about = {
        "trained": trained,
        "frozen": sum(named.values()) - trained,
        "gathered": gathered(named, settings["stage3_max_live_parameters"]),
        "bucket": settings["reduce_bucket_size"],
        "left": sum(
            int(p.ds_numel) for p in engine.model.parameters() if p.ds_status.name == "AVAILABLE" and not p.ds_persist
        ),
    }
    process.stop()
    return {"peak": counted.peak, "about": about}


def gathered(named: dict[str, int], limit: int) -> int:
    """Parameters that are whole at a time: DeepSpeed fetches ahead up to the limit, and a larger one by itself."""
    return max(limit, *named.values())


def measure_plain(options: argparse.Namespace) -> dict[str, float]:
    """Activations of plain peft in one process: the peak of live tensors in a step above what lives between steps."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(options.folder / "model", dtype=torch.bfloat16)
    config = peft.LoraConfig(r=RANK, target_modules="all-linear")
    tuned = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
    batches = random_steps(1, 1, sizes(options)["length"], sizes(options)["vocab_size"])[0]
    return {"activations": activations_of(tuned.get_base_model(), batches[0])}


def activations_of(model: Any, batch: dict[str, Any]) -> float:
    """Bytes that a step with checkpointing needs above the weights and the gradients that it leaves."""
    from toolkit.models.heads import token_loss, use_loss_head
    from toolkit.plan.live_bytes import LiveBytes

    # The toolkit's loss without logits: what is compared is what it trains.
    use_loss_head(model)
    model.train()
    model.activation_checkpointing_enable({"use_reentrant": False})
    counted = LiveBytes()
    counted.add(list(model.parameters()))
    with counted:
        before = counted.begin_peak()
        inputs = {name: batch[name] for name in ("input_ids", "position_ids")}
        token_loss(model, inputs, batch["targets"], label_smoothing=0.0, gradient_scale=1.0).backward()
        kept = sum(p.grad.numel() * p.grad.element_size() for p in model.parameters() if p.grad is not None)
    return float(counted.peak - before - kept)


def measure_traced(options: argparse.Namespace) -> dict[str, Any]:
    """An 8B Llama's numbers, its activations from fake tensors at two depths."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers import AutoModelForCausalLM, LlamaConfig

    from toolkit.ds_config.model_size import live_parameters, reduced_size
    from toolkit.models.adapter_plan import plan_adapters
    from toolkit.models.adapters import add_adapters
    from toolkit.models.model_size import model_size
    from toolkit.models.partial import place
    from toolkit.models.stages import build_skeleton

    length = 256 if options.tiny else LENGTH_8B
    config = LlamaConfig(**EIGHT_B)
    plan = plan_adapters(AutoModelForCausalLM, config, _tuning(), trains_head=False)
    size = model_size(AutoModelForCausalLM, config, {})
    batch = random_steps(1, 1, length, EIGHT_B["vocab_size"])[0][0]
    found = {}
    for layers in (2, 4):
        cut = LlamaConfig(**{**EIGHT_B, "num_hidden_layers": layers})
        model = build_skeleton(AutoModelForCausalLM, cut)
        add_adapters(model, plan_adapters(AutoModelForCausalLM, cut, _tuning(), trains_head=False))
        with FakeTensorMode(allow_non_fake_inputs=True) as fake:
            for name, parameter in list(model.named_parameters()):
                place(model, name, torch.empty(parameter.shape, dtype=torch.bfloat16))
            given = {name: fake.from_tensor(value) for name, value in batch.items()}
            found[layers] = activations_of(model, given)
    slope = (found[4] - found[2]) / 2
    named = {"embedding": EIGHT_B["vocab_size"] * EIGHT_B["hidden_size"]}
    return {
        "trained": plan.trained,
        "frozen": plan.total - plan.trained,
        "layers": len(plan.targets),
        "gathered": gathered(named, live_parameters(size)),
        "bucket": reduced_size(replace(size, trained=plan.trained)),
        "activations": found[4] + slope * (EIGHT_B["num_hidden_layers"] - 4),
        "length": length,
    }


if __name__ == "__main__":
    main(sys.argv[1:])
