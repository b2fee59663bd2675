from __future__ import annotations

import pytest
from collab_llamacpp.native.ggml_kernels import GgmlKernels


@pytest.fixture(scope="session")
def kernels() -> GgmlKernels:
    return GgmlKernels()
