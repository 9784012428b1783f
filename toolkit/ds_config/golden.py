"""ds_configs/: the rendered JSON, accelerate YAML and (for several hosts) SLURM script of every recipe, checked in so that a review sees every change."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.ds_config.accelerate_yaml import render_accelerate
from toolkit.ds_config.render import render
from toolkit.ds_config.slurm import render_slurm
from toolkit.ds_config.target import Target
from toolkit.errors import ConfigError
from toolkit.recipe import Recipe
from toolkit.recipe.load import load_recipe
from toolkit.recipe.mesh import model_ranks
from toolkit.storage import write_together


def assumed_target(recipe: Recipe, world_size: int | None = None) -> Target:
    """The target a recipe is rendered for away from its machines: its own launch section, bf16 and a compiler at hand."""
    device = "cpu" if recipe.launch.device == "auto" else recipe.launch.device
    world_size = world_size or recipe.launch.world_size
    return Target(world_size, device, fp8=device == "cuda", model_ranks=model_ranks(recipe.parallel))


def to_json(config: Mapping[str, Any]) -> str:
    """The text of a DeepSpeed JSON file."""
    return json.dumps(config, indent=2) + "\n"


def rendered_files(recipes: Path) -> dict[str, str]:
    """File name -> content of everything ds_configs/ should hold, for the recipes in folder `recipes`."""
    files: dict[str, str] = {}
    for path in sorted(recipes.glob("*.py")):
        files |= rendering_of(load_recipe(path), path)
    return files


def rendering_of(recipe: Recipe, path: Path) -> dict[str, str]:
    """File name -> content of what ds_configs/ holds of one recipe, that in the file `path`."""
    name = f"{path.stem}.json"
    files = {
        name: to_json(render(recipe, assumed_target(recipe))),
        f"{path.stem}.yaml": render_accelerate(recipe.launch, f"ds_configs/{name}"),
    }
    if recipe.launch.hosts > 1:
        files[f"{path.stem}.slurm"] = render_slurm(recipe.launch, path.stem, f"{path.parent.name}/{path.name}")
    return files


def write(recipes: Path, folder: Path) -> list[str]:
    """Make `folder` hold exactly the rendered files; returns the names that changed."""
    return write_files(rendered_files(recipes), folder, _present(folder))


def verify(recipes: Path, folder: Path) -> int:
    """Number of files in `folder`; ConfigError when one is missing, stale or belongs to no recipe."""
    return verify_files(rendered_files(recipes), folder, _present(folder), "recipe")


def write_files(wanted: Mapping[str, str], folder: Path, present: Sequence[Path]) -> list[str]:
    """Of the files `present` in `folder` leave exactly `wanted`, name -> content; returns the names that changed."""
    folder.mkdir(exist_ok=True)
    texts = {folder / name: text for name, text in wanted.items()}
    stale = {
        path: text for path, text in texts.items() if not path.is_file() or path.read_text(encoding="utf-8") != text
    }
    write_together(stale)
    strange = [path for path in present if path.name not in wanted]
    for path in strange:
        path.unlink()
    return sorted(path.name for path in (*stale, *strange))


def verify_files(wanted: Mapping[str, str], folder: Path, present: Sequence[Path], origin: str) -> int:
    """Number of files; ConfigError unless those `present` in `folder` are exactly `wanted`. Each is made from an `origin`."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in present}
    problems = [f"{name} is missing" for name in wanted if name not in texts]
    problems += [f"{name} belongs to no {origin}" for name in texts if name not in wanted]
    problems += [f"{name} is out of date" for name, text in wanted.items() if texts.get(name, text) != text]
    if problems:
        raise ConfigError(
            f"{folder}/: {'; '.join(sorted(problems))}",
            expected=f"exactly what each {origin} renders to",
            do="run `toolkit config --write`, read the difference and commit it",
        )
    return len(texts)


def _present(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.is_file()) if folder.is_dir() else []
