"""What a run leaves behind and where it runs: checkpoints, evaluation, trackers, machines."""

from __future__ import annotations

from typing import Literal

from toolkit.recipe.numbers import NonNegative, Positive
from toolkit.recipe.section import Section


class Checkpoint(Section):
    """What is kept on disk while training."""

    every_steps: NonNegative = 0
    """Optimizer steps between checkpoints; 0: only the last step."""
    keep: Positive = 2
    """Newest checkpoints kept; the best one (checkpoint.keep_best) is kept on top of them."""
    keep_best: bool = False
    """Keep the checkpoint of the best evaluation; needs one at every evaluation."""
    export: bool = True
    """Write a Hugging Face directory at the end (of the best checkpoint with keep_best, else of the last)."""
    export_dtype: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Number format of the export."""
    merge: bool = False
    """Export adapters added to the weights of their base model, as an ordinary checkpoint; else as the files of an adapter, which peft loads beside it."""


class Evaluation(Section):
    """Held-out loss and metrics."""

    every_steps: NonNegative = 0
    """Optimizer steps between evaluations; 0: only before the first and after the last step."""
    max_sequences: Positive | None = None
    """Evaluate on the first this many held-out sequences (packs, where data.packing makes them), over all ranks: the same ones on any number of ranks and with any batch.micro_size; None: all."""
    metric: str = "loss"
    """Record that best checkpoint, early stopping and reduce_on_plateau watch: loss, or a metric of the task, which knows whether it should rise or fall."""
    early_stopping_patience: NonNegative = 0
    """Stop after this many evaluations without improvement; 0: never."""


class Tracking(Section):
    """Where metrics go besides metrics.jsonl."""

    tensorboard: bool = True
    """Write TensorBoard event files under OUTPUT_DIR/tensorboard."""
    trackers: tuple[Literal["wandb", "mlflow", "comet_ml", "aim", "clearml", "dvclive", "swanlab", "trackio"], ...] = ()
    """Further trackers, through accelerate's tracker classes; the package must be installed."""
    project: str = "toolkit"
    """Project name given to those trackers."""


class Launch(Section):
    """The machines this recipe is meant for: what rendered files, plans and dry runs assume. A launcher's own numbers win."""

    devices: Positive = 2
    """Processes per host."""
    hosts: Positive = 1
    """Hosts."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Kind of device; anything but "auto" refuses to start where it is missing."""

    memory_check: Literal["refuse", "off"] = "refuse"
    """Plan the memory before weights are loaded, of models of 30 million parameters and more: "refuse" to start what needs more than a device has, or start all the same."""
    timeout_s: Positive = 1800
    """Seconds a rank waits for the others, at the start and in every collective, before the run ends."""
    host_timeout_s: Positive = 120
    """Several hosts: seconds without a sign of life from one of them after which the others end the run and name it."""

    @property
    def world_size(self) -> int:
        """Processes over all hosts."""
        return self.devices * self.hosts
