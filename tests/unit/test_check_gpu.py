"""`toolkit doctor --gpu`: every measurement runs on the CPU here, every answer of nvidia-smi and of the driver is read."""

from __future__ import annotations

import io

import pytest
import torch

from toolkit.doctor import check_gpu
from toolkit.doctor.check_gpu import SMI_FIELDS, THROTTLE_FIELDS
from toolkit.doctor.report import Wanted, doctor
from toolkit.engine import preflight
from toolkit.errors import LaunchError

CPU = torch.device("cpu")
HEALTHY = "0, 570.86.10, 0, 700.00, 700.00, 41, 0x0000000000000004\n"


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "BUDGET_S", 0.02)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this host has a GPU")
def test_without_a_gpu_there_is_one_message() -> None:
    with pytest.raises(LaunchError, match="torch sees no GPU") as caught:
        doctor(io.StringIO(), Wanted(gpu=True))
    assert caught.value.exit_code == 2 and "--gpu" in caught.value.do


def test_the_rate_of_a_product_is_that_of_its_flops() -> None:
    small, large = (preflight.product_tflops(CPU, torch.float32, size) for size in (64, 512))
    assert 0 < small < 20 and 0.001 < large < 20


def test_a_product_below_its_data_sheet_is_seen() -> None:
    slow = check_gpu.check_product("products", "NVIDIA H100 80GB HBM3", CPU, torch.bfloat16, 256)
    assert slow.status == "warn" and "of 989.5 (H100 data sheet)" in slow.found and "POWER" in slow.fix
    unknown = check_gpu.check_product("products", "a new card", CPU, torch.bfloat16, 256)
    assert unknown.status == "ok" and "no data-sheet value is known for a new card" in unknown.found


def test_copies_are_timed() -> None:
    rate = preflight.copy_gbps(CPU, CPU, 2**22)
    assert 0.05 < rate < 2000
    (finding,) = check_gpu.check_copies("copies", CPU, 2**22)
    assert "GB/s from the host" in finding.found
    assert (finding.status == "warn") == (finding.fix != "")


def test_an_all_reduce_between_processes() -> None:
    finding = check_gpu.check_all_reduce(2, "gloo", num_bytes=2**16)
    assert finding.status == "ok" and finding.found.endswith("GB/s bus bandwidth between 2 devices (gloo)")


def test_an_all_reduce_that_fails_is_a_finding() -> None:
    finding = check_gpu.check_all_reduce(1, "no such backend", num_bytes=2**16)
    assert finding.status == "fail" and finding.found.startswith("between 1 devices: ")


@pytest.mark.parametrize(
    ("capability", "formats"),
    [((7, 5), "fp32, fp16; no bf16"), ((8, 0), "tf32, bf16"), ((8, 9), "fp8"), ((9, 0), "fp8")],
)
def test_formats_by_capability(capability: tuple[int, int], formats: str) -> None:
    finding = check_gpu.check_formats("GPU 0", "a card", capability)
    assert finding.found.endswith(formats) and (finding.status == "ok") == (capability >= (8, 0))


def test_memory_that_others_hold() -> None:
    assert check_gpu.check_free("memory", 79 * 2**30, 80 * 2**30).status == "ok"
    assert check_gpu.check_free("memory", 60 * 2**30, 80 * 2**30).status == "warn"


def test_the_driver_library_is_asked_where_there_is_one() -> None:
    assert preflight.cuda_of_driver("libnowhere.so.1") is None
    assert preflight.cuda_of_driver("libc.so.6") is None, "a library that knows no cuDriverGetVersion"


def findings(text: str | None) -> dict[str, tuple[str, str]]:
    rows = check_gpu.smi_rows(lambda _: text)
    return {finding.check: (finding.status, finding.found) for finding in check_gpu.check_smi(rows)}


def test_what_nvidia_smi_says_of_a_healthy_card() -> None:
    assert findings(HEALTHY) == {
        "GPU 0 ECC": ("ok", "no uncorrected memory errors"),
        "GPU 0 clocks": ("ok", "held at the power limit, as under full load"),
        "GPU 0 power": ("ok", "limit 700 W, by default 700 W"),
    }


def test_what_nvidia_smi_says_of_sick_ones() -> None:
    second = "1, 570.86.10, [N/A], 250.00, 300.00, 88, 0x0000000000000060\n"
    found = findings(HEALTHY.replace(" 0, 700", " 3, 700") + second)
    assert found["GPU 0 ECC"] == ("fail", "3 uncorrected memory errors since the driver was loaded")
    assert found["GPU 1 ECC"] == ("ok", "off, or this device has none")
    assert found["GPU 1 clocks"] == ("warn", "held back by heat (software), heat (hardware) at 88 C")
    assert found["GPU 1 power"] == ("warn", "limit 250 W, by default 300 W")


def test_a_driver_with_the_old_names_and_one_without_any() -> None:
    asked = []

    def old(fields: tuple[str, ...]) -> str | None:
        asked.append(fields)
        return HEALTHY if fields[-1] == THROTTLE_FIELDS[1] else None

    rows = check_gpu.smi_rows(old)
    assert rows is not None and rows[0]["throttle"] == "0x0000000000000004" and rows[0]["power.limit"] == "700.00"
    assert asked == [(*SMI_FIELDS, name) for name in THROTTLE_FIELDS]
    assert findings(None)["nvidia-smi"][0] == "warn"
    bare = "0, 390.1, [N/A], [N/A], [N/A], [N/A], [N/A]\n"
    assert findings(bare)["GPU 0 clocks"] == ("ok", "the driver does not say whether they are held back")
    assert "GPU 0 power" not in findings(bare)
