"""Where findings point to: the line and column of each key, in JSON, Hjson and YAML."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import hjson
import pytest

from toolkit.ds_config.check import check_file
from toolkit.ds_config.places import Lines, Node, NoMap, chain_to, map_of, map_of_yaml

ROOT = Path(__file__).parents[2]

JSON = """{
  "train_batch_size": 8,
  "a.b": {"c": [1, {"d": 2}]},
  "zero_optimization": {
    "stage": 2,
      "stage": 3
  }
}
"""
HJSON = """# two ranks
train_batch_size: 8 // of all
'a.b': {c: [1
    {d: 2}]}
zero_optimization:
{
  /* twice
  */ stage: 2, stage: three
  text:
    '''
    {"stage": 4}
    '''
}
"""
YAML = """# accelerate's
train_batch_size: 8
a.b: {c: [1, {d: 2}]}
zero_optimization:
  stage: 2
  stage: &s 3
"""


def place(root: Node, text: str, path: str) -> tuple[int, int, int]:
    """Members that were found, line, column."""
    chain = chain_to(root, path)
    return len(chain), *Lines(text).of(chain[-1].start if chain else root.start)


@pytest.mark.parametrize(
    ("text", "stage", "d"),
    [(JSON, (6, 7), (3, 21)), (HJSON, (8, 16), (4, 6)), (YAML, (6, 3), (3, 15))],
    ids=["json", "hjson", "yaml"],
)
def test_keys_items_and_what_is_missing(text: str, stage: tuple[int, int], d: tuple[int, int]) -> None:
    root = map_of_yaml(text) if text is YAML else map_of(text)
    assert place(root, text, "zero_optimization.stage") == (2, *stage)  # of two the last
    assert place(root, text, "a.b.c[1].d") == (4, *d)
    assert place(root, text, "a.b.c[7]")[0] == 2
    missing, of = place(root, text, "zero_optimization.offload_param.device"), place(root, text, "zero_optimization")
    assert missing == of and of[0] == 1
    assert place(root, text, "gradient_clipping")[0] == 0


def shape(value: Any) -> Any:
    """Keys and nesting of what a library read."""
    if isinstance(value, tuple):
        return [(key, shape(inner)) for key, inner in value]
    return [shape(inner) for inner in value] if isinstance(value, list) else 0


def shape_of_map(node: Node) -> Any:
    if node.kind == "object":
        return [(member.name, shape_of_map(member.node)) for member in node.members]
    return [shape_of_map(member.node) for member in node.members] if node.kind == "list" else 0


def read(text: str) -> Any:
    """`text` as check reads it, objects as tuples of pairs; None where it is neither JSON nor Hjson."""
    for library in (json, hjson):
        try:
            return library.loads(text, object_pairs_hook=tuple)
        except (ValueError, OverflowError, IndexError):
            continue
    return None


def test_the_map_is_that_of_what_the_libraries_read() -> None:
    """Over mutations of real files, as JSON and as Hjson."""
    rng = random.Random(4)
    texts = [path.read_text() for path in sorted((ROOT / "ds_configs").glob("*.json"))] + [HJSON]
    marks = [
        "#x\n",
        "//c\n",
        "/*c*/",
        "'",
        "'''",
        "\n",
        ",",
        '"',
        "{",
        "}",
        "[",
        "]",
        ":",
        "a: b\n",
        "null",
        "1e5 ",
        "\t",
    ]
    compared = 0
    for _ in range(3000):
        text = rng.choice(texts)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(text))
            kind = rng.randrange(4)
            if kind == 0:
                text = text[:at] + rng.choice(marks) + text[at:]
            elif kind == 1:
                text = text[:at] + text[at + rng.randint(1, 20) :] + " "
            elif kind == 2:
                text = text.replace('"', rng.choice(["'", ""]), rng.randint(1, 6))
            else:
                text = text.replace(",", "", rng.randint(1, 3))
        value = read(text)
        if isinstance(value, tuple):
            assert shape_of_map(map_of(text)) == shape(value), text
            compared += 1
    assert compared > 1000


def test_what_cannot_be_followed() -> None:
    for text in ("{a b}", "{:1}", "{a:}", "{a", '{"\\ud8": 1}'):
        with pytest.raises(NoMap):
            map_of(text)
    for text in ("a: [", "a: &a [*a]"):
        with pytest.raises(NoMap):
            map_of_yaml(text)


def test_findings_point_to_their_keys(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(
        """{
  // Hjson
  "train_batch_size": 8, "bf16": {"enabled": true},
  "optimizer": {"type": "AdamW",
    "params": {}},
  "tensor_parallel": {"partition_config": {"layer_specs": [
    {"patterns": ["a"]},
    {"partition_tipe": "row"}
  ]}},
  "zero_optimization": {"stage": 1,
    "stage": 1}
}
"""
    )
    found = {finding.rule: finding for finding in check_file(path)}
    places = {rule: (finding.where, finding.line, finding.column) for rule, finding in found.items()}
    assert places == {
        "not-strict-json": ("", 2, 3),
        "duplicate-key": ("zero_optimization.stage", 11, 5),
        "unknown-key": ("tensor_parallel.partition_config.layer_specs[1].partition_tipe", 8, 6),
        "learning-rate-unwritten": ("optimizer.params.lr", 5, 5),
        "clipping-unwritten": ("gradient_clipping", 1, 1),
    }
    assert {finding.file for finding in found.values()} == {str(path)}


def test_findings_about_the_arguments_point_into_their_file(tmp_path: Path) -> None:
    path, arguments = tmp_path / "ds.json", tmp_path / "args.json"
    path.write_text('{"train_batch_size": "auto", "gradient_clipping": 1.0, "zero_optimization": {"stage": 1}}')
    arguments.write_text('{\n  "learning_rate": "fast",\n\n  "lerning_rate": 1}')
    found = [(item.where, item.file, item.line) for item in check_file(path, training_args_path=arguments)]
    assert found == [("learning_rate", str(arguments), 2), ("lerning_rate", str(arguments), 4)]
