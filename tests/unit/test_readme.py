"""README.md: its commands run, its generated parts are current, its files exist."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from toolkit.cli import docs, verbs
from toolkit.errors import ConfigError

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    """The lines of the README's shell blocks, without their comments."""
    blocks = re.findall(r"```bash\n(.*?)```", TEXT, flags=re.DOTALL)
    return [
        line.split("  #")[0].split("     #")[0].strip()
        for block in blocks
        for line in block.splitlines()
        if line.strip()
    ]


def test_the_first_block_is_two_make_targets() -> None:
    """What a newcomer types exists in the Makefile."""
    first = [command.split() for command in commands()[:2]]
    assert first == [["make", "quickstart"], ["make", "test"]]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(f"\n{target}: " in makefile for _, target in first)


@pytest.mark.parametrize("command", [line for line in commands() if line.startswith("python ")])
def test_commands_without_a_launcher_run(command: str) -> None:
    """--dry_run and --preview, as printed."""
    words = [sys.executable, *shlex.split(command)[1:]]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 500


@pytest.mark.parametrize(
    "command", [line for line in commands() if line.startswith(("deepspeed", "accelerate", "torchrun"))]
)
def test_launcher_commands_name_files_that_exist_and_flags_that_parse(command: str) -> None:
    """The recipe accepts the flags; launching itself is tested in tests/launch."""
    words = shlex.split(command)
    place = next(index for index, word in enumerate(words) if word.startswith("recipes/"))
    assert all((ROOT / word).is_file() for word in words if word.startswith(("recipes/", "ds_configs/")))
    dry = [sys.executable, words[place], *words[place + 1 :], "--dry_run"]
    done = subprocess.run(dry, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_every_verb_of_the_readme_exists(capsys: pytest.CaptureFixture[str]) -> None:
    """toolkit VERB --help answers for each."""
    named = set(re.findall(r"toolkit (check|config|rules|export|fetch|doctor|plan|parity)\b", TEXT))
    assert {"check", "config", "export", "fetch", "doctor", "rules"} <= named
    for verb in named:
        with pytest.raises(SystemExit) as exit_:
            verbs.main([verb, "--help"])
        assert exit_.value.code == 0, verb
    capsys.readouterr()


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
        assert verbs.parser().parse_args(words[1:]).run is not None, line


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
    assert "docs" not in capsys.readouterr().out
    assert [path.read_text() for path in (tmp_path / "docs").iterdir()] == ["ours"]
