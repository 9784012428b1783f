"""The engine that the toolkit builds for a recipe, without the loop around it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any


def configured(recipe: Any, ranks: int, model_config: Any, trained: int | None = None) -> dict[str, Any]:
    """The DeepSpeed configuration of `recipe`, for a model of `model_config`, on `ranks` ranks of this machine.

    `trained`: so many of its parameters, where adapters are."""
    from toolkit.ds_config.render import render
    from toolkit.engine import device
    from toolkit.models.model_size import model_size
    from toolkit.recipe.mesh import model_ranks
    from toolkit.tasks import task_class

    target = device.target(ranks, wanted="auto", model_ranks=model_ranks(recipe.parallel))
    size = model_size(task_class(recipe.task).auto_class, model_config, recipe.model.config)
    return render(recipe, target, replace(size, trained=trained))


def built(recipe: Any) -> Any:
    """Called in a rank: joins the others, loads the weights, hands them to DeepSpeed."""
    from harness.ranks import shared_folder
    from toolkit.engine import process
    from toolkit.train.build import build_engine
    from toolkit.train.inputs import prepare_inputs
    from toolkit.train.progress import Display
    from toolkit.train.run_folder import RunFolder

    me = process.from_environment(recipe.parallel)
    process.start(me)
    display = Display(is_main=False)
    inputs = prepare_inputs(recipe, me.data_rank, me.mesh.data, display)
    trained = None if inputs.adapters is None else inputs.adapters.trained
    config = configured(recipe, me.world_size, inputs.model_config, trained)
    return build_engine(recipe, inputs, config, me, RunFolder(shared_folder() / "run"), display)
