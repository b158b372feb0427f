"""Without a GPU, Triton's kernels run in its interpreter, on CPU tensors."""

from __future__ import annotations

import os

import torch

# Read when triton is imported, which nothing has done when pytest reads this, before any test.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
