"""The planner against published set-ups: eleven that others have run, and seven that ran out of memory, all of them reported.

No device is needed: a model is its geometry. For a set-up that works, the planner is asked for the fastest strategy that
fits, and has to name one of a kind that is reported to work there; for one that does not, it is asked about just that
strategy, and has to refuse it. Where a rate is published it stands beside ours: theirs were reached with other kernels
(fused, compiled), which a plan for stock classes does not assume.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from harness.page import parser, publish, table, tracked

LLAMA_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
LLAMA_70B = {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
LLAMA_3B = {
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
}
MPT_7B = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 50368,
}
MPT_3B = {
    "hidden_size": 2560,
    "intermediate_size": 6912,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "num_key_value_heads": 20,
    "vocab_size": 50368,
}
QWEN_14B = {
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 48,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "vocab_size": 152064,
}
LLAMA_2_7B = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
}
GPT_13B = {
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
    "vocab_size": 50304,
}
GPT_40B = {
    "hidden_size": 8192,
    "intermediate_size": 22016,
    "num_hidden_layers": 50,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "vocab_size": 50304,
}
LLAMA_33B = {
    "hidden_size": 6656,
    "intermediate_size": 17920,
    "num_hidden_layers": 60,
    "num_attention_heads": 52,
    "num_key_value_heads": 52,
    "vocab_size": 32000,
}
QWEN_32B = {
    "hidden_size": 5120,
    "intermediate_size": 27648,
    "num_hidden_layers": 64,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "vocab_size": 152064,
}

EVERYTHING = {"zero_stage": 3, "offload_optimizer": "cpu", "offload_param": "cpu"}

Check = Callable[[Any], bool]


def shares_states(plan: Any) -> bool:
    """Data parallelism with shared states, on the devices alone."""
    parallel = plan.recipe.parallel
    return bool(parallel.zero_stage >= 2 and parallel.offload_optimizer == "none" and plan.mesh.replica_ranks == 1)


def keeps_activations(plan: Any) -> bool:
    """The same, without computing anything twice."""
    return shares_states(plan) and not plan.recipe.model.activation_checkpointing


def on_the_device(plan: Any) -> bool:
    """Nothing offloaded."""
    return bool(plan.recipe.parallel.offload_optimizer == "none")


def offloads(plan: Any) -> bool:
    """The optimizer on the host."""
    return bool(plan.recipe.parallel.offload_optimizer == "cpu")


def offloads_or_rounds(plan: Any) -> bool:
    """Either of the ways by which a single card holds all weights in training."""
    return offloads(plan) or plan.recipe.precision.state_dtype != "fp32"


@dataclass(frozen=True)
class Setup:
    """One published set-up."""

    name: str
    source: str
    model: dict[str, Any]
    device: str
    devices: int
    length: int
    works: Check | None
    """What a strategy that is known to work is like; None: it is known to run out of memory."""
    global_size: int = 64
    parallel: dict[str, Any] = field(default_factory=lambda: {"zero_stage": 3})
    checkpointing: bool = True
    lora: bool = False
    dtype: str = "bf16"
    host_gib: float | None = None
    published: float | None = None
    """Tokens per second and device."""


SETUPS = (
    Setup(
        "Llama 8B, full, 8 x H100, 8K",
        "torchtitan, llama3_h100 performance page",
        LLAMA_8B,
        "h100",
        8,
        8192,
        shares_states,
        published=5762,
    ),
    Setup(
        "MPT 7B, full, 8 x H100, 2K",
        "llm-foundry, training benchmarks: no checkpointing",
        MPT_7B,
        "h100",
        8,
        2048,
        keeps_activations,
        global_size=512,
    ),
    Setup(
        "MPT 3B, full, 8 x H100, 1K",
        "llm-foundry, training benchmarks: no checkpointing",
        MPT_3B,
        "h100",
        8,
        1024,
        keeps_activations,
        global_size=512,
        published=27046,
    ),
    Setup(
        "Llama 8B, LoRA, one H100, 4K",
        "NeMo AutoModel, performance summary",
        LLAMA_8B,
        "h100",
        1,
        4096,
        on_the_device,
        lora=True,
        published=12473,
    ),
    Setup(
        "Llama-2 7B, full, 4 x H100",
        "DeepSpeedExamples, bf16_master_weight",
        LLAMA_2_7B,
        "h100",
        4,
        512,
        shares_states,
        global_size=16,
    ),
    Setup(
        "Llama-3.2 3B, full, one A100, 4K",
        "torchtune, performance ladder",
        LLAMA_3B,
        "a100",
        1,
        4096,
        on_the_device,
        published=7210,
    ),
    Setup(
        "Qwen2.5 14B, full, 8 x A800, 8K",
        "ms-swift, Megatron quick start: ZeRO-2 and ZeRO-3",
        QWEN_14B,
        "a100",
        8,
        8192,
        shares_states,
        global_size=16,
    ),
    Setup(
        "Llama 8B, full, one A6000, 2K",
        "torchtune, README",
        LLAMA_8B,
        "rtx-a6000",
        1,
        2048,
        offloads_or_rounds,
        global_size=16,
    ),
    Setup(
        "13B, full, one V100",
        "ZeRO-Offload, DeepSpeed tutorial",
        GPT_13B,
        "v100",
        1,
        1024,
        offloads,
        global_size=16,
        dtype="fp16",
    ),
    Setup(
        "40B, full, one V100",
        "ZeRO-3 Offload, DeepSpeed, 1.5 TB of host memory",
        GPT_40B,
        "v100",
        1,
        1024,
        offloads,
        global_size=8,
        dtype="fp16",
        host_gib=1400,
    ),
    Setup(
        "Llama 33B, full, 8 x A100 40 GB, 2K, 800 GB of host memory",
        "DeepSpeed issue 3448",
        LLAMA_33B,
        "a100-40",
        8,
        2048,
        offloads,
        host_gib=800e9 / 2**30,
    ),
    Setup(
        "the same with 600 GB of host memory",
        "DeepSpeed issue 3448",
        LLAMA_33B,
        "a100-40",
        8,
        2048,
        None,
        parallel=EVERYTHING,
        host_gib=600e9 / 2**30,
    ),
    Setup(
        "Qwen2.5 32B, full, one H100 NVL, 744 GB of host memory",
        "LlamaFactory issue 6755",
        QWEN_32B,
        "h100-nvl",
        1,
        2048,
        None,
        parallel=EVERYTHING,
        host_gib=744e9 / 2**30,
    ),
    Setup(
        "Llama 70B, full, 8 x A100, 1 TB of host memory",
        "axolotl issue 1439",
        LLAMA_70B,
        "a100",
        8,
        2048,
        None,
        parallel=EVERYTHING,
        host_gib=1024,
    ),
    Setup(
        "Llama 70B, full, 8 x H200, ZeRO-3, 1K",
        "LlamaFactory issue 7282",
        LLAMA_70B,
        "h200",
        8,
        1024,
        None,
    ),
    Setup(
        "Llama 7B, full, one A100, nothing offloaded",
        "Stanford Alpaca issue 56",
        LLAMA_2_7B,
        "a100",
        1,
        512,
        None,
        parallel={"zero_stage": 1},
    ),
    Setup(
        "13B, full, one V100, nothing offloaded",
        "ZeRO-Offload: 10x the size that fits without",
        GPT_13B,
        "v100",
        1,
        1024,
        None,
        global_size=16,
        parallel={"zero_stage": 1},
        dtype="fp16",
    ),
    Setup(
        "Llama 8B, one H100, 500K tokens, checkpointing alone",
        "arXiv 2506.13996: 32K before offload and tiles",
        LLAMA_8B,
        "h100",
        1,
        500_000,
        None,
        global_size=1,
        parallel={"zero_stage": 3, "offload_optimizer": "cpu"},
    ),
)
"""Works first."""


def main(arguments: list[str]) -> None:
    """Plan and publish."""
    options = parser(__doc__, __file__).parse_args(arguments)
    setups = [SETUPS[3], SETUPS[-2]] if options.tiny else SETUPS
    rows, wrong = [], []
    for setup in tracked(list(setups), "set-ups"):
        cells, holds = row(setup)
        rows.append(cells)
        wrong += [] if holds else [setup.name]
    header = [
        "set-up",
        "source",
        "known",
        "the plan says",
        "GiB per device",
        "GiB per host",
        "tokens/s and device",
        "published",
        "seconds to plan",
    ]
    said = f"{len(rows) - len(wrong)} of {len(rows)} as known" + (f"; not: {', '.join(wrong)}." if wrong else ".")
    publish(options, "The planner and published set-ups", [str(__doc__).strip(), table(header, rows), said])
    if wrong:
        raise SystemExit(f"the planner is wrong about {', '.join(wrong)}")


def row(setup: Setup) -> tuple[list[str], bool]:
    """One row, and whether the planner agrees with what is known."""
    import time

    from toolkit.models.quiet import quiet
    from toolkit.plan.choice import Chooser, describe
    from toolkit.plan.devices import find_device
    from toolkit.plan.speed import Place
    from toolkit.plan.strategy import plan_strategy, target_of
    from toolkit.plan.subject import subject_of

    began = time.perf_counter()
    recipe = recipe_for(setup)
    host = None if setup.host_gib is None else int(setup.host_gib * 2**30)
    place = Place(find_device(setup.device), 8, host_memory=host)
    with quiet():
        subject = subject_of(recipe)
        if setup.works is None:
            plan = plan_strategy(subject, recipe, target_of(recipe, setup.devices, place), place)
            holds, said = not plan.fits(), f"refused: {describe(plan)}"
        else:
            best = Chooser(subject, recipe, setup.devices, place).choose().best
            if best is None:
                return [setup.name, setup.source, "works", "nothing fits", "", "", "", "", ""], False
            plan, holds, said = best, setup.works(best), describe(best)
    rate = plan.tokens_per_second / setup.devices
    return [
        setup.name,
        setup.source,
        "out of memory" if setup.works is None else "works",
        said if holds else f"WRONG: {said}",
        f"{plan.memory.peak / 2**30:.1f} of {plan.limit / 2**30:.1f}",
        f"{plan.host_bytes / 2**30:,.0f} of {host / 2**30:,.0f}" if host is not None else "",
        f"{rate:,.0f}" if setup.works is not None else "",
        f"{setup.published:,.0f}" if setup.published is not None else "",
        f"{time.perf_counter() - began:.1f}",
    ], holds


def recipe_for(setup: Setup) -> Any:
    """The set-up as a recipe."""
    from toolkit import Batch, Data, LoRA, Model, Parallel, Precision, Recipe

    config = {"max_position_embeddings": max(8192, setup.length), "pad_token_id": 0, **setup.model}
    model = Model(
        architecture="llama",
        weights="random",
        config=config,
        tokenizer="none",
        activation_checkpointing=setup.checkpointing,
    )
    tuning = {"tuning": LoRA(rank=16)} if setup.lora else {}
    return Recipe(
        model=model,
        data=Data(train="rows.jsonl"),
        batch=Batch(global_size=setup.global_size, micro_size=1, sequence_length=setup.length),
        precision=Precision(dtype=setup.dtype),
        parallel=Parallel(**setup.parallel),
        steps=1000,
        **({"checkpoint": _no_export()} if setup.lora else {}),
        **tuning,
    )


def _no_export() -> Any:
    from toolkit import Checkpoint

    return Checkpoint(export=False)


if __name__ == "__main__":
    main(sys.argv[1:])
