"""Make detectron2 importable for the interpreter that runs this file.

detectron2 is not on PyPI. The first of these that applies is done:

1. a detectron2 that is already importable is used as it is, and nothing is installed;
2. with ``DETECTRON2=git`` in the environment, upstream's source is built against the installed
   torch (needs git, a C++ compiler and a few minutes);
3. else a wheel of it is installed: a re-upload of upstream's main of 2024-04-17, checked by hash.
   Its Python code runs on Python 3.10 to 3.12. Its compiled operators (rotated boxes, deformable
   convolution, fast COCO evaluation) load only with Python 3.10 and a torch for CUDA 12, on Linux;
   elsewhere detectron2 runs without them.

Run by ``make setup``; by hand: ``.venv/bin/python tools/install_detectron2.py``. With ``--check``
nothing is installed, and the exit status tells whether a detectron2 is importable.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = ["Detectron2", "adopt", "find_detectron2", "install", "main"]

GIT_URL = "git+https://github.com/facebookresearch/detectron2.git"
WHEEL = "sal-detectron2==0.7.2"
WHEEL_SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
# The wheel is tagged for CPython 3.10; these make pip take it on the other versions too.
WHEEL_TAGS = [
    "--python-version=3.10",
    "--implementation=cp",
    "--abi=none",
    "--platform=any",
]

HELP = """What to do: install detectron2 by its own instructions
(https://detectron2.readthedocs.io/tutorials/install.html) for some Python 3.10 to 3.12 and run
`make distclean`, then `make setup PYTHON=that/python`, which uses it; or build upstream's source
here with `make setup DETECTRON2=git`."""

# Run in a process of its own: an import that fails half-way leaves its process in no state to try
# again, and a fresh one also sees what was just installed. detectron2.layers imports torch,
# torchvision and, if it loads, the compiled extension. A detectron2 without layers is no
# detectron2: Python takes any folder of that name for a namespace package.
PROBE = """
import json, os, warnings
warnings.simplefilter("ignore")
try:
    import detectron2.layers
except ModuleNotFoundError as error:
    if error.name in ("detectron2", "detectron2.layers"):
        print("null")
        raise SystemExit
    raise
try:
    from detectron2 import _C
except ImportError:
    _C = None
print(json.dumps([detectron2.__version__, os.path.dirname(detectron2.__file__), _C is not None]))
"""


class Detectron2(NamedTuple):
    """A detectron2 that imports."""

    version: str
    location: str
    compiled: bool

    def __str__(self) -> str:
        operators = "with" if self.compiled else "without"
        return f"detectron2 {self.version} {operators} compiled operators, from {self.location}"


def find_detectron2() -> Detectron2 | None:
    """Import detectron2 in a new process and say which one it is, or None where there is none.

    Raises:
        ImportError: there is a detectron2, but it does not import.
    """
    # Without -I, so that PYTHONPATH and the user's site-packages count, as they do in training;
    # the working directory must then hold nothing to import by accident.
    result = subprocess.run(
        [sys.executable, "-c", PROBE], capture_output=True, text=True, cwd=sys.prefix
    )
    if result.returncode != 0:
        raise ImportError((result.stderr.strip() or "no message").splitlines()[-1])
    found = json.loads(result.stdout.splitlines()[-1])
    return None if found is None else Detectron2(*found)


def pip_arguments(source: str, target: Path) -> list[str]:
    """The arguments of ``pip install`` that put detectron2 into the folder ``target``.

    Args:
        source: ``"git"`` or ``"wheel"``.
        target: an existing folder.

    Raises:
        ValueError: ``source`` is neither.
    """
    # --no-deps: requirements.txt has what detectron2 needs, in versions that fit together; the
    # wheel's own list would bring an older numpy.
    common = ["--quiet", "--no-input", "--no-deps", "--target", str(target)]
    if source == "git":
        # It must be compiled against the torch that will load it, not against another one in an
        # isolated build.
        return [*common, "--no-build-isolation", GIT_URL]
    if source == "wheel":
        hashes = target.with_name("detectron2-requirement.txt")
        hashes.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n")
        only_wheel = ["--only-binary=:all:", *WHEEL_TAGS]
        return [*common, *only_wheel, "--require-hashes", "-r", str(hashes)]
    raise ValueError(
        f"DETECTRON2={source!r} is unknown; allowed: 'git' (build upstream's source) and "
        "'wheel' (the default)"
    )


def adopt(staging: Path, site_packages: Path) -> None:
    """Move detectron2 and its metadata, and nothing else, from ``staging`` to ``site_packages``.

    Both the wheel and upstream's build also carry a top-level package ``tools``; in site-packages
    it would answer to anybody's ``import tools``. A move is a rename, so an interrupted set-up
    leaves no half of detectron2 that imports.
    """
    metadata = next(staging.glob("*detectron2*.dist-info"))
    kept = ("detectron2/", f"{metadata.name}/")
    record = metadata / "RECORD"
    lines = record.read_text(encoding="utf-8").splitlines(keepends=True)
    record.write_text("".join(li for li in lines if li.startswith(kept)), encoding="utf-8")
    for folder in (staging / "detectron2", metadata):
        os.replace(folder, site_packages / folder.name)


def install(source: str) -> None:
    """Install detectron2 into this interpreter's site-packages.

    Args:
        source: ``"git"`` or ``"wheel"``.

    Raises:
        ValueError: ``source`` is neither.
        RuntimeError: pip failed; the message holds the end of what it said.
    """
    site_packages = Path(sysconfig.get_path("purelib"))
    # Beside site-packages, and so on its file system: the move out of it is a rename.
    with tempfile.TemporaryDirectory(prefix="detectron2-", dir=site_packages.parent) as folder:
        staging = Path(folder) / "staging"
        staging.mkdir()
        command = [sys.executable, "-m", "pip", "install", *pip_arguments(source, staging)]
        result = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if result.returncode != 0:
            said = "\n".join(result.stdout.strip().splitlines()[-15:])
            raise RuntimeError(f"this failed:\n  {' '.join(command)}\n{said}")
        adopt(staging, site_packages)


def main(argv: Sequence[str] | None = None) -> int:
    """Find or install detectron2, print one line on it, return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="install nothing, only look")
    check = parser.parse_args(argv).check
    source = os.environ.get("DETECTRON2") or "wheel"
    tried = "tried: to import the detectron2 that is installed"
    try:
        found = find_detectron2()
        if found is None and not check:
            tried = f"tried: {GIT_URL if source == 'git' else f'the wheel {WHEEL}'}"
            install(source)
            found = find_detectron2()
    except (ImportError, RuntimeError) as error:
        print(f"No usable detectron2; {tried}.\n{error}\n{HELP}", file=sys.stderr)
        return 1
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"Using {found}" if found else "No detectron2 is installed")
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main())
