"""Whether DeepSpeed can offload to a disk here."""

from __future__ import annotations

import sys

import pytest

from toolkit.doctor import check_builds
from toolkit.engine.kernels import extensions_root


def require_async_io() -> None:
    """Skip the test where libaio is missing, or DeepSpeed's operator is not compiled yet, which takes minutes."""
    libaio = check_builds.check_libaio()
    if libaio.status != "ok":
        pytest.skip(f"{libaio.found}; to run it: apt-get install libaio-dev")
    # Compiled by another environment it would be compiled again: its sources lie in another folder.
    builds = [path for path in extensions_root().glob("*/async_io/build.ninja") if any(path.parent.glob("*.so"))]
    if not any(sys.prefix in build.read_text(encoding="utf-8") for build in builds):
        pytest.skip("DeepSpeed's async_io is not compiled here yet; to run it: toolkit doctor --build (minutes)")
