"""The set-up: Makefile, installers and metadata. Nothing is installed, and no network is used."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import wsbcn_d2

ROOT = Path(__file__).resolve().parents[1]
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def load_tool(name: str) -> ModuleType:
    """Load tools/``name``.py by its path: a package named tools may be anybody's."""
    spec = importlib.util.spec_from_file_location(f"_tool_{name}", ROOT / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Commands:
    """Stands for ``subprocess.run``: notes the commands, answers with what ``reply`` returns."""

    def __init__(self, reply: Callable[[list[str]], tuple[int, str]]) -> None:
        self.reply = reply
        self.seen: list[list[str]] = []

    def __call__(self, command: list[Any], **kwargs: Any) -> subprocess.CompletedProcess[str]:
        words = [str(word) for word in command]
        self.seen.append(words)
        code, text = self.reply(words)
        return subprocess.CompletedProcess(words, code, stdout=text, stderr=text)

    @property
    def pip_installs(self) -> list[list[str]]:
        return [words for words in self.seen if words[1:4] == ["-m", "pip", "install"]]


# --- tools/install_detectron2.py -------------------------------------------------------------

FOUND = json.dumps(["0.6", "/site-packages/detectron2", False])


class Machine:
    """One machine for the installer: what its site-packages holds, and what pip does there."""

    def __init__(self, tool: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tool = tool
        self.site_packages = folder / "lib" / "site-packages"
        self.site_packages.mkdir(parents=True)
        self.pip_fails = False
        self.probe_fails = False
        self.requirement = ""
        self.commands = Commands(self.reply)
        monkeypatch.setattr(tool.subprocess, "run", self.commands)
        monkeypatch.setattr(tool.sysconfig, "get_path", lambda name: str(self.site_packages))
        monkeypatch.delenv("DETECTRON2", raising=False)

    def reply(self, words: list[str]) -> tuple[int, str]:
        if words[1] == "-c":
            if self.probe_fails:
                return 1, "Traceback ...\nImportError: undefined symbol"
            return 0, FOUND if (self.site_packages / "detectron2").exists() else "null"
        if self.pip_fails:
            return 1, "ERROR: no network"
        if "-r" in words:
            self.requirement = Path(words[words.index("-r") + 1]).read_text()
        fill_with_wheel(Path(words[words.index("--target") + 1]))
        return 0, ""


def fill_with_wheel(target: Path) -> None:
    """What pip leaves in ``target``: detectron2, and the wheel's stray top-level package."""
    metadata = "sal_detectron2-0.7.2.dist-info"
    files = ["detectron2/__init__.py", "tools/__init__.py", f"{metadata}/METADATA"]
    for name in files:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).touch()
    record = "".join(f"{name},,\n" for name in [*files, f"{metadata}/RECORD"])
    (target / metadata / "RECORD").write_text(record)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(load_tool("install_detectron2"), tmp_path, monkeypatch)


def test_importable_detectron2_is_used_as_it_is(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    (machine.site_packages / "detectron2").mkdir()
    assert machine.tool.main([]) == 0
    assert machine.commands.pip_installs == []
    assert "0.6" in capsys.readouterr().out


def test_importable_detectron2_wins_over_git(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTRON2", "git")
    (machine.site_packages / "detectron2").mkdir()
    assert machine.tool.main([]) == 0
    assert machine.commands.pip_installs == []


def test_default_is_the_wheel_checked_by_hash(machine: Machine) -> None:
    assert machine.tool.main([]) == 0
    (words,) = machine.commands.pip_installs
    assert "--require-hashes" in words and "--no-deps" in words
    assert "--python-version=3.10" in words
    assert re.fullmatch(
        r"sal-detectron2==0\.7\.2 --hash=sha256:[0-9a-f]{64}\n", machine.requirement
    )


def test_git_builds_upstream_against_the_installed_torch(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTRON2", "git")
    assert machine.tool.main([]) == 0
    (words,) = machine.commands.pip_installs
    assert "--no-build-isolation" in words
    assert words[-1] == "git+https://github.com/facebookresearch/detectron2.git"


def test_unknown_source_is_refused(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DETECTRON2", "conda")
    assert machine.tool.main([]) == 1
    message = capsys.readouterr().err
    assert "'conda'" in message and "'git'" in message and "'wheel'" in message


def test_only_detectron2_reaches_site_packages(machine: Machine) -> None:
    assert machine.tool.main([]) == 0
    metadata = machine.site_packages / "sal_detectron2-0.7.2.dist-info"
    assert set(machine.site_packages.iterdir()) == {machine.site_packages / "detectron2", metadata}
    record = (metadata / "RECORD").read_text()
    assert "detectron2/__init__.py" in record and "tools/" not in record
    # the staging folder is gone
    assert list(machine.site_packages.parent.iterdir()) == [machine.site_packages]


def test_check_installs_nothing(machine: Machine) -> None:
    assert machine.tool.main(["--check"]) == 1
    assert machine.commands.pip_installs == []
    (machine.site_packages / "detectron2").mkdir()
    assert machine.tool.main(["--check"]) == 0


def test_failed_install_says_what_was_tried_and_what_to_do(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.pip_fails = True
    assert machine.tool.main([]) == 1
    message = capsys.readouterr().err
    for part in ("sal-detectron2==0.7.2", "no network", "DETECTRON2=git", "PYTHON="):
        assert part in message


def test_broken_detectron2_is_reported_and_not_overwritten(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.probe_fails = True
    assert machine.tool.main([]) == 1
    assert machine.commands.pip_installs == []
    assert "undefined symbol" in capsys.readouterr().err


def test_probe_takes_no_stray_folder_for_detectron2(tmp_path: Path) -> None:
    (tmp_path / "detectron2").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    probe = load_tool("install_detectron2").PROBE
    # -S: without site-packages, so without the detectron2 that these tests may run with
    command = [sys.executable, "-S", "-c", probe]
    result = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert result.stdout == "null\n"


# --- tools/make_venv.py ----------------------------------------------------------------------


@pytest.fixture
def make_venv() -> ModuleType:
    return load_tool("make_venv")


def venv_commands(monkeypatch: pytest.MonkeyPatch, tool: ModuleType, *failing: str) -> Commands:
    """Fake commands that succeed, but those with a word of ``failing`` in them."""
    commands = Commands(lambda words: (int(any(word in words for word in failing)), ""))
    monkeypatch.setattr(tool.subprocess, "run", commands)
    return commands


def test_create_replaces_its_own_unfinished_environment(
    make_venv: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv_commands(monkeypatch, make_venv, "--check")
    venv = tmp_path / ".venv"
    make_venv.create(venv)
    (venv / "bin").mkdir()
    (venv / "half").touch()
    make_venv.create(venv)
    assert [path.name for path in venv.iterdir()] == [make_venv.MARK]


def test_create_keeps_an_environment_of_somebody_else(
    make_venv: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = venv_commands(monkeypatch, make_venv, "--check")
    (tmp_path / "pyvenv.cfg").touch()
    with pytest.raises(SystemExit, match="distclean"):
        make_venv.create(tmp_path)
    assert (tmp_path / "pyvenv.cfg").exists()
    assert commands.seen == []


@pytest.mark.parametrize("importable", [False, True])
def test_create_shares_packages_where_detectron2_is_importable(
    make_venv: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, importable: bool
) -> None:
    commands = venv_commands(monkeypatch, make_venv, *([] if importable else ["--check"]))
    monkeypatch.setattr(make_venv.sys, "prefix", sys.base_prefix)
    make_venv.create(tmp_path / ".venv")
    (words,) = [words for words in commands.seen if words[1:3] == ["-m", "venv"]]
    assert ("--system-site-packages" in words) == importable


def test_create_without_ensurepip_gets_pip_from_outside(
    make_venv: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv = tmp_path / ".venv"
    commands = Commands(
        lambda words: (int("--check" in words or words[1:] == ["-m", "venv", str(venv)]), "")
    )
    monkeypatch.setattr(make_venv.subprocess, "run", commands)
    make_venv.create(venv)
    assert [sys.executable, "-m", "venv", "--without-pip", str(venv)] in commands.seen
    assert all("virtualenv" not in words for words in commands.seen)


def test_create_names_the_packages_that_help(
    make_venv: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv_commands(monkeypatch, make_venv, "--check", "venv", "virtualenv")
    with pytest.raises(SystemExit, match="python3-venv") as caught:
        make_venv.create(tmp_path / ".venv")
    assert "virtualenv" in str(caught.value)


def test_install_applies_the_pins_where_nothing_is_inherited(
    make_venv: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = venv_commands(monkeypatch, make_venv)
    monkeypatch.setattr(make_venv, "inherited_versions", lambda names: {})
    make_venv.install([Path("requirements.txt"), Path("requirements-dev.txt")])
    (words,) = commands.pip_installs
    assert words[-2:] == ["--requirement=requirements.txt", "--requirement=requirements-dev.txt"]


def test_install_keeps_the_inherited_torch(
    make_venv: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    constraints = ""

    def reply(words: list[str]) -> tuple[int, str]:
        nonlocal constraints
        (option,) = [word for word in words if word.startswith("--constraint=")]
        constraints = Path(option.partition("=")[2]).read_text()
        return 0, ""

    commands = Commands(reply)
    monkeypatch.setattr(make_venv.subprocess, "run", commands)
    inherited = {"torch": "2.4.0+cu121", "numpy": "1.26.4"}
    monkeypatch.setattr(make_venv, "inherited_versions", lambda names: inherited)
    make_venv.install([ROOT / "requirements.txt", ROOT / "requirements-dev.txt"])
    assert constraints == "torch==2.4.0+cu121\nnumpy==1.26.4\n"
    (words,) = commands.pip_installs
    assert not any(re.match(r"(torch|numpy)(==|$)", word) for word in words)
    # the pinned torchvision belongs to the pinned torch; tools and setuptools keep their pins
    assert "torchvision" in words
    assert any(re.match(r"setuptools==", word) for word in words)
    assert any(re.match(r"ruff==", word) for word in words)


def test_create_shares_the_torch_that_is_asked_for(
    make_venv: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = venv_commands(monkeypatch, make_venv, "--check")
    monkeypatch.setattr(make_venv.sys, "prefix", sys.base_prefix)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    make_venv.create(tmp_path / ".venv", system_torch=True)
    assert "--system-site-packages" in commands.seen[0]
    assert commands.pip_installs == []  # not even a newer pip is asked for
    monkeypatch.setattr(make_venv.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"no torch.*PYTHON="):
        make_venv.create(tmp_path / "other", system_torch=True)


def test_install_takes_wheels_from_a_folder(
    make_venv: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = venv_commands(monkeypatch, make_venv)
    with pytest.raises(SystemExit, match="make wheels"):
        make_venv.install_wheels(tmp_path)
    for name in ("fvcore-1-py3-none-any.whl", "sal_detectron2-0.7.2-cp310-none-any.whl"):
        (tmp_path / name).touch()
    make_venv.install_wheels(tmp_path)
    (words,) = commands.pip_installs
    assert "--no-index" in words and words[-1] == str(tmp_path / "fvcore-1-py3-none-any.whl")
    assert not any("detectron2" in word for word in words)


def test_wheels_are_what_the_site_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    tool = load_tool("collect_wheels")
    found = tool.closure([ROOT / "requirements.txt"], "3.12")
    names = {requirement.name for requirement in found}
    assert {"fvcore", "omegaconf", "antlr4-python3-runtime", "portalocker"} <= names
    assert not names & {"torch", "torchvision", "numpy", "triton", "pillow", "sympy"}
    assert all(requirement.marker is None for requirement in found)


def test_packages_of_this_environment_are_not_inherited(
    make_venv: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    location = str(Path(pytest.__file__).parents[1])
    monkeypatch.setattr(make_venv.sys, "prefix", location)
    assert make_venv.inherited_versions(["pytest", "no-such-distribution"]) == {}
    monkeypatch.setattr(make_venv.sys, "prefix", str(tmp_path))
    assert make_venv.inherited_versions(["pytest"]) == {"pytest": pytest.__version__}


# --- requirements and metadata ---------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["requirements.txt", "requirements-test.txt", "requirements-dev.txt"]
)
def test_every_requirement_is_pinned(make_venv: ModuleType, name: str) -> None:
    lines = make_venv.requirement_lines([ROOT / name])
    assert lines
    for package, line in lines:
        pin = "<=" if package in ("torch", "torchvision") else "=="
        assert re.match(rf"{re.escape(package)}{pin}[\w.]+(; python_version .+)?$", line), line


def test_the_oldest_torch_that_is_tested_is_the_oldest_that_is_allowed(
    make_venv: ModuleType,
) -> None:
    oldest = dict(make_venv.requirement_lines([ROOT / "requirements-oldest.txt"]))
    version = re.fullmatch(r"torch==(\d+\.\d+)\.0", oldest["torch"])
    assert version and f'"torch>={version[1]}",' in (ROOT / "setup.py").read_text()


def test_setuptools_still_has_pkg_resources(make_venv: ModuleType) -> None:
    pins = dict(make_venv.requirement_lines([ROOT / "requirements.txt"]))
    assert int(pins["setuptools"].split("==")[1].split(".")[0]) < 81


def test_version_has_one_source(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "--version"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split()[-1] == wsbcn_d2.__version__
    assert wsbcn_d2.__version__ not in (ROOT / "setup.py").read_text()


def test_build_puts_recipes_and_commands_and_no_tests_into_the_package(tmp_path: Path) -> None:
    # A small copy: the build leaves files beside setup.py.
    shutil.copy(ROOT / "setup.py", tmp_path)
    shutil.copy(ROOT / "train_net.py", tmp_path)
    shutil.copytree(ROOT / "tools", tmp_path / "tools")
    for name in ("wsbcn_d2/norms", "configs/quick", "tests", "projects/one"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "__init__.py").touch()
    shutil.copy(ROOT / "wsbcn_d2" / "__init__.py", tmp_path / "wsbcn_d2")
    (tmp_path / "configs" / "quick" / "recipe.py").touch()
    (tmp_path / "configs" / "base.yaml").touch()
    command = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", "built"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    built = tmp_path / "built"
    assert [path.name for path in built.iterdir()] == ["wsbcn_d2"]
    assert (built / "wsbcn_d2" / "norms" / "__init__.py").exists()
    assert (built / "wsbcn_d2" / "configs" / "quick" / "recipe.py").exists()
    assert (built / "wsbcn_d2" / "configs" / "base.yaml").exists()
    commands = {path.name for path in (built / "wsbcn_d2" / "tools").iterdir()}
    assert {"__init__.py", "train_net.py", "predict.py"} <= commands
    assert "make_venv.py" not in commands  # of the checkout


# --- Makefile --------------------------------------------------------------------------------

TARGETS = (
    *("help", "setup", "train", "test", "test-slow", "test-no-avx", "recipe-book", "lint"),
    *("clean", "distclean"),
)
STAMPS = (".created", ".dependencies", ".detectron2", ".project")


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run make in ``folder``, without the variables of a surrounding make or shell."""
    surrounding = "MAKEFLAGS MFLAGS MAKELEVEL PYTHON TORCH DETECTRON2 CONFIG OUTPUT NUM_GPUS ARGS"
    inherited = {key: value for key, value in os.environ.items() if key not in surrounding.split()}
    return subprocess.run(
        ["make", *arguments],
        cwd=folder,
        env=inherited,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files that set-up depends on, with stand-ins for the programs it runs."""
    requirements = [f"requirements{kind}.txt" for kind in ("", "-test", "-dev", "-oldest")]
    for name in ("Makefile", *requirements, "setup.py"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "install_detectron2.py").touch()
    # A python that notes its arguments in log, fails for those in fail, and "creates" .venv.
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\necho "$@" $PIP_CONSTRAINT >> log\n'
        'if [ -s fail ] && echo "$@" | grep -q -f fail; then exit 1; fi\n'
        'case "$*" in *"create .venv"*) mkdir -p "$3/bin" && cp python "$3/bin/" ;; esac\n'
    )
    python.chmod(0o755)
    return tmp_path


def steps(checkout: Path) -> list[str]:
    """Which steps the stand-in ran since the last call."""
    log = checkout / "log"
    text = log.read_text() if log.exists() else ""
    log.unlink(missing_ok=True)
    words = {
        "create .venv": "created",
        "make_venv.py install": "dependencies",
        "install_detectron2.py": "detectron2",
        "--editable": "project",
    }
    return [step for line in text.splitlines() for part, step in words.items() if part in line]


ALL_STEPS = ["created", "dependencies", "detectron2", "project"]


@needs_make
def test_help_is_the_default_and_lists_every_target() -> None:
    result = make(ROOT)
    assert result.returncode == 0, result.stderr
    for target in TARGETS:
        assert re.search(rf"^  make {target} +\w", result.stdout, flags=re.MULTILINE), target


@needs_make
def test_setup_runs_once_and_again_without_venv(checkout: Path) -> None:
    assert make(checkout, "setup", "PYTHON=./python").returncode == 0
    assert steps(checkout) == ALL_STEPS
    assert make(checkout, "setup", "PYTHON=./python").returncode == 0
    assert steps(checkout) == []
    shutil.rmtree(checkout / ".venv")
    assert make(checkout, "setup", "PYTHON=./python").returncode == 0
    assert steps(checkout) == ALL_STEPS


@needs_make
def test_the_oldest_torch_is_installed_in_an_environment_of_its_own(checkout: Path) -> None:
    assert make(checkout, "setup", "PYTHON=./python").returncode == 0
    assert "requirements-oldest" not in (checkout / "log").read_text()
    steps(checkout)
    assert make(checkout, "setup", "PYTHON=./python", "TORCH=oldest").returncode == 0
    (install,) = re.findall(r".*make_venv\.py install.*", (checkout / "log").read_text())
    assert install.endswith(" requirements-oldest.txt")
    assert steps(checkout) == ALL_STEPS
    assert (checkout / ".venv" / "bin").exists() and (checkout / ".venv-oldest" / "bin").exists()
    result = make(checkout, "setup", "TORCH=2.3")
    assert result.returncode != 0 and "TORCH='2.3' is unknown; allowed: oldest" in result.stderr


@needs_make
@pytest.mark.parametrize(
    ("changed", "redone"),
    [
        ("requirements.txt", ["dependencies", "detectron2", "project"]),
        ("requirements-dev.txt", ["dependencies", "detectron2", "project"]),
        ("tools/install_detectron2.py", ["detectron2", "project"]),
        ("setup.py", ["project"]),
        ("pyproject.toml", ["project"]),
    ],
)
def test_setup_redoes_what_a_changed_file_concerns(
    checkout: Path, changed: str, redone: list[str]
) -> None:
    assert make(checkout, "setup", "PYTHON=./python").returncode == 0
    steps(checkout)
    # Everything in the past, in the order it was made, and the changed file the youngest: two
    # files of the same instant would leave it to the clock.
    for file in checkout.rglob("*"):
        os.utime(file, (1e9, 1e9))
    for age, stamp in enumerate(STAMPS):
        os.utime(checkout / ".venv" / stamp, (1e9 + age, 1e9 + age))
    os.utime(checkout / changed, (1.1e9, 1.1e9))
    assert make(checkout, "setup", "PYTHON=./python").returncode == 0
    assert steps(checkout) == redone


@needs_make
@pytest.mark.parametrize(
    ("fails", "first", "then"),
    [
        # half-installed packages: from the start
        ("make_venv.py install", ["created", "dependencies"], ALL_STEPS),
        ("install_detectron2.py", ALL_STEPS[:3], ["detectron2", "project"]),
        ("--editable", ALL_STEPS, ["project"]),
    ],
)
def test_failed_setup_is_resumed(
    checkout: Path, fails: str, first: list[str], then: list[str]
) -> None:
    (checkout / "fail").write_text(f"{fails}\n")
    assert make(checkout, "setup", "PYTHON=./python").returncode != 0
    assert steps(checkout) == first
    (checkout / "fail").unlink()
    assert make(checkout, "setup", "PYTHON=./python").returncode == 0
    assert steps(checkout) == then


@needs_make
def test_python_that_does_not_run_is_passed_over(checkout: Path) -> None:
    broken = checkout / "broken"
    broken.write_text("#!/bin/sh\nexit 127\n")
    broken.chmod(0o755)
    assert make(checkout, "setup", "PYTHON=./broken ./python").returncode == 0
    result = make(checkout, "distclean", "setup", "PYTHON=./broken")
    assert result.returncode != 0
    assert "3.10" in result.stderr and "./broken" in result.stderr and "PYTHON=" in result.stderr


@needs_make
def test_train_runs_the_quick_recipe_unless_told_otherwise(checkout: Path) -> None:
    default = make(checkout, "-n", "train").stdout
    assert "train_net.py --config-file configs/quick/mask_rcnn_r18_fpn_ws_gn.py" in default
    assert "train.output_dir=output/quick/mask_rcnn_r18_fpn_ws_gn" in default
    told = make(checkout, "-n", "train", "CONFIG=configs/scratch/x.py", "ARGS=a.b=1", "NUM_GPUS=8")
    assert "--config-file configs/scratch/x.py" in told.stdout
    assert "train.output_dir=output/scratch/x a.b=1" in told.stdout
    assert 'num_gpus="8"' in told.stdout


@needs_make
def test_lint_and_tests_run_in_the_environment(checkout: Path) -> None:
    lint = make(checkout, "-n", "lint").stdout
    for part in ("ruff check", "ruff format --check", "mypy wsbcn_d2 slurm tools"):
        assert f".venv/bin/python -m {part}" in lint
    assert ".venv/bin/python -m pytest -m slow" in make(checkout, "-n", "test-slow").stdout


def test_ci_runs_what_developers_run() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    text = script.read_text()
    assert text.index("make lint") < text.index("make test")
