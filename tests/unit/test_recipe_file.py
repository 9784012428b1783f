"""Recipes written as files: what was read comes back, in the form that the shipped ones have."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from toolkit.recipe import Recipe
from toolkit.recipe.dotted import flat, recipe_of, written
from toolkit.recipe.load import load_recipe
from toolkit.recipe.recipe_file import file_text, literal

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.py"))
FIELDS_IN_ANOTHER_ORDER = {"pretrain_llama10m_zero1", "pretrain_llama1b_zero2", "sft_llama70b_pp4_tp8"}


def again(path: Path, recipe: Recipe, **comments: list[str]) -> str:
    headline = path.read_text(encoding="utf-8").splitlines()[0].removeprefix('"""')
    return file_text(recipe, path.stem, headline, keep=written(recipe), comments=comments)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_is_written_as_it_stands(path: Path, tmp_path: Path) -> None:
    """To the byte; where a section's fields stand in an order of their own, the same recipe."""
    recipe = load_recipe(path)
    text = again(path, recipe)
    if path.stem in FIELDS_IN_ANOTHER_ORDER:
        (tmp_path / path.name).write_text(text, encoding="utf-8")
        assert load_recipe(tmp_path / path.name) == recipe
    else:
        assert text == path.read_text(encoding="utf-8")
    assert recipe_of(flat(recipe)) == recipe


def test_what_is_written_is_formatted(tmp_path: Path) -> None:
    """`ruff format` and `ruff check` would change nothing, with comments, odd texts and long values in it."""
    for path in RECIPES:
        recipe = load_recipe(path)
        odd = flat(recipe) | {
            "data.train": """a 'b' "c" \\ \n\t \u00e9 \u4e2d \U0001f600 {x}""",
            "tracking.trackers": ("wandb",),
            "tracking.project": 'one "quote"',
            ("task.arguments" if recipe.task.brings_model else "model.config"): {
                "initializer_range": 0.02,
                "layers": '["a", "b"]',
            },
        }
        if "task.sample_prompt" in odd and odd.get("task.second_text_field") is None:
            odd["task.sample_prompt"] = 'What\'s "it"? ' * 30
        recipe = recipe_of(odd)
        (tmp_path / path.name).write_text(
            again(path, recipe, batch=["word " * 60], note=["one line."]), encoding="utf-8"
        )
        assert load_recipe(tmp_path / path.name) == recipe
    for command in (["format", "--check"], ["check"]):
        words = [sys.executable, "-m", "ruff", *command, "--config", str(ROOT / "pyproject.toml"), str(tmp_path)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-4, "1e-4"),
        (3e-3, "3e-3"),
        (0.01, "0.01"),
        (0.1 + 0.2, "0.30000000000000004"),
        (1.5e-5, "1.5e-5"),
        (0.0, "0.0"),
        (2.0, "2.0"),
        (9999, "9999"),
        (200_000_000, "200_000_000"),
        (True, "True"),
        (None, "None"),
        ((0.9, 0.95), "(0.9, 0.95)"),
        (("wandb",), '("wandb",)'),
        ("it's", '"it\'s"'),
        ('"', "'\"'"),
        ({"a": [1]}, '{"a": (1,)}'),
    ],
)
def test_literals(value: Any, text: str) -> None:
    assert literal(value) == text
