"""Every benchmark runs at its tiny size, prints its table, and finds what has to hold at any size."""

from __future__ import annotations

import importlib
import json
import math
import multiprocessing
import os
import re
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import run_distributed

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of a script is on the path when it is started."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    # parity_table sets it for its ranks.
    monkeypatch.setenv("TOOLKIT_CACHE", os.environ.get("TOOLKIT_CACHE", ""))


def rank_of(rank: int, world_size: int, name: str, arguments: list[str], folder: str) -> None:
    """Be a rank of the benchmark `name`, forked from the tests' server."""
    sys.path.insert(0, str(BENCHMARKS))
    os.environ["BENCHMARK_RESULT"] = str(Path(folder) / f"rank{rank}.json")
    importlib.import_module(name).main(arguments)


def run_tiny(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *arguments: str) -> Any:
    """Run the benchmark `name`, its ranks forked and not started anew."""
    module = importlib.import_module(name)
    calls = 0

    def measure(script: str, rank_arguments: list[str], world_size: int) -> list[Any]:
        nonlocal calls
        calls += 1
        folder = tmp_path / str(calls)
        folder.mkdir()
        run_distributed(rank_of, world_size, Path(script).stem, rank_arguments, str(folder))
        return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(world_size)]

    if hasattr(module, "measure"):
        monkeypatch.setattr(module, "measure", measure)
    module.main(["--tiny", *arguments])


def cells(printed: str, row: str) -> list[str]:
    """The cells of the table's row that begins with `row`, without bold marks."""
    found = re.search(rf"^\| {re.escape(row)} *\|(.*)\|$", printed, re.MULTILINE)
    assert found is not None, printed
    return [cell.strip().strip("*") for cell in found[1].split("|")]


def test_every_script_is_tested() -> None:
    """make bench runs all of benchmarks/*.py but gpu.py, which needs a GPU; each has a test of its name here."""
    scripts = {script.stem for script in BENCHMARKS.glob("*.py")}
    assert len(scripts) >= 9
    assert scripts <= {name.removeprefix("test_") for name, value in globals().items() if callable(value)}


def test_step_overhead(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both sides take steps on the same data: their first losses are near each other."""
    run_tiny("step_overhead", monkeypatch, tmp_path)
    printed = capsys.readouterr().out
    losses = re.search(r"bare ([\d.]+), toolkit ([\d.]+)", printed)
    assert losses is not None
    assert float(losses[1]) == pytest.approx(float(losses[2]), rel=5e-3)


def test_against_trainer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The Trainer pads and we do not; the examples per step are alike."""
    run_tiny("against_trainer", monkeypatch, tmp_path)
    printed = capsys.readouterr().out
    ours, theirs = cells(printed, "toolkit"), cells(printed, "Trainer")
    assert all(float(row[0].replace(",", "")) > 0 and float(row[2]) > 0 for row in (ours, theirs))
    assert float(ours[3].rstrip("%")) > 95 > float(theirs[3].rstrip("%"))
    module = importlib.import_module("against_trainer")
    examples, sequences = module.EXAMPLES // module.TINY, module.SEQUENCES // module.TINY
    assert float(theirs[4]) == examples and float(ours[4]) > sequences


def test_data_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Collating is far faster than even a model of one narrow layer, and packs are full."""
    run_tiny("data_path", monkeypatch, tmp_path)
    printed = capsys.readouterr().out
    for row in ("every step, in the training thread", "every step, in the background"):
        assert float(cells(printed, row)[1].replace(",", "")) >= 10
    for row in ("instructions (chats)", "classification texts"):
        assert all(float(share.rstrip("%")) >= 98 for share in cells(printed, row))


def test_parity_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two strategies of each task in fp32 are within the tolerance of the parity tests."""
    run_tiny("parity_table", monkeypatch, tmp_path)
    _, texts, classes = capsys.readouterr().out.split("## ")
    for printed in (texts, classes):
        for row in ("zero0", "zero1", "spread"):
            assert all(float(value) < 1e-5 for value in cells(printed, row))


@pytest.mark.parametrize("options", [(), ("--adapters",)], ids=["all-weights", "adapters"])
def test_topology_table(
    options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four pairs: not a bit apart on the same topology, within 1e-5 on another; the exports likewise."""
    run_tiny("topology_table", monkeypatch, tmp_path, *options)
    losses, weights = capsys.readouterr().out.split("## Exported models")
    names = ("zero0 (1)", "pp2 (2)")
    for printed, limit in ((losses, 1e-5), (weights, 1e-4)):
        for index, name in enumerate(names):
            values = [float(value) for value in cells(printed, name)]
            assert len(values) == 2 and values[index] == 0.0
            assert max(values) < limit


def test_real_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A small model with the heads of the real one: losses, gradient norms and weights are the reference's."""
    run_tiny("real_weights", monkeypatch, tmp_path)
    printed = capsys.readouterr().out
    for row in ("ZeRO-2", "pipeline of 2 stages", "tensor parallelism of 3", "sequence parallelism of 3"):
        _, loss, norm, largest, relative = map(float, cells(printed, row))
        assert loss < 1e-5 and norm < 1e-5 and relative < 1e-3
        assert 0 < largest < 1e-6


def test_parallel_overhead(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both sides of each kind train the same model on the same tokens: their losses are equal."""
    run_tiny("parallel_overhead", monkeypatch, tmp_path)
    printed = capsys.readouterr().out
    for row in ("pipeline", "tensor", "sequence"):
        assert float(cells(printed, row)[-1]) < 1e-5


def test_parallel_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every strategy takes its steps and is compared with one process."""
    run_tiny("parallel_memory", monkeypatch, tmp_path)
    printed = capsys.readouterr().out
    assert cells(printed, "one process")[0] == "1"
    for row in ("ZeRO-1", "ZeRO-2", "ZeRO-3", "2 pipeline stages", "2 tensor ranks", "2 sequence ranks, ZeRO-3"):
        assert cells(printed, row)[0] == "2"


def no_work(rank: int, world_size: int) -> None:
    """For a call that is only to have the tests' server running."""


def stage_of(arguments: list[str], call: Any) -> None:
    """Be a stage's process of gpu.py, forked from the tests' server."""
    sys.path.insert(0, str(BENCHMARKS))
    log = os.open(call.log, os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    gpu = importlib.import_module("gpu")
    os.environ.update(gpu.variables("cpu", call.folder))
    gpu.be_stage(gpu.parse(arguments), call)


class Forked:
    """A forked process as harness.stages looks at one."""

    def __init__(self, *arguments: Any) -> None:
        self.process = multiprocessing.get_context("forkserver").Process(target=stage_of, args=arguments)
        self.process.start()

    def poll(self) -> int | None:
        """Its exit code."""
        return self.process.exitcode

    def kill(self) -> None:
        """End it."""
        self.process.kill()
        self.process.join()


def test_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The rehearsal: every row of every stage is measured on a CPU, its process forked and not started anew."""
    gpu = importlib.import_module("gpu")
    run_distributed(no_work, 1)
    output = tmp_path / "results.jsonl"
    arguments = ["--tiny", "--output", str(output), "--budget_s", "300"]
    monkeypatch.setattr(gpu, "begin", lambda _, call: Forked(arguments, call))
    assert gpu.main(arguments) == 0, capsys.readouterr().err
    about, *records = map(json.loads, output.read_text().splitlines())
    assert about["device"] == "cpu" and "torch" in about["versions"]
    assert {record["stage"] for record in records} == {stage.name for stage in gpu.STAGES}
    unmeasured = {record["row"]: record["why"] for record in records if record["status"] != "done"}
    assert all(why == "needs a CUDA device" for why in unmeasured.values()), unmeasured
    found = {(record["stage"], record["row"]): record for record in records}
    assert len(found) == len(records) >= 60
    assert found["smoke", "ZeRO-3"]["deviation"] < 1e-6 < found["smoke", "bf16"]["deviation"]
    assert 0 < found["smoke", "resumed, exported, reloaded"]["resumed_from"] < 16
    assert found["ragged", "Trainer"]["full"] < 0.6
    assert found["ladder", "1B kernels of the last rung"]["top"]
    context = importlib.import_module("gpu_stages.context")
    lengths = [found["context", f"{shape} {rung}"]["tokens"] for shape in context.SHAPES for rung in context.RUNGS]
    assert all(512 <= length <= context.CEILING for length in lengths)
    page = output.with_suffix(".md").read_text()
    assert all(f"## {stage.name}" in page for stage in gpu.STAGES)
    assert all((tmp_path / "results" / f"{stage.name}.log").stat().st_size for stage in gpu.STAGES)
    assert "Failures" not in page and "Targets" not in page


def test_gpu_refuses_an_unknown_stage(capsys: pytest.CaptureFixture[str]) -> None:
    """A message and exit code 2, before anything is started."""
    gpu = importlib.import_module("gpu")
    assert gpu.main(["--tiny", "--stages", "smoke,lader"]) == 2
    assert "unknown stage 'lader' (did you mean 'ladder'?)" in capsys.readouterr().err


def test_gpu_without_a_device(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One message, and no page that says nothing."""
    gpu = importlib.import_module("gpu")
    nothing = {"facts": {"status": "failed", "why": "RuntimeError: no CUDA device"}}
    monkeypatch.setattr(gpu, "begin", lambda *given: Told(given[-1], nothing))
    monkeypatch.setattr(gpu, "RESULTS", tmp_path)
    assert gpu.main([]) == 2
    assert "the device cannot be used: RuntimeError: no CUDA device" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


class Told:
    """A stage's process that says what is planted, and has ended."""

    def __init__(self, call: Any, rows: dict[str, dict[str, Any]]) -> None:
        said: list[dict[str, Any]] = [{"rows": list(rows)}]
        for row, found in rows.items():
            said += [{"begin": row, "limit_s": 9.0, "kills_itself": False, "log_from": 0}, {"end": row, "found": found}]
        call.told.write_text("".join(json.dumps(line) + "\n" for line in said))

    def poll(self) -> int | None:
        """Its exit code."""
        return 0

    def kill(self) -> None:
        """It has ended."""


def test_gpu_of_known_figures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Targets that are reached, missed and not measured; an interrupt keeps what was measured before it."""
    gpu = importlib.import_module("gpu")
    facts = {"machine": "M", "device": "Card X", "device_gib": 80.0, "host_gib": 9.0, "cuda": "13", "driver": "1"}
    done = {"status": "done", "peak_gib": 1.0, "step_time_s": 1.0}
    planted = {
        "machine": {"facts": {"status": "done", "capability": "9.0", "versions": {"torch": "2"}, **facts}},
        "smoke": {"one": done | {"deviation": 0.0, "tolerance": 1.0}, "two": {"status": "failed", "why": "E: wrong"}},
        "planned": {"one": done | {"planned_gib": 1.1, "planned_s": 0.9}, "two": done | {"planned_gib": 0.98}},
        "ragged": {
            name: done | {"tokens_per_second": speed}
            for name, speed in {"toolkit": 9.0, "toolkit, again": 11.0, "Trainer": 3.0, "Trainer, again": 5.0}.items()
        },
        "ladder": {
            "1B all": done | {"tokens_per_second": 1.0, "mfu": 0.55, "tflops_per_device": 500.0},
            "3B all": done | {"tokens_per_second": 1.0, "mfu": 0.45},
            "3B more": {"status": "out of memory", "why": "OutOfMemoryError: 1 GiB"},
        },
    }

    def begin(_: Any, call: Any) -> Told:
        if call.stage not in planted:
            raise KeyboardInterrupt
        return Told(call, planted[call.stage])

    monkeypatch.setattr(gpu, "begin", begin)
    monkeypatch.setattr(gpu, "RESULTS", tmp_path)
    assert gpu.main([]) == 130
    assert len((tmp_path / "gpu_card_x.jsonl").read_text().splitlines()) == 1 + 2 + 2 + 4 + 3
    page = (tmp_path / "gpu_card_x.md").read_text()
    targets = {
        "smoke: share of the rows that agree": ["50%", ">= 100%", "MISSED"],
        "planned peaks: 100% less their median error": ["94.0%", ">= 97.0%", "MISSED"],
        "ragged chats, times the Trainer's tokens/s": ["2.50", ">= 2.00", "reached"],
        "MFU, 1B": ["55%", ">= 50%", "reached"],
        "MFU, 3B": ["45%", ">= 50%", "MISSED"],
        "context of a 1B shape, tokens": ["-", ">= 500,000", "not measured"],
    }
    assert {name: cells(page, name) for name in targets} == targets
    assert "- 3B more: OutOfMemoryError: 1 GiB" in page and "### smoke, two\n\nE: wrong" in page


STAGE = """
import os, sys, time
sys.path.insert(0, {folder!r})
from pathlib import Path
from harness import stages
from harness.stages import Call, Row, serve

stages.LEAST_ROW_S = 0.0

def fails(limit_s):
    raise ValueError("no such number")

def crashes(limit_s):
    print("about to crash", flush=True)
    os._exit(7)

rows = [
    Row("first", lambda limit_s: {{"speed": 3.0}}),
    Row("fails", fails),
    Row("crashes", crashes),
    Row("hangs", lambda limit_s: time.sleep(60)),
    Row("last", lambda limit_s: {{"speed": 4.0}}),
    Row("lacks", fails, without="needs more"),
]
told, log, skip, limit = sys.argv[1:]
serve(rows, Call("stage", Path("."), Path(told), Path(log), tuple(skip.split(",")), float(limit)))
"""


def test_a_stage_goes_on_after_failures(tmp_path: Path) -> None:
    """An exception, a crash and a hang cost the rows in which they happen; a stage that cannot start stops no other."""
    stages = importlib.import_module("harness.stages")
    script = tmp_path / "stage.py"
    script.write_text(STAGE.format(folder=str(BENCHMARKS)))
    kept: list[dict[str, Any]] = []

    def begin(call: Any) -> Any:
        if call.stage == "broken":
            return stages.begin([sys.executable, "-c", "raise SystemExit('no disk')"], call.log, os.environ)
        told = [str(call.told), str(call.log), ",".join(call.skip), str(call.limit_s)]
        return stages.begin([sys.executable, str(script), *told], call.log, os.environ)

    plan = [stages.Stage("broken", 1.0), stages.Stage("stage", 1.0)]
    stages.run_stages(plan, 5.0, begin, tmp_path, tmp_path, kept.append)
    statuses = {record["row"]: record["status"] for record in kept}
    assert statuses == {
        "start": "failed",
        "first": "done",
        "fails": "failed",
        "crashes": "failed",
        "hangs": "timed out",
        "last": "done",
        "lacks": "left out",
    }
    why = {record["row"]: (record.get("why", ""), record.get("log", "")) for record in kept}
    assert why["start"] == ("the process ended with exit code 1", "no disk")
    assert why["fails"][0] == "ValueError: no such number" and "in fails" in why["fails"][1]
    assert why["crashes"] == ("the process ended with exit code 7", "about to crash")
    assert why["lacks"][0] == "needs more"


WORKER = """
import os, sys
sys.path.insert(0, {folder!r})
from harness.stages import Row, calls, serve

for call in calls():
    rows = [Row("who", lambda limit_s: {{"pid": os.getpid()}})]
    if call.stage == "crash":
        rows.append(Row("dies", lambda limit_s: os._exit(3)))
    print("in", call.stage, flush=True)
    serve(rows, call)
"""


def test_one_process_does_several_stages(tmp_path: Path) -> None:
    """Until it dies; each stage has its own log, and rows that are known are not measured."""
    stages = importlib.import_module("harness.stages")
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(folder=str(BENCHMARKS)))
    worker = stages.Worker([sys.executable, str(script)], os.environ)
    kept: list[dict[str, Any]] = []
    plan = [stages.Stage(name, 1.0) for name in ("one", "two", "crash", "after", "known")]

    def known(stage: str) -> list[str]:
        return ["who"] if stage == "known" else []

    try:
        stages.run_stages(plan, 60.0, worker.begin, tmp_path, tmp_path, kept.append, known)
    finally:
        worker.close()
    pids = {record["stage"]: record["pid"] for record in kept if record["row"] == "who"}
    assert list(pids) == ["one", "two", "crash", "after"]
    assert pids["one"] == pids["two"] == pids["crash"] != pids["after"]
    died = [record for record in kept if record["row"] == "dies"]
    assert [record["why"] for record in died] == ["the process ended with exit code 3"]
    assert (tmp_path / "two.log").read_text() == "in two\n"


def test_gpu_goes_on_with_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--resume: what was measured stays, what failed is measured again; another device's page is left alone."""
    gpu = importlib.import_module("gpu")
    facts = {"machine": "M", "device": "Card X", "device_gib": 80.0, "host_gib": 9.0, "cuda": "13", "driver": "1"}
    machine = {"facts": {"status": "done", "capability": "9.0", "versions": {"torch": "2"}, **facts}}
    good = {"status": "done", "deviation": 0.0, "tolerance": 1.0}
    planted: dict[str, Any] = {
        "machine": machine,
        "smoke": {"one": good, "two": {"status": "timed out", "why": "late"}},
    }
    asked: dict[str, tuple[str, ...]] = {}

    def begin(_: Any, call: Any) -> Told:
        asked[call.stage] = call.skip
        return Told(call, {row: found for row, found in planted[call.stage].items() if row not in call.skip})

    monkeypatch.setattr(gpu, "begin", begin)
    command = ["--stages", "smoke", "--output", str(tmp_path / "page.jsonl")]
    assert gpu.main(command) == 1
    planted["smoke"]["two"] = good
    assert gpu.main([*command, "--resume"]) == 0
    assert asked["smoke"] == ("one",)
    page = (tmp_path / "page.md").read_text()
    assert page.count("Measured on ") == 2 and "Failures" not in page
    assert cells(page, "one")[0] == cells(page, "two")[0] == "done"
    written = (tmp_path / "page.jsonl").read_bytes()
    facts["device"] = machine["facts"]["device"] = "Card Y"
    assert gpu.main([*command, "--resume"]) == 2
    assert "was measured on Card X, this is Card Y" in capsys.readouterr().err
    assert (tmp_path / "page.jsonl").read_bytes() == written


def test_what_is_in_memory_when_most_is() -> None:
    """Events of torch's allocator: what the step has made and not freed, by who asked, and what it freed of before."""
    at_fullest = importlib.import_module("harness.peak").at_fullest

    def event(action: str, address: int, gib: int, name: str = "") -> dict[str, Any]:
        return {
            "action": action,
            "addr": address,
            "size": gib * 2**30,
            "frames": [{"filename": "/a/x.py", "line": 3, "name": name}],
        }

    events = [
        event("alloc", 1, 2, "loss"),
        event("segment_alloc", 9, 9),
        event("free_requested", 1, 2),
        event("free_completed", 7, 1),
        event("alloc", 2, 3, "layer"),
        event("free_completed", 1, 2),
        event("alloc", 3, 1, "layer"),
    ]
    assert at_fullest(events) == [
        [3.0, 1, "x.py:3 layer"],
        [2.0, 1, "x.py:3 loss"],
        [0.0, 0, "the rest"],
        [-1.0, 0, "from before the step"],
    ]
    assert at_fullest([])[-1][0] == 0.0


def test_longest_context_is_searched() -> None:
    """Doubling to the end of memory, then halving the gap; a search without time says so."""
    context = importlib.import_module("gpu_stages.context")
    tried: list[int] = []

    def try_step(length: int) -> float | None:
        tried.append(length)
        return None if length > 41_000 else length / 1000

    found = context.longest(try_step, 8192, least=8192, tries=20, time_left=lambda: 1e9)
    assert tried == [8192, 16384, 32768, 65536, 49152, 40960, 45056]
    assert (found.length, found.seconds, found.tries, found.ended_by) == (40960, 40.96, 7, "memory")
    # After 8 s twice the length may take 33 s; once it took 16 s, twice that length is likely to take 33 s, too.
    left = iter([33.0, 32.0])
    found = context.longest(try_step, 8192, least=8192, tries=20, time_left=lambda: next(left))
    assert (found.length, found.ended_by) == (16384, "time")
    assert context.longest(lambda _: None, 65536, least=8192, tries=20, time_left=lambda: 1.0).length == 0


def test_idle_share_of_known_kernels() -> None:
    """Time in which at least one kernel ran; kernels by their sum."""
    summarised = importlib.import_module("harness.profile").summarised
    found = summarised([("a", 0.0, 2000.0), ("b", 1000.0, 3000.0), ("a", 9000.0, 10000.0)])
    assert found["idle"] == pytest.approx(0.6)
    assert found["top"] == [["a", 2, 3.0, 0.6], ["b", 1, 2.0, 0.4]]


Planted = Callable[[list[str], int], list[Any]]


def publish_planted(name: str, planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the benchmark `name` publish what `planted` says that its ranks have measured."""
    module = importlib.import_module(name)
    monkeypatch.setattr(module, "measure", lambda _, arguments, world_size: planted(arguments, world_size))
    module.main(["--tiny"])


def test_step_overhead_of_known_times(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The slowest rank decides each step; the ratio is of neighbouring steps; processor time is the sum over ranks."""
    ranks = [
        {"ours": [2.0, 3.0, 8.0], "bare": [1.0, 1.0, 4.0], "our_cpu": [3.0, 1.0, 2.0], "bare_cpu": [1.0, 1.0, 1.0]},
        {"ours": [1.0, 6.0, 4.0], "bare": [2.0, 2.0, 1.0], "our_cpu": [1.0, 2.0, 2.0], "bare_cpu": [1.0, 1.0, 3.0]},
    ]
    about = {"about": "a model", "bare_loss": 3.0, "our_loss": 3.5}
    publish_planted("step_overhead", lambda *_: [rank | about for rank in ranks], monkeypatch)
    printed = capsys.readouterr().out
    # Of each step: ours 2, 6, 8; bare 2, 2, 4; ratios 1, 3, 2; processor time 4/2, 3/2, 4/4.
    assert cells(printed, "toolkit, s per step") == ["2.000", "6.000", "8.000"]
    assert cells(printed, "bare DeepSpeed, s per step") == ["2.000", "2.000", "4.000"]
    assert cells(printed, "toolkit / bare") == ["1.0000", "2.0000", "3.0000"]
    assert cells(printed, "toolkit / bare, processor time") == ["1.0000", "1.5000", "2.0000"]
    assert "neighbouring steps: **2.000**" in printed


def test_parallel_overhead_of_known_times(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Ratio of the medians of the slowest ranks, the larger memory, the largest distance of two losses."""
    sides = importlib.import_module("parallel_overhead").SIDES
    known = {
        "toolkit": [([1.0, 4.0], [1.0, 1.0], 1.0, [2.0, 3.0]), ([3.0, 2.0], [2.0, 2.0], 2.5, [2.0, 3.0])],
        "bare": [([2.0, 1.0], [1.0, 1.0], 4.0, [2.0, 2.4]), ([1.0, 2.0], [1.0, 1.0], 3.0, [2.0, 2.4])],
    }
    ranks = [
        {"side": side, "seconds": seconds, "cpu": cpu, "gib": gib, "losses": losses}
        for side in sides
        for seconds, cpu, gib, losses in known["toolkit" if side == "toolkit" else "bare"]
    ]
    publish_planted("parallel_overhead", lambda *_: ranks, monkeypatch)
    printed = capsys.readouterr().out
    for row in ("pipeline", "tensor", "sequence"):
        ours, bare, ratio, _, processor, our_gib, bare_gib, apart = cells(printed, row)
        assert (ours, bare, ratio, processor) == ("3.500", "2.000", "1.750", "1.500")
        assert (our_gib, bare_gib, apart) == ("2.50", "4.00", "2.5e-01")


def test_parallel_memory_of_known_peaks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The larger rank of each strategy, as a share of what one process takes."""

    def planted(arguments: list[str], world_size: int) -> list[float]:
        return [8.0] if world_size == 1 else [1.0, 6.0 if "ZeRO-1" in arguments else 2.0]

    publish_planted("parallel_memory", planted, monkeypatch)
    printed = capsys.readouterr().out
    assert cells(printed, "one process")[1:3] == ["8.00", "100%"]
    assert cells(printed, "ZeRO-1")[1:3] == ["6.00", "75%"]
    assert cells(printed, "2 tensor ranks")[1:3] == ["2.00", "25%"]


def measured_peak(rank: int, world_size: int) -> float:
    """GiB that the harness sees of a quarter of one that is written to and let go."""
    sys.path.insert(0, str(BENCHMARKS))
    from harness.memory import peak_gib_of

    return peak_gib_of(lambda: bytes(bytearray(b"x") * 2**27) and None)


def test_peak_of_memory_is_measured() -> None:
    """An eighth of a GiB twice, at one moment; allocator and interpreter come on top."""
    [peak] = run_distributed(measured_peak, 1)
    assert peak == pytest.approx(0.25, abs=0.02)


def test_logits_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Started as `make bench` does, ranks and all: both sides compute the same loss; nothing is written."""
    module = importlib.import_module("logits_memory")
    page = tmp_path / "page.md"
    module.main(["--tiny", "--page", str(page)])
    printed = capsys.readouterr().out
    full, fused = (float(cells(printed, f"{side}, bfloat16")[2]) for side in ("full logits", "linear_cross_entropy"))
    assert full == pytest.approx(fused, rel=1e-4)
    assert not page.exists()


def test_state_formats(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is kept per parameter is what the formats say, and no format leaves the curve."""
    pytest.importorskip("torchao", reason="torchao is not installed: pip install 'toolkit[torchao]'")
    run_tiny("state_formats", monkeypatch, tmp_path)
    printed = capsys.readouterr().out
    kept = {
        "fp32": 12,
        "fp32 masters, 8-bit states": 6,
        "bf16 masters, bf16 states": 6,
        "bf16 masters, 8-bit states": 4,
    }
    for name, expected in kept.items():
        loss, _, relative, size = cells(printed, name)
        assert float(loss) > 0 and abs(float(relative.strip("+%"))) < 2
        # Scales of the blocks, the few vectors in fp32, and two maps of 256 values.
        assert expected <= float(size) < expected + 0.15, name


def test_page_is_written(tmp_path: Path) -> None:
    """Title, parts and the conditions of the measurement."""
    page = importlib.import_module("harness.page")
    options = page.parser("About.", "speed.py").parse_args(["--page", str(tmp_path / "results" / "speed.md")])
    page.publish(options, "Speed", [page.table(["", "a"], [["row", "1"], ["longer row", "22"]])])
    text = options.page.read_text()
    assert text.startswith(
        "# Speed\n\n|            |  a |\n| ---------- | -: |\n| row        |  1 |\n| longer row | 22 |\n\n"
    )
    assert "by `python benchmarks/speed.py` on " in text
    assert re.search(r"\d+ cores, \d+ GiB\)?; Python 3\.\d+", text)


def test_failing_rank_is_told(tmp_path: Path) -> None:
    """What the failing rank printed reaches the reader, and the others are not left behind."""
    ranks = importlib.import_module("harness.ranks")
    script = tmp_path / "script.py"
    script.write_text("import os, sys, time\ntime.sleep(60) if os.environ['RANK'] == '0' else sys.exit('no disk')\n")
    with pytest.raises(ranks.RankFailed, match=r"(?s)rank 1 ended with exit code 1\n.*rank 1 printed\nno disk"):
        ranks.measure(str(script), [], 2)
    with pytest.raises(ranks.RankFailed, match="rank 0 was not done in time"):
        ranks.measure(str(script), [], 1, timeout_s=0.5)


def test_lora_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is measured is what the parts add up to, within 5 %; nothing stays gathered; an 8B model is traced."""
    module = importlib.import_module("lora_memory")
    found: list[Any] = []
    plain = module.sum_of_parts
    monkeypatch.setattr(module, "sum_of_parts", lambda about, *rest: found.append(about) or plain(about, *rest))
    run_tiny("lora_memory", monkeypatch, tmp_path)
    printed = capsys.readouterr().out
    assert float(cells(printed, "**measured**")[1].rstrip("%")) == pytest.approx(100, abs=5)
    assert found[0]["left"] == 0
    ranks = {count: [float(cell) for cell in cells(printed, str(count))] for count in (1, 8)}
    assert ranks[1][0] == pytest.approx(14.96, abs=0.01) and ranks[8][0] == pytest.approx(14.96 / 8, abs=0.01)


def test_tasks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run's evaluations are read; the least favourable seed decides."""
    run_tiny("tasks", monkeypatch, tmp_path, "--tasks", "mails, spam or ham")
    recipe, metric, before, after, least, goal, also, _ = cells(capsys.readouterr().out, "mails, spam or ham")
    assert (recipe, metric, goal) == ("classify_minilm_spam_zero2", "accuracy", "at least 0.94")
    assert 0 <= float(before) <= 1 and after == least and also.startswith("majority_accuracy ")
    tasks = importlib.import_module("tasks")
    lines = {
        "rising": tasks.Line("x", "m", 0.5, rises=True),
        "falling": tasks.Line("x", "m", 0.5, rises=False),
        "halved": tasks.Line("x", "m", 0.5, rises=False, relative_to="start"),
        "near": tasks.Line("x", "m", 1.03, rises=False, relative_to="falling"),
        "alone": tasks.Line("x", "m", 1.03, rises=False, relative_to="not measured"),
    }
    monkeypatch.setattr(tasks, "LINES", lines)
    outcomes = [tasks.Outcome(before, after, 1.0) for before, after in ((1.0, 0.4), (1.0, 0.6))]
    found = dict.fromkeys(lines, outcomes)
    assert {name: tasks.worst(name, found) for name in lines} == {
        "rising": 0.4, "falling": 0.6, "halved": 0.6, "near": 1.0, "alone": None,
    }  # fmt: skip
    assert [name for name in lines if tasks.reached(name, found)] == ["near", "alone"]
    better = {**found, "rising": outcomes[1:], "falling": outcomes[:1], "halved": outcomes[:1], "near": outcomes[:1]}
    assert all(tasks.reached(name, better) for name in lines)


def test_custom_tasks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both run; a baseline's figures are those of counting; a figure is judged by the baseline's."""
    run_tiny("custom_tasks", monkeypatch, tmp_path)
    printed = capsys.readouterr().out
    rows = re.findall(r"^\| (\w+), \w+ +\| +(\w+) \|", printed, re.MULTILINE)
    assert rows == [
        ("recommender", "recall_at_10"),
        ("recommender", "ndcg_at_10"),
        ("residues", "accuracy"),
        ("residues", "perplexity"),
    ]
    module = importlib.import_module("custom_tasks")
    line = module.TASKS["residues, frequency"]
    from toolkit.examples.residues import MaskedResidues

    found = module.untrained(line, {**line.tiny, "seed": 0})
    text = "".join(row["sequence"] for row in MaskedResidues(families=3, sequences=40).rows("train"))
    shares = [text.count(letter) / len(text) for letter in set(text)]
    entropy = -sum(share * math.log(share) for share in shares)
    assert found["loss"] == pytest.approx(entropy, rel=0.1) and math.exp(found["loss"]) == pytest.approx(
        found["perplexity"]
    )
    assert found["accuracy"] == pytest.approx(max(shares), abs=0.1)
    rises, falls = module.Figure("m", 2.0), module.Figure("m", 0.7)
    assert rises.reached(0.2, 0.1) and not rises.reached(0.19, 0.1)
    assert falls.reached(7.0, 10.0) and not falls.reached(7.1, 10.0)


def test_every_task_is_of_a_recipe_and_of_data_that_can_be_fetched() -> None:
    from toolkit.cli.fetch import names

    tasks = importlib.import_module("tasks")
    for line in tasks.LINES.values():
        assert (BENCHMARKS.parent / "recipes" / f"{line.recipe}.py").is_file()
        for options in (line.options, line.tiny):
            assert {value for name, value in pairwise(options) if name == "--data.train"} <= set(names())


def test_image_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Images are made by one thread and by several, and trained; photographs need nothing that is fetched."""
    run_tiny("image_path", monkeypatch, tmp_path, "--cases", "ResNet-50, photographs, everything")
    trained, alone, together, share = cells(capsys.readouterr().out, "ResNet-50, photographs, everything")
    assert min(float(rate.replace(",", "")) for rate in (trained, alone, together)) > 0 and float(share) > 0


def test_plan_states(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The bytes that engines' tensors hold are those that a plan says, by component; the script itself refuses others."""
    run_tiny("plan_states", monkeypatch, tmp_path)
    printed = capsys.readouterr().out
    assert float(re.search(r"largest error of a component ([\d.]+)%", printed)[1]) <= 1.0  # type: ignore[index]
    # The whole step, too: states and activations at its fullest moment.
    for name in ("stage 0, fp32", "stage 1, bf16"):
        *_, planned, measured, _, _ = cells(printed, name)
        assert float(planned) == pytest.approx(float(measured), rel=0.05)
    # And what ranks send.
    for name in (
        "stage 2, fp32",
        "stage 1, bf16",
        "stage 2, optimizer offloaded",
        "LoRA, stage 2",
        "2 pipeline stages",
    ):
        *_, planned, measured = cells(printed, name)
        assert float(planned) == pytest.approx(float(measured), rel=0.01, abs=0.01) and float(planned) > 0


def test_collectives(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every collective of two ranks has a rate."""
    run_tiny("collectives", monkeypatch, tmp_path)
    printed = capsys.readouterr().out
    assert all(len(cells(printed, name)) == 3 for name in ("all_reduce", "reduce", "all_gather", "reduce_scatter"))


def test_plan_activations(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is traced without values is what a real step holds."""
    run_tiny("plan_activations", monkeypatch, tmp_path)
    assert float(re.search(r"worst ([\d.]+)%", capsys.readouterr().out)[1]) <= 5.0  # type: ignore[index]


def test_plan_published(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A set-up that works is found, one that does not is refused."""
    run_tiny("plan_published", monkeypatch, tmp_path)
    assert "2 of 2 as known." in capsys.readouterr().out


def test_plan_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What needs no torch answers at once, a plan in seconds."""
    run_tiny("plan_time", monkeypatch, tmp_path)
    printed = capsys.readouterr().out
    seconds = [float(cells(printed, name)[0]) for name in ("toolkit check FILE", "RECIPE --dry_run")]
    assert 0.0 < max(seconds) < float(cells(printed, "toolkit plan, tiny, 8 x H100")[0])


def test_plan_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run plans itself before it loads weights, and leaves what it measured beside the plan."""
    run_tiny("plan_runs", monkeypatch, tmp_path)
    _, planned, measured, *_ = cells(capsys.readouterr().out, "one rank, fp32")
    assert float(planned) == pytest.approx(float(measured), rel=0.3)
