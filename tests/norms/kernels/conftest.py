"""Triton's interpreter, where it runs: some versions fail with some of NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch


@pytest.fixture(scope="session")
def triton_runs() -> None:
    """Skip what needs Triton's kernels, on a machine without a GPU whose interpreter is broken."""
    triton = pytest.importorskip("triton", reason="triton is not installed")
    if torch.cuda.is_available():
        return
    from triton.runtime.errors import InterpreterError

    from wsbcn_d2.norms.kernels import triton_passes

    try:
        triton_passes.moments(torch.zeros(1, 1, 16))
    except InterpreterError as error:
        pytest.skip(
            f"the interpreter of Triton {triton.__version__} fails with NumPy {np.__version__}: "
            f"{error}"
        )
