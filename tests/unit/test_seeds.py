"""Seeds of dropout and noise: in range, distinct, and independent of how the work is spread."""

from __future__ import annotations

import itertools

import pytest
import torch

from toolkit.engine.seeds import mix, part_seed
from toolkit.engine.tensor_random import LocalRandom
from toolkit.errors import RecipeError
from toolkit.recipe import Batch, Data, Model, Recipe
from toolkit.recipe.mesh import Mesh

LARGEST = 2**63 - 1


def test_every_seed_fits_torch() -> None:
    """The largest seed that a recipe may name, and a late micro-batch of a long run."""
    for seed in (0, 42, 20_241_126, 2**32, LARGEST):
        found = mix(seed, 10**9, 10**6)
        assert 0 <= found < 2**63
        torch.Generator().manual_seed(found)


def test_no_two_seeds_are_alike() -> None:
    """Neither in all their bits nor in the 32 that torch keeps on a CPU, for neighbouring and for large numbers."""
    numbers = (0, 1, 2, 3, 2**32, 2**32 + 1, 2**33, LARGEST)
    seeds = [mix(*three) for three in itertools.product(numbers, repeat=3)]
    seeds += [mix(*two) for two in itertools.product(numbers, repeat=2)]
    assert len(set(seeds)) == len({seed % 2**32 for seed in seeds}) == 8**3 + 8**2


def test_parts_of_a_replica_draw_their_own() -> None:
    """Stages and sequence ranks differ; tensor ranks and replicas do not (replicas have other micro-batches)."""
    mesh = Mesh(pipeline=2, data=2, sequence=2, tensor=2)
    found: dict[int, set[tuple[int, int]]] = {}
    for rank in range(16):
        place = (mesh.coordinate(rank, "pipeline"), mesh.coordinate(rank, "sequence"))
        found.setdefault(part_seed(7, mesh, rank), set()).add(place)
    assert len(found) == 4 and all(len(places) == 1 for places in found.values())


def test_the_field_is_bounded() -> None:
    """2^63 - 1 is a seed, 2^63 is not."""
    sections = {"model": Model(path="x"), "data": Data(train="x"), "batch": Batch(global_size=1)}
    assert Recipe(**sections, steps=1, seed=LARGEST).seed == LARGEST
    with pytest.raises(RecipeError, match=f"seed={LARGEST + 1}"):
        Recipe(**sections, steps=1, seed=LARGEST + 1)


def test_local_numbers_are_a_detour() -> None:
    """The common numbers go on after a region as if it drew one of them; no two regions and no two ranks draw alike."""

    def draw(rank: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        local, common, own = LocalRandom(rank), [], []
        torch.manual_seed(3)
        for _ in range(2):
            common.append(torch.rand(4))
            local.enter()
            own.append(torch.rand(4))
            local.enter()  # query, key and value each enter
            own.append(torch.rand(4))
            local.leave()
        local.leave()
        return torch.cat([*common, torch.rand(4)]), own

    with torch.random.fork_rng(devices=[]):
        (common, own), (same, other) = draw(0), draw(1)
        assert torch.equal(common, same) and len(set(common.tolist())) == 12
        drawn = torch.cat([*own, *other, common]).tolist()
        assert len(set(drawn)) == len(drawn)


def test_a_region_that_was_broken_off_is_over() -> None:
    """Recomputation stops where nothing more is needed; the state that checkpointing puts back is the common one."""
    local = LocalRandom(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        with torch.random.fork_rng(devices=[]):
            local.enter()
        state = torch.get_rng_state()
        local.leave()
        assert torch.equal(torch.get_rng_state(), state)
