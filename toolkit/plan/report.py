"""A plan in words: memory as bars, time, disk, which strategies fit, and why the best one is the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from toolkit.errors import plural
from toolkit.plan.choice import Choice, as_flags, changes_of, describe, faster_unfit, runner_up, why_slower
from toolkit.plan.memory import GIB, components, to_json
from toolkit.plan.strategy import Planned, has_room
from toolkit.recipe import Recipe
from toolkit.recipe.dotted import flat

BAR = 36
"""Characters of a full device."""

SHOWN = 8
"""Strategies in the table."""


def memory_lines(plan: Planned) -> list[str]:
    """The fullest moment of the fullest rank, by component."""
    limit = plan.limit
    verdict = _verdict(plan.memory.peak / limit)
    where = "of this host's memory, a rank's share" if plan.place.hardware.is_cpu else "of a device"
    lines = [
        f"memory: {verdict}: {plan.memory.peak / GIB:.1f} GiB of {limit / GIB:.1f} GiB {where}, {plan.memory.moment}"
    ]
    for name, size in components(plan.memory):
        if size >= 0.005 * plan.memory.peak:
            lines.append(
                f"  {name:22} {size / GIB:8.2f} GiB  {'#' * max(1, round(BAR * size / max(limit, plan.memory.peak)))}"
            )
    if plan.memory.host:
        pinned = (
            f", {plan.memory.pinned * plan.ranks_of_host / GIB:.1f} GiB of it page-locked" if plan.memory.pinned else ""
        )
        verdict = "" if plan.place.host_memory is None else f"{_verdict(plan.host_fullness)}: "
        lines.append(
            f"host:   {verdict}{host_memory(plan)} on each host, by {plural(plan.ranks_of_host, 'rank')}{pinned}"
            f"{', while weights are loaded' if plan.memory.loading == plan.memory.host_peak else ''}"
        )
    if plan.memory.nvme:
        lines.append(f"NVMe:   {plan.memory.nvme * plan.ranks_of_host / GIB:.1f} GiB on each host")
    disk = plan.disk
    export = f", the export {disk.export / GIB:.2f} GiB" if disk.export else ""
    lines.append(
        f"disk:   a checkpoint takes {disk.checkpoint / GIB:.2f} GiB, at most {disk.most / GIB:.2f} GiB at a time{export}"
    )
    return lines


def host_memory(plan: Planned) -> str:
    """What the ranks of a host need of its memory, and what it has, where that is known."""
    there = plan.place.host_memory
    return f"{plan.host_bytes / GIB:.1f} GiB" + ("" if there is None else f" of {there / GIB:.1f}")


def _verdict(fullness: float) -> str:
    return "fits" if has_room(fullness) else "DOES NOT FIT"


def time_lines(plan: Planned, steps: int | None, price_per_hour: float | None) -> list[str]:
    """Of a step, and of the run."""
    seconds = plan.seconds
    parts = {
        "computing": seconds.compute,
        "communication": seconds.communication,
        "optimizer": seconds.optimizer,
        "host traffic": seconds.offload,
        "pipeline bubble": seconds.bubble,
    }
    spent = ", ".join(f"{name} {value:.2g} s" for name, value in parts.items() if value >= 0.005 * seconds.total)
    unit = "tokens" if plan.recipe.task.has_length else "examples"
    lines = [f"time:   {duration(seconds.total)} per step ({spent}); {plan.tokens_per_second:,.0f} {unit}/s"]
    mfu = "" if plan.mfu is None else f", {plan.mfu:.0%} of its {plan.number_format} rate (MFU)"
    lines.append(f"        {plan.tflops_per_device:.3g} TFLOPS per device{mfu}")
    if steps is not None:
        whole = steps * seconds.total
        lines.append(
            f"        {plural(steps, 'step')}: {duration(whole)} of training{_cost(plan, whole, price_per_hour)}"
        )
    return lines


def _cost(plan: Planned, seconds: float, price_per_hour: float | None) -> str:
    said = ""
    energy, price = energy_kwh(plan, seconds), cost(plan, seconds, price_per_hour)
    if energy is not None:
        said = f", {energy:,.1f} kWh at the devices' full power"
    if price is not None:
        said += f", {price:,.2f} at {price_per_hour:g} per device and hour"
    return said


def energy_kwh(plan: Planned, seconds: float) -> float | None:
    """Of all devices at full power; None where that is not known."""
    watts = plan.place.hardware.watts
    return plan.mesh.world_size * watts * seconds / 3.6e6 if watts else None


def cost(plan: Planned, seconds: float, price_per_hour: float | None) -> float | None:
    """Of all devices, in the currency of the price of one; None without a price."""
    return None if price_per_hour is None else plan.mesh.world_size * price_per_hour * seconds / 3600


def duration(seconds: float) -> str:
    """Such as "1 h 20 min"."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours / 24:.1f} days"


def choice_lines(choice: Choice, recipe: Recipe, given: Planned | None) -> list[str]:
    """The table of strategies, and the reasons; `given` is the recipe as it is, None where it cannot run so."""
    lines: list[str] = []
    if choice.best is None:
        lines.append("no strategy fits:")
        lines += [f"  {row(plan)}{_host_short(plan)}" for plan in choice.others[:3]]
        return [*lines, *_refused(choice)]
    lines.append(f"fastest that fits: {describe(choice.best)}")
    lines += _reasons(choice, recipe, given)
    lines.append("")
    lines.append(f"  {'GiB':>6} {'per step':>10} {'tokens/s':>11}  strategy")
    lines += [f"  {row(plan)}" for plan in choice.fitting[:SHOWN]]
    left = len(choice.fitting) - SHOWN
    if left > 0:
        lines.append(f"  ... and {left} more that fit; {len(choice.others)} do not")
    elif choice.others:
        lines.append(f"  {plural(len(choice.others), 'strategy', 'strategies')} more do not fit")
    return [*lines, *_refused(choice)]


def _refused(choice: Choice) -> list[str]:
    return [f"  not possible: {kind}: {why}" for kind, why in choice.refused.items()]


def _reasons(choice: Choice, recipe: Recipe, given: Planned | None) -> list[str]:
    best = choice.best
    assert best is not None
    lines = []
    second = runner_up(choice)
    if second is not None:
        lines.append(f"  before {describe(second)}: {why_slower(best, second)}")
    beyond = faster_unfit(choice)
    if beyond is not None:
        lines.append(
            f"  {describe(beyond)} would take {duration(beyond.seconds.total)}, and needs "
            f"{beyond.memory.peak / GIB:.0f} GiB of {beyond.limit / GIB:.0f}{_host_short(beyond)}"
        )
    if given is not None and given.fits():
        gain = given.seconds.total / best.seconds.total - 1
        lines.append(
            f"  the recipe's own strategy takes {gain:.0%} longer"
            if gain > 0.01
            else "  the recipe's own strategy is as fast"
        )
    flags = as_flags(changes_worth_naming(recipe, changes_of(recipe, best.recipe)))
    if flags:
        lines.append(f"  take it: {flags}")
    return lines


def _host_short(plan: Planned) -> str:
    return "" if has_room(plan.host_fullness) else f", with {host_memory(plan)} of host memory"


def changes_worth_naming(recipe: Recipe, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `changes` that `recipe` does not have already."""
    before = flat(recipe)
    return {name: value for name, value in changes.items() if before.get(name) != value}


def row(plan: Planned) -> str:
    """One line of the table."""
    return f"{plan.memory.peak / GIB:6.1f} {duration(plan.seconds.total):>10} {plan.tokens_per_second:>11,.0f}  {describe(plan)}"


def plan_json(plan: Planned) -> dict[str, Any]:
    """One strategy as data."""
    seconds = plan.seconds
    return {
        "strategy": describe(plan),
        "fits": plan.fits(),
        "device": plan.place.hardware.name,
        "devices": plan.mesh.world_size,
        "limit_bytes": plan.limit,
        "memory": to_json(plan.memory),
        "host_bytes_per_host": plan.host_bytes,
        "host_limit_bytes": plan.place.host_memory,
        "disk": {
            "checkpoint_bytes": plan.disk.checkpoint,
            "most_bytes": plan.disk.most,
            "export_bytes": plan.disk.export,
        },
        "step_seconds": {
            "total": seconds.total,
            "compute": seconds.compute,
            "communication": seconds.communication,
            "optimizer": seconds.optimizer,
            "offload": seconds.offload,
            "bubble": seconds.bubble,
        },
        "tokens_per_second": plan.tokens_per_second,
        "tflops_per_device": plan.tflops_per_device,
        "mfu": plan.mfu,
        "parameters": plan.total,
        "trained_parameters": plan.trained,
    }


def run_json(plan: Planned, steps: int, price_per_hour: float | None) -> dict[str, Any]:
    """A whole run of `steps` steps as data."""
    seconds = steps * plan.seconds.total
    return {
        "steps": steps,
        "seconds": seconds,
        "energy_kwh": energy_kwh(plan, seconds),
        "cost": cost(plan, seconds, price_per_hour),
    }


def choice_json(recipe: Recipe, choice: Choice) -> dict[str, Any]:
    """All of them."""

    def entries(plans: Sequence[Planned]) -> list[dict[str, Any]]:
        return [{**plan_json(plan), "changes": changes_of(recipe, plan.recipe)} for plan in plans]

    return {"fitting": entries(choice.fitting), "others": entries(choice.others), "refused": choice.refused}
