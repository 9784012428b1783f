"""Versions that are known to fail, alone or beside each other, each with the place where somebody says so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version


@dataclass(frozen=True)
class Clash:
    """Two packages, or one, in versions that fail."""

    versions: tuple[str, ...]
    """Of each package, as pip writes them; all of them have to be there."""
    happens: str
    fix: str
    status: Literal["warn", "fail"] = "warn"


_NUMPY_1 = "was compiled for numpy 1: its import raises, or crashes"

CLASHES = (
    # github.com/huggingface/peft/pull/2735, github.com/huggingface/trl/pull/4820
    Clash(
        ("peft<0.18", "transformers>=5"),
        "peft imports HybridCache, which transformers 5 no longer has",
        "pip install 'peft>=0.18'",
        "fail",
    ),
    # github.com/oumi-ai/oumi/pull/2408, github.com/PrunaAI/pruna/pull/630; peft/import_utils.py, is_torchao_available
    Clash(
        ("peft>=0.19", "torchao<0.16"),
        "peft raises ImportError as soon as an adapter is put on a layer",
        "pip install 'torchao>=0.16', or pip uninstall torchao",
        "fail",
    ),
    # github.com/daydreamlive/DEMON/pull/325; torchao/quantization/quantize_/workflows/float8/float8_tensor.py
    Clash(
        ("torchao>=0.18", "torch<2.11"),
        "torchao imports ScalingType, which this torch does not have",
        "pip install 'torchao<0.18'",
        "fail",
    ),
    # github.com/pytorch/ao/issues/2919, github.com/axolotl-ai-cloud/axolotl/issues/3432
    Clash(("torchao==0.17.*", "torch<2.11"), "torchao leaves its compiled kernels out", "pip install 'torchao<0.17'"),
    Clash(("torchao==0.16.*", "torch<2.10"), "torchao leaves its compiled kernels out", "pip install 'torch>=2.10'"),
    # github.com/tensorflow/tensorboard/issues/7107: what a run records needs no pkg_resources, the viewer does.
    Clash(
        ("tensorboard<2.21", "setuptools>=82"),
        "the command `tensorboard` dies of a missing pkg_resources; records are written all the same",
        "pip install 'tensorboard>=2.21'",
    ),
    # github.com/linkedin/Liger-Kernel/issues/978, github.com/huggingface/trl/pull/4820
    Clash(
        ("liger-kernel<0.6.5", "transformers>=5"),
        "liger's kernels replace parts that transformers 5 has moved",
        "pip install 'liger-kernel>=0.8.5'",
        "fail",
    ),
    # github.com/huggingface/transformers/pull/41283; transformers/utils/import_utils.py, BITSANDBYTES_MIN_VERSION
    Clash(
        ("bitsandbytes<0.46.1", "transformers>=5"),
        "transformers takes it for not installed: no model loads in 4 or 8 bits",
        "pip install 'bitsandbytes>=0.46.1'",
    ),
    # github.com/bitsandbytes-foundation/bitsandbytes/issues/1492, github.com/triton-lang/triton/issues/5471
    Clash(
        ("bitsandbytes<0.45.2", "triton>=3.2"),
        "bitsandbytes imports triton.ops, which triton no longer has",
        "pip install 'bitsandbytes>=0.46.1'",
        "fail",
    ),
    # transformers/utils/import_utils.py, ACCELERATE_MIN_VERSION; required by an extra only, so that pip is silent
    Clash(
        ("accelerate<1.1", "transformers>=5"),
        "transformers takes it for not installed",
        "pip install 'accelerate>=1.12'",
        "fail",
    ),
    # github.com/deepspeedai/DeepSpeed/issues/5671 and pull/5686
    Clash(
        ("deepspeed<0.14.4", "numpy>=2"),
        "DeepSpeed imports BUFSIZE, which numpy 2 no longer has",
        "pip install 'deepspeed>=0.19.8,<0.20'",
        "fail",
    ),
    # github.com/deepspeedai/DeepSpeed/issues/5337 and pull/5346
    Clash(
        ("deepspeed<0.14.1", "torch>=2.3"),
        "DeepSpeed imports a name of torch's elastic agent that torch has changed",
        "pip install 'deepspeed>=0.19.8,<0.20'",
        "fail",
    ),
    # github.com/huggingface/datasets/issues/6330 and 6352
    Clash(
        ("datasets<2.14.6", "fsspec>=2023.10"),
        "datasets refuses what it has cached itself (LocalFileSystem is not supported)",
        "pip install 'datasets>=4'",
        "fail",
    ),
    # github.com/wandb/wandb/issues/11758
    Clash(
        ("wandb==0.26.0", "protobuf<6.32.1"),
        "the import of wandb raises VersionError",
        "pip install 'wandb>=0.26.1'",
    ),
    # github.com/numpy/numpy/issues/26191: the first releases that were compiled for both
    Clash(("scipy<1.13", "numpy>=2"), f"scipy {_NUMPY_1}", "pip install 'scipy>=1.13'", "fail"),
    Clash(("pandas<2.2.2", "numpy>=2"), f"pandas {_NUMPY_1}", "pip install 'pandas>=2.2.2'", "fail"),
    Clash(("scikit-learn<1.4.2", "numpy>=2"), f"scikit-learn {_NUMPY_1}", "pip install 'scikit-learn>=1.5'", "fail"),
    Clash(("pyarrow<16", "numpy>=2"), f"pyarrow {_NUMPY_1}", "pip install -U pyarrow", "fail"),
    # github.com/pytorch/pytorch/issues/166643: the patches of many vision models are cut by a conv3d.
    *(
        Clash(
            ("torch==2.9.*", f"nvidia-cudnn-{cuda}<9.15"),
            "a 3-d convolution in bf16 takes several times its memory on a GPU",
            "pip install 'torch>=2.10'",
        )
        for cuda in ("cu12", "cu13")
    ),
    # github.com/pytorch/pytorch/pull/149546: hangs in ncclCommAbort; github.com/pytorch/pytorch/pull/174338: a regression
    *(
        Clash(
            (f"nvidia-nccl-{cuda}=={version}",),
            f"collectives of NCCL {version} can hang, which {repaired} repaired",
            "pip install --force-reinstall torch, which brings the one it was built with",
        )
        for cuda in ("cu12", "cu13")
        for version, repaired in (("2.25.1", "2.26.2"), ("2.29.2", "2.29.3"))
    ),
)


def clashes(installed: Mapping[str, str]) -> Iterator[tuple[Clash, str]]:
    """Those of CLASHES that hold for the `installed` versions by name, each with the versions that it is about."""
    for clash in CLASHES:
        wanted = [Requirement(text) for text in clash.versions]
        if all(_is_in(installed.get(line.name), line) for line in wanted):
            yield clash, " beside ".join(f"{line.name} {installed[line.name]}" for line in wanted)


def _is_in(version: str | None, line: Requirement) -> bool:
    try:
        return version is not None and line.specifier.contains(Version(version), prereleases=True)
    except InvalidVersion:
        return False


PACKAGES = frozenset(Requirement(text).name for clash in CLASHES for text in clash.versions)
"""Every package that CLASHES is about."""
