"""`toolkit check`: the report, the exit codes, and files that are anything but a configuration."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from toolkit.cli.verbs import main
from toolkit.ds_config import file_text
from toolkit.ds_config.golden import rendered_files

ROOT = Path(__file__).parents[2]

FAULTY = """{
  "train_batch_size": 8,
  "max_grad_norm": 1.0,
  "zero_optimization": {"stage": 3, "offload_param": {"device": "cpu", "pin_memory": true}, "round_robin_gradients": true}
}"""


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    path = tmp_path / "ds.json"
    path.write_text(FAULTY)
    return path


def checked(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["check", *words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_report_has_errors_first_then_a_line_per_warning_what_was_assumed_and_the_counts(
    faulty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = checked(capsys, str(faulty))
    assert (code, err) == (2, "")
    assert out.splitlines() == [
        f'{faulty}:3: error: unknown key max_grad_norm (DeepSpeed: "gradient_clipping" at the top level)  [unknown-key]',
        "  expected: a key that DeepSpeed 0.19.8 reads at the top level",
        '  do this:  use "gradient_clipping" at the top level',
        "",
        f"{faulty}:1: warning: gradient_clipping is missing: DeepSpeed clips the gradient norm at 1.0; "
        'write "gradient_clipping"  [clipping-unwritten]',
        f"{faulty}:4: warning: zero_optimization.round_robin_gradients=true is ignored at stage 3; "
        "remove 'round_robin_gradients'  [key-of-another-stage]",
        "",
        "assumed: world size not checked (--world-size N), device cuda (--device), no Trainer (--training-args FILE), "
        "DeepSpeed 0.19.8",
        f"{faulty}: 1 error, 2 warnings; --fix corrects 1",
    ]


def test_the_last_lines_say_what_was_given(tmp_path: Path, faulty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = tmp_path / "args.json"
    arguments.write_text("{}")
    words = [str(faulty), "--world_size", "8", "--device", "cpu", "--training-args", str(arguments)]
    assumed = checked(capsys, *words)[1].splitlines()[-2]
    assert assumed == f"assumed: world size 8, device cpu, the arguments in {arguments}, DeepSpeed 0.19.8"


def test_a_device_is_enough_for_what_depends_on_it_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ds.json"
    path.write_text(
        '{"train_batch_size": 8, "gradient_clipping": 1.0, "zero_optimization": {"stage": 0}, "aio": {"use_gds": true}}'
    )
    assert checked(capsys, str(path))[0] == 0
    code, out, _ = checked(capsys, str(path), "--device", "cpu")
    assert code == 2 and "[gds-on-cpu]" in out


def test_warnings_count_under_strict_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ds.json"
    path.write_text('{"train_batch_size": 8, "zero_optimization": {"stage": 1}}')
    assert checked(capsys, str(path))[0] == 0
    assert checked(capsys, str(path), "--strict")[0] == 2
    code, out, _ = checked(capsys, str(path), "--json")
    assert code == 0
    (found,) = json.loads(out)
    assert found == {
        "where": "gradient_clipping",
        "rule": "clipping-unwritten",
        "what": "gradient_clipping is missing: DeepSpeed clips the gradient norm at 1.0",
        "expected": "the norm to clip at, or 0.0 for never",
        "do": 'write "gradient_clipping"',
        "severity": "warning",
        "role": "config",
        "file": str(path),
        "line": 1,
        "column": 1,
        "fix": [],
    }
    path.write_text('{"train_batch_size": 8, "gradient_clipping": 1.0, "zero_optimization": {"stage": 1}}')
    assert checked(capsys, str(path), "--strict")[0] == 0
    assert checked(capsys, str(path), "--strict", "--json")[:2] == (0, "[]\n")


def test_a_file_that_is_none_is_a_finding_of_the_json_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = checked(capsys, str(tmp_path / "missing.json"), "--json")
    (found,) = json.loads(out)
    assert (code, err, found["rule"], found["severity"]) == (2, "", "unreadable", "error")
    assert found["what"].endswith("missing.json does not exist")
    assert checked(capsys, str(tmp_path / "missing.json"))[2].startswith("error: ")
    for words in (["-", "--training-args", "-"], [str(tmp_path), "--recipe", str(tmp_path / "missing.py")]):
        code, out, err = checked(capsys, *words, "--json")
        assert (code, err, len(json.loads(out))) == (2, "", 1)


def test_a_deepspeed_json_in_the_place_of_the_arguments(faulty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = checked(capsys, str(faulty), "--training-args", str(faulty))
    assert code == 2 and "it is a DeepSpeed JSON, not the Trainer's arguments" in err


def test_a_number_format_alone_makes_no_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """bf16 is a key of both."""
    path = tmp_path / "ds.json"
    path.write_text('{"bf16": {"enabled": true}, "train_batch_size": 8, "zero_optimization": {"stage": 1}}')
    assert checked(capsys, str(path))[0] == 0
    code, _, err = checked(capsys, str(path), "--training-args", str(tmp_path / "ta.json"))
    assert code == 2 and "expected: a JSON of TrainingArguments" in err


@pytest.mark.parametrize(
    ("text", "what", "do"),
    [
        ('{"ds": {"zero_optimization": {}}, "n": 1}', "a DeepSpeed configuration inside 'ds'", "| toolkit check -"),
        (
            "zero_optimization:\n  stage: 2\ntrain_batch_size: 8\n",
            "is YAML, and DeepSpeed reads JSON",
            "write it as JSON",
        ),
        ("from toolkit import Recipe\n", "is Python, not JSON", "toolkit config"),
    ],
    ids=["wrapped-among-others", "yaml", "recipe"],
)
def test_other_files_are_called_by_their_name(
    tmp_path: Path, text: str, what: str, do: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / ("recipe.py" if "Python" in what else "ds.yaml" if "YAML" in what else "ds.json")
    path.write_text(text)
    code, _, err = checked(capsys, str(path))
    assert code == 2 and what in err and do in err


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[1]", "expected: a JSON of TrainingArguments"),
        ('{"args": {"bf16": true}}', "holds none of TrainingArguments' names, but 'args'"),
        (
            '{"learning_rate": 1e-5, "learning_rate": 1e-4}',
            "the key 'learning_rate' stands 2 times in one object (line 1)",
        ),
        ('{"learning_rate": 1e-5,}', "the file is Hjson, not JSON"),
    ],
    ids=["list", "wrapped", "twice", "hjson"],
)
def test_the_file_of_arguments_is_read_as_strictly(
    tmp_path: Path, text: str, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config, path = tmp_path / "ds.json", tmp_path / "args.json"
    config.write_text('{"train_micro_batch_size_per_gpu": "auto", "zero_optimization": {"stage": 2}}')
    path.write_text(text)
    code, out, err = checked(capsys, str(config), "--training-args", str(path))
    assert code == 2 and what in out + err


def test_a_difference_from_the_recipe_is_a_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, rendered = ROOT / "recipes/sft_smollm2_zero2.py", ROOT / "ds_configs/sft_smollm2_zero2.json"
    assert checked(capsys, str(rendered), "--recipe", str(recipe), "--strict")[0] == 0
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({**json.loads(rendered.read_text()), "gradient_clipping": 0.25}))
    code, out, _ = checked(capsys, str(path), "--recipe", str(recipe), "--json")
    (found,) = json.loads(out)
    assert (code, found["rule"], found["where"]) == (2, "differs-from-recipe", "gradient_clipping")
    assert found["what"] == "gradient_clipping is 0.25 there and 1.0 in the recipe"


def test_what_our_recipes_render_has_neither_errors_nor_warnings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {name: text for name, text in rendered_files(ROOT / "recipes").items() if name.endswith(".json")}
    assert len(files) >= 16
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        code, out, _ = checked(capsys, str(tmp_path / name), "--strict")
        assert code == 0 and out.endswith("0 errors, 0 warnings\n"), out


def test_long_lists_are_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sections = ("fp16", "bf16", "aio", "comet", "wandb")
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({name: {f"key_{number}": 1 for number in range(30)} for name in sections}))
    code, out, _ = checked(capsys, str(path))
    assert code == 2 and out.count(": error: ") == 40
    assert "... and 66 more errors (--json lists them all)" in out
    assert len(json.loads(checked(capsys, str(path), "--json")[1])) == 108


HOSTILE: dict[str, str] = {
    "1,000 levels of objects": '{"a":' * 1000 + "1" + "}" * 1000,
    "100,000 open brackets": "[" * 100_000,
    "900 levels in a value": '{"optimizer": {"type": "AdamW", "params": {"betas": ' + "[" * 900 + "]" * 900 + "}}}",
    "an integer of 310 digits": '{"train_batch_size": 1' + "0" * 309 + ', "gradient_clipping": 1' + "0" * 309 + "}",
    "an integer of 5,000 digits": '{"train_batch_size": 1' + "0" * 5000 + "}",
    "a number beyond all": '{"gradient_clipping": 1e400, "zero_optimization": {"stage": 1e400}}',
    "200,000 unknown keys": json.dumps({f"unknown_key_{number}": 1 for number in range(200_000)}),
    "50,000 faulty elements": json.dumps({"tensor_parallel": {"partition_config": {"layer_specs": [1] * 50_000}}}),
    "a key of a million letters": json.dumps({"x" * 1_000_000: 1, "optimizer": {"type": "y" * 1_000_000}}),
    "a lone surrogate and an escape": '{"\\ud800": 1, "a\\u001b[31mb": 1, "optimizer": {"type": "\\udfff"}}',
    "a byte-order mark": "\ufeff{}",
    "a text that never ends": "{a:'''",
    "a comment that never ends": "{a:1 /*",
    "sizes that are none": '{"train_batch_size": 8, "train_micro_batch_size_per_gpu": 0.5}',
    "sizes beyond all": '{"train_batch_size": 8, "train_micro_batch_size_per_gpu": 1e308, "gradient_accumulation_steps": 1e5}',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_answered_at_once(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ds.json"
    path.write_text(HOSTILE[name], encoding="utf-8", errors="surrogatepass")
    ways = ([], ["--json"], ["--explain"], ["--fix"], ["--training-args", str(path)])
    for words in ([str(path), *way] for way in ways):
        began = time.process_time()  # the machine may have other things to do
        code = main(["check", *words])
        assert (code, time.process_time() - began < 5.0) == (2, True)
        out, err = capfd.readouterr()
        assert len(out) + len(err) < 40_000 or "--json" in words or "--explain" in words


def test_mutations_of_real_files_are_answered_with_findings(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(8)
    texts = [path.read_bytes() for path in sorted((ROOT / "ds_configs").glob("*.json"))]
    path = tmp_path / "ds.json"
    codes = set()
    for _ in range(300):
        text = bytearray(rng.choice(texts))
        for _ in range(rng.randint(1, 6)):
            mutate(text, rng)
        path.write_bytes(text)
        codes.add(main(["check", str(path), "--world-size", "2"]))
        out, err = capfd.readouterr()
        assert "Traceback" not in err and (err.startswith("error: ") or " errors, " in out or "1 error, " in out)
    assert codes == {0, 2}


def mutate(text: bytearray, rng: random.Random) -> None:
    place = rng.randrange(len(text))
    kind = rng.randrange(5)
    if kind == 0:
        text[place] = rng.randrange(256)
    elif kind == 1:
        del text[place : place + rng.randint(1, 40)]
    elif kind == 2:
        text[place:place] = text[rng.randrange(len(text)) :][: rng.randint(1, 60)]
    elif kind == 3:
        text[place:place] = rng.choice(
            [b'"auto"', b"null", b"-1", b"1e999", b"{", b"]", b'"x": [1],', b"true", b"\x00"]
        )
    else:
        digits = [index for index, byte in enumerate(text) if chr(byte).isdigit()]
        if digits:
            text[rng.choice(digits)] = rng.choice(b"0123456789-.e")


def test_a_pipe_is_read_and_a_silent_one_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_text(FAULTY))
    writer.start()
    code, out, _ = checked(capsys, str(pipe))
    writer.join()
    assert code == 2 and out.endswith("1 error, 2 warnings; --fix corrects 1\n")
    assert file_text.SILENCE_S < 5
    monkeypatch.setattr(file_text, "SILENCE_S", 0.2)
    code, _, err = checked(capsys, str(pipe))
    assert code == 2 and "it is a pipe into which nothing was written for 0.2 s" in err
    holder = os.open(pipe, os.O_RDWR)  # a writer that says nothing
    assert checked(capsys, str(pipe))[0] == 2
    os.close(holder)


@pytest.mark.parametrize("place", ["/dev/zero", "/dev/null", "/dev/tty"])
def test_devices_are_refused(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = checked(capsys, place)
    assert code == 2 and f"{place} cannot be read: it is a device or a socket, not a file" in err


def test_a_file_as_large_as_a_checkpoint_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.bin"
    with path.open("wb") as file:
        file.truncate(10 << 30)  # sparse
    code, _, err = checked(capsys, str(path))
    assert code == 2 and "more than 64 MiB, which no DeepSpeed JSON has" in err


def toolkit(words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """The verbs as a shell starts them, for what only a process has: its own streams."""
    command = f"{Path(sys.executable).parent / 'toolkit'} {words}"
    return subprocess.run(["bash", "-c", command], text=True, cwd=ROOT, capture_output=True, check=False, **options)


QUICKLY = """
import resource, sys
from toolkit.cli.verbs import main
code = main(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_SELF)
heavy = [name for name in ("torch", "deepspeed", "transformers", "accelerate") if name in sys.modules]
print(code, heavy, used.ru_utime + used.ru_stime < 1.0, file=sys.stderr)
"""


@pytest.mark.parametrize("way", ["", "--explain", "--training-args args.json", "--accelerate acc.yaml", "--json"])
def test_the_answer_takes_less_than_a_second_and_imports_nothing_heavy(way: str, faulty: Path) -> None:
    (faulty.parent / "args.json").write_text('{"learning_rate": 1e-5}')
    (faulty.parent / "acc.yaml").write_text("distributed_type: DEEPSPEED\nnum_processes: 2\n")
    command = [sys.executable, "-c", QUICKLY, "check", str(faulty), *way.split()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=faulty.parent, env=environment)
    assert done.stderr == "2 [] True\n"


def test_standard_input(faulty: Path) -> None:
    done = toolkit("check -", input=FAULTY)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (
        2,
        "standard input: 1 error, 2 warnings; --fix corrects 1",
    )
    empty = toolkit("check - < /dev/null")
    assert empty.returncode == 2 and "standard input is empty" in empty.stderr
    twice = toolkit("check - --training-args -", input=FAULTY)
    assert twice.returncode == 2 and "are both standard input" in twice.stderr


def test_a_reader_that_leaves_early_changes_no_verdict(tmp_path: Path, faulty: Path) -> None:
    left = toolkit(f"check {faulty} | true; echo ${{PIPESTATUS[0]}}")
    assert (left.stdout, left.stderr) == ("2\n", "")
    sound = tmp_path / "sound.json"
    sound.write_text('{"train_batch_size": 8, "gradient_clipping": 1.0, "zero_optimization": {"stage": 1}}')
    assert toolkit(f"check {sound} | true; echo ${{PIPESTATUS[0]}}").stdout == "0\n"


def test_standard_output_that_is_closed_or_full(faulty: Path) -> None:
    closed = toolkit(f"check {faulty} >&-")
    assert (closed.returncode, closed.stderr) == (2, "")
    full = toolkit(f"check {faulty} > /dev/full")
    assert full.returncode == 1
    assert full.stderr.splitlines()[0] == "error: standard output cannot be written: No space left on device"
    assert len(full.stderr.splitlines()) == 3
