"""What `toolkit new` says: what it saw, what it set and why, and the three commands that come next."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.text import Text

from toolkit.draft.proposal import Seen
from toolkit.draft.roles import WORDS
from toolkit.draft.sheet import Reason
from toolkit.draft.survey import MOST_ROWS, histogram
from toolkit.errors import first_few, plural
from toolkit.recipe import Recipe
from toolkit.recipe.recipe_file import launch_commands, literal

WIDEST = 44
"""Characters that a field and its value take in the column before the reasons; longer ones push theirs aside."""
LARGE = 3_000_000_000
"""Parameters from which on it is worth a line what their states take."""
BAR = 30
"""Characters of the longest bar of the histogram."""


class Report:
    """Lines on standard output, a bar on standard error while rows are measured and a terminal is there."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        self.waiting = Console(stderr=True)

    @contextmanager
    def measuring(self, total: int) -> Iterator[Callable[[int, int], None]]:
        """A bar for `total` rows; called with the rows done and all of them."""
        with Progress(console=self.waiting, transient=True, disable=not self.waiting.is_terminal) as bar:
            task = bar.add_task("measuring rows", total=total)
            yield lambda done, _: bar.update(task, completed=done)

    def seen(self, recipe: Recipe, source: Path, seen: Seen, remarks: Sequence[str]) -> None:
        """The source, the model, the data and the lengths of its examples."""
        self._line("from", f"{source}: {recipe.note}")
        self._line("model", _model_words(recipe, seen))
        if seen.model.parameters >= LARGE and recipe.parallel.zero_stage < 3 and recipe.parallel.tensor == 1:
            self._line(
                "",
                f"weights, gradients and optimizer states take {seen.model.state_gib:,.0f} GiB; "
                f"ZeRO-{recipe.parallel.zero_stage} keeps the weights whole on each device, --from sft_llama8b_zero3 does not",
            )
        self._line("data", _data_words(recipe, seen))
        for remark in remarks:
            self._line("", remark)
        self._lengths(seen)

    def _lengths(self, seen: Seen) -> None:
        measured, look = seen.measured, seen.look
        rows = plural(measured.num_rows, "row")
        if look.total is None or measured.num_rows < look.total:
            spread = "the first " if look.total is None or not look.counted or measured.num_rows < MOST_ROWS else ""
            rows = f"{spread}{rows}" if spread else f"{rows} drawn from all"
        lengths = sorted(measured.lengths)
        self._line(
            "lengths",
            f"in tokens, of {rows}: median {lengths[len(lengths) // 2]:,}, "
            f"99% at most {lengths[max(0, -(-99 * len(lengths) // 100) - 1)]:,}, longest {lengths[-1]:,}"
            + (f"; {measured.empty:,} give nothing to learn" if measured.empty else ""),
        )
        bins = list(histogram(lengths))
        most = max(count for _, count in bins)
        mark = "█" if self.console.encoding.startswith("utf") else "#"
        for edge, count in bins:
            bar = mark * max(int(count > 0), round(BAR * count / most))
            self.console.print(Text(f"{'':10}up to {edge:>6,}  {count:>6,}  ").append(bar, style="cyan"))

    def chosen(self, reasons: Sequence[Reason]) -> None:
        """Each field that was set, and why."""
        self.console.print()
        fields = [f"{reason.field} = {literal(reason.value)}" for reason in reasons]
        width = min(WIDEST, max(map(len, fields), default=0))
        for shown, reason in zip(fields, reasons, strict=True):
            self.console.print(Text(f"{shown:<{width}}", style="bold").append(f"  {reason.why}", style="not bold"))

    def written(self, files: Sequence[Path], recipe: Recipe, name: str, notes: Sequence[str]) -> None:
        """What was written, what to do with it, and the commands that come next."""
        self.console.print()
        self._line("wrote", f"{', '.join(map(str, files))} (after a change of the recipe: toolkit config --write)")
        for note in notes:
            self._line("note", note)
        self.console.print()
        script = files[0]
        commands = {
            f"python {script} --preview 2": "which tokens are trained",
            f"python {script} --dry_run": "the configuration, without starting",
            f"python {script} --rehearse": "a few steps and a resume, scaled down, on this CPU",
            launch_commands(recipe.launch, name)[0]: "train",
        }
        width = max(map(len, commands))
        for command, purpose in commands.items():
            self.console.print(Text(f"{command:<{width}}", style="bold").append(f"  # {purpose}", style="dim"))

    def _line(self, what: str, text: str) -> None:
        self.console.print(Text(f"{what:<10}", style="bold").append(text, style="not bold"))


def _model_words(recipe: Recipe, seen: Seen) -> str:
    facts, model = seen.model, recipe.model
    name = model.path or f"{model.architecture} from scratch"
    positions = "no limit of positions" if facts.positions is None else f"{facts.positions:,} positions"
    parts = [
        f"{name}: {facts.architecture}, {_size(facts.parameters)} parameters, {positions}",
        "tied embeddings" if facts.tied else "",
    ]
    if seen.roles.kind in ("messages", "prompt_completion"):
        parts.append(
            "a chat template"
            if facts.has_chat_template
            else "no chat template: prompt and completion are joined as they are"
        )
    return ", ".join(part for part in parts if part)


def _size(parameters: int) -> str:
    unit, name = (1e9, "B") if parameters >= 1e9 else (1e6, "M") if parameters >= 1e6 else (1e3, "k")
    return f"{parameters / unit:.1f} {name}"


def _form_words(name: str) -> str:
    """`Alpaca has`, `questions with answers have`."""
    return f"{name} {'have' if ' with ' in name else 'has'}"


def _data_words(recipe: Recipe, seen: Seen) -> str:
    look, kind = seen.look, seen.roles.kind
    total = (
        "rows not counted" if look.total is None else f"{'' if look.counted else 'about '}{plural(look.total, 'row')}"
    )
    unread = seen.measured.unused
    form = "" if seen.roles.form is None else f" as {_form_words(seen.roles.form.name)} them"
    words = f"{recipe.data.train}: {total} of {WORDS[kind]}{form}, in {' and '.join(seen.measured.used)}"
    if look.source.files and look.source.files[0].suffix.lower() == ".txt":
        words += "; each line is a text of its own"
    return words + (f"; not read: {first_few(unread)}" if unread else "")
