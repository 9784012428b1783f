"""Independent work in forks: the same results in the same order, whatever becomes of a fork."""

import multiprocessing
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from toolkit.plan.side_by_side import side_by_side, usable_cores

HERE = os.getpid()


def in_fork(number: int) -> tuple[int, bool]:
    """`number`, and whether this is another process."""
    return number, os.getpid() != HERE


def killed_in_fork(number: int) -> int:
    if os.getpid() != HERE:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def fails(number: int) -> int:
    raise ValueError(f"task {number}")


@pytest.mark.skipif(usable_cores() < 2, reason="forks are for several cores")
def test_results_come_in_order_from_forks() -> None:
    found = side_by_side([partial(in_fork, number) for number in range(5)], cores=2)
    assert found == [(number, True) for number in range(5)]
    assert not multiprocessing.active_children()


def test_one_core_or_one_task_needs_no_fork() -> None:
    assert side_by_side([partial(in_fork, number) for number in range(3)], cores=1) == [
        (0, False),
        (1, False),
        (2, False),
    ]
    assert side_by_side([partial(in_fork, 7)], cores=4) == [(7, False)]
    assert side_by_side([], cores=4) == []


def test_what_a_killed_fork_had_to_do_is_done_here() -> None:
    assert side_by_side([partial(killed_in_fork, number) for number in range(3)], cores=2) == [0, 1, 2]
    assert not multiprocessing.active_children()


def test_a_fault_is_raised_here() -> None:
    with pytest.raises(ValueError, match="task 1"):
        side_by_side([partial(in_fork, 0), partial(fails, 1)], cores=2)


@pytest.mark.skipif(usable_cores() < 2, reason="forks are for several cores")
def test_traces_made_in_forks_are_the_traces(tmp_path: Path) -> None:
    """In a process of its own: torch goes backward in a fork only where its parent never did."""
    (tmp_path / "tiny.py").write_text(RECIPE)
    done = subprocess.run(
        [sys.executable, "-c", TRACES, tmp_path / "tiny.py"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    forked, told = done.stdout.splitlines()
    assert (forked, told) == ("3", "alike")


RECIPE = """
from toolkit.recipe import Batch, CausalLM, Data, Launch, Model, Recipe
config = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 512}
recipe = Recipe(
    model=Model(architecture="llama", weights="random", tokenizer="none", config=config),
    data=Data(train="numbers.jsonl"),
    task=CausalLM(),
    batch=Batch(global_size=16, micro_size=1, sequence_length=64),
    launch=Launch(devices=4, hosts=2, device="cuda"),
    epochs=None,
    steps=4,
)
"""

TRACES = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
from toolkit.models.quiet import quiet
from toolkit.plan.subject import subject_of, way_of
from toolkit.recipe.load import load_recipe
from toolkit.recipe.mesh import Mesh

recipe = load_recipe(Path(sys.argv[1]))
plain = way_of(recipe, subject_of(recipe).config, torch.bfloat16, "cuda", has_head=True)
asked = [(recipe, Mesh(), plain), (recipe, Mesh(), replace(plain, checkpointing=True)), (recipe, Mesh(tensor=2), plain)]
with quiet():
    subject, alone = subject_of(recipe), subject_of(recipe)
    subject.cores = 2
    subject.foresee(asked)
    print(len(subject._traces))
    print("alike" if all(subject.trace(*one) == alone.trace(*one) for one in asked) else "different")
"""
