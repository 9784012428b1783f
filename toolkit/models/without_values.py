"""A forward pass without values: whether a model can be called with inputs of some shape, before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from toolkit.errors import ModelError
from toolkit.models.quiet import quiet
from toolkit.models.stages import build_skeleton


def call_without_values(
    auto_class: Any, config: PretrainedConfig, inputs: Mapping[str, Tensor], what: str, do: str
) -> Mapping[str, tuple[int, ...]]:
    """Call what `auto_class` makes of `config` with `inputs`, on the meta device; the shapes of what it returns, by name.

    Raises ModelError where it refuses them, `what` they are and what to `do`. An architecture that does not run without values
    is taken to agree: it is asked when it is trained.
    """
    with quiet(), torch.no_grad():
        model = build_skeleton(auto_class, config).to("meta").eval()
        try:
            found = model(**inputs)
        except NotImplementedError:
            return {}
        except (ValueError, RuntimeError, IndexError, TypeError) as error:
            why = " ".join(str(error).split())[:200]
            if "meta" in why.lower():
                return {}
            raise ModelError(
                f"{type(model).__name__} does not take {what}: {why}",
                expected="inputs of the shape that the model was made for",
                do=do,
            ) from None
    return {name: tuple(value.shape) for name, value in found.items() if isinstance(value, Tensor)}
