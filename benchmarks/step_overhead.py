"""How much time a step of the toolkit takes beyond a bare DeepSpeed loop.

Both train the same Llama from the same weights, on the same micro-batches, with the same configuration and the same
loss. The toolkit's side is the whole of its training loop: batches are collated inside it (no prefetch), and every
step is recorded to metrics.jsonl and TensorBoard. The bare side gets its batches ready-made and records nothing. In
each rank the two take turns, step by step and with a changing order, so that a slow moment of the machine hits both.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.loop import run_loop
from harness.page import parser, publish, table
from harness.ranks import default_world_size, is_rank, measure, report, shared_folder

TARGET = 1.03
WARM_UP = 3
"""Steps not counted: allocators and kernels settle."""


def main(arguments: list[str]) -> None:
    """Measure and publish."""
    made = parser(__doc__, __file__)
    made.add_argument("--steps", type=int, help="steps of each side that count (default 40; 2 with --tiny)")
    made.add_argument("--ranks", type=int, help="default: one per GPU, two on a CPU; one with --tiny")
    options = made.parse_args(arguments)
    options.steps = options.steps or (2 if options.tiny else 40)
    if is_rank():
        report(measure_rank(options))
        return
    world_size = options.ranks or (1 if options.tiny else default_world_size())
    ranks = measure(__file__, arguments, world_size)
    # The step of several ranks is over when the slowest is done.
    ours, bare = _over_ranks(ranks, "ours", max), _over_ranks(ranks, "bare", max)
    ratios = _ratios(ranks, "ours", "bare", max)
    rows = [
        ["bare DeepSpeed, s per step", *_quartiles(bare, 3)],
        ["toolkit, s per step", *_quartiles(ours, 3)],
        ["toolkit / bare", *_quartiles(ratios, 4)],
        ["toolkit / bare, processor time", *_quartiles(_ratios(ranks, "our_cpu", "bare_cpu", sum), 4)],
    ]
    about = ranks[0]["about"]
    losses = f"bare {statistics.mean(rank['bare_loss'] for rank in ranks):.4f}, toolkit {ranks[0]['our_loss']:.4f}"
    setting = (
        f"{world_size} rank(s), {about}; {len(ratios)} pairs of steps. Loss of the first step: {losses} "
        "(the bare loop takes the mean of its micro-batches' means, the toolkit the mean over all targets)."
    )
    verdict = (
        f"Median of the ratios of neighbouring steps: **{statistics.median(ratios):.3f}**; target: at most {TARGET}."
    )
    parts = [str(__doc__).strip(), table(["", "lower quartile", "median", "upper quartile"], rows), verdict, setting]
    publish(options, "Time of a step against a bare DeepSpeed loop", parts)


def _over_ranks(ranks: list[Any], key: str, join: Callable[[Iterable[float]], float]) -> list[float]:
    return [join(step) for step in zip(*(rank[key] for rank in ranks), strict=True)]


def _ratios(ranks: list[Any], ours: str, bare: str, join: Callable[[Iterable[float]], float]) -> list[float]:
    pairs = zip(_over_ranks(ranks, ours, join), _over_ranks(ranks, bare, join), strict=True)
    return [one / other for one, other in pairs]


def _quartiles(values: list[float], digits: int) -> list[str]:
    return [f"{value:.{digits}f}" for value in statistics.quantiles(values, n=4)]


def measure_rank(options: argparse.Namespace) -> dict[str, Any]:
    """One rank: a run of the toolkit's loop whose batches are also fed to a bare loop."""
    from toolkit.ds_config.render import render
    from toolkit.engine import device, process
    from toolkit.train.build import build_engine
    from toolkit.train.inputs import prepare_inputs
    from toolkit.train.progress import Display
    from toolkit.train.run_folder import RunFolder

    me = process.from_environment()
    recipe = build_recipe(options, me.world_size)
    config = render(recipe, device.target(me.world_size, wanted="auto"))
    display = Display(is_main=me.is_main, total_steps=recipe.steps or 0)
    inputs = prepare_inputs(recipe, me.rank, me.world_size, display)
    process.start(me)
    folder = RunFolder(shared_folder() / "run")
    engine = build_engine(recipe, inputs, config, me, folder, display)
    turns = Turns(inputs.batches, BareLoop(recipe, inputs, config))
    inputs.batches = turns  # type: ignore[assignment]
    records = run_loop(recipe, inputs, engine, config, me, folder, display)
    process.stop()
    counted = slice(WARM_UP, WARM_UP + options.steps)
    parameters = sum(parameter.numel() for parameter in engine.model.parameters())
    about = (
        f"ZeRO-2, {'bf16' if 'bf16' in config else 'fp32'}, a Llama with {parameters / 1e6:.0f} M parameters, "
        f"{statistics.mean(turns.tokens):,.0f} tokens per step in {config['gradient_accumulation_steps']} "
        "micro-batches per rank"
    )
    return {
        "ours": turns.ours[counted],
        "bare": turns.bare[counted],
        "our_cpu": turns.our_cpu[counted],
        "bare_cpu": turns.bare_cpu[counted],
        "about": about,
        "bare_loss": turns.bare_loop.first_loss,
        "our_loss": records[0]["loss"] if records else None,
    }


def build_recipe(options: argparse.Namespace, world_size: int) -> Any:
    """A Llama from scratch on packed chats; two micro-batches per rank and step."""
    from toolkit import Batch, Checkpoint, Data, Model, Optimizer, Parallel, Recipe, Schedule

    width, layers, length = (64, 1, 128) if options.tiny else (384, 4, 512)
    shape = {
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "num_key_value_heads": width // 64,
        "max_position_embeddings": length,
        "tie_word_embeddings": True,
    }
    return Recipe(
        model=Model(architecture="llama", weights="random", tokenizer="smollm2-135m-instruct", config=shape),
        data=Data(train="python-docstrings", prefetch=0),
        batch=Batch(global_size=2 * world_size, micro_size=1, sequence_length=length),
        optimizer=Optimizer(learning_rate=3e-4),
        schedule=Schedule(warmup_steps=2),
        parallel=Parallel(zero_stage=2),
        checkpoint=Checkpoint(export=False),
        steps=WARM_UP + options.steps + 1,  # the last step saves a checkpoint and is not counted
    )


class BareLoop:
    """What a user of DeepSpeed writes: initialize, forward, backward, step."""

    def __init__(self, recipe: Any, inputs: Any, config: Mapping[str, Any]) -> None:
        import deepspeed
        import torch
        from torch import nn
        from transformers import AutoModelForCausalLM

        from toolkit.engine.groups import parameter_groups
        from toolkit.models.heads import token_loss

        class WithLoss(nn.Module):
            """The model with the mean loss of a micro-batch as its output."""

            def __init__(self, model: nn.Module) -> None:
                super().__init__()
                self.model = model

            def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
                tokens = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"]}
                count = int((batch["targets"] != -100).sum())
                scale = 1.0 / (count * config["gradient_accumulation_steps"])  # what DeepSpeed makes of it below
                total = token_loss(self.model, tokens, batch["targets"], label_smoothing=0.0, gradient_scale=scale)
                return total / count

        torch.manual_seed(recipe.seed)
        model = AutoModelForCausalLM.from_config(inputs.model_config, dtype=torch.float32)
        inputs.task.prepare(model)
        groups = parameter_groups(model, recipe.optimizer)
        self.engine, *_ = deepspeed.initialize(
            model=WithLoss(model), model_parameters=groups, config=dict(config), dist_init_required=False
        )
        self.first_loss: float | None = None

    def step(self, micro_batches: list[dict[str, Any]]) -> None:
        """One optimizer step."""
        total = 0.0
        for batch in micro_batches:
            loss = self.engine({name: tensor.to(self.engine.device) for name, tensor in batch.items()})
            self.engine.backward(loss)
            self.engine.step()
            total += loss.detach()
        if self.first_loss is None:
            self.first_loss = float(total) / len(micro_batches)


@dataclass
class Turns:
    """The batches of a run; before or after the loop takes a step, the bare loop takes the same one."""

    batches: Any
    bare_loop: BareLoop
    ours: list[float] = field(default_factory=list)
    """Seconds per step of whoever iterates, with the making of the batch."""
    bare: list[float] = field(default_factory=list)
    our_cpu: list[float] = field(default_factory=list)
    """The same in processor time, which other programs on the machine disturb less."""
    bare_cpu: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def iterate(self, start_step: int, stop_step: int, prefetch: int, state: Any) -> Iterator[Any]:
        """Stands in for `StoredBatches.iterate`."""
        from toolkit.engine import device, process

        source = self.batches.iterate(start_step, stop_step, prefetch, state)
        while True:
            making, making_cpu, batch = _timed(lambda: next(source, None))
            if batch is None:
                return
            # Who goes second finds warmer caches and the memory that the first one freed: the order alternates.
            if batch.step % 2 == 0:
                self._bare_step(batch)
            process.barrier()
            began, began_cpu = time.perf_counter(), time.process_time()
            yield batch
            device.synchronize()
            self.ours.append(time.perf_counter() - began + making)
            self.our_cpu.append(time.process_time() - began_cpu + making_cpu)
            self.tokens.append(batch.num_tokens)
            if batch.step % 2 == 1:
                self._bare_step(batch)

    def _bare_step(self, batch: Any) -> None:
        from toolkit.engine import process

        process.barrier()
        seconds, cpu, _ = _timed(lambda: self.bare_loop.step(batch.micro_batches))
        self.bare.append(seconds)
        self.bare_cpu.append(cpu)

    def state(self, step: int) -> dict[str, Any]:
        """Stands in for `StoredBatches.state`."""
        found: dict[str, Any] = self.batches.state(step)
        return found


def _timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds and processor seconds of `work`, and its result."""
    from toolkit.engine import device

    began, began_cpu = time.perf_counter(), time.process_time()
    result = work()
    device.synchronize()
    return time.perf_counter() - began, time.process_time() - began_cpu, result


if __name__ == "__main__":
    main(sys.argv[1:])
