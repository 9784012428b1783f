"""What a test may ask of the processor it runs on."""

from __future__ import annotations

import pytest


def require_number_format(dtype: str) -> None:
    """Skip the test where DeepSpeed would refuse `dtype` on the CPU: it asks torch's oneDNN, and fp16 takes AVX-512."""
    import torch

    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: False)
    if dtype == "fp16" and not supported():
        pytest.skip("this processor has no matrix products in fp16; to run it: a processor with AVX-512")
