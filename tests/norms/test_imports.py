"""`wsbcn_d2.norms` is torch only."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import wsbcn_d2.norms

ROOT = Path(__file__).resolve().parents[2]
# Design trap 15. Each is a package that the rest of the project brings along.
FOREIGN = ("detectron2", "pycocotools", "fvcore", "iopath", "omegaconf", "submitit", "torchvision")


def test_importing_the_norms_imports_no_detectron2_nor_pycocotools() -> None:
    code = (
        "import sys, wsbcn_d2.norms\n"
        f"print(sorted(m for m in {FOREIGN} if m in sys.modules))\n"
        "print(sorted(m for m in sys.modules if m.startswith('wsbcn_d2.') and '.norms' not in m))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n[]\n"


def test_importing_the_norms_imports_little_of_torch_that_torch_does_not() -> None:
    """torch's compiler and distributed checkpoints take more than a second."""
    code = (
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import wsbcn_d2.norms\n"
        "print(*sorted(m for m in set(sys.modules) - before if not m.startswith('wsbcn_d2')))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) < 20, done.stdout


def test_every_public_name_exists_and_is_listed_in_order() -> None:
    names = wsbcn_d2.norms.__all__
    assert all(hasattr(wsbcn_d2.norms, name) for name in names)
    assert len(set(names)) == len(names)
    required = {"standardize_weight", "sparsemax", "sparsestmax", "update_batch_average"}
    required |= {f"WSConv{d}d" for d in (1, 2, 3)}
    for family in ("BatchChannelNorm", "SwitchNorm", "SyncSwitchNorm", "SparseSwitchNorm"):
        required |= {f"{family}{d}d" for d in (1, 2, 3)}
    assert required <= set(names)
