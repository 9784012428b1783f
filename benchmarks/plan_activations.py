"""Activation memory: what a plan says of a micro-batch, against the bytes that its real forward and backward pass holds.

Small models of many architectures, with random weights, on a CPU: dense and mixtures of experts, encoders,
encoder-decoders, vision; with and without activation checkpointing, two lengths, packed documents and padded rows.
Predicted is traced without values on three layers of each kind and carried over to all of them; measured is every
storage of the real step, from the operation that makes it until nobody refers to it. "peak" is the most that is there
at a time; "with gradients" is the most together with the gradients that have come by then, at 4 bytes each.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from harness.page import parser, publish, table, tracked

ARCHITECTURES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Llama": ("causal_lm", "llama", {}),
    "Llama, 64 k words": ("causal_lm", "llama", {"vocab_size": 65536}),
    "Qwen3": ("causal_lm", "qwen3", {"head_dim": 32}),
    "Gemma 3": ("causal_lm", "gemma3_text", {"head_dim": 32, "sliding_window": 96}),
    "Phi-3": ("causal_lm", "phi3", {}),
    "GPT-2": ("causal_lm", "gpt2", {"n_positions": 2048}),
    "OLMoE": ("causal_lm", "olmoe", {"num_experts": 8, "num_experts_per_tok": 2, "num_key_value_heads": 8}),
    "Qwen3-MoE": (
        "causal_lm",
        "qwen3_moe",
        {"head_dim": 32, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 128},
    ),
    "DeepSeek-V3": (
        "causal_lm",
        "deepseek_v3",
        {
            "num_key_value_heads": 8,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "moe_intermediate_size": 128,
            "first_k_dense_replace": 3,
            "q_lora_rank": 64,
            "kv_lora_rank": 32,
            "qk_rope_head_dim": 16,
            "qk_nope_head_dim": 32,
            "v_head_dim": 32,
        },
    ),
    "DPO on Llama": ("dpo", "llama", {}),
    "BERT, classifier": ("sequence_classification", "bert", {}),
    "ModernBERT, masked LM": ("masked_lm", "modernbert", {"local_attention": 96}),
    "T5": (
        "seq2seq",
        "t5",
        {"decoder_start_token_id": 0, "d_model": 256, "d_ff": 704, "num_layers": 8, "num_heads": 8, "d_kv": 32},
    ),
    "BART": (
        "seq2seq",
        "bart",
        {
            "d_model": 256,
            "encoder_layers": 8,
            "decoder_layers": 8,
            "encoder_ffn_dim": 704,
            "decoder_ffn_dim": 704,
            "encoder_attention_heads": 8,
            "decoder_attention_heads": 8,
            "max_position_embeddings": 2048,
        },
    ),
    "ViT": ("image_classification", "vit", {"image_size": 224}),
    "ResNet": ("image_classification", "resnet", {"depths": [2, 2, 4, 2]}),
}
"""Name -> task, model_type, and fields besides SIZES."""

SIZES = {
    "hidden_size": 256,
    "n_embd": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 8,
    "n_layer": 8,
    "num_attention_heads": 8,
    "n_head": 8,
    "num_key_value_heads": 4,
    "vocab_size": 4096,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
LENGTHS = (256, 1024)
SEQUENCES = 2


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    architecture: str
    checkpointing: bool
    length: int
    packed: bool
    dtype: str = "fp32"

    def cells(self) -> list[str]:
        """For the table."""
        return [
            self.architecture,
            "yes" if self.checkpointing else "no",
            str(self.length) if self.length else "images",
            "packed" if self.packed else "padded" if self.length else "",
            self.dtype,
        ]


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """All rows."""
    names = list(ARCHITECTURES)[:2] if options.tiny else list(ARCHITECTURES)
    for name in names:
        task = ARCHITECTURES[name][0]
        if task == "image_classification":
            checkpointing = (False, True) if name == "ViT" else (False,)
            yield from (Case(name, is_on, 0, False) for is_on in checkpointing)
            continue
        packs = (True, False) if task in ("causal_lm", "masked_lm") else (task == "dpo",)
        for checkpointing in (False, True):
            for length in LENGTHS[:1] if options.tiny else LENGTHS:
                yield from (Case(name, checkpointing, length, packed) for packed in packs)
        if not options.tiny:
            yield Case(name, False, LENGTHS[0], packs[0], "bf16")


def main(arguments: list[str]) -> None:
    """Measure and publish."""
    options = parser(__doc__, __file__).parse_args(arguments)
    rows, errors = [], []
    for case in tracked(list(cases(options)), "cases"):
        predicted, measured = both(case)
        found = []
        for weight in (0, 4):
            wanted, real = (
                max(moment.live + weight * moment.graded for moment in one.moments) for one in (predicted, measured)
            )
            error = wanted / real - 1.0
            errors.append(abs(error))
            found += [f"{wanted / 2**20:.1f}", f"{real / 2**20:.1f}", f"{error:+.2%}"]
        rows.append([*case.cells(), *found])
    header = ["architecture", "checkpointing", "tokens", "rows", "format"]
    header += ["peak predicted, MiB", "measured", "error", "with gradients predicted, MiB", "measured", "error"]
    said = f"{len(rows)} cases: median error {statistics.median(errors):.2%}, worst {max(errors):.2%}."
    publish(options, "Predicted and measured activations", [str(__doc__).strip(), table(header, rows), said])


def both(case: Case) -> tuple[Any, Any]:
    """What the plan says, and what the real step holds."""
    import torch
    from transformers import CONFIG_MAPPING

    from toolkit.engine.part import Part
    from toolkit.models.attention_choice import choose_attention
    from toolkit.models.quiet import quiet
    from toolkit.plan.trace import Way, trace_activations
    from toolkit.recipe import Task
    from toolkit.recipe.mesh import Mesh

    task_name, model_type, fields = ARCHITECTURES[case.architecture]
    kind = CONFIG_MAPPING[model_type]
    options = Task.kind(task_name)()
    task = _task(options)
    with quiet():
        known = kind().to_dict()
        config = kind(**{**{name: value for name, value in SIZES.items() if name in known}, **fields})
    for name in ("num_labels",) if task_name.endswith("classification") else ():
        setattr(config, name, 2)
    config._attn_implementation = choose_attention(task.auto_class, config, "auto")
    config.use_cache = False
    batch = _batch(task, config, case)
    dtype = torch.bfloat16 if case.dtype == "bf16" else torch.float32
    way = Way(dtype, "cpu", checkpointing=case.checkpointing, packing=case.packed)
    part = Part(task.auto_class, config, None, Mesh(), 0)
    return trace_activations(part, task, batch, way).whole, _real_step(part, task, batch, way)


def _task(options: Any) -> Any:
    from toolkit.plan.stand_in import StandInTokenizer
    from toolkit.tasks import task_class

    kind = task_class(options)
    task = kind(options, None if options.name == "image_classification" else StandInTokenizer())
    task.assume()
    return task


def _batch(task: Any, config: Any, case: Case) -> Any:
    """Documents of uneven lengths that fill their sequences, or rows of which each but the first ends in padding."""
    length = case.length
    if case.packed:
        sizes = [length // 2, length // 4, length - length // 2 - length // 4]
        return task.collate([[task.stand_in(size, config) for size in sizes] for _ in range(SEQUENCES)])
    return task.collate([[task.stand_in(length - 8 * index, config)] for index in range(SEQUENCES)])


def _real_step(part: Any, task: Any, batch: Any, way: Any) -> Any:
    import torch
    from torch import nn

    from toolkit.engine.part import build_part
    from toolkit.models.quiet import quiet
    from toolkit.plan import trace

    task = copy.copy(task)
    torch.manual_seed(0)

    def fill_in(model: Any, _: Any) -> None:
        made: dict[int, Any] = {}
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None and parameter.is_meta:
                    value = torch.randn(parameter.shape).mul_(0.02).to(way.dtype)
                    module._parameters[name] = made.setdefault(id(parameter), nn.Parameter(value))
            for name, buffer in module._buffers.items():
                if buffer is not None and buffer.is_floating_point():
                    module._buffers[name] = buffer.to(way.dtype)

    with quiet():
        model, _ = build_part(part, fill_in, fill_in)
        trace.prepare(model, task, way)
        return trace.measure(model, task, batch, way)


if __name__ == "__main__":
    main(sys.argv[1:])
