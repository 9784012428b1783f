"""Which of transformers' attention implementations a model runs, decided once from what its class says it supports."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_flash_attention_utils import FLASH_ATTENTION_COMPATIBILITY_MATRIX
from transformers.models.auto.auto_factory import _get_model_class
from transformers.utils import is_kernels_available

from toolkit.errors import ModelError

PACKAGES = {"flash_attention_2": "flash-attn", "flash_attention_3": "flash-attn-3"}


def model_class(kind: Any, config: PretrainedConfig) -> type[PreTrainedModel]:
    """The class that `kind`, one of transformers' auto classes, makes of `config`. Nothing is built."""
    try:
        found: type[PreTrainedModel] = _get_model_class(config, kind._model_mapping)
    except KeyError:
        raise ModelError(
            f"{config.model_type} ({type(config).__name__}) has no class for {kind.__name__}",
            expected="an architecture that transformers has this kind of model of",
            do="choose another model, or another task.name",
        ) from None
    return found


def choose_attention(kind: Any, config: PretrainedConfig, wanted: str) -> str:
    """transformers' implementation for `wanted` (model.attention), where "auto" is the best that the class supports.

    "varlen" takes the place of "sdpa" once the weights are loaded and the model can be asked (`toolkit.models.document_choice`).
    Raises ModelError for one that the class, this environment or this machine does not have.
    """
    network = model_class(kind, config)
    if wanted == "auto":
        return "sdpa" if network._supports_sdpa else "eager"
    supported = ["eager"]
    supported += ["sdpa", "varlen"] if network._supports_sdpa else []
    supported += list(PACKAGES) if network._supports_flash_attn else []
    if wanted not in supported:
        raise ModelError(
            f"model.attention={wanted!r}: {network.__name__} does not support it",
            expected=f"'auto' or one of {', '.join(supported)}",
            do=f"set model.attention='auto', which takes {choose_attention(kind, config, 'auto')!r} here",
        )
    if wanted in PACKAGES:
        _check_flash(wanted)
    return "sdpa" if wanted == "varlen" else wanted


def _check_flash(wanted: str) -> None:
    installed = FLASH_ATTENTION_COMPATIBILITY_MATRIX[int(wanted[-1])]
    # With the package `kernels` transformers fetches a build of its own.
    if installed["general_availability_check"]() or is_kernels_available():
        return
    package = PACKAGES[wanted]
    is_there = installed["pkg_availability_check"]()
    reason = "no device here can run it" if is_there else f"the package {package} is not installed"
    raise ModelError(
        f"model.attention={wanted!r}: {reason}",
        expected=f"{package} and a CUDA device",
        do=f"set model.attention='auto'{'' if is_there else f', or install {package}'}",
    )
