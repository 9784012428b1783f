"""The loop: steps, evaluation, checkpoints, early stopping. It does not know which engine runs underneath."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.checkpoint.finite import check_weights
from toolkit.checkpoint.writer import retain, save
from toolkit.data.batches import StepBatch
from toolkit.engine import device, process
from toolkit.engine.advice import ADVICE, ADVICE_FP16
from toolkit.engine.protocol import Engine, StepResult
from toolkit.engine.seeds import mix
from toolkit.engine.stopwatch import COMPUTE, Stopwatch, shares_line, split
from toolkit.errors import RunFailed
from toolkit.recipe import Recipe
from toolkit.train.divergence import with_way_back
from toolkit.train.evaluate import HeldOut, held_out
from toolkit.train.inputs import Inputs
from toolkit.train.interrupts import Interrupt
from toolkit.train.metrics import MetricsLog
from toolkit.train.progress import Display
from toolkit.train.run_folder import RunFolder
from toolkit.train.trackers import Trackers
from toolkit.train.utilization import Utilization
from toolkit.train.watch import Watch


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
    last_good: Path | None = None
    """The newest checkpoint: what is saved has been seen to be finite."""
    suspect_from: int | None = None
    """The step whose weights were the first to give no gradient, where none has given one since; also from before a resume."""
    step_seconds: list[float] = field(default_factory=list)
    """Of each step, in order."""
    peak_gib: float = 0.0
    """Most memory that this rank has held in a step."""
    evaluations: list[dict[str, float]] = field(default_factory=list)
    utilization: Utilization | None = None
    """None: the steps' FLOPs are not known, or this rank records nothing."""
    stopwatch: Stopwatch = field(init=False, default_factory=Stopwatch)
    evaluation: HeldOut | None = field(init=False)
    """None: nothing is held out."""
    _reached: int = field(init=False, default=0)
    """The step in progress, or the last one."""
    _is_trained: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.evaluation = held_out(self.recipe, self.inputs, self.engine, self.me, self.folder, self.display)

    def run(self, first_step: int, data_state: Mapping[str, Any] | None) -> int:
        """Train from optimizer step `first_step` (0-based); returns the number of steps taken in all.

        Raises RunFailed, with the checkpoint to go back to, when the run diverges.
        """
        self._reached, self._is_trained = first_step, first_step > 0
        try:
            return self._run(first_step, data_state)
        except RunFailed as error:
            self._write({"step": self._reached, "failed": error.what})
            raise with_way_back(
                error,
                self._reached,
                self.last_good,
                self.folder,
                is_trained=self._is_trained,
                suspect_from=self.suspect_from,
            ) from None

    def _run(self, first_step: int, data_state: Mapping[str, Any] | None) -> int:
        total = self.inputs.total_steps
        if first_step == 0:
            self._evaluate(0)
        step = first_step
        device.forget_peak_memory()  # that of loading says nothing about a step
        self.engine.time(self.stopwatch)
        began = start = time.perf_counter()
        batches = self.inputs.batches.iterate(first_step, total, prefetch=self.recipe.data.prefetch, state=data_state)
        with self.display.bar():
            for batch in self.stopwatch.waited_for(batches):
                self._reached = batch.step + 1
                with self.stopwatch.part(COMPUTE):
                    result = self.engine.train_step(batch.micro_batches, self._seeds(batch))
                step, self._is_trained = batch.step + 1, True
                now = time.perf_counter()
                self._record(batch, result, now - began)
                began = now
                stop = self._after_step(step, batch, result)
                began += time.perf_counter() - now
                if stop:
                    break
        if self.saved_step != step:
            self.save(step)
        if step > first_step:
            self._say_time(step, time.perf_counter() - start)
        return step

    def _say_time(self, step: int, seconds: float) -> None:
        device.synchronize()
        parts = split(self.stopwatch.read(), seconds)
        self._write({"step": step, "time_s": parts})
        self.display.say(shares_line(parts))

    def _seeds(self, batch: StepBatch) -> list[int]:
        # By the micro-batch's place in the global batch, so that dropout does not depend on the world size, and a
        # resumed run draws what the unbroken one would have drawn. Micro-batches of another size draw other numbers.
        count, replicas = len(batch.micro_batches), self.me.mesh.data
        return [mix(self.recipe.seed, batch.step, index * replicas + self.me.data_rank) for index in range(count)]

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
            **self._use_of_device(batch, result, seconds),
            "epoch": batch.epoch,
        }
        self.step_seconds.append(seconds)
        self.peak_gib = max(self.peak_gib, record["memory_gib"])
        if self.me.mesh.pipeline > 1:
            record["bubble"] = self.me.mesh.bubble(len(batch.micro_batches))
        if result.aux_loss is not None:
            record["aux_loss"] = result.aux_loss
        record |= self.inputs.task.summary(result.means)
        if result.loss_scale is not None:
            record["loss_scale"] = result.loss_scale
        if result.loss_scale is not None or result.skipped:
            record["skipped"] = result.skipped
        self._write(record)
        if self.trackers is not None:
            self.trackers.log(record, record["step"])
        self.display.step(record)

    def _use_of_device(self, batch: StepBatch, result: StepResult, seconds: float) -> dict[str, float]:
        found = {"memory_gib": device.peak_memory_gib()}
        reserved = device.reserved_memory_gib()
        if reserved is not None:
            found["memory_reserved_gib"] = reserved
        device.forget_peak_memory()  # each record has its own: of the step, and of what came between it and the last one
        self.stopwatch.read()
        if self.utilization is not None:
            found |= self.utilization.of_step(batch.lengths, result.targets, seconds)
        return found

    def _write(self, record: Mapping[str, Any]) -> None:
        if self.log is not None:
            self.log.write(record)

    def _after_step(self, step: int, batch: StepBatch, result: StepResult) -> bool:
        """Evaluate and save where due; whether to stop. Raises RunFailed where the run would end with a dead model."""
        evaluation, checkpoint = self.recipe.evaluation, self.recipe.checkpoint
        last = step == self.inputs.total_steps
        why_not = self._without_gradients(step, result)
        loss, better = None, False
        if last or (evaluation.every_steps and step % evaluation.every_steps == 0):
            with self.stopwatch.on_host("evaluation"):
                metrics = self._evaluate(step)
            if metrics is not None:
                loss = metrics["loss"]
                # Where no checkpoint will be written, there is none that could be the best.
                better = not why_not and self._observe(step, metrics)
        patience = evaluation.early_stopping_patience
        early = bool(patience) and self.watch.bad_evaluations >= patience
        interrupted = process.any_rank(self.interrupt.signal is not None)
        due = bool(checkpoint.every_steps) and step % checkpoint.every_steps == 0
        ends = last or early or interrupted
        if due or ends or (better and checkpoint.keep_best):
            if loss is None and not why_not:
                self._check_loss(step, self._loss_again(batch), "the loss of the last micro-batch", ends=ends)
            elif loss is not None and ends:
                self._check_loss(step, loss, "the held-out loss", ends=True)
            self._keep(step, why_not, ends=ends)
        if early and not last:
            self.display.say(
                f"stopping early at step {step}: {self.watch.metric} has not improved for {patience} evaluations "
                f"({self.watch.best_so_far})"
            )
        return early or interrupted

    def _keep(self, step: int, why_not: str, *, ends: bool) -> None:
        """Save, or say `why_not`. Raises RunFailed when there is such a reason and the run `ends`."""
        if why_not and ends:
            check_weights(self.engine, step)  # which may know the cause
            raise RunFailed(why_not, expected="finite gradients, not zero, where a run ends", do=ADVICE)
        if why_not:
            self.display.say(f"no checkpoint of step {step}: {why_not}")
        else:
            self.save(step)

    def _without_gradients(self, step: int, result: StepResult) -> str:
        """Why the model is likely to be dead, as far as its gradients tell; empty where it still learns."""
        if self.engine.loss_scale is not None:
            # fp16 skips steps as a matter of course.
            return ""
        is_zero = result.grad_norm == 0.0 and result.loss > 0.0
        if not result.skipped and not is_zero:
            self.suspect_from = None
            return ""
        first = step - max(1, result.skipped_in_a_row)
        self.suspect_from = first if self.suspect_from is None else min(self.suspect_from, first)
        if is_zero:
            return f"the gradient of step {step} is zero, though its loss is {result.loss:.4g}: nothing can be learned any more"
        # One bad batch may be one step; a model without a gradient on two is likely to be dead, whatever its loss says.
        count = step - self.suspect_from
        return (
            f"the gradients of the last {count} steps, up to step {step}, were not finite or zero" if count > 1 else ""
        )

    def _loss_again(self, batch: StepBatch) -> float:
        """Summed loss of what was just trained, with the weights that this has left: finite weights may still compute NaN."""
        return self.engine.evaluate(iter(batch.micro_batches[-1:]), self.inputs.task.evaluate).get("loss", 0.0)

    def _check_loss(self, step: int, loss: float, what: str, *, ends: bool) -> None:
        """Raise RunFailed when `loss`, taken without training, is not finite. Of fp16, only where the run `ends` with it."""
        if math.isfinite(loss):
            return
        if self.engine.loss_scale is not None and not ends:
            # One text may overflow in fp16 where the others do not.
            self.display.say(f"{what} is {loss} after step {step}: it does not fit into fp16")
            return
        advice = ADVICE if self.engine.loss_scale is None else ADVICE_FP16
        raise RunFailed(f"{what} is {loss} after step {step}", expected="a finite loss", do=advice)

    def _evaluate(self, step: int) -> dict[str, float] | None:
        """Evaluate if there is a held-out set; its metrics."""
        if step:
            check_weights(self.engine, step)
        self._sample(step)
        if self.evaluation is None:
            return None
        metrics = self.evaluation(step)
        self.evaluations.append({"step": step, **metrics})
        self.watch.first = self.watch.first or self.evaluations[0]
        self._write({"step": step, "eval": metrics})
        if self.trackers is not None:
            self.trackers.log(metrics, step, prefix="eval")
        self.display.say(f"eval at step {step}: " + "  ".join(f"{key} {value:.4f}" for key, value in metrics.items()))
        # Nothing comes of a start that computes no number. Later, it is known only after this whether the run ends here.
        self._check_loss(step, metrics["loss"], "the held-out loss", ends=step in (0, self.inputs.total_steps))
        return metrics

    def _observe(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Judge an evaluation after training; whether the watched metric is the best so far."""
        # An accuracy is finite also where the loss behind it is not.
        watched = metrics[self.watch.metric] if math.isfinite(metrics["loss"]) else math.nan
        self.engine.observe(watched)
        return self.watch.observe(watched, step)

    def _sample(self, step: int) -> None:
        prompt = getattr(self.recipe.task, "sample_prompt", None)
        if prompt is None or step not in (0, self.inputs.total_steps):
            return
        with self.engine.averaged():
            answer = self.engine.call(self.inputs.task.sample, self.engine.generate)
        self._write({"step": step, "sample": {"prompt": prompt, "answer": answer}})
        when = "before" if step == 0 else "after"
        self.display.say(f"sample {when} training: {prompt}\n  -> {answer}")

    def save(self, step: int) -> None:
        """Write a checkpoint and drop those that are no longer kept. Collective."""
        with self.stopwatch.on_host("saving"):
            self._save(step)

    def _save(self, step: int) -> None:
        run = {
            **self.identity,
            "engine": self.engine.state(),
            "data": {"position": self.inputs.batches.state(step), "owner": self.identity["facts"]["examples"]},
            "watch": self.watch.state(),
            "suspect_from": self.suspect_from,
        }
        self.last_good = save(self.engine, self.folder.checkpoints, step, run, self.me.rank, self.me.world_size)
        self.saved_step = step
        if self.me.is_main:
            has_best = self.recipe.checkpoint.keep_best and self.watch.best is not None
            retain(self.folder.checkpoints, self.recipe.checkpoint.keep, self.watch.best_step if has_best else None)
