"""`toolkit doctor --gpu`: do the GPUs of this host do what their data sheets say, and is anything holding them back?"""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping

import torch

from toolkit.doctor.finding import Finding
from toolkit.engine import preflight
from toolkit.errors import LaunchError
from toolkit.plan.peaks import find_peak

GIB = 2**30
SHARE_OF_PEAK = 0.6
"""Of the data sheet's rate that a large product reaches on a healthy card; 0.7 to 0.85 are usual."""
SLOW_LINK_GBPS = 10.0
"""Less than PCIe 3.0 with 16 lanes gives (12); 4.0 gives 25, 5.0 gives 50."""

SMI_FIELDS = (
    "index",
    "driver_version",
    "ecc.errors.uncorrected.volatile.total",
    "power.limit",
    "power.default_limit",
    "temperature.gpu",
)
THROTTLE_FIELDS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
"""Today's name and that of drivers before 535; the other one is refused as no valid field."""

THROTTLES = {0x8: "hardware slowdown", 0x20: "heat (software)", 0x40: "heat (hardware)", 0x80: "power brake"}
"""Bits of NVML's clocks event reasons that say something is wrong. Idle (0x1) and the power cap (0x4) do not."""
POWER_CAP = 0x4


def check_gpus() -> Iterator[Finding]:
    """Every GPU that torch sees. Raises LaunchError where there is none."""
    if not torch.cuda.is_available():
        built = torch.version.cuda
        raise LaunchError(
            "doctor --gpu: torch sees no GPU" + ("" if built else f", and is a CPU build ({torch.__version__})"),
            expected="a CUDA device, its driver, and a torch built for CUDA",
            do="run `nvidia-smi`, check CUDA_VISIBLE_DEVICES, or leave --gpu out",
        )
    count = torch.cuda.device_count()
    yield check_driver(preflight.cuda_of_driver(), torch.version.cuda)
    for number in range(count):
        yield from _check_one(number)
    if count > 1:
        yield check_all_reduce(count, "nccl")
    # After the work, while the devices are warm.
    yield from check_smi(smi_rows(_nvidia_smi))


def _check_one(number: int) -> Iterator[Finding]:
    device, name = torch.device("cuda", number), torch.cuda.get_device_name(number)
    major, minor = torch.cuda.get_device_capability(number)
    free, total = torch.cuda.mem_get_info(number)
    yield check_formats(f"GPU {number}", name, (major, minor))
    yield check_free(f"GPU {number} memory", free, total)
    dtype = torch.bfloat16 if major >= 8 else torch.float16
    try:
        yield check_product(f"GPU {number} products", name, device, dtype)
        yield from check_copies(f"GPU {number} copies", device)
    except RuntimeError as error:  # out of memory among them
        yield Finding(f"GPU {number}", "fail", f"{str(error).splitlines()[0]:.200}", "end what else uses it")
    finally:
        torch.cuda.empty_cache()


def check_formats(check: str, name: str, capability: tuple[int, int]) -> Finding:
    """What a device of `capability` multiplies in hardware."""
    formats = ["fp32", "fp16"]
    formats += ["tf32", "bf16"] if capability >= (8, 0) else []
    formats += ["fp8"] if capability >= (8, 9) else []
    found = f"{name}, compute capability {capability[0]}.{capability[1]}: {', '.join(formats)}"
    if capability < (8, 0):
        return Finding(check, "warn", f"{found}; no bf16", "set precision.dtype='fp16'")
    return Finding(check, "ok", found)


def check_free(check: str, free: int, total: int) -> Finding:
    """Memory (bytes) that other processes hold."""
    found = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
    if free < 0.9 * total:
        return Finding(check, "warn", found, "end what else uses it (`nvidia-smi` lists it)")
    return Finding(check, "ok", found)


def check_product(check: str, name: str, device: torch.device, dtype: torch.dtype, size: int = 8192) -> Finding:
    """The rate of a large matrix product against that of the data sheet."""
    kind = "bf16" if dtype == torch.bfloat16 else "fp16"
    rate = preflight.product_tflops(device, dtype, size)
    row = find_peak(name)
    peak = row.tflops("bf16" if kind == "bf16" else "fp16") if row is not None else None
    if row is None or peak is None:
        return Finding(check, "ok", f"{rate:.3g} TFLOPS in {kind}; no data-sheet value is known for {name}")
    found = f"{rate:.0f} TFLOPS in {kind}, {rate / peak:.0%} of {peak:g} ({row.source})"
    if rate < SHARE_OF_PEAK * peak:
        return Finding(check, "warn", found, "look at the power limit, the temperature and other processes on it")
    return Finding(check, "ok", found)


def check_copies(check: str, device: torch.device, num_bytes: int = 2**28) -> Iterator[Finding]:
    """Copies between host and device, and inside the device's memory."""
    host = torch.device("cpu")
    there = preflight.copy_gbps(host, device, num_bytes)
    back = preflight.copy_gbps(device, host, num_bytes)
    inside = preflight.memory_gbps(device, num_bytes)
    found = f"{there:.1f} GB/s from the host, {back:.1f} to it (pinned); {inside:,.0f} GB/s inside its memory"
    if min(there, back) < SLOW_LINK_GBPS:
        yield Finding(check, "warn", found, "offload will be slow: look at the slot's lanes (`nvidia-smi -q -d PCIE`)")
    else:
        yield Finding(check, "ok", found)


def check_all_reduce(count: int, backend: str, num_bytes: int = 2**28) -> Finding:
    """All-reduce between `count` devices."""
    try:
        rate = preflight.all_reduce_gbps(count, backend, num_bytes)
    except Exception as error:  # whatever a rank raised
        last = str(error).strip().splitlines()[-1]
        fix = "run with NCCL_DEBUG=INFO; NCCL_P2P_DISABLE=1 tells whether direct access is at fault"
        return Finding("all-reduce", "fail", f"between {count} devices: {last:.200}", fix)
    return Finding("all-reduce", "ok", f"{rate:.3g} GB/s bus bandwidth between {count} devices ({backend})")


def check_driver(driver: int | None, built_for: str | None) -> Finding:
    """CUDA `driver` (12080 is 12.8), the newest that it supports, against the CUDA that torch is `built_for`."""
    if driver is None or built_for is None:
        return Finding("driver", "ok", "not NVIDIA's, or it does not say what it supports")
    supports = (driver // 1000, driver % 1000 // 10)
    needs = tuple(int(part) for part in built_for.split(".")[:2])
    found = f"supports CUDA {supports[0]}.{supports[1]}, torch is built for {built_for}"
    if supports[0] < needs[0]:
        return Finding("driver", "fail", found, f"update the driver, or install a torch for CUDA {supports[0]}")
    if supports < needs:
        return Finding("driver", "warn", f"{found}: new kernels may not load", "update the driver")
    return Finding("driver", "ok", found)


Smi = Callable[[tuple[str, ...]], str | None]
"""What `nvidia-smi --query-gpu=FIELDS` writes as CSV without a header; None where it fails."""


def smi_rows(ask: Smi) -> list[dict[str, str]] | None:
    """SMI_FIELDS and "throttle" of each device; None where `ask` has no answer."""
    for field in THROTTLE_FIELDS:
        text = ask((*SMI_FIELDS, field))
        if text is not None:
            names = (*SMI_FIELDS, "throttle")
            lines = csv.reader(io.StringIO(text), skipinitialspace=True)
            return [dict(zip(names, line, strict=False)) for line in lines if line]
    return None


def check_smi(rows: list[dict[str, str]] | None) -> Iterator[Finding]:
    """Errors of the memory, throttling and power limits, as `smi_rows` has them."""
    if rows is None:
        fix = "install nvidia-smi, which belongs to the driver"
        yield Finding("nvidia-smi", "warn", "no answer: memory errors, throttling and power limits are not known", fix)
        return
    for row in rows:
        yield from (finding for check in (_memory_errors, _throttling, _power) for finding in check(row))


def _memory_errors(row: Mapping[str, str]) -> Iterator[Finding]:
    name, errors = f"GPU {row['index']} ECC", _number(row["ecc.errors.uncorrected.volatile.total"])
    if errors is None:
        yield Finding(name, "ok", "off, or this device has none")
    elif errors > 0:
        yield Finding(
            name, "fail", f"{errors:g} uncorrected memory errors since the driver was loaded", "replace or reset it"
        )
    else:
        yield Finding(name, "ok", "no uncorrected memory errors")


def _throttling(row: Mapping[str, str]) -> Iterator[Finding]:
    name = f"GPU {row['index']} clocks"
    try:
        bits = int(row.get("throttle", ""), 16)
    except ValueError:
        yield Finding(name, "ok", "the driver does not say whether they are held back")
        return
    reasons = [reason for bit, reason in THROTTLES.items() if bits & bit]
    if reasons:
        found = f"held back by {', '.join(reasons)} at {row['temperature.gpu']} C"
        yield Finding(name, "warn", found, "look at cooling and power supply")
    else:
        yield Finding(
            name, "ok", "held at the power limit, as under full load" if bits & POWER_CAP else "not held back"
        )


def _power(row: Mapping[str, str]) -> Iterator[Finding]:
    limit, usual = _number(row["power.limit"]), _number(row["power.default_limit"])
    if limit is None or usual is None:
        return
    found = f"limit {limit:g} W, by default {usual:g} W"
    if limit < usual:
        yield Finding(f"GPU {row['index']} power", "warn", found, f"nvidia-smi -i {row['index']} -pl {usual:g}")
    else:
        yield Finding(f"GPU {row['index']} power", "ok", found)


def _number(text: str) -> float | None:
    """None for "[N/A]" and the like."""
    try:
        return float(text)
    except ValueError:
        return None


def _nvidia_smi(fields: tuple[str, ...]) -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
