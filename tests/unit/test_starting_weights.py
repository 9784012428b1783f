"""Starting weights in a folder that hosts share: each host clears away its own alone."""

from __future__ import annotations

from pathlib import Path

from toolkit.train.weights import STARTING_WEIGHTS, starting_weights_of

DIGEST = "0123456789abcdef"


def test_a_host_whose_name_begins_anothers_leaves_the_others_weights(tmp_path: Path) -> None:
    own = {f"{STARTING_WEIGHTS}gpu-{DIGEST}", f"{STARTING_WEIGHTS}gpu-{DIGEST}.writing"}
    others = {f"gpu-2-{DIGEST}", f"gpu-{DIGEST}-{DIGEST}", f"gpu.example-{DIGEST}", f"gpu-{DIGEST[:8]}"}
    for name in own | {f"{STARTING_WEIGHTS}{name}" for name in others}:
        (tmp_path / name).mkdir()
    assert {path.name for path in starting_weights_of("gpu", tmp_path)} == own
    assert starting_weights_of("gpu", tmp_path / "not yet there") == []
