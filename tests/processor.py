"""What a test may ask of the processor it runs on."""

from __future__ import annotations

import pytest


def computes_in(dtype: str) -> bool:
    """Whether DeepSpeed accepts `dtype` on this CPU: for fp16 it asks torch's oneDNN, which takes AVX-512."""
    import torch

    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: False)
    return dtype != "fp16" or bool(supported())


def require_number_format(dtype: str) -> None:
    """Skip the test where the processor does not compute in `dtype`."""
    if not computes_in(dtype):
        pytest.skip("this processor has no matrix products in fp16; to run it: a processor with AVX-512")
