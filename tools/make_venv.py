"""Two steps of ``make setup``: make the virtual environment, install what the project needs in it.

``create FOLDER``, run by the interpreter that shall be behind it, makes the environment. If that
interpreter can already import detectron2, or with ``--system-torch``, the environment sees all of
its packages; else none.

``install FILE...``, run by the environment's own interpreter, installs the requirement files. What
the environment sees of the interpreter behind it is kept in its version, torch above all: the
detectron2 there was compiled for it. With ``--wheels FOLDER`` the wheels there are installed
instead, without a network (tools/collect_wheels.py makes such a folder).

The standard library and pip are all that this file needs.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

__all__ = ["create", "inherited_versions", "install", "main", "requirement_lines"]

INSTALLER = Path(__file__).with_name("install_detectron2.py")
# Tells an environment of this script, which it may delete, from one that somebody else made.
MARK = ".made-by-make-setup"
# detectron2 fails with the newer ones, so the pin holds even where the interpreter has one.
ALWAYS_PINNED = frozenset({"setuptools"})
PIP_INSTALL = ["-m", "pip", "install", "--quiet", "--no-input"]

NO_VENV = """{python} cannot make a virtual environment with pip in it:
{reason}
Either of these helps:
  apt-get install python3-venv        (Debian, Ubuntu)
  {python} -m pip install virtualenv
Or choose another Python 3.10 to 3.12: make setup PYTHON=/path/to/python"""


def _run(command: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _start_empty(venv: Path) -> None:
    # The mark is there before anything else and stays: if this is stopped half-way, the rest is
    # still known to be this script's.
    venv.mkdir(exist_ok=True)
    (venv / MARK).touch()
    for path in venv.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != MARK:
            path.unlink()


def create(venv: Path, system_torch: bool = False) -> None:
    """Make the environment ``venv`` anew, in the place of one that was left unfinished.

    Args:
        venv: its folder.
        system_torch: use the torch of this interpreter, and install no other.

    Raises:
        SystemExit: ``venv`` is somebody else's, no way to make one works here, or the torch that
            was asked for is not there.
    """
    if venv.exists() and any(venv.iterdir()) and not (venv / MARK).exists():
        raise SystemExit(
            f"{venv} exists, but `make setup` did not make it. Move it away, or delete it with "
            "`make distclean`."
        )
    if system_torch and importlib.util.find_spec("torch") is None:
        raise SystemExit(
            f"SYSTEM_TORCH=1, but {sys.executable} has no torch. Name the Python that has it: "
            "make setup SYSTEM_TORCH=1 PYTHON=/path/to/python"
        )
    share = system_torch or _run([sys.executable, INSTALLER, "--check"]).returncode == 0
    flags = ["--system-site-packages"] * share
    python = venv / "bin" / "python"
    # Debian's Python has no ensurepip unless python3-venv is installed; a pip of 22.3 or newer can
    # then put a pip into an environment without one.
    module = [sys.executable, "-m"]
    ways: list[list[list[str | Path]]] = [
        [[*module, "venv", *flags, venv]],
        [
            [*module, "venv", "--without-pip", *flags, venv],
            [*module, "pip", "--python", python, "install", "--quiet", "--ignore-installed", "pip"],
        ],
        [[*module, "virtualenv", "--quiet", *flags, venv]],
    ]
    reasons = []
    for commands in ways:
        _start_empty(venv)
        check: list[str | Path] = [python, "-m", "pip", "--version"]
        results = (_run(command) for command in [*commands, check])
        failed = next((result for result in results if result.returncode != 0), None)
        if failed is None:
            break
        reasons.append(failed.stdout.strip())
    else:
        # The first way's reason: the others are only tried because of it.
        raise SystemExit(NO_VENV.format(python=sys.executable, reason=reasons[0]))
    if share and sys.prefix != sys.base_prefix:
        # An environment made from another one sees the packages of the interpreter behind both,
        # not the other one's. addsitedir also follows the .pth files there: editable installs.
        paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        lines = [f"import site; site.addsitedir({path!r})\n" for path in sorted(paths)]
        site_packages = next(venv.glob("lib/python*/site-packages"))
        (site_packages / "parent_environment.pth").write_text("".join(lines))
    if not os.environ.get("PIP_NO_INDEX"):
        subprocess.run([python, *PIP_INSTALL, "--upgrade", "pip"], check=True)


def requirement_lines(files: Sequence[Path]) -> list[tuple[str, str]]:
    """The requirements in ``files`` as pairs of name and whole line, comments left out."""
    pairs = []
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            name = re.match(r"[A-Za-z0-9][\w.-]*", line)
            if name:
                pairs.append((name.group(), line))
    return pairs


def inherited_versions(names: Sequence[str]) -> dict[str, str]:
    """The versions of those ``names`` that come from outside the running environment."""
    versions = {}
    for name in names:
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue
        if not Path(str(found.locate_file(""))).is_relative_to(sys.prefix):
            versions[name] = found.version
    return versions


def install(files: Sequence[Path]) -> None:
    """Install the requirements in ``files`` into the running environment.

    Without anything inherited, as they stand. Else the first file's missing requirements in
    whichever version fits what is inherited, since their pins fit the pinned torch only, and the
    other files' (the tools of development) as they stand.
    """
    runtime, tools = requirement_lines(files[:1]), requirement_lines(files[1:])
    names = [name for name, _ in runtime if name not in ALWAYS_PINNED]
    inherited = inherited_versions(names)
    pip = [sys.executable, *PIP_INSTALL]
    if "torch" not in inherited:
        print("installing torch and the other dependencies (about 5 GB, a few minutes) ...")
        sys.stdout.flush()
        subprocess.run([*pip, *(f"--requirement={file}" for file in files)], check=True)
        return
    print(f"keeping torch {inherited['torch']} of the interpreter; installing what it lacks ...")
    sys.stdout.flush()
    wanted = [
        line if name in ALWAYS_PINNED else name for name, line in runtime if name not in inherited
    ]
    wanted += [line for _, line in tools]
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "inherited.txt"
        constraints.write_text("".join(f"{n}=={v}\n" for n, v in inherited.items()))
        subprocess.run([*pip, f"--constraint={constraints}", *dict.fromkeys(wanted)], check=True)


def install_wheels(folder: Path) -> None:
    """Install all wheels in ``folder`` but detectron2's, which its own installer unpacks.

    Raises:
        SystemExit: there are none.
    """
    wheels = [w for w in sorted(folder.glob("*.whl")) if "detectron2" not in w.name]
    if not wheels:
        raise SystemExit(f"WHEELS={folder}: no wheels there; `make wheels` collects them")
    print(f"installing {len(wheels)} wheels from {folder} ...")
    sys.stdout.flush()
    # The folder is complete, and its wheels go before the interpreter's packages of other versions.
    ours = ["--no-index", "--no-deps", "--ignore-installed"]
    subprocess.run([sys.executable, *PIP_INSTALL, *ours, *map(str, wheels)], check=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the step named on the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    steps = parser.add_subparsers(dest="step", required=True)
    folder = steps.add_parser("create", help="make the environment")
    folder.add_argument("venv", type=Path)
    folder.add_argument("--system-torch", action="store_true", help="use this interpreter's torch")
    files = steps.add_parser("install", help="install requirement files into this environment")
    files.add_argument("files", type=Path, nargs="+")
    files.add_argument("--wheels", type=Path, help="install the wheels in this folder instead")
    arguments = parser.parse_args(argv)
    try:
        if arguments.step == "create":
            create(arguments.venv.absolute(), arguments.system_torch)
        elif arguments.wheels:
            install_wheels(arguments.wheels)
        else:
            install(arguments.files)
    except subprocess.CalledProcessError as error:
        # pip has printed its own reason.
        print(f"failed: {' '.join(map(str, error.cmd))}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
