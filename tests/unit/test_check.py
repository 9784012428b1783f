"""Checking files: how they are read, what is said about broken ones, and what the findings look like as an error."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any, get_args

import pytest

from toolkit.ds_config.check import check_config, check_file
from toolkit.ds_config.findings import Finding, raise_errors, sorted_findings
from toolkit.ds_config.render import render
from toolkit.ds_config.target import Target
from toolkit.errors import ConfigError, RecipeError
from toolkit.recipe import Batch, Data, Model, Optimizer, Parallel, Precision, Recipe, Schedule
from toolkit.recipe.optimizers import OptimizerType

SOUND: dict[str, Any] = {
    "train_batch_size": 8,
    "train_micro_batch_size_per_gpu": 2,
    "gradient_accumulation_steps": 2,
    "gradient_clipping": 1.0,
    "zero_optimization": {"stage": 2},
}


def written(directory: Path, text: str, name: str = "ds.json") -> Path:
    path = directory / name
    path.write_text(text)
    return path


def refusal(path: Path, **options: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        check_file(path, **options)
    return caught.value


def test_a_sound_file(tmp_path: Path) -> None:
    path = written(tmp_path, json.dumps(SOUND))
    assert check_file(path) == []
    assert check_file(path, target=Target(2, "cpu")) == []
    (found,) = check_file(path, target=Target(3, "cpu"))
    assert found.rule == "batch-identity"
    assert found.expected == "12"


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    written(tmp_path, "{}", "zero2.json")
    error = refusal(tmp_path / "zero_2.json")
    assert error.what == f"{tmp_path / 'zero_2.json'} does not exist (did you mean 'zero2.json'?)"
    assert error.do == "correct the path"
    assert refusal(tmp_path / "nowhere" / "a.json").what.endswith("a.json does not exist")


def test_a_directory_and_bytes_that_are_no_text(tmp_path: Path) -> None:
    assert "cannot be read: Is a directory" in refusal(tmp_path).what
    path = tmp_path / "binary.json"
    path.write_bytes(b"\xff\xfe\x00")
    assert "cannot be read: it is UTF-16 text, not UTF-8" in refusal(path).what
    assert refusal(path).do.startswith("iconv -f UTF-16")
    path.write_bytes(b"\xe4\xf6")
    assert "cannot be read: it is not UTF-8 text" in refusal(path).what


def test_broken_json_names_the_line(tmp_path: Path) -> None:
    path = written(tmp_path, '{\n  "train_batch_size": 8,\n  "zero_optimization": {"stage": 2\n')
    error = refusal(path)
    assert f"{path}:4 is not JSON: Expecting ',' delimiter" in error.what
    assert error.do == "correct the file at that line"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("[1]", "holds a list"),
        ("\n", "is empty"),
        ("null", "holds null"),
        ("3", "holds a number"),
        ("stage", "holds a string"),
    ],
)
def test_json_that_is_no_object(tmp_path: Path, text: str, kind: str) -> None:
    path = written(tmp_path, text)
    error = refusal(path)
    assert error.what == f"{path} {kind}"
    assert error.expected == "a DeepSpeed JSON file: one object {...}"


def test_duplicate_keys_are_named_at_every_level(tmp_path: Path) -> None:
    text = json.dumps(SOUND)[:-1] + ', "gradient_clipping": 0.5, "zero_optimization": {"stage": 1, "stage": 2}}'
    found = {finding.where: finding for finding in check_file(written(tmp_path, text))}
    assert set(found) == {"gradient_clipping", "zero_optimization", "zero_optimization.stage"}
    stage = found["zero_optimization.stage"]
    assert stage.rule == "duplicate-key"
    assert stage.what == "the key 'zero_optimization.stage' stands 2 times in one object (line 1)"


def test_hjson_is_read_but_named(tmp_path: Path) -> None:
    text = "// two ranks\n" + json.dumps(SOUND)[:-1] + ",}"
    (found,) = check_file(written(tmp_path, text))
    assert (found.rule, found.expected, found.severity) == ("not-strict-json", "strict JSON", "warning")
    assert found.what == "the file is Hjson, not JSON (line 1: Expecting value)"


def test_duplicates_in_hjson_are_named_once(tmp_path: Path) -> None:
    text = json.dumps(SOUND)[:-1] + ', "gradient_clipping": 0.5,}'
    assert [finding.rule for finding in check_file(written(tmp_path, text))] == ["duplicate-key", "not-strict-json"]


def test_nan_is_no_json(tmp_path: Path) -> None:
    error = refusal(written(tmp_path, '{"gradient_clipping": NaN}'))
    assert "NaN is not a JSON number" in error.what


def test_trainer_arguments_come_from_a_file(tmp_path: Path) -> None:
    config = written(tmp_path, json.dumps({**SOUND, "gradient_clipping": 0.5, "train_batch_size": "auto"}))
    arguments = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_grad_norm": 1.0}
    path = written(tmp_path, json.dumps(arguments), "args.json")
    (found,) = check_file(config, training_args_path=path)
    assert found.what == "gradient_clipping=0.5 but max_grad_norm gives 1.0"
    assert found.severity == "error"
    assert found.do == 'write "auto", or change max_grad_norm'
    assert "args_missing.json does not exist" in refusal(config, training_args_path=tmp_path / "args_missing.json").what


def test_findings_are_sorted_and_unique() -> None:
    found = check_config({"zzz": 1, "aaa": 1, "zero_optimization": {"stage": 5, "bbb": 1}})
    assert found == sorted_findings([*found, *found])
    severities = [finding.severity for finding in found]
    assert severities == sorted(severities) and set(severities) == {"error", "warning"}, "errors first"
    assert [finding.where for finding in found if finding.rule == "unknown-key"] == [
        "aaa",
        "zero_optimization.bbb",
        "zzz",
    ]


def test_raise_errors_holds_them_all_in_one_error() -> None:
    raise_errors([], "ds.json")
    raise_errors([Finding("stage", "a-rule", "stage=9", "0 to 3", "write 2", "warning")], "ds.json")
    one = Finding("stage", "a-rule", "stage=9", "0 to 3", "write 2")
    with pytest.raises(ConfigError) as caught:
        raise_errors([one], "ds.json")
    assert str(caught.value) == "ds.json: [a-rule] stage=9\n  expected: 0 to 3\n  do this:  write 2"
    two = Finding("bf16", "b-rule", "bf16=3", "an object", "correct it")
    with pytest.raises(ConfigError) as caught:
        raise_errors([one, two, one], "ds.json")
    text = str(caught.value)
    assert text.startswith(
        "ds.json: 2 errors\n  1. [b-rule] bf16=3\n    expected: an object\n    do this:  correct it\n  2. "
    )
    assert caught.value.exit_code == 2


def recipe(**sections: Any) -> Recipe:
    values: dict[str, Any] = {
        "model": Model(path="models/any"),
        "data": Data(train="any.jsonl"),
        "batch": Batch(global_size=16, micro_size=2, sequence_length=64),
        "steps": 100,
    }
    return Recipe(**{**values, **sections})


@pytest.mark.parametrize("target", [Target(2, "cpu"), Target(4, "cuda"), Target(1, "cpu", compiler=False, fp16=False)])
@pytest.mark.parametrize("kind", get_args(OptimizerType))
def test_what_is_rendered_from_a_recipe_is_clean(kind: str, target: Target) -> None:
    rendered = 0
    for stage, offload, dtype, schedule in itertools.product(
        (0, 1, 2, 3), ("none", "cpu"), ("auto", "fp32", "fp16"), (("constant", 5), ("linear", 10), ("cosine", 0))
    ):
        if offload == "cpu" and stage == 0:
            continue
        made = recipe(
            # Muon is not clipped: render refuses it.
            optimizer=Optimizer(
                type=kind, learning_rate=1e-3, weight_decay=0.1, max_grad_norm=0.0 if kind == "muon" else 1.0
            ),
            parallel=Parallel(
                zero_stage=stage, offload_optimizer=offload, offload_param="cpu" if stage == 3 else "none"
            ),
            precision=Precision(dtype=dtype),
            schedule=Schedule(type=schedule[0], warmup_steps=schedule[1]),
        )
        try:
            config = render(made, target)
        except RecipeError:
            continue  # refused already: nothing to check
        assert check_config(config, target=target) == [], (stage, offload, dtype, schedule)
        rendered += 1
    assert rendered or (kind == "lion" and not target.compiler)
