"""`toolkit config`: a recipe as DeepSpeed JSON, accelerate YAML or SLURM script; and all files that are made from the code."""

from __future__ import annotations

import argparse
from pathlib import Path

from toolkit.cli import docs
from toolkit.cli.argument_types import count, file_path
from toolkit.ds_config.accelerate_yaml import render_accelerate
from toolkit.ds_config.golden import assumed_target, to_json, verify, write
from toolkit.ds_config.render import render
from toolkit.ds_config.slurm import render_slurm
from toolkit.errors import InputError
from toolkit.recipe.load import load_recipe
from toolkit.storage import HERE, storage_errors, why_unwritable

SUMMARY = "print a recipe's DeepSpeed JSON, or render and verify ds_configs/ and docs/"
EXAMPLES = [
    "recipes/NAME.py                               the DeepSpeed JSON",
    "recipes/NAME.py --accelerate --hosts 2        the YAML of `accelerate launch --config_file`",
    "recipes/NAME.py --slurm > job.sh              a batch script for sbatch",
    "--write                                       after changing a recipe: ds_configs/ and docs/",
]
RECIPES, CONFIGS = Path("recipes"), Path("ds_configs")
"""For what is written into the current folder."""


def add_flags(verb: argparse.ArgumentParser) -> None:
    """Add the flags of `toolkit config`."""
    verb.add_argument("recipe", type=file_path, nargs="?", help="a recipe file")
    verb.add_argument("--world-size", type=count, help="processes; default: the recipe's launch section")
    other = verb.add_mutually_exclusive_group()
    other.add_argument("--slurm", action="store_true", help="print a SLURM batch script instead")
    other.add_argument(
        "--accelerate", action="store_true", help="print the YAML of `accelerate launch --config_file` instead"
    )
    verb.add_argument("--hosts", type=count, help="hosts; default: the recipe's launch section")
    verb.add_argument(
        "--write", action="store_true", help="render every recipe into ds_configs/, and the generated pages of docs/"
    )
    verb.add_argument("--verify", action="store_true", help="compare both with the code (exit 2: they differ)")
    verb.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print one recipe's rendering, or write or verify all of them; returns the exit code."""
    if options.write:
        _write_all()
    elif options.verify:
        print(f"{CONFIGS}/: {verify(RECIPES, CONFIGS)} files are what the recipes render to")
        if docs.in_checkout():
            print(f"{docs.FOLDER}/: {docs.verify()} pages are what the code says")
    elif options.recipe is None:
        raise InputError(
            "toolkit config: no recipe", expected="a recipe file, --write or --verify", do="name a file under recipes/"
        )
    else:
        print(_rendering(options), end="")
    return 0


def check_writable(*folders: Path) -> None:
    """Raise InputError for the first of `folders`, or of a checkout's docs/, that no file can be put into; absent ones are made later."""
    for folder in (*folders, *([docs.FOLDER] if docs.in_checkout() else [])):
        problem = why_unwritable(folder)
        if problem:
            raise InputError(
                f"nothing can be written to {folder}/ of {Path.cwd()}: {problem}",
                expected="a folder that files can be written to, or a place to make it",
                do="choose another current folder, or mend that one",
            )


def _write_all() -> None:
    check_writable(CONFIGS)
    with storage_errors("writing what the recipes render to", Path.cwd(), HERE):
        _say_written(CONFIGS, write(RECIPES, CONFIGS))
    if docs.in_checkout():
        with storage_errors("writing what the code says", Path.cwd(), HERE):
            _say_written(docs.FOLDER, docs.write())


def _say_written(folder: Path, changed: list[str]) -> None:
    print(f"{folder}/: {', '.join(changed)} written" if changed else f"{folder}/ is up to date")


def _rendering(options: argparse.Namespace) -> str:
    recipe, name = load_recipe(options.recipe), options.recipe.stem
    launch = recipe.launch.model_copy(update={"hosts": options.hosts or recipe.launch.hosts})
    recipe = recipe.model_copy(update={"launch": launch})
    config = to_json(render(recipe, assumed_target(recipe, options.world_size)))
    if options.slurm:
        return render_slurm(launch, name, str(options.recipe))
    return render_accelerate(launch, f"{CONFIGS}/{name}.json") if options.accelerate else config
