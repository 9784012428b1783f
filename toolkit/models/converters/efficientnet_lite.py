"""EfficientNet-Lite0 as its package has it -> transformers' EfficientNetForImageClassification.

EfficientNet-Lite0 is EfficientNet-B0 with ReLU6 and without squeeze-and-excitation
(https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite). transformers has no switch for the
latter: each of its gates is made the identity, sigmoid(20) being 1 within fp32's precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import EfficientNetConfig, EfficientNetForImageClassification
from transformers.models.efficientnet.image_processing_pil_efficientnet import EfficientNetImageProcessorPil

from toolkit.models.quiet import silent

OPEN_GATE = 20.0
OF_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
SIDE = 224
BICUBIC = 3


def convert(source: Path, out: Path) -> None:
    """Write the classifier in the state dict at `source` to the directory `out` in fp32, with its image processor."""
    stored: dict[str, Tensor] = torch.load(source, weights_only=True, map_location="cpu")
    config = EfficientNetConfig(
        image_size=SIDE,
        width_coefficient=1.0,
        depth_coefficient=1.0,
        hidden_dim=1280,
        hidden_act="relu6",
        dropout_rate=0.2,
        num_labels=1000,
        batch_norm_eps=1e-3,
        # transformers' default is TensorFlow's 0.99, which in PyTorch's sense forgets all but the last batch.
        batch_norm_momentum=0.01,
    )
    with silent():
        model = EfficientNetForImageClassification(config)
        weights = model.state_dict()
        names = dict(_names(stored))
        for ours, theirs in names.items():
            if weights[ours].shape != stored[theirs].shape:
                raise ValueError(
                    f"{theirs} has shape {tuple(stored[theirs].shape)}, {ours} {tuple(weights[ours].shape)}"
                )
            weights[ours] = stored[theirs].clone()
        for name in weights:
            if ".squeeze_excite." in name:
                is_open = name.endswith("expand.bias")
                weights[name] = torch.full_like(weights[name], OPEN_GATE if is_open else 0.0)
        if unused := stored.keys() - {*names.values()}:
            raise ValueError(f"the checkpoint also has {', '.join(sorted(unused)[:4])}")
        model.load_state_dict(weights, strict=True)
        model.save_pretrained(out)
        EfficientNetImageProcessorPil(
            size={"height": SIDE, "width": SIDE},
            resample=BICUBIC,
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
            include_top=False,
        ).save_pretrained(out)


def _names(stored: dict[str, Tensor]) -> Iterator[tuple[str, str]]:
    """(transformers' name, the package's) of every tensor."""
    base, blocks = (
        "efficientnet.encoder",
        1 + max(int(key.split(".")[1]) for key in stored if key.startswith("_blocks")),
    )
    yield "efficientnet.embeddings.convolution.weight", "_conv_stem.weight"
    yield from _norm("efficientnet.embeddings.batchnorm", "_bn0")
    for number in range(blocks):
        theirs, ours = f"_blocks.{number}", f"{base}.blocks.{number}"
        if f"{theirs}._expand_conv.weight" in stored:  # the first block widens nothing
            yield f"{ours}.expansion.expand_conv.weight", f"{theirs}._expand_conv.weight"
            yield from _norm(f"{ours}.expansion.expand_bn", f"{theirs}._bn0")
        yield f"{ours}.depthwise_conv.depthwise_conv.weight", f"{theirs}._depthwise_conv.weight"
        yield from _norm(f"{ours}.depthwise_conv.depthwise_norm", f"{theirs}._bn1")
        yield f"{ours}.projection.project_conv.weight", f"{theirs}._project_conv.weight"
        yield from _norm(f"{ours}.projection.project_bn", f"{theirs}._bn2")
    yield f"{base}.top_conv.weight", "_conv_head.weight"
    yield from _norm(f"{base}.top_bn", "_bn1")
    yield from (("classifier.weight", "_fc.weight"), ("classifier.bias", "_fc.bias"))


def _norm(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    return ((f"{ours}.{name}", f"{theirs}.{name}") for name in OF_NORM)
