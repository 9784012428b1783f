"""What a start says about the configuration it renders."""

import pytest

from toolkit.ds_config.explain import explain
from toolkit.ds_config.render import render
from toolkit.ds_config.target import Target
from toolkit.recipe import Batch, Data, Model, Precision, Recipe


@pytest.mark.parametrize(
    ("dtype", "is_native", "said"),
    [
        ("auto", True, "precision: auto -> bf16 on this cpu device"),
        ("auto", False, "precision: auto -> fp32 on this cpu device, which has no instructions for bf16"),
        ("bf16", True, None),
        (
            "bf16",
            False,
            "precision: this cpu device has no instructions for bf16: emulated, a step takes longer than in fp32, "
            "on some processors ten times as long; --precision.dtype auto takes fp32 here",
        ),
        ("fp32", False, None),
    ],
)
def test_emulated_bf16_is_said(dtype: str, is_native: bool, said: str | None) -> None:
    """A CPU without bf16 instructions trains in bf16 more than ten times slower than in fp32: nobody should wait unknowing."""
    recipe = Recipe(
        model=Model(path="m"),
        data=Data(train="d.jsonl"),
        precision=Precision(dtype=dtype),
        batch=Batch(global_size=1),
        steps=1,
    )
    target = Target(1, "cpu", bf16_is_native=is_native)
    lines = [line for line in explain(recipe, target, render(recipe, target)) if line.startswith("precision")]
    assert lines == ([said] if said else [])
