"""What a checkpoint or an export refuses to hold, and how an export takes the place of another one."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch

from toolkit.checkpoint import export_folder, writer
from toolkit.checkpoint.export_folder import Stamp
from toolkit.checkpoint.finite import is_sound, largest, limit, unsound
from toolkit.checkpoint.writer import write_fragments
from toolkit.engine.advice import ADVICE, ADVICE_FP16
from toolkit.engine.fragments import WEIGHT, Fragment
from toolkit.errors import RunFailed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finite_is_what_stays_finite_in_the_format(dtype: torch.dtype) -> None:
    greatest = torch.tensor(torch.finfo(dtype).max, dtype=torch.float32)
    assert largest(torch.zeros(0)) == 0.0
    numbers = [
        0.0,
        1.0,
        65504.0,
        65519.0,
        65520.0,
        1.8e19,
        1.9e19,
        3.395e38,
        3.4e38,
        math.inf,
        math.nan,
        float(greatest),
    ]
    for number in numbers:
        for values in (torch.tensor([1.0, number, -2.0]), torch.tensor([-number])):
            rounded = bool(torch.isfinite(values.to(dtype)).all())
            assert (largest(values) < limit(dtype)) == rounded, (number, dtype)
            squared = bool(torch.isfinite(values * values).all())
            assert is_sound(values, WEIGHT, dtype) == (rounded and squared), (number, dtype)
            assert is_sound(values, "exp_avg", dtype) == bool(torch.isfinite(values).all())


@pytest.mark.parametrize(
    ("state", "place", "message"),
    [
        (WEIGHT, 3, "b.weight is not finite after step 7"),
        ("exp_avg_sq", 0, "the optimizer's exp_avg_sq of b.weight is not finite after step 7"),
    ],
)
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_one_number_of_one_state_is_enough(state: str, place: int, message: str, number: float, tmp_path: Path) -> None:
    def fragments(poisoned: bool) -> list[Fragment]:
        parts = [
            Fragment(name, 0, 4, {key: torch.arange(4.0) for key in (WEIGHT, "exp_avg_sq")}, {})
            for name in ("a.weight", "b.weight", "c.weight")
        ]
        if poisoned:
            parts[1].tensors[state][place] = number
        return parts

    whole = write_fragments(tmp_path / "good.bin", fragments(False), step=7, dtype=torch.bfloat16)
    assert whole.num_bytes == 3 * 2 * 4 * 4
    with pytest.raises(RunFailed) as refused:
        write_fragments(tmp_path / "bad.bin", fragments(True), step=7, dtype=torch.bfloat16)
    assert refused.value.what == message


@pytest.mark.parametrize(
    ("dtype", "do"), [(torch.bfloat16, ADVICE), (torch.float32, ADVICE), (torch.float16, ADVICE_FP16)]
)
def test_the_advice_is_that_of_any_divergence(dtype: torch.dtype, do: str) -> None:
    assert unsound("a.weight", WEIGHT, math.nan, 3, dtype).do == do


def test_no_manifest_of_files_that_rank_0_does_not_see(tmp_path: Path) -> None:
    here = write_fragments(tmp_path / "rank-00000.bin", [], step=1)
    there = write_fragments(tmp_path / "elsewhere.bin", [Fragment("a", 0, 1, {WEIGHT: torch.ones(1)}, {})], step=1)
    assert writer._unseen(tmp_path, [(here, "h0"), (there, "h1")], wait_s=0.0) is None
    (tmp_path / "elsewhere.bin").write_bytes(b"12")
    cut = writer._unseen(tmp_path, [(here, "h0"), (there, "h1")], wait_s=0.0)
    (tmp_path / "elsewhere.bin").unlink()
    gone = writer._unseen(tmp_path, [(here, "h0"), (there, "h1")], wait_s=0.0)
    assert cut is not None and f"{tmp_path}/elsewhere.bin has 2 bytes as " in cut.what
    assert gone is not None and f"{tmp_path}/elsewhere.bin is not there as " in gone.what
    assert gone.what.endswith("h1 wrote 4 bytes") and "file system that all hosts share" in gone.do


def an_export(folder: Path, stamp: Stamp, text: str) -> Path:
    folder.mkdir()
    (folder / "model.safetensors").write_text(text)
    (folder / "README.md").write_text("card")
    export_folder.write_stamp(folder, stamp)
    return folder


OLD, NEW = Stamp(4, "a", "bf16"), Stamp(8, "b", "bf16")


@pytest.mark.parametrize("can_exchange", [True, False], ids=["exchange", "two renames"])
def test_an_export_of_ours_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool) -> None:
    if not can_exchange:
        monkeypatch.setattr(export_folder, "exchange", lambda *_: False)
    out = an_export(tmp_path / "export", OLD, "old")
    assert export_folder.is_current(out, OLD) and not export_folder.is_current(out, NEW)
    assert export_folder.put_in_place(an_export(export_folder.beside(out), NEW, "new"), out) is None
    assert (out / "model.safetensors").read_text() == "new" and export_folder.is_current(out, NEW)
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_the_exchange_is_one_operation(tmp_path: Path) -> None:
    from toolkit.checkpoint.durable import exchange

    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir(), other.mkdir()
    (one / "1").touch(), (other / "2").touch()
    if not exchange(one, other):
        pytest.skip("this file system cannot exchange two names")
    assert (one / "2").exists() and (other / "1").exists()
    assert not exchange(one, tmp_path / "absent") and (one / "2").exists()


@pytest.mark.parametrize("change", ["own file", "own card", "own folder", "no stamp", "a file"])
def test_what_others_wrote_is_moved_aside(tmp_path: Path, change: str) -> None:
    out = an_export(tmp_path / "export", OLD, "old")
    if change == "own file":
        (out / "model.gguf").write_text("mine")
    elif change == "own card":
        (out / "README.md").write_text("a long text about the model")
        assert export_folder.is_current(out, OLD), "a card may be written on in"
    elif change == "own folder":
        (out / "onnx").mkdir()
    elif change == "no stamp":
        (out / export_folder.STAMP).unlink()
    else:
        shutil.rmtree(out)
        out.write_text("mine")
    before = {path.name for path in out.iterdir()} if out.is_dir() else "mine"
    (tmp_path / "export-before-1").mkdir()
    aside = export_folder.put_in_place(an_export(export_folder.beside(out), NEW, "new"), out)
    assert aside == tmp_path / "export-before-2"
    assert before == ({path.name for path in aside.iterdir()} if aside.is_dir() else aside.read_text())
    assert export_folder.is_current(out, NEW)


def test_an_export_without_its_weights_is_none(tmp_path: Path) -> None:
    out = an_export(tmp_path / "export", OLD, "old")
    (out / "model.safetensors").unlink()
    assert not export_folder.is_current(out, OLD)
