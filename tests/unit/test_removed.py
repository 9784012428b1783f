"""Fields of older recipes: one message with what has taken their place, wherever they still stand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_effect import BASE, recipe
from toolkit.cli.flags import parse
from toolkit.errors import RecipeError
from toolkit.recipe import CausalLM, Data, Evaluation, Recipe, SequenceClassification
from toolkit.recipe.removed import REMOVED
from toolkit.train.run_folder import compare, stored_recipe

MOVED = ("messages_field", "prompt_field", "completion_field", "text_field", "label_field")
VALUES = {
    "evaluation.max_batches": 8,
    "evaluation.higher_is_better": True,
    **{f"data.{name}": "column" for name in MOVED},
}


def test_every_removed_field_is_gone_and_its_stand_in_exists() -> None:
    assert sorted(VALUES) == sorted(REMOVED)
    for name in REMOVED:
        assert name.rpartition(".")[2] not in {**Evaluation.model_fields, **Data.model_fields}
    assert "max_sequences" in Evaluation.model_fields
    for name in MOVED:
        _, do = REMOVED[f"data.{name}"]
        named = [kind for kind in (CausalLM, SequenceClassification) if f"task={kind.__name__}({name}=...)" in do]
        assert len(named) == 1 and name in named[0].model_fields


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("way", ["section", "recipe", "flag", "flag=value"])
def test_one_message(name: str, way: str, tmp_path: Path) -> None:
    value, (section, _, last) = VALUES[name], name.rpartition(".")

    def flags(*words: str) -> Any:
        return parse(recipe({}), words, output_dir=tmp_path, description="", prog="x.py")

    ways: dict[str, Callable[[], Any]] = {
        "section": lambda: (Data if name.startswith("data") else Evaluation)(**{last: value}),
        "recipe": lambda: Recipe(**BASE | {section: {**BASE.get(section, {}), last: value, "every_steps": -1}}),
        "flag": lambda: flags(f"--{name}", str(value)),
        "flag=value": lambda: flags(f"--{name.replace('_', '-')}={value}"),
    }
    with pytest.raises(RecipeError) as caught:
        ways[way]()
    given = repr(str(value)) if way.startswith("flag") else repr(value)
    assert caught.value.what == f"{name}={given}: there is no such field any more"
    assert (caught.value.expected, caught.value.do) == REMOVED[name]


def test_a_run_of_an_older_version(tmp_path: Path) -> None:
    """A run without a checkpoint begins anew: what its recipe once had does not matter."""
    now = recipe({})
    stored = now.model_dump(mode="json")
    stored["evaluation"] |= {"max_batches": 8, "higher_is_better": False}
    (tmp_path / "recipe.json").write_text(json.dumps(stored))
    assert compare(tmp_path, stored_recipe(tmp_path), now) == []
