"""A new head on a pretrained body: the output layer alone starts anew, drawn as the architecture draws it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification

from toolkit.errors import ModelError
from toolkit.models.output_layer import output_layer
from toolkit.models.partial import load_part
from toolkit.models.random_weights import RandomWeights, fill
from toolkit.models.stages import build_skeleton


@pytest.fixture
def checkpoint(tiny_bert_dir: Path, tmp_path: Path) -> Path:
    """A BERT whose head of three classes holds large weights."""
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert_dir, num_labels=3)
    with torch.no_grad():
        model.classifier.weight.fill_(7.0)
        model.classifier.bias.fill_(7.0)
    model.save_pretrained(tmp_path / "three")
    return tmp_path / "three"


def start(checkpoint: Path, *, num_labels: int, new_head: bool) -> tuple[list[str], dict[str, torch.Tensor]]:
    config = AutoConfig.from_pretrained(checkpoint, num_labels=num_labels)
    kind = AutoModelForSequenceClassification
    model = build_skeleton(kind, config)
    fresh = load_part(model, str(checkpoint), remade=output_layer(kind, config) if new_head else ())
    fill(model, RandomWeights(kind, config, 0), fresh)
    return fresh, model.state_dict()


@pytest.mark.parametrize("num_labels", [2, 3])
def test_the_output_layer_alone_is_new(checkpoint: Path, num_labels: int) -> None:
    """Also where the old one would have fitted; weights of BERT's spread, biases of zero."""
    fresh, weights = start(checkpoint, num_labels=num_labels, new_head=True)
    stored = load_file(checkpoint / "model.safetensors")
    assert fresh == ["classifier.bias", "classifier.weight"]
    assert weights["classifier.weight"].shape == (num_labels, 64)
    assert 0.01 < float(weights["classifier.weight"].std()) < 0.03
    assert not weights["classifier.bias"].any()
    assert all(torch.equal(weights[name], stored[name]) for name in stored if name not in fresh)


def test_a_head_that_is_kept_is_kept(checkpoint: Path) -> None:
    fresh, weights = start(checkpoint, num_labels=3, new_head=False)
    assert fresh == [] and bool((weights["classifier.weight"] == 7.0).all())


def test_other_shapes_are_still_refused(checkpoint: Path) -> None:
    config = AutoConfig.from_pretrained(checkpoint, num_labels=2, intermediate_size=96)
    kind = AutoModelForSequenceClassification
    with pytest.raises(
        ModelError, match=r"layer\.0\.intermediate\.dense\.bias has shape \(128,\) in the file and \(96,\)"
    ):
        load_part(build_skeleton(kind, config), str(checkpoint), remade=output_layer(kind, config))


def test_the_output_layer_is_what_the_number_of_classes_shapes(tiny_llama_dir: Path) -> None:
    config = AutoConfig.from_pretrained(tiny_llama_dir)
    assert output_layer(AutoModelForSequenceClassification, config) == ["score.weight"]
