"""A plan as one page with pictures, in one file: nothing is loaded from anywhere."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path

from toolkit.plan.choice import Choice, describe
from toolkit.plan.memory import GIB
from toolkit.plan.report import choice_lines, duration, plan_json
from toolkit.plan.strategy import Planned
from toolkit.recipe import Recipe
from toolkit.recipe.schedules import factor
from toolkit.storage import HERE, storage_errors

COLOURS = (
    "#4e79a7",
    "#f28e2b",
    "#59a14f",
    "#e15759",
    "#76b7b2",
    "#edc948",
    "#b07aa1",
    "#ff9da7",
    "#9c755f",
    "#bab0ac",
    "#8cd17d",
    "#d37295",
)
"""Of components, in the order in which they come."""

WIDE, LEFT, ROW = 960, 370, 26
"""Pixels: of a picture, of its labels, and of a row."""

LABEL = 48
"""Characters of a label: as many as fit in the widest of the usual fonts."""

POINTS = 200
"""Of the learning-rate curve."""

STRATEGIES = 10
"""Rows of the pictures."""


def write_page(path: Path, text: str) -> None:
    """Write the page `text`. Raises StorageError where the disk takes none."""
    with storage_errors("writing the page", path.parent, HERE):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def page(title: str, given: Planned | None, choice: Choice, recipe: Recipe, as_it_is: Sequence[str]) -> str:
    """The text of the page; `as_it_is` are the lines about the recipe as it is."""
    mine = [] if given is None else [given]
    named = {describe(plan) for plan in mine}
    plans = [*mine, *(plan for plan in choice.fitting if describe(plan) not in named)][:STRATEGIES]
    beyond = choice.others[: max(0, STRATEGIES - len(plans))]
    shown = [*plans, *beyond]
    body = [
        f"<h1>{html.escape(title)}</h1>",
        "<h2>Memory of a rank at its fullest moment</h2>",
        _memory(shown),
        "<h2>Time of a step</h2>",
        _time(plans or shown),
        "<h2>The recipe as it is</h2>",
        _text(as_it_is),
        "<h2>The choice</h2>",
        _text(choice_lines(choice, recipe, given)),
        "<h2>Tokens</h2>",
        _text(_tokens(shown[0])),
    ]
    counted = "the recipe counts in epochs: how many steps they are is known when its data is read"
    body += ["<h2>Learning rate</h2>", _text([counted]) if recipe.steps is None else _curve(recipe)]
    data = json.dumps(plan_json(shown[0])).replace("<", "\\u003c")
    return PAGE.format(title=html.escape(title), body="\n".join(body), data=data)


def _text(lines: Sequence[str]) -> str:
    return f"<pre>{html.escape(chr(10).join(lines))}</pre>"


def _tokens(plan: Planned) -> list[str]:
    recipe = plan.recipe
    batch, accumulation = recipe.batch, int(plan.config["gradient_accumulation_steps"])
    unit = f"{batch.sequence_length:,} tokens" if recipe.task.has_length else "examples"
    lines = [
        f"{batch.global_size} sequences per step = {batch.micro_size} per micro-batch x {plan.mesh.data} replicas x "
        f"{accumulation} micro-batches, of {unit}",
        f"{plan.tokens_per_step:,} {'tokens' if recipe.task.has_length else 'examples'} per step",
    ]
    if recipe.steps is not None:
        lines.append(f"{recipe.steps:,} steps: {recipe.steps * plan.tokens_per_step:,} in all")
    return lines


def _components(plans: Sequence[Planned]) -> list[str]:
    sizes: dict[str, int] = {}
    for plan in plans:
        for name, size in plan.memory.device.items():
            sizes[name] = max(size, sizes.get(name, 0))
    return sorted(sizes, key=lambda name: -sizes[name])


def _memory(plans: Sequence[Planned]) -> str:
    """A bar for each strategy, cut into components, and a line where the device ends."""
    names = _components(plans)
    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(names)}
    most = max(max(plan.memory.peak for plan in plans), plans[0].limit) * 1.05
    # One strategy that needs many devices' memory must not make the others invisible.
    most = min(most, 2.0 * plans[0].limit)
    scale = (WIDE - LEFT - 90) / most
    rows = []
    for index, plan in enumerate(plans):
        top, x = index * ROW, float(LEFT)
        rows.append(_label(describe(plan), top))
        for name in names:
            size = plan.memory.device.get(name, 0)
            wide = min(size * scale, LEFT + most * scale - x)
            if wide > 0.2:
                said = f"{name}: {size / GIB:.2f} GiB"
                rows.append(_box(x, top, wide, colours[name], said))
            x += max(0.0, wide)
        rows.append(f'<text x="{x + 4:.1f}" y="{top + 17}" class="n">{plan.memory.peak / GIB:.1f}</text>')
    limit = LEFT + plans[0].limit * scale
    high = len(plans) * ROW
    rows.append(f'<line x1="{limit:.1f}" x2="{limit:.1f}" y1="0" y2="{high}" class="limit"/>')
    rows.append(
        f'<text x="{limit:.1f}" y="{high + 16}" class="n" text-anchor="middle">limit {plans[0].limit / GIB:.1f} GiB</text>'
    )
    legend = "".join(f'<span><i style="background:{colours[name]}"></i>{html.escape(name)}</span>' for name in names)
    return f'{_picture(rows, high + 22, "memory by component and strategy, GiB")}<p class="legend">{legend}</p>'


def _time(plans: Sequence[Planned]) -> str:
    parts = ("compute", "communication", "optimizer", "offload", "bubble")
    most = max(plan.seconds.total for plan in plans)
    scale = (WIDE - LEFT - 90) / most
    rows = []
    for index, plan in enumerate(plans):
        top, x = index * ROW, float(LEFT)
        rows.append(_label(describe(plan), top))
        for number, part in enumerate(parts):
            seconds = getattr(plan.seconds, part)
            if seconds * scale > 0.2:
                rows.append(_box(x, top, seconds * scale, COLOURS[number], f"{part}: {duration(seconds)}"))
            x += seconds * scale
        rows.append(f'<text x="{x + 4:.1f}" y="{top + 17}" class="n">{duration(plan.seconds.total)}</text>')
    legend = "".join(
        f'<span><i style="background:{COLOURS[number]}"></i>{part}</span>' for number, part in enumerate(parts)
    )
    return f'{_picture(rows, len(plans) * ROW, "time of a step by strategy")}<p class="legend">{legend}</p>'


def _curve(recipe: Recipe) -> str:
    steps = recipe.steps or 1
    chosen = sorted({round(index * (steps - 1) / POINTS) for index in range(POINTS + 1)})
    high, wide = 180, WIDE - 120
    points = " ".join(
        f"{80 + wide * step / max(1, steps - 1):.1f},{10 + high * (1 - factor(recipe.schedule, step, steps)):.1f}"
        for step in chosen
    )
    rate = recipe.optimizer.learning_rate
    rows = [
        f'<polyline points="{points}" class="curve"/>',
        f'<text x="74" y="16" class="n" text-anchor="end">{rate:g}</text>',
        f'<text x="74" y="{high + 10}" class="n" text-anchor="end">0</text>',
        f'<text x="80" y="{high + 28}" class="n">step 1</text>',
        f'<text x="{80 + wide}" y="{high + 28}" class="n" text-anchor="end">step {steps:,}</text>',
    ]
    return _picture(rows, high + 34, f"learning rate by step, {recipe.schedule.type}")


def _label(text: str, top: int) -> str:
    shown = text if len(text) <= LABEL else f"{text[: LABEL - 2]}..."
    return f'<text x="{LEFT - 8}" y="{top + 17}" text-anchor="end">{html.escape(shown)}<title>{html.escape(text)}</title></text>'


def _box(x: float, top: int, wide: float, colour: str, said: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{top + 3}" width="{wide:.1f}" height="{ROW - 6}" fill="{colour}">'
        f"<title>{html.escape(said)}</title></rect>"
    )


def _picture(rows: Sequence[str], high: int, what: str) -> str:
    return f'<svg viewBox="0 0 {WIDE} {high}" role="img" aria-label="{html.escape(what)}">{"".join(rows)}</svg>'


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.45 system-ui, sans-serif; color: CanvasText; background: Canvas; max-width: 1000px; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.25rem; }} h2 {{ font-size: 1.05rem; margin-top: 2rem; }}
svg {{ width: 100%; height: auto; }} svg text {{ font-size: 12px; fill: CanvasText; }} svg text.n {{ fill: GrayText; }}
line.limit {{ stroke: #d62728; stroke-width: 2; stroke-dasharray: 5 3; }} polyline.curve {{ fill: none; stroke: #4e79a7; stroke-width: 2; }}
pre {{ overflow-x: auto; font-size: 13px; }}
.legend span {{ display: inline-block; margin-right: 1.1em; font-size: 13px; }} .legend i {{ display: inline-block; width: .9em; height: .9em; margin-right: .35em; vertical-align: -1px; }}
</style>
</head>
<body>
{body}
<script type="application/json" id="plan">{data}</script>
</body>
</html>
"""
