"""README.md, the pages of docs/ and the quick start: what stands in their code blocks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = [README, *sorted(DOCS.glob("*.md"))]
NEXT_STEPS = DOCS / "next_steps.txt"
"""What the quick start says at its end."""
PARALLELISM = DOCS / "parallelism.md"
"""Says how many architectures each kind of parallelism takes."""


@dataclass(frozen=True)
class Command:
    """One command that a page tells its reader to run, without its comment."""

    page: str
    text: str


def blocks(page: Path, *languages: str) -> list[str]:
    """The code blocks of `page` in one of `languages`."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return [text for language, text in found if language in languages]


def commands() -> list[Command]:
    """Every command of every page, in the order of reading; those that `make quickstart` runs, and what it says at its end."""
    found = []
    for page in PAGES:
        shell = [line for block in blocks(page, "bash", "sh", "shell", "console") for line in block.splitlines()]
        steps = [step for block in blocks(page, "yaml") for step in re.findall(r"^- run: (.*)$", block, re.MULTILINE)]
        name = str(page.relative_to(ROOT))
        found += [Command(name, line.partition(" # ")[0].strip()) for line in [*shell, *steps]]
    return [command for command in [*found, *quick_start()] if command.text]


def quick_start() -> list[Command]:
    """The commands behind `make quickstart`, and those that it leaves its reader with."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    target = re.search(r"^quickstart:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert target is not None
    run = re.findall(r"^\t\$\(BIN\)/(.*)$", target[1], re.MULTILINE)
    said = re.findall(r"^ +(\S.*?)(?:   .*)?$", NEXT_STEPS.read_text(encoding="utf-8"), re.MULTILINE)
    return [*(Command("Makefile", line) for line in run), *(Command("docs/next_steps.txt", line) for line in said)]
