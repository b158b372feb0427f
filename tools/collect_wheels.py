"""Collect wheels for `make setup WHEELS=folder SYSTEM_TORCH=1` on a machine without network.

For compute nodes whose torch is the site's: everything in the requirement files and below it, but
for torch, torchvision, triton and numpy, and for detectron2's wheel. Run by ``make wheels``, on a
machine with a network and this project's environment, whose packages tell what depends on what.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from install_detectron2 import WHEEL, WHEEL_SHA256, WHEEL_TAGS
from make_venv import requirement_lines
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

__all__ = ["closure", "collect", "main"]

# What the site's own environment has (torchvision brings pillow), and what only the server behind
# TensorBoard's page needs.
PROVIDED = frozenset({"torch", "torchvision", "triton", "numpy", "pillow"})
SERVER = frozenset({"grpcio", "tensorboard-data-server"})
# glibc versions of manylinux tags, as pip matches each exactly.
GLIBC = (17, 24, 27, 28, 31, 34, 35)


def closure(files: Sequence[Path], python_version: str) -> list[Requirement]:
    """The requirements in ``files`` and what they need, without what the site provides.

    Versions below the first level are those that pip chooses.
    """
    environment: dict[str, str] = {
        **{key: str(value) for key, value in default_environment().items()},
        **{"python_version": python_version, "python_full_version": f"{python_version}.0"},
        "extra": "",
    }
    todo = [Requirement(line.partition("#")[0].strip()) for _, line in requirement_lines(files)]
    found: dict[str, Requirement] = {}
    while todo:
        requirement = todo.pop(0)
        name = canonicalize_name(requirement.name)
        if requirement.marker is not None and not requirement.marker.evaluate(environment):
            continue
        if name in PROVIDED | SERVER or name in found:
            continue
        requirement.marker = None
        found[name] = requirement
        try:
            below = distribution(name).requires or []
        except PackageNotFoundError:  # needed by another Python version only
            continue
        todo += [Requirement(text) for text in below]
    return list(found.values())


def collect(folder: Path, files: Sequence[Path], python_version: str, platform: str) -> list[Path]:
    """Fill ``folder`` with wheels; return them.

    Args:
        folder: made if it is not there.
        files: requirement files.
        python_version: of the machine that will install them, as "3.12".
        platform: its processor, as ``uname -m`` prints it.

    Raises:
        subprocess.CalledProcessError: pip failed, and has printed why.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip"]
    quiet = ["--quiet", "--no-input", "--no-deps"]
    target = [
        *("--only-binary=:all:", f"--python-version={python_version}", "--implementation=cp"),
        *(f"--platform=manylinux_2_{minor}_{platform}" for minor in reversed(GLIBC)),
        *(f"--platform={name}_{platform}" for name in ("manylinux2014", "manylinux1", "linux")),
    ]
    for requirement in closure(files, python_version):
        download = [*pip, "download", *quiet, *target, "--dest", str(folder), str(requirement)]
        if subprocess.run(download, stderr=subprocess.DEVNULL).returncode == 0:
            continue
        # Published as source only (fvcore, iopath and antlr4 are): pure Python, built here.
        build = [*pip, "wheel", *quiet, "--wheel-dir", str(folder), str(requirement)]
        subprocess.run(build, check=True)
    with tempfile.TemporaryDirectory() as scratch:
        hashed = Path(scratch) / "detectron2.txt"
        hashed.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n")
        download = [*pip, "download", *quiet, "--only-binary=:all:", *WHEEL_TAGS]
        subprocess.run([*download, "--dest", str(folder), "-r", str(hashed)], check=True)
    wheels = sorted(folder.glob("*.whl"))
    impure = [w.name for w in wheels if not w.name.endswith(("any.whl", f"{platform}.whl"))]
    if impure:
        raise SystemExit(f"built for this machine, not for {platform}: {', '.join(impure)}")
    return wheels


def main(argv: Sequence[str] | None = None) -> int:
    """Collect the wheels named on the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("files", type=Path, nargs="+", help="requirement files")
    parser.add_argument("--python-version", default="3.12", help="default: %(default)s")
    parser.add_argument("--platform", default="x86_64", help="default: %(default)s")
    args = parser.parse_args(argv)
    try:
        wheels = collect(args.folder, args.files, args.python_version, args.platform)
    except subprocess.CalledProcessError as error:
        print(f"failed: {' '.join(map(str, error.cmd))}", file=sys.stderr)
        return 1
    size = sum(wheel.stat().st_size for wheel in wheels) / 2**20
    print(f"{len(wheels)} wheels, {size:.0f} MB, in {args.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
