"""What a user of DeepSpeed writes for each kind of parallelism: a stock Llama, and nothing of the toolkit's engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
import torch.distributed.nn.functional as differentiable
from deepspeed.pipe import LayerSpec, PipelineModule
from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF, UlyssesSPDataLoaderAdapter
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from harness.tokens import Batches
from toolkit.models.partial import load_part
from toolkit.models.stage_plan import balance
from toolkit.models.stages import build_skeleton, cut

Step = Callable[[Batches], float]
"""Takes one optimizer step; the mean loss."""


def mean_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of logits [B, T, V], mean over the targets that are not -100."""
    return nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


class Stage(nn.Module):
    """A stage of the model at `source`, the same layers as the toolkit's; tokens or hidden states in, hidden states or logits out."""

    def __init__(self, source: str, index: int, count: int) -> None:
        super().__init__()
        self.model = build_skeleton(AutoModelForCausalLM, AutoConfig.from_pretrained(source))
        cut(self.model, balance(self.model, count)[index])
        load_part(self.model, source)
        self.is_first, self.is_last = index == 0, index == count - 1

    def forward(self, received: Tensor) -> Tensor:
        """received: tokens [B, T] on the first stage, hidden states [B, T, D] on the others."""
        positions = torch.arange(received.shape[1], device=received.device)[None]
        inputs = {"input_ids" if self.is_first else "inputs_embeds": received, "position_ids": positions}
        if self.is_last:
            logits: Tensor = self.model(**inputs, use_cache=False).logits
            return logits
        hidden: Tensor = self.model.base_model(**inputs, use_cache=False).last_hidden_state  # type: ignore[operator]
        return hidden


def pipeline(source: str, config: Mapping[str, Any], degree: int) -> Step:
    """DeepSpeed's PipelineModule of one stage per rank."""
    layers = [LayerSpec(Stage, source, index, degree) for index in range(degree)]
    module = PipelineModule(layers, num_stages=degree, loss_fn=mean_loss, partition_method="uniform")
    engine, *_ = deepspeed.initialize(model=module, config=dict(config), dist_init_required=False)

    def step(batches: Batches) -> float:
        return float(engine.train_batch(iter([(batch["input_ids"], batch["targets"]) for batch in batches])))

    return step


def tensor(source: str, config: Mapping[str, Any], degree: int) -> Step:
    """DeepSpeed's AutoTP. Its batch arithmetic counts every rank as a data-parallel one."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    cut = {"tensor_parallel": {"autotp_size": degree}, "train_batch_size": config["train_batch_size"] * degree}
    engine, *_ = deepspeed.initialize(model=model, config={**config, **cut}, dist_init_required=False)

    def step(batches: Batches) -> float:
        losses = []
        for batch in batches:
            logits = engine(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
            loss = mean_loss(logits, batch["targets"])
            engine.backward(loss)
            engine.step()
            losses.append(loss.detach())
        return float(torch.stack(losses).mean())

    return step


def sequence(source: str, config: Mapping[str, Any], degree: int) -> Step:
    """DeepSpeed's Ulysses for Hugging Face models, as in its tutorial."""
    mpu = UlyssesSPAttentionHF.register_with_transformers(
        model_name_or_path=source,
        core_attn_implementation="sdpa",
        sequence_parallel_size=degree,
        micro_batch_size=1,
        seq_length_is_variable=True,
    )
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="sdpa")
    engine, *_ = deepspeed.initialize(model=model, config=dict(config), mpu=mpu, dist_init_required=False)
    group, rank = mpu.get_sequence_parallel_group(), mpu.get_sequence_parallel_rank()

    def step(batches: Batches) -> float:
        # Each rank reads its own share of the micro-batches; the loader hands all of them out, cut along the tokens.
        mine = [
            {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"], "labels": batch["input_ids"]}
            for batch in batches[rank::degree]
        ]
        losses = []
        for batch in UlyssesSPDataLoaderAdapter(mine, rank, group, degree, engine.device):
            targets = batch["shift_labels"]
            logits = engine(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
            loss = _mean_over(group, mean_loss(logits, targets), targets)
            engine.backward(loss)
            engine.step()
            losses.append(loss.detach())
        return float(torch.stack(losses).mean())

    return step


def _mean_over(group: dist.ProcessGroup, loss: Tensor, targets: Tensor) -> Tensor:
    """Mean over the targets of all parts of the sequences."""
    losses = torch.stack(differentiable.all_gather(loss, group=group))
    counts = torch.stack(differentiable.all_gather((targets != -100).sum().float(), group=group))
    return (losses * counts).sum() / counts.sum()


BARE: dict[str, Callable[[str, Mapping[str, Any], int], Step]] = {
    "pipeline": pipeline,
    "tensor": tensor,
    "sequence": sequence,
}
