"""How ranks are arranged, and what is refused before anything starts."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from toolkit.ds_config.golden import assumed_target
from toolkit.ds_config.render import render
from toolkit.errors import RecipeError
from toolkit.recipe import Batch, Data, Launch, Model, Parallel, Precision, Recipe
from toolkit.recipe.mesh import AXES, Mesh, mesh_of


def recipe(devices: int, **parallel: Any) -> Recipe:
    return Recipe(
        model=Model(path="smollm2-135m-instruct"),
        data=Data(train="python-docstrings"),
        batch=Batch(global_size=8, micro_size=1, sequence_length=64),
        precision=Precision(dtype="fp32"),
        parallel=Parallel(**parallel),
        launch=Launch(devices=devices),
        steps=1,
    )


def test_coordinates_are_those_of_deepspeeds_topology() -> None:
    from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology

    mesh = Mesh(pipeline=2, data=3, tensor=4)
    topology = PipeModelDataParallelTopology(num_pp=2, num_mp=4, num_dp=3)
    for rank in range(mesh.world_size):
        coordinate = topology.get_coord(rank)
        ours = tuple(mesh.coordinate(rank, axis) for axis in ("pipeline", "data", "tensor"))
        assert ours == (coordinate.pipe, coordinate.data, coordinate.model)


@pytest.mark.parametrize("axes", [("data",), ("tensor",), ("sequence",), ("pipeline", "tensor"), ("data", "sequence")])
def test_groups_cut_the_world(axes: tuple[str, ...]) -> None:
    mesh = Mesh(pipeline=2, data=2, sequence=1, tensor=2)
    groups = mesh.groups(*axes)
    assert sorted(itertools.chain(*groups)) == list(range(mesh.world_size))
    for group in groups:
        for axis in set(AXES) - set(axes):
            assert len({mesh.coordinate(rank, axis) for rank in group}) == 1


def test_data_parallelism_is_what_remains() -> None:
    mesh = mesh_of(Parallel(zero_stage=1, pipeline=2, tensor=2), 8)
    assert (mesh.data, mesh.replica_ranks) == (2, 4)
    assert mesh.describe() == "2 pipeline stages x 2 data-parallel x 2 tensor-parallel"


def test_a_degree_that_does_not_divide_the_world_names_what_does() -> None:
    with pytest.raises(RecipeError) as failure:
        mesh_of(Parallel(zero_stage=1, pipeline=2, tensor=2), 6)
    assert failure.value.what == "parallel.pipeline=2 x parallel.tensor=2 does not divide the 6 processes of this run"
    assert failure.value.do == "start 8 processes, or lower a degree"


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"pipeline": 2, "zero_stage": 2}, "parallel.pipeline=2 with parallel.zero_stage=2"),
        ({"sequence": 2, "tensor": 2}, "parallel.sequence=2 with parallel.tensor=2"),
        ({"sequence": 2, "pipeline": 2, "zero_stage": 1}, "parallel.sequence=2 with parallel.pipeline=2"),
    ],
)
def test_what_deepspeed_cannot_mix_is_refused(fields: dict[str, Any], what: str) -> None:
    with pytest.raises(RecipeError) as failure:
        Parallel(**fields)
    assert failure.value.what == what


def test_batch_arithmetic_counts_replicas() -> None:
    """8 sequences, 8 ranks: two replicas of four ranks take four micro-batches each."""
    run = recipe(8, zero_stage=0, pipeline=2, tensor=2)
    config = render(run, assumed_target(run))
    assert config["gradient_accumulation_steps"] == 4
    # DeepSpeed's stage 0 would clip by each stage's own norm.
    assert config["zero_optimization"]["stage"] == 1
    assert config["pipeline"] == {"pipe_partitioned": False, "grad_partitioned": False}


def test_sequence_ranks_share_a_batch() -> None:
    run = recipe(4, zero_stage=3, sequence=2)
    config = render(run, assumed_target(run))
    assert (config["gradient_accumulation_steps"], config["sequence_parallel_size"]) == (4, 2)


def test_an_indivisible_batch_speaks_of_replicas() -> None:
    run = recipe(6, zero_stage=1, pipeline=2)
    with pytest.raises(RecipeError) as failure:
        render(run, assumed_target(run))
    assert (
        "batch.micro_size x data-parallel ranks (2 pipeline stages x 3 data-parallel) = 1 x 3 = 3" in failure.value.what
    )
