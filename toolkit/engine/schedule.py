"""The learning rate of each optimizer step, on DeepSpeed's or torch's scheduler objects."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from toolkit.recipe import Schedule
from toolkit.recipe.schedules import factor


class EngineSchedule:
    """Drives the rate of `optimizer` (the one inside ZeRO). `block` is DeepSpeed's own scheduler, if the JSON has one.

    `position` counts optimizer steps that were applied; steps skipped by an fp16 overflow do not move it.
    """

    def __init__(
        self,
        schedule: Schedule,
        total_steps: int,
        optimizer: torch.optim.Optimizer,
        block: Any | None,
        higher_is_better: bool,
    ) -> None:
        self.schedule, self.total_steps, self.optimizer, self.block = schedule, total_steps, optimizer, block
        self.position = 0
        self.plateau: ReduceLROnPlateau | None = None
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        if schedule.type == "reduce_on_plateau":
            floors = [schedule.min_ratio * group["initial_lr"] for group in optimizer.param_groups]
            mode: Literal["max", "min"] = "max" if higher_is_better else "min"
            # threshold 0: any improvement counts, as for the best checkpoint. eps 0: torch leaves out drops below 1e-8.
            self.plateau = ReduceLROnPlateau(
                optimizer,
                mode,
                factor=schedule.gamma,
                patience=schedule.patience,
                threshold=0.0,
                min_lr=floors,
                eps=0.0,
            )
        self.seek(0)

    def seek(self, position: int) -> None:
        """Make the next optimizer step run as step `position`."""
        self.position = position
        if self.block is not None:
            # DeepSpeed leaves its schedules one step behind: without this the first two steps run at the minimum
            # (deepspeed/runtime/lr_schedules.py, WarmupLR.step).
            self.block.step(position)
        elif self.plateau is None:
            self._lambda = LambdaLR(self.optimizer, self._factor, last_epoch=position - 1)

    def _factor(self, step: int) -> float:
        return factor(self.schedule, step, self.total_steps)

    def step(self, *_: Any, **__: Any) -> None:
        """Called by DeepSpeed after each optimizer step it applied."""
        self.position += 1
        if self.block is not None:
            self.block.step(self.position)
        elif self.plateau is None:
            self._lambda.step()

    def forget_observed(self) -> None:
        """Take the next metric for the first: the ones before it measured something else."""
        if self.plateau is not None:
            self.plateau.num_bad_epochs, self.plateau.best = 0, self.plateau.mode_worse

    def observe(self, metric: float) -> None:
        """Tell reduce_on_plateau the evaluation metric; nothing for the other schedules."""
        if self.plateau is not None:
            self.plateau.step(metric)

    @property
    def learning_rate(self) -> float:
        """Rate of the next optimizer step (of the first parameter group)."""
        return float(self.optimizer.param_groups[0]["lr"])

    def get_last_lr(self) -> list[float]:
        """Rates of all groups; DeepSpeed's own progress line asks for it."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    get_lr = get_last_lr

    @property
    def _peaks(self) -> list[float]:
        return [float(group["initial_lr"]) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state: what it belongs to, the position, the rate of the next step, and the plateau's memory."""
        state: dict[str, Any] = {
            "type": self.schedule.type,
            "peaks": self._peaks,
            "total_steps": self.total_steps,
            "position": self.position,
            "next_rates": self.get_last_lr(),
        }
        if self.plateau is not None:
            best = float(self.plateau.best)
            state |= {
                "num_bad_epochs": self.plateau.num_bad_epochs,
                "best": best if math.isfinite(best) else None,
            }
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`, also from that of another type, peak or length.

        The rate follows from the position and this schedule; a plateau's drops so far are kept as a share of the peak.
        """
        self.seek(int(state["position"]))
        if self.plateau is None or state["type"] != self.schedule.type:
            return
        self.plateau.num_bad_epochs = int(state["num_bad_epochs"])
        if state["best"] is not None:
            self.plateau.best = float(state["best"])
        # Groups differ between topologies; the share of the peak does not.
        dropped = state["next_rates"][0] / state["peaks"][0]
        same = state["peaks"] == self._peaks
        for index, (group, floor) in enumerate(zip(self.optimizer.param_groups, self.plateau.min_lrs, strict=True)):
            rate = state["next_rates"][index] if same else group["initial_lr"] * dropped
            group["lr"] = max(rate, floor)
