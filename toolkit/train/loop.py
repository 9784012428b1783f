"""The loop: steps, evaluation, checkpoints, early stopping. It does not know which engine runs underneath."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from toolkit.checkpoint.writer import retain, save
from toolkit.data.batches import StepBatch, evaluation_batches
from toolkit.engine import device, process
from toolkit.engine.protocol import Engine, StepResult
from toolkit.recipe import Recipe
from toolkit.train.inputs import Inputs
from toolkit.train.interrupts import Interrupt
from toolkit.train.metrics import MetricsLog
from toolkit.train.progress import Display
from toolkit.train.run_folder import RunFolder
from toolkit.train.trackers import Trackers
from toolkit.train.watch import Watch

SEED_STRIDE = 1_000_003


@dataclass
class Loop:
    """One run's loop. `run(first_step)` trains until the last step, an early stop or an interrupt."""

    recipe: Recipe
    inputs: Inputs
    engine: Engine
    me: process.Process
    folder: RunFolder
    display: Display
    interrupt: Interrupt
    watch: Watch
    identity: Mapping[str, Any]
    """JSON-able: what the run is, for each checkpoint. `facts` among it says what the data is."""
    log: MetricsLog | None = None
    trackers: Trackers | None = None
    saved_step: int = -1
    evaluations: list[dict[str, float]] = field(default_factory=list)

    def run(self, first_step: int, data_state: Mapping[str, Any] | None) -> int:
        """Train from optimizer step `first_step` (0-based); returns the number of steps taken in all."""
        total = self.inputs.total_steps
        if first_step == 0:
            self._evaluate(0)
        step = first_step
        began = time.perf_counter()
        batches = self.inputs.batches.iterate(first_step, total, prefetch=self.recipe.data.prefetch, state=data_state)
        with self.display.bar():
            for batch in batches:
                result = self.engine.train_step(batch.micro_batches, self._seeds(batch))
                step = batch.step + 1
                device.synchronize()
                now = time.perf_counter()
                self._record(batch, result, now - began)
                began = now
                stop = self._after_step(step)
                began += time.perf_counter() - now
                if stop:
                    break
        if self.saved_step != step:
            self.save(step)
        return step

    def _seeds(self, batch: StepBatch) -> list[int]:
        # By the micro-batch's place in the global batch, so that dropout does not depend on the world size, and a
        # resumed run draws what the unbroken one would have drawn.
        base = self.recipe.seed * SEED_STRIDE + batch.step
        count, replicas = len(batch.micro_batches), self.me.mesh.data
        return [base * SEED_STRIDE + index * replicas + self.me.data_rank for index in range(count)]

    def _record(self, batch: StepBatch, result: StepResult, seconds: float) -> None:
        record: dict[str, Any] = {
            "step": batch.step + 1,
            "loss": result.loss,
            "grad_norm": result.grad_norm,
            "learning_rate": result.learning_rate,
            "tokens": batch.num_tokens,
            "targets": result.targets,
            "samples": batch.num_samples,
            "tokens_per_second": batch.num_tokens / seconds,
            "step_time_s": seconds,
            "memory_gib": device.peak_memory_gib(),
            "epoch": batch.epoch,
        }
        if self.me.mesh.pipeline > 1:
            record["bubble"] = self.me.mesh.bubble(len(batch.micro_batches))
        if result.aux_loss is not None:
            record["aux_loss"] = result.aux_loss
        if result.loss_scale is not None:
            record["loss_scale"] = result.loss_scale
        if result.loss_scale is not None or result.skipped:
            record["skipped"] = result.skipped
        self._write(record)
        if self.trackers is not None:
            self.trackers.log(record, record["step"])
        self.display.step(record)

    def _write(self, record: Mapping[str, Any]) -> None:
        if self.log is not None:
            self.log.write(record)

    def _after_step(self, step: int) -> bool:
        """Evaluate and save where due; whether to stop."""
        evaluation, checkpoint = self.recipe.evaluation, self.recipe.checkpoint
        last = step == self.inputs.total_steps
        better = False
        if last or (evaluation.every_steps and step % evaluation.every_steps == 0):
            better = self._evaluate(step)
        patience = evaluation.early_stopping_patience
        early = bool(patience) and self.watch.bad_evaluations >= patience
        interrupted = process.any_rank(self.interrupt.signal is not None)
        due = bool(checkpoint.every_steps) and step % checkpoint.every_steps == 0
        if due or last or early or interrupted or (better and checkpoint.keep_best):
            self.save(step)
        if early and not last:
            self.display.say(
                f"stopping early at step {step}: {self.watch.metric} has not improved for {patience} evaluations "
                f"({self.watch.best_so_far})"
            )
        return early or interrupted

    def _evaluate(self, step: int) -> bool:
        """Evaluate if there is a held-out set; whether the watched metric is the best so far."""
        inputs, task = self.inputs, self.inputs.task
        self._sample(step)
        if inputs.held_out is None:
            return False
        batches = evaluation_batches(
            inputs.held_out,
            inputs.held_out_sequences,
            task.collate,
            self.me.data_rank,
            self.me.mesh.data,
            self.recipe.batch.micro_size,
            self.recipe.evaluation.max_sequences,
        )
        metrics = task.metrics(self.engine.evaluate(batches, task.evaluate))
        self.evaluations.append({"step": step, **metrics})
        self.watch.first = self.watch.first or self.evaluations[0]
        self._write({"step": step, "eval": metrics})
        if self.trackers is not None:
            self.trackers.log(metrics, step, prefix="eval")
        self.display.say(f"eval at step {step}: " + "  ".join(f"{key} {value:.4f}" for key, value in metrics.items()))
        if step == 0:
            # There is no checkpoint of the start to keep, and nothing to be patient about yet.
            return False
        self.engine.observe(metrics[self.watch.metric])
        return self.watch.observe(metrics[self.watch.metric], step)

    def _sample(self, step: int) -> None:
        if self.recipe.task.sample_prompt is None or step not in (0, self.inputs.total_steps):
            return
        answer = self.engine.call(self.inputs.task.sample)
        self._write({"step": step, "sample": {"prompt": self.recipe.task.sample_prompt, "answer": answer}})
        when = "before" if step == 0 else "after"
        self.display.say(f"sample {when} training: {self.recipe.task.sample_prompt}\n  -> {answer}")

    def save(self, step: int) -> None:
        """Write a checkpoint and drop those that are no longer kept. Collective."""
        run = {
            **self.identity,
            "engine": self.engine.state(),
            "data": {"position": self.inputs.batches.state(step), "owner": self.identity["facts"]["examples"]},
            "watch": self.watch.state(),
        }
        save(self.engine, self.folder.checkpoints, step, run, self.me.rank, self.me.world_size)
        self.saved_step = step
        if self.me.is_main:
            has_best = self.recipe.checkpoint.keep_best and self.watch.best is not None
            retain(self.folder.checkpoints, self.recipe.checkpoint.keep, self.watch.best_step if has_best else None)
