"""`toolkit doctor --gpu`: do the GPUs of this host do what their data sheets say, and is anything holding them back?"""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping

import torch

from toolkit.doctor.finding import Check, Finding
from toolkit.engine import preflight
from toolkit.errors import LaunchError
from toolkit.plan.peaks import find_peak

GIB = 2**30
HOLDERS = "nvidia-smi --query-compute-apps=pid,name,used_memory --format=csv"
"""The command that lists them."""
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
        check = Check(f"GPU {number}", "a run asks the same of it, for hours")
        yield check.fail(f"{str(error).splitlines()[0]:.200}", f"end what else uses it: {HOLDERS}")
    finally:
        torch.cuda.empty_cache()


def check_formats(title: str, name: str, capability: tuple[int, int]) -> Finding:
    """What a device of `capability` multiplies in hardware."""
    check = Check(title, "precision.dtype and fp8 are taken from what it multiplies in hardware")
    formats = ["fp32", "fp16"]
    formats += ["tf32", "bf16"] if capability >= (8, 0) else []
    formats += ["fp8"] if capability >= (8, 9) else []
    found = f"{name}, compute capability {capability[0]}.{capability[1]}: {', '.join(formats)}"
    if capability < (8, 0):
        return check.warn(f"{found}; no bf16", "start with --precision.dtype fp16")
    return check.ok(found)


def check_free(title: str, free: int, total: int) -> Finding:
    """Memory (bytes) that other processes hold."""
    check = Check(title, "what others hold, a run does not get: it ends out of memory where it would have fitted")
    found = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
    if free < 0.9 * total:
        return check.warn(found, f"end what else uses it: {HOLDERS}")
    return check.ok(found)


def check_product(title: str, name: str, device: torch.device, dtype: torch.dtype, size: int = 8192) -> Finding:
    """The rate of a large matrix product against that of the data sheet."""
    check = Check(title, "a step is as fast as its products are")
    kind = "bf16" if dtype == torch.bfloat16 else "fp16"
    rate = preflight.product_tflops(device, dtype, size)
    row = find_peak(name)
    peak = row.tflops("bf16" if kind == "bf16" else "fp16") if row is not None else None
    if row is None or peak is None:
        return check.ok(f"{rate:.3g} TFLOPS in {kind}; no data-sheet value is known for {name}")
    found = f"{rate:.0f} TFLOPS in {kind}, {rate / peak:.0%} of {peak:g} ({row.source})"
    if rate < SHARE_OF_PEAK * peak:
        return check.warn(
            found, "look at power limit, temperature and other processes: nvidia-smi -q -d POWER,TEMPERATURE,PIDS"
        )
    return check.ok(found)


def check_copies(title: str, device: torch.device, num_bytes: int = 2**28) -> Iterator[Finding]:
    """Copies between host and device, and inside the device's memory."""
    check = Check(title, "offload moves gradients and weights over this link at every step")
    host = torch.device("cpu")
    there = preflight.copy_gbps(host, device, num_bytes)
    back = preflight.copy_gbps(device, host, num_bytes)
    inside = preflight.memory_gbps(device, num_bytes)
    found = f"{there:.1f} GB/s from the host, {back:.1f} to it (pinned); {inside:,.0f} GB/s inside its memory"
    if min(there, back) < SLOW_LINK_GBPS:
        yield check.warn(found, "look at the generation and the lanes of its slot: nvidia-smi -q -d PCIE")
    else:
        yield check.ok(found)


def check_all_reduce(count: int, backend: str, num_bytes: int = 2**28) -> Finding:
    """All-reduce between `count` devices."""
    check = Check("all-reduce", "every step ends with one of all gradients")
    try:
        rate = preflight.all_reduce_gbps(count, backend, num_bytes)
    except Exception as error:  # whatever a rank raised
        last = str(error).strip().splitlines()[-1]
        fix = "NCCL_DEBUG=INFO toolkit doctor --gpu; with NCCL_P2P_DISABLE=1 it tells whether direct access is at fault"
        return check.fail(f"between {count} devices: {last:.200}", fix)
    return check.ok(f"{rate:.3g} GB/s bus bandwidth between {count} devices ({backend})")


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
        check = Check("nvidia-smi", "memory errors, throttling and power limits are known to nobody else")
        yield check.warn(
            "no answer", "install the driver's tools (on Debian and Ubuntu: apt-get install nvidia-utils-NNN)"
        )
        return
    for row in rows:
        yield from (finding for check in (_memory_errors, _throttling, _power) for finding in check(row))


def _memory_errors(row: Mapping[str, str]) -> Iterator[Finding]:
    check = Check(f"GPU {row['index']} ECC", "such an error ends the process that meets it, or changes its numbers")
    errors = _number(row["ecc.errors.uncorrected.volatile.total"])
    if errors is None:
        yield check.ok("off, or this device has none")
    elif errors > 0:
        found = f"{errors:g} uncorrected memory errors since the driver was loaded"
        yield check.fail(found, f"nvidia-smi --gpu-reset -i {row['index']}; if they come again, replace it")
    else:
        yield check.ok("no uncorrected memory errors")


def _throttling(row: Mapping[str, str]) -> Iterator[Finding]:
    check = Check(f"GPU {row['index']} clocks", "a device that is held back makes every other one wait for it")
    try:
        bits = int(row.get("throttle", ""), 16)
    except ValueError:
        yield check.ok("the driver does not say whether they are held back")
        return
    reasons = [reason for bit, reason in THROTTLES.items() if bits & bit]
    if reasons:
        found = f"held back by {', '.join(reasons)} at {row['temperature.gpu']} C"
        yield check.warn(
            found, f"look at cooling and power supply: nvidia-smi -i {row['index']} -q -d TEMPERATURE,POWER"
        )
    else:
        yield check.ok("held at the power limit, as under full load" if bits & POWER_CAP else "not held back")


def _power(row: Mapping[str, str]) -> Iterator[Finding]:
    limit, usual = _number(row["power.limit"]), _number(row["power.default_limit"])
    if limit is None or usual is None:
        return
    check = Check(f"GPU {row['index']} power", "below its usual limit it computes slower")
    found = f"limit {limit:g} W, by default {usual:g} W"
    if limit < usual:
        yield check.warn(found, f"nvidia-smi -i {row['index']} -pl {usual:g}")
    else:
        yield check.ok(found)


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
