"""`toolkit check --fix`: what is corrected for certain, what is left to its author, and that nothing else is touched."""

from __future__ import annotations

import json
import os
import random
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.disks import small_disk
from toolkit.cli.verbs import main
from toolkit.ds_config.check import check_files
from toolkit.ds_config.config_file import ConfigFile, parse_config
from toolkit.ds_config.files import together
from toolkit.ds_config.fix import Fixed, fixed
from toolkit.ds_config.misspelt import distance, misspelt
from toolkit.errors import ConfigError

ROOT = Path(__file__).parents[2]


def cured(text: str, arguments: dict[str, Any] | None = None) -> Fixed:
    args = None if arguments is None else parse_config(Path("args.json"), json.dumps(arguments))

    def check(file: ConfigFile) -> list[Any]:
        return check_files(together(file, arguments=args))

    result = fixed(parse_config(Path("ds.json"), text), check)
    again = fixed(result.file, check)
    assert (again.file.text, again.done, again.left) == (result.file.text, (), result.left)
    assert not [found for found in result.left if found.fix and found.file == "ds.json"]
    return result


SAME = {
    "a key misspelt": ('{\n  "gradient_clipp1ng": 0.5\n}\n', '{\n  "gradient_clipping": 0.5\n}\n'),
    "two letters exchanged": ('{"zero_optimization": {"stgae": 2}}', '{"zero_optimization": {"stage": 2}}'),
    "case and spaces": ('{"Gradient_Clipping ": 1}', '{"gradient_clipping": 1}'),
    "another program's name": ('{"bf16": {}, "max_grad_norm": 1.0}', '{"bf16": {}, "gradient_clipping": 1.0}'),
    "in a list": (
        '{"tensor_parallel": {"partition_config": {"layer_specs": [{"patterns": []}, {"partition_tipe": "row"}]}}}',
        '{"tensor_parallel": {"partition_config": {"layer_specs": [{"patterns": []}, {"partition_type": "row"}]}}}',
    ),
    "the wrong section": (
        '{\n  "overlap_comm": true,\n  "zero_optimization": {\n    "stage": 2\n  }\n}',
        '{\n  "zero_optimization": {\n    "stage": 2,\n    "overlap_comm": true\n  }\n}',
    ),
    "the wrong section, in one line": (
        '{"betas": [0.9, 0.95], "optimizer": {"type": "AdamW", "params": {"lr": 1}}}',
        '{"optimizer": {"type": "AdamW", "params": {"lr": 1, "betas": [0.9, 0.95]}}}',
    ),
    "a comment where DeepSpeed refuses it": (
        '{"zero_optimization": {"_why": "it fits", "stage": 1}}',
        '{"zero_optimization": {"stage": 1}, "_why": "it fits"}',
    ),
    "removed, switched off": ('{"amp": {"enabled": false}, "bf16": {}}', '{"bf16": {}}'),
    "removed, with a new name": ('{"bf16": {"check_overflow": true}}', '{"bf16": {"check_grad_overflow": true}}'),
    "removed, with a new place": (
        '{"optimizer": {"type": "AdamW", "params": {"lr": 1, "max_grad_norm": 2}}}',
        '{"optimizer": {"type": "AdamW", "params": {"lr": 1}}, "gradient_clipping": 2}',
    ),
    "deprecated": (
        '{"zero_optimization": {"stage": 2, "cpu_offload": true}}',
        '{"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}',
    ),
    "deprecated, for the Trainer": ('{"bfloat16": {"enabled": true}}', '{"bf16": {"enabled": true}}'),
    "text for true": ('{"bf16": {"enabled": "True"}}', '{"bf16": {"enabled": true}}'),
    "text for a number": ('{"train_batch_size": "16"}', '{"train_batch_size": 16}'),
    "text for a share": ('{"gradient_clipping": " 1e-1"}', '{"gradient_clipping": 1e-1}'),
    "1 for true": ('{"wall_clock_breakdown": 1}', '{"wall_clock_breakdown": true}'),
    "16.0 for 16": ('{"train_micro_batch_size_per_gpu": 16.0}', '{"train_micro_batch_size_per_gpu": 16}'),
    "texts for two numbers": (
        '{"optimizer": {"type": "AdamW", "params": {"betas": ["0.9", 0.99]}}}',
        '{"optimizer": {"type": "AdamW", "params": {"betas": [0.9, 0.99]}}}',
    ),
    "a word in capitals": (
        '{"zero_optimization": {"offload_optimizer": {"device": "CPU"}, "stage": 1}}',
        '{"zero_optimization": {"offload_optimizer": {"device": "cpu"}, "stage": 1}}',
    ),
    "true for a section": ('{"fp16": true}', '{"fp16": {"enabled": true}}'),
    "the old form of ZeRO": ('{"zero_optimization": true}', '{"zero_optimization": {"stage": 1}}'),
    "twice the same": (
        '{\n  "bf16": {"enabled": true},\n  "train_batch_size": 8,\n  "bf16": { "enabled": true }\n}',
        '{\n  "bf16": {"enabled": true},\n  "train_batch_size": 8\n}',
    ),
    "three times the same": (
        '{"train_batch_size": 8, "train_batch_size": 8, "train_batch_size": 8}',
        '{"train_batch_size": 8}',
    ),
    "two spellings of one": (
        '{"zero_optimization": {"stage": 3, "max_live_parameters": 7, "stage3_max_live_parameters": 7}}',
        '{"zero_optimization": {"stage": 3, "stage3_max_live_parameters": 7}}',
    ),
    "a class of torch's": ('{"optimizer": {"type": "sgd"}}', '{"optimizer": {"type": "SGD"}}'),
    "a schedule": (
        '{"scheduler": {"type": "warmuplr", "params": {}}}',
        '{"scheduler": {"type": "WarmupLR", "params": {}}}',
    ),
    "auto that DeepSpeed drops": (
        '{"zero_optimization": {"stage": 3, "sub_group_size": "auto"}}',
        '{"zero_optimization": {"stage": 3}}',
    ),
    "an odd bucket": (
        '{"zero_optimization": {"stage": 1, "allgather_bucket_size": 5}}',
        '{"zero_optimization": {"stage": 1, "allgather_bucket_size": 6}}',
    ),
    "never read": ('{"pipeline": {"stages": 2, "use_reentrant": true}}', '{"pipeline": {"use_reentrant": true}}'),
    "switched off, and so on": ('{"datastates_ckpt": {"enabled": false}}', "{}"),
    "Muon at stage 3": (
        '{"optimizer": {"type": "Muon"}, "zero_optimization": {"stage": 3}}',
        '{"optimizer": {"type": "Muon"}, "zero_optimization": {"stage": 3, "reduce_scatter": false}}',
    ),
    "commas too many": ('{"a_list": [1, 2,], "bf16": {"enabled": true,},}', '{"a_list": [1, 2], "bf16": {"enabled": true}}'),
    "a byte-order mark": ("\ufeff{}", "{}"),
    "lines of Windows": (
        '{\r\n  "stage": 1,\r\n  "zero_optimization": {\r\n    "reduce_scatter": true\r\n  }\r\n}\r\n',
        '{\r\n  "zero_optimization": {\r\n    "reduce_scatter": true,\r\n    "stage": 1\r\n  }\r\n}\r\n',
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_what_is_certain_is_corrected_and_nothing_else(name: str) -> None:
    before, after = SAME[name]
    result = cured(before)
    assert result.file.text == after and result.done


HJSON = """# for two ranks
train_batch_size: 8   // of all
gradient_clipp1ng: 0.5  # bites
zero_optimization: {
  // the stage
  stage: "2",  /* text */
  cpu_offload: false
  overlap_comm: True
}
amp: {enabled: false}
# the end
"""

CURED_HJSON = """# for two ranks
train_batch_size: 8   // of all
gradient_clipping: 0.5  # bites
zero_optimization: {
  // the stage
  stage: 2,  /* text */
  overlap_comm: true
}
# the end
"""


MOVED = """{
  "train_batch_size": 8, // eight
  "optimizer": {
    "type": "adamw",
    "params": {
      "lr": "3e-5", // peak
      "max_grad_norm": 1.0 // clip
    }
  },
  "zero_optimization": {
    "stage": 2,
    "cpu_offload": true, // old
    "overlap_comm": "auto" // whatever
  }
}
"""

CURED_MOVED = """{
  "train_batch_size": 8, // eight
  "optimizer": {
    "type": "adamw",
    "params": {
      "lr": 3e-5 // peak
    }
  },
  "zero_optimization": {
    "stage": 2,
    "offload_optimizer": {"device": "cpu"} // old
  },
  "gradient_clipping": 1.0 // clip
}
"""


def test_a_comment_stays_with_its_key() -> None:
    assert cured(MOVED).file.text == CURED_MOVED


def test_comments_and_layout_of_hjson_are_kept() -> None:
    result = cured(HJSON)
    assert result.file.text == CURED_HJSON
    assert {found.rule for found in result.left} == {"not-strict-json"}


UNCERTAIN = [
    '{"train_batch_size": 8, "train_batch_size": 16}',
    '{"zero_optimization": {"stage2_max_live_parameters": 1, "stage": 3}}',
    '{"test_batch_size": 8}',
    '{"gradient_clipp1ng": 0.5, "gradient_clipping": 1.0}',
    '{"gradient_clipp1ng": true}',
    '{"stage": 2}',
    '{"stage": 9, "zero_optimization": {}}',
    '{"stage": 2, "zero_optimization": {"stage": 3}}',
    '{"amp": {"enabled": true}}',
    '{"bf16": {"enabled": true}, "bfloat16": {"enabled": false}}',
    '{"zero_optimization": {"stage": 2, "cpu_offload": true, "offload_optimizer": {"device": "none"}}}',
    '{"train_batch_size": "sixteen"}',
    '{"train_batch_size": "-16"}',
    '{"bf16": {"enabled": "yes"}}',
    '{"train_micro_batch_size_per_gpu": 1.5}',
    '{"optimizer": {"type": "AdmW"}}',
    '{"scheduler": {"type": "linear", "params": {}}}',
    '{"zero_optimization": {"stage": 3, "max_live_parameters": 7, "stage3_max_live_parameters": 8}}',
    '{"optimizer": {"type": "Muon"}, "zero_optimization": {"stage": 3, "reduce_scatter": true}}',
    '{"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}',
    '{"fp16": {"enabled": true}, "bf16": {"enabled": true}}',
    '{"optimizer": {"type": "auto"}}',
    '{"datastates_ckpt": {"enabled": true}}',
    '{"a": 1, // why\n }',
]


@pytest.mark.parametrize("text", UNCERTAIN)
def test_what_its_author_has_to_decide_is_left(text: str) -> None:
    result = cured(text)
    assert result.file.text == text and result.left and not result.done


def test_the_arguments_decide_what_is_missing() -> None:
    text = '{"train_micro_batch_size_per_gpu": "auto", "optimizer": {"type": "AdamW", "params": {}}, "zero_optimization": {"stage": 1}}'
    arguments = {"gradient_accumulation_steps": 4, "max_grad_norm": 0.5, "learning_rate": 1e-4, "bf16": True}
    after = json.loads(cured(text, arguments).file.text)
    assert after["gradient_accumulation_steps"] == after["gradient_clipping"] == "auto"
    assert after["optimizer"]["params"] == {"lr": "auto"}  # the others are TrainingArguments' defaults: nobody asked
    assert "gradient_clipping" not in json.loads(cured(text, {"bf16": True}).file.text)


def test_a_sound_file_stays_as_it_is() -> None:
    files = sorted((ROOT / "ds_configs").glob("*.json"))
    assert len(files) >= 16
    for path in files:
        assert cured(path.read_text()).done == ()


def test_mutations_of_real_files_are_corrected_once() -> None:
    """Whatever stands there, a second time finds nothing to do, and what remains is read as it was."""
    rng = random.Random(2)
    texts = [path.read_text() for path in sorted((ROOT / "ds_configs").glob("*.json"))]
    done = 0
    for _ in range(150):
        text = rng.choice(texts)
        for _ in range(rng.randint(1, 5)):
            words = text.split('"')
            at = rng.randrange(1, len(words) - 1, 2)
            letter = rng.randrange(len(words[at]) + 1)
            words[at] = words[at][:letter] + rng.choice(["", "x", "_"]) + words[at][letter + 1 :]
            text = rng.choice(['"'.join(words), text.replace("true", '"true"', 1), text.replace(": 1", ': "1"', 1)])
        try:
            parse_config(Path("ds.json"), text)
        except ConfigError:
            continue
        done += len(cured(text).done)
    assert done > 50


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("gradient_clipp1ng", "gradient_clipping"),
        ("stgae", "stage"),
        ("reduce_buket_size", "reduce_bucket_size"),
        ("stage2_max_live_parameters", None),
        ("eval_batch_size", None),
        ("warmup_mix_lr", None),
        ("lr", None),
        ("fp8", None),
        ("x" * 10_000, None),
    ],
)
def test_a_name_that_is_certainly_another_misspelt(name: str, meant: str | None) -> None:
    known = "gradient_clipping stage reduce_bucket_size stage3_max_live_parameters train_batch_size fp16 warmup_min_lr warmup_max_lr"
    assert misspelt(name, known.split()) == meant


def test_the_distance_between_names() -> None:
    assert [distance("stage", other, 3) for other in ("stage", "stgae", "stages", "state", "tag", "optimizer")] == [
        0,
        1,
        1,
        1,
        2,
        4,
    ]


def checked(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["check", *words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


FAULTY = """{
  "train_batch_size": "8",
  "gradient_clipp1ng": 1.0,
  "zero_optimization": {"stage": 1},
  "sparse_attention": {"mode": "fixed"}
}
"""


def test_the_report_has_what_was_changed_why_and_what_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ds.json"
    path.write_text(FAULTY)
    code, out, _ = checked(capsys, str(path))
    assert code == 2 and out.endswith(f"{path}: 3 errors, 1 warning; --fix corrects 2\n")
    code, out, err = checked(capsys, str(path), "--fix")
    assert (code, err) == (2, "")
    assert out.splitlines()[:17] == [
        f'{path}:2: fixed: train_batch_size=8 written, since train_batch_size="8"  [wrong-type]',
        f"{path}:3: fixed: gradient_clipp1ng renamed 'gradient_clipping', "
        "since unknown key gradient_clipp1ng (did you mean 'gradient_clipping'?)  [unknown-key]",
        "",
        f"--- {path}",
        f"+++ {path} (fixed)",
        "@@ -1,6 +1,6 @@",
        " {",
        '-  "train_batch_size": "8",',
        '-  "gradient_clipp1ng": 1.0,',
        '+  "train_batch_size": 8,',
        '+  "gradient_clipping": 1.0,',
        '   "zero_optimization": {"stage": 1},',
        '   "sparse_attention": {"mode": "fixed"}',
        " }",
        "",
        f"{path}:5: error: sparse_attention was removed before DeepSpeed 0.19.8  [removed-key]",
        "  expected: instead: nothing: sparse attention was removed; use the model's own attention",
    ]
    assert out.endswith(f"{path}: 2 findings fixed, by hand: 1 error, 0 warnings\n")
    assert checked(capsys, str(path), "--fix")[1].endswith(f"{path}: nothing to fix, by hand: 1 error, 0 warnings\n")
    path.write_text(FAULTY)
    code, out, _ = checked(capsys, str(path), "--fix", "--json")
    parts = json.loads(out)
    assert code == 2 and [len(parts["fixed"]), len(parts["left"])] == [2, 1]
    assert parts["fixed"][1]["fix"] == [
        {"action": "rename", "where": "gradient_clipp1ng", "to": "gradient_clipping", "value": None, "count": 1}
    ]


def test_a_link_and_permissions_stay(tmp_path: Path) -> None:
    path, link = tmp_path / "ds.json", tmp_path / "link.json"
    path.write_text(FAULTY)
    path.chmod(0o640)
    link.symlink_to(path)
    main(["check", str(link), "--fix"])
    assert link.is_symlink() and '"gradient_clipping": 1.0' in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["ds.json", "link.json"]


def test_what_cannot_be_written_is_left_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ds.json"
    path.write_text(FAULTY)
    path.chmod(0o444)
    code, _, err = checked(capsys, str(path), "--fix")
    assert code == 2 and f"{path} is read-only: --fix" in err and f"chmod u+w {path}" in err
    assert path.read_text() == FAULTY
    code, _, err = checked(capsys, str(tmp_path), "--fix")
    assert code == 2 and "Is a directory" in err
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_text(FAULTY))
    writer.start()
    code, _, err = checked(capsys, str(tmp_path / "pipe"), "--fix")
    writer.join()
    assert code == 2 and "is no file that could be written: --fix" in err


def test_a_full_disk_loses_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with small_disk(tmp_path / "disk", 8192) as disk:
        path = disk / "ds.json"
        path.write_text(FAULTY + " " * (4096 - len(FAULTY)))
        (disk / "rest").write_bytes(b"x" * 4096)
        before = path.read_text()
        code, _, err = checked(capsys, str(path), "--fix")
        assert code == 1 and "No space left on device" in err and "the file is as it was" in err
        assert path.read_text() == before and sorted(entry.name for entry in disk.iterdir()) == ["ds.json", "rest"]


def test_standard_input_goes_to_standard_output() -> None:
    command = [str(Path(sys.executable).parent / "toolkit"), "check", "-", "--fix"]
    done = subprocess.run(command, input=FAULTY, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and json.loads(done.stdout)["gradient_clipping"] == 1.0
    assert done.stdout.count("\n") == FAULTY.count("\n") and "standard input:3: fixed: " in done.stderr
    both = subprocess.run([*command, "--json"], input=FAULTY, capture_output=True, text=True, cwd=ROOT)
    assert both.returncode == 2 and "--fix and --json both write to standard output" in both.stdout
