"""Sequence parallelism, tiles and offload: parts of a sequence against the whole model, for many architectures."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import deepspeed.comm as dist
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from tests import flash, varlen
from tests.architectures import VOCABULARY, tiny_config
from tests.distributed import RankFailed, run_distributed
from tests.parity.strategies import recipe
from tests.parity.worker import global_batches, reference_curve, run_recipe
from tests.tiny import write_lines
from toolkit.engine.sequence import (
    SequenceAttention,
    check_sequence_attention,
    check_sequence_parallel,
    use_sequence_attention,
    whole_sequences,
)
from toolkit.errors import ModelError
from toolkit.models.agreement import hidden_states
from toolkit.models.attention import DOCUMENT_LENGTHS, tell_documents
from toolkit.models.heads import token_loss, use_loss_head
from toolkit.parity.report import deviation as curve_deviation
from toolkit.recipe import Batch, CausalLM, Data, Model, Parallel, Recipe

Case = tuple[str, dict[str, Any]]
"""model_type, and changes to its tiny config."""

STRETCHED = {"rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 8}
"""Rotary embeddings that change beyond eight positions."""

EXACT: dict[str, Case] = {
    **{kind: (kind, {}) for kind in ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3_text", "phi", "phi3")},
    **{kind: (kind, {}) for kind in ("olmo2", "smollm3", "starcoder2", "stablelm", "cohere", "granite", "glm4")},
    **{kind: (kind, {}) for kind in ("gpt2", "gpt_neox", "mixtral", "qwen3_moe", "olmoe")},
    "dynamic": ("llama", {"rope_parameters": {"rope_type": "dynamic", **STRETCHED}, "max_position_embeddings": 8}),
    "longrope": (
        "phi3",
        {
            "rope_parameters": {
                "rope_type": "longrope",
                **STRETCHED,
                "short_factor": [1.0] * 4,
                "long_factor": [1.0, 2.0, 3.0, 4.0],
            },
            "original_max_position_embeddings": 8,
        },
    ),
}
"""Rows of `walk` that must be exact."""

REFUSED: dict[str, tuple[Case, str]] = {
    "bloom": (("bloom", {}), "eager attention with parallel.sequence=2"),  # distances as a bias
    "gpt_oss": (("gpt_oss", {}), "eager attention with parallel.sequence=2"),  # a sink per head
    "falcon": (("falcon", {}), "computes other hidden states"),  # its own attention
    "gemma2": (("gemma2", {}), "eager attention with parallel.sequence=2"),
    "opt": (("opt", {}), "computes other hidden states"),  # alone, its mask knows no documents
    "lfm2": (("lfm2", {"layer_types": ["conv", "full_attention"] * 2}), "has conv"),
    "qwen3_next": (("qwen3_next", {}), "has linear_attention"),
    "rwkv": (("rwkv", {}), "has no attention heads"),
}
"""Case -> what its ModelError says."""

TOLERANCE = 1e-5
LONGEST = 32
"""Context length that models are probed for, in tokens."""


def whole_batch() -> dict[str, torch.Tensor]:
    """Two rows of 16 tokens, each of packed documents; targets with gaps."""
    generator = torch.Generator().manual_seed(1)
    tokens, targets = torch.randint(3, VOCABULARY, (2, 2, 16), generator=generator)
    positions = torch.tensor([[*range(7), *range(9)], [*range(12), *range(4)]])
    targets[0, 6] = targets[1, 11] = -100
    return {"input_ids": tokens, "position_ids": positions, "targets": targets}


def build(case: Case) -> nn.Module:
    """The whole model in fp32; no weight is left at zero or one, where a fault could hide."""
    kind, changes = case
    torch.manual_seed(0)
    model: nn.Module = AutoModelForCausalLM.from_config(tiny_config(kind, **changes), dtype=torch.float32).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.1 if parameter.dim() == 1 else 0.05))
    return model


def loss_and_gradients(
    model: nn.Module, batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    use_loss_head(model)
    inputs = {name: value for name, value in batch.items() if name != "targets"}
    loss = token_loss(model, inputs, batch["targets"], label_smoothing=0.0, gradient_scale=1.0)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def spread(model: nn.Module, degree: int) -> tuple[nn.Module, SequenceAttention]:
    """A copy of `model` whose sequences are spread over all ranks, as a run makes it."""
    part = copy.deepcopy(model)
    check_sequence_parallel(part.config, degree)  # type: ignore[arg-type]
    attention = SequenceAttention(part.config, dist.get_world_group())  # type: ignore[arg-type]
    with torch.no_grad():
        excess = use_sequence_attention(part.eval(), attention, LONGEST)
    check_sequence_attention(excess, type(part).__name__)
    return part.train(), attention


def deviation(whole: nn.Module, rank: int, degree: int) -> float:
    """Largest relative difference of the loss and of any parameter's gradient, summed over the parts.

    A gradient that is a thousand times smaller than the model's is measured against that thousandth.
    """
    part, _ = spread(whole, degree)
    batch = whole_batch()
    wanted_loss, wanted = loss_and_gradients(whole, batch)
    size = batch["input_ids"].shape[1] // degree
    loss, found = loss_and_gradients(part, {key: v[:, rank * size : (rank + 1) * size] for key, v in batch.items()})
    # A part may send no token to an expert.
    found = {name: found.get(name, torch.zeros_like(gradient)) for name, gradient in wanted.items()}
    for tensor in (loss, *found.values()):
        dist.all_reduce(tensor)
    worst = abs(float(loss - wanted_loss)) / abs(float(wanted_loss))
    floor = 1e-3 * float(torch.nn.utils.get_total_norm(list(wanted.values())))
    for name, gradient in wanted.items():
        worst = max(worst, float((found[name] - gradient).norm()) / (float(gradient.norm()) + floor))
    return worst


def walk(rank: int, world_size: int, cases: dict[str, Case]) -> dict[str, float | str]:
    """Deviation of each case, or why it is refused."""
    results: dict[str, float | str] = {}
    for name, case in cases.items():
        try:
            results[name] = deviation(build(case), rank, world_size)
        except ModelError as error:
            results[name] = error.what
    return results


def test_every_architecture_on_two_ranks() -> None:
    """Loss and gradients of the halves are those of the whole, or the architecture is refused with its reason."""
    cases = EXACT | {name: case for name, (case, _) in REFUSED.items()}
    for results in run_distributed(walk, 2, cases, timeout_s=300):
        refused = {name: result for name, result in results.items() if isinstance(result, str)}
        assert refused.keys() == REFUSED.keys(), refused
        assert all(REFUSED[name][1] in result for name, result in refused.items()), refused
        inexact = {name: v for name, v in results.items() if not isinstance(v, str) and not v < TOLERANCE}
        assert inexact == {}


def shared_heads(rank: int, world_size: int) -> tuple[float, float]:
    """More ranks than key-value heads: deviation, and that of a whole sequence computed by each rank afterwards."""
    whole = build(("llama", {}))
    exact = deviation(copy.deepcopy(whole), rank, world_size)
    part, attention = spread(whole, world_size)
    batch = whole_batch()
    with torch.no_grad(), whole_sequences(attention):
        found = hidden_states(part, batch["input_ids"], batch["position_ids"])
    wanted = hidden_states(whole, batch["input_ids"], batch["position_ids"])
    return exact, float((found - wanted).abs().max() / wanted.abs().max())


def test_ranks_that_share_a_key_value_head() -> None:
    for exact, afterwards in run_distributed(shared_heads, 4):
        assert exact < TOLERANCE and afterwards < TOLERANCE


def packed_on_two_ranks(rank: int, world_size: int, kinds: list[str], attention: str) -> dict[str, float]:
    """Relative difference of the summed loss of both parts, two rows of packed documents, from the whole model's."""
    patch = pytest.MonkeyPatch()
    if attention == "flash":
        flash.install(patch)
    else:
        patch.setattr("toolkit.engine.sequence.KERNEL", varlen.KERNELS["newest"])
        patch.setattr("toolkit.engine.sequence.kernel_fault", lambda *_: None)
    batch = whole_batch() | {DOCUMENT_LENGTHS: torch.tensor([[7, 9], [12, 4]])}
    results = {}
    for kind in kinds:
        whole = build((kind, {})).double().eval()
        wanted = _loss(whole, batch)
        part = copy.deepcopy(whole)
        if attention == "flash":
            flash.use(part)
        spread_over = SequenceAttention(part.config, dist.get_world_group())  # type: ignore[arg-type]
        with torch.no_grad():
            check_sequence_attention(use_sequence_attention(part, spread_over, LONGEST), kind)
        varlen.CALLS.clear()
        cut = {key: value[:, rank * 8 : rank * 8 + 8] for key, value in batch.items() if key != DOCUMENT_LENGTHS}
        found = _loss(part, cut | {DOCUMENT_LENGTHS: batch[DOCUMENT_LENGTHS]})
        dist.all_reduce(found)
        results[kind] = abs(float(found - wanted)) / abs(float(wanted))
        if attention == "varlen":
            assert len(varlen.CALLS) == part.config.num_hidden_layers  # type: ignore[union-attr]
            assert len({id(call.bounds) for call in varlen.CALLS}) == 1, "made once per micro-batch"
            assert varlen.CALLS[-1].bounds.tolist() == [0, 7, 16, 28, 32]
    patch.undo()
    return results


def _loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    inputs = {name: value for name, value in batch.items() if name != "targets"}
    return token_loss(
        model, tell_documents(model, inputs), batch["targets"], label_smoothing=0.0, gradient_scale=1.0
    ).detach()


@pytest.mark.parametrize("attention", ["flash", "varlen"])
def test_one_call_for_all_packed_rows(attention: str) -> None:
    """The exchange hands transformers' flash function, and torch's kernel, the bounds of the whole rows."""
    for results in run_distributed(packed_on_two_ranks, 2, ["llama", "mistral"], attention):
        assert results and all(deviation < TOLERANCE for deviation in results.values()), results


def mixes_tokens(rank: int, world_size: int) -> None:
    model = build(("llama", {}))
    mlp: Any = model.base_model.layers[1].mlp  # type: ignore[union-attr, index]
    mlp.register_forward_pre_hook(lambda _, inputs: (nn.functional.pad(inputs[0], (0, 0, 1, -1)),))
    spread(model, world_size)


def test_a_layer_that_mixes_tokens_outside_attention_is_refused() -> None:
    with pytest.raises(RankFailed) as caught:
        run_distributed(mixes_tokens, 2)
    error = caught.value.error
    assert isinstance(error, ModelError)
    assert error.what == (
        "parallel.sequence: LlamaForCausalLM computes other hidden states from parts of a sequence than from the whole"
    )
    assert error.do.startswith("set parallel.sequence=1")


LONG: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "tiles, zero0": ({"mlp_tiles": 3}, {"zero_stage": 0}),
    "tiles, zero2": ({"mlp_tiles": 3}, {"zero_stage": 2}),
    "tiles, zero3": ({"mlp_tiles": 3}, {"zero_stage": 3, "param_persistence_threshold": 100}),
    "tiles, tp2": ({"mlp_tiles": 3}, {"zero_stage": 1, "tensor": 2}),
    "tiles, pp2": ({"mlp_tiles": 3}, {"zero_stage": 1, "pipeline": 2}),
    "offload, zero2": ({"activation_checkpointing": True, "activation_offload": True}, {"zero_stage": 2}),
    "all, sp2, zero3": (
        {"activation_checkpointing": True, "activation_offload": True, "mlp_tiles": 5},
        {"zero_stage": 3, "param_persistence_threshold": 100, "sequence": 2},
    ),
}
"""Name -> model and parallel sections."""


def test_tiles_and_offload_keep_the_curve(tiny_llama_dir: Path, chat_file: Path, tmp_path: Path) -> None:
    """Packed documents, clipping that bites, two micro-batches: 6 steps within 1e-5 of plain PyTorch."""

    def run(model: dict[str, Any], parallel: dict[str, Any]) -> Recipe:
        together = parallel.get("sequence", 1) * parallel.get("tensor", 1) * parallel.get("pipeline", 1)
        return recipe(
            "causal_lm",
            tiny_llama_dir,
            chat_file,
            model=Model(path=str(tiny_llama_dir), **model),
            batch=Batch(global_size=8, micro_size=2 * together, sequence_length=128),
            parallel=Parallel(**parallel),
            steps=6,
        )

    check_curves({name: run(*sections) for name, sections in LONG.items()}, tmp_path)


def noise_tokens(rank: int, world_size: int, run: Recipe, folder: str) -> list[float]:
    """Tokens of a row as NEFTune counts them, by the bounds of the noise it draws, for each micro-batch of `run`."""
    found = []
    plain = torch.Tensor.uniform_

    def recorded(tensor: torch.Tensor, low: float = 0.0, high: float = 1.0, **options: Any) -> torch.Tensor:
        if tensor.dim() == 3:
            found.append((run.task.neftune_alpha / high) ** 2 / tensor.shape[-1])
        return plain(tensor, low, high, **options)

    torch.Tensor.uniform_ = recorded  # type: ignore[method-assign]
    run_recipe(rank, world_size, [(run, folder, None)])
    return found


def test_noise_is_that_of_the_whole_row(tiny_llama_dir: Path, chat_file: Path, tmp_path: Path) -> None:
    """NEFTune on halves of rows: bounds as in one process, where a row may be a token shorter (it need not divide)."""
    task = CausalLM(neftune_alpha=5.0)
    common: dict[str, Any] = {
        "data": Data(train=str(chat_file), packing=False, prefetch=0),
        "batch": Batch(global_size=4, micro_size=2, sequence_length=128),
        "steps": 4,
    }
    alone = recipe("causal_lm", tiny_llama_dir, chat_file, task=task, **common)
    halves = recipe(
        "causal_lm", tiny_llama_dir, chat_file, task=task, parallel=Parallel(zero_stage=1, sequence=2), **common
    )
    (wanted,) = run_distributed(noise_tokens, 1, alone, str(tmp_path / "alone"))
    for found in run_distributed(noise_tokens, 2, halves, str(tmp_path / "halves")):
        assert len(found) == len(wanted) == 8
        assert found == pytest.approx([round(tokens) + round(tokens) % 2 for tokens in wanted], rel=1e-6)


def check_curves(runs: dict[str, Recipe], folder: Path) -> None:
    """Losses and gradient norms of each, on two ranks, are those of the judge."""
    (wanted,) = run_distributed(reference_curve, 1, next(iter(runs.values())))
    trained = [(run, str(folder / name.replace(", ", "-")), None) for name, run in runs.items()]
    for name, records in zip(runs, run_distributed(run_recipe, 2, trained, timeout_s=300)[0], strict=True):
        assert curve_deviation([record["loss"] for record in records], wanted.losses) < TOLERANCE, name
        assert curve_deviation([record["grad_norm"] for record in records], wanted.norms) < TOLERANCE, name


def test_a_rank_without_targets(tiny_llama_dir: Path, tmp_path: Path) -> None:
    """Long questions with one-word answers, of odd lengths: the first rank's half never has a target."""
    rows = [
        {"messages": [{"role": "user", "content": "why " * (9 + n % 7)}, {"role": "assistant", "content": "So."}]}
        for n in range(16)
    ]
    file = write_lines(tmp_path / "questions.jsonl", rows)
    run = recipe(
        "causal_lm",
        tiny_llama_dir,
        file,
        data=Data(train=str(file), packing=False, prefetch=0),
        batch=Batch(global_size=4, micro_size=1, sequence_length=128),
        parallel=Parallel(zero_stage=3, sequence=2, param_persistence_threshold=100),
        steps=4,
    )
    inputs, steps = global_batches(run, 4)
    batches = [batch for step in steps for batch in step]
    assert {batch["input_ids"].shape[1] % 2 for batch in batches} == {0, 1}
    assert all(inputs.task.count(inputs.task.split(batch, 0, 2)) == 0 for batch in batches)
    assert all(inputs.task.count(inputs.task.split(batch, 1, 2)) > 0 for batch in batches)
    check_curves({"sp2": run}, tmp_path)
