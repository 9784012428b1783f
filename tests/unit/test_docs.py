"""README.md and docs/: links lead somewhere, generated pages are current, examples of verbs are accepted.

That their commands run is seen by tests/launch/test_documented_commands.py.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.pages import PAGES, README, ROOT, blocks, commands
from toolkit.cli import docs, verbs
from toolkit.errors import ConfigError

MOST_LINES = 150
"""Of the README: three minutes."""


def prose(page: Path) -> str:
    """`page` without its code blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives the headings of `page`."""
    headings = re.findall(r"^#+ +(.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path, text: str) -> list[str]:
    """The links of `text`, standing in `page`, that lead to no file, or to no heading of a page."""
    found = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("https://", "http://")):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            found.append(link)
    return found


def test_the_readme_is_read_in_three_minutes() -> None:
    """What is folded away is not read."""
    text = re.sub(r"<details>.*?</details>", "", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(text.splitlines()) <= MOST_LINES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page, prose(page)) == []


def test_a_broken_link_is_seen() -> None:
    text = "[a](docs/gone.md) [b](docs/data.md#gone) [c](docs/data.md#order-and-cache) [d](recipes) [e](#proof)"
    assert broken_links(README, text) == ["docs/gone.md", "docs/data.md#gone"]


def test_every_page_is_in_the_index_and_every_guide_on_the_front_page() -> None:
    index, front = ((ROOT / name).read_text(encoding="utf-8") for name in ("docs/README.md", "README.md"))
    names = {page.name for page in PAGES if page.parent.name == "docs"} - {"README.md"}
    assert {name for name in names if f"]({name})" not in index} == set()
    assert {name for name in names - set(docs.PAGES) if f"](docs/{name})" not in front} == set()


def test_the_first_block_is_two_make_targets() -> None:
    """What a newcomer types."""
    assert [command.text for command in commands()[:2]] == ["make quickstart", "make test"]


@pytest.mark.parametrize("name", verbs.VERBS)
def test_the_examples_of_help_are_accepted(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every one, word for word as it is printed."""
    with pytest.raises(SystemExit):
        verbs.main([name, "--help"])
    lines = capsys.readouterr().out.partition("examples:\n")[2].splitlines()
    assert len(lines) == len(verbs.VERBS[name][2]) > 0
    for line in lines:
        command, _, _ = line.strip().partition("   ")
        words = command.partition(" >")[0].split()
        options, others = verbs.parser().parse_known_args(words[1:])
        assert options.run is not None and (not others or hasattr(options, "fields")), line


def test_generated_pages_are_current(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`toolkit config --write` would change nothing; a stale, a missing and an orphaned page are named and mended."""
    copy = tmp_path / "docs"
    shutil.copytree(ROOT / "docs", copy)
    monkeypatch.setattr(docs, "FOLDER", copy)
    monkeypatch.setattr(docs, "ROOT", ROOT)
    monkeypatch.chdir(ROOT)
    assert docs.verify() == len(docs.PAGES)
    (copy / "rules.md").write_text("old")
    (copy / "verbs.md").unlink()
    (copy / "gone.md").write_text(f"{docs.MARK}\n\n# Of a page that nothing makes any more\n")
    with pytest.raises(ConfigError) as failure:
        docs.verify()
    assert failure.value.what == (
        f"{copy}/: gone.md belongs to no part of the code; rules.md is out of date; verbs.md is missing"
    )
    assert docs.write() == ["gone.md", "rules.md", "verbs.md"]
    assert docs.verify() == len(docs.PAGES)


def test_docs_of_another_project_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who has recipes and a docs/ folder of their own gets ds_configs/ only."""
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "rules.md").write_text("ours")
    monkeypatch.chdir(tmp_path)
    assert verbs.main(["config", "--write"]) == 0 == verbs.main(["config", "--verify"])
    assert "docs/" not in capsys.readouterr().out
    assert [path.read_text() for path in (tmp_path / "docs").iterdir()] == ["ours"]


def test_the_report_on_the_page_is_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """checking.md shows a file, and what `toolkit check` says of it."""
    page = ROOT / "docs" / "checking.md"
    monkeypatch.chdir(tmp_path)
    Path("my_ds.json").write_text(blocks(page, "json")[0])
    assert verbs.main(["check", "my_ds.json"]) == 2
    said = capsys.readouterr()
    assert said.out + said.err == blocks(page, "")[0]


def test_make_test_builds_the_kernels() -> None:
    """`toolkit doctor --build`, which takes minutes, is run by every `make test`."""
    assert "\n\t$(BIN)/toolkit doctor --build\n" in (ROOT / "Makefile").read_text(encoding="utf-8")
