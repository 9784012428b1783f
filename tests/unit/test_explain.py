"""What a start says about the configuration it renders."""

from pathlib import Path

import pytest

from toolkit import processor
from toolkit.cli import dry_run, run
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


@pytest.mark.parametrize(
    ("cpuinfo", "has_bf16"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16 amx_tile\n", True),
        ("processor\t: 0\nflags\t\t: fpu amx_bf16\n\nprocessor\t: 1\nflags\t\t: fpu amx_bf16\n", True),
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f\nbugs\t\t: bf16\n", False),
        ("processor\t: 0\nFeatures\t: fp asimd i8mm bf16\n", True),
        ("processor\t: 0\nFeatures\t: fp asimd ebf16x\n", False),
        ("", False),
        (None, False),
    ],
)
def test_what_the_kernel_says_of_the_processor(
    cpuinfo: str | None, has_bf16: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    if cpuinfo is not None:
        (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert processor.multiplies_bf16() is has_bf16


def test_torch_says_the_same_of_this_processor() -> None:
    import torch

    found = torch.cpu.get_capabilities()
    assert processor.multiplies_bf16() == any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


@pytest.mark.parametrize("has_bf16", [True, False])
def test_a_dry_run_shows_the_precision_of_a_start_on_this_processor(
    has_bf16: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both ask one function; what is meant for other machines is rendered for them, and says so."""
    from toolkit.engine import device

    (tmp_path / "cpuinfo").write_text(f"flags : fpu {'avx512_bf16' if has_bf16 else 'avx2'}\n")
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(dry_run, "GPU", tmp_path / "gpu")
    recipe = Recipe(model=Model(path="m"), data=Data(train="d.jsonl"), batch=Batch(global_size=4), steps=1)

    def shown(*flags: str) -> str:
        assert run.main(recipe, ["--dry_run", *flags]) == 0
        return capsys.readouterr().out

    own = device.target(2, wanted="cpu") if device.kind() == "cpu" else Target(2, "cpu", bf16_is_native=has_bf16)
    said = next(line for line in explain(recipe, own, render(recipe, own)) if line.startswith("precision"))
    assert ("bf16 on this cpu" in said) == has_bf16
    for flags in ((), ("--launch.device", "cpu")):
        printed = shown(*flags)
        assert f"# {said}\n" in printed and ('"bf16"' in printed) == has_bf16 and "the start looks" not in printed
    (tmp_path / "gpu").write_text("")
    for flags in ((), ("--launch.hosts", "2")):
        printed = shown(*flags)
        assert '"bf16"' in printed and "# precision: a CPU without instructions for bf16 takes fp32" in printed
