"""The package's metadata, and the way of recipes and commands into a wheel."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent.resolve()
# What a user without the checkout runs, as python -m wsbcn_d2.tools.NAME. The others are about it.
COMMANDS = (
    "train_net.py",
    "tools/browse.py",
    "tools/check_dataset.py",
    "tools/compare_runs.py",
    "tools/convert_weights.py",
    "tools/export_model.py",
    "tools/fold_model.py",
    "tools/predict.py",
    "tools/report.py",
    "tools/write_digits.py",
)


def read_version() -> str:
    """``__version__`` of wsbcn_d2, read from its text: an import would need torch."""
    text = (ROOT / "wsbcn_d2" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, flags=re.MULTILINE)
    if match is None:
        raise ValueError('wsbcn_d2/__init__.py has no line `__version__ = "..."`')
    return match.group(1)


def read_readme() -> str:
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.exists() else ""


class BuildWithRecipes(build_py):
    """Puts the checkout's recipes and commands into the wheel, as wsbcn_d2/configs/ and tools/.

    Recipes are files, not packages: detectron2 loads a lazy config by its path. In development mode
    nothing is copied, and the checkout's are the ones that are used.
    """

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        package = Path(self.build_lib) / "wsbcn_d2"
        recipes = sorted(p for p in (ROOT / "configs").rglob("*") if p.suffix in (".py", ".yaml"))
        copies = {package / recipe.relative_to(ROOT): recipe for recipe in recipes}
        copies |= {package / "tools" / Path(name).name: ROOT / name for name in COMMANDS}
        # build/ survives between builds, and with it recipes that were since renamed.
        for folder in ("configs", "tools"):
            shutil.rmtree(package / folder, ignore_errors=True)
        for copy, source in copies.items():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)
        (package / "tools" / "__init__.py").write_text(
            '"""Commands: python -m wsbcn_d2.tools.train_net --help, for example."""\n'
        )


setup(
    name="wsbcn_d2",
    version=read_version(),
    description=(
        "Micro-batch detector training for detectron2: Weight Standardization, Batch-Channel "
        "Normalization, Switchable Normalization, and their recipes"
    ),
    long_description=read_readme(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=">=3.10",
    packages=find_packages(include=["wsbcn_d2", "wsbcn_d2.*"]),
    # Says that the packages lie in the checkout's root. It changes no path, but with it an editable
    # install is one .pth file with the checkout's path, in the place of an import hook.
    package_dir={"": "."},
    package_data={"wsbcn_d2": ["**/*"]},
    exclude_package_data={"": ["*.pyc", "**/*.pyc"]},
    # detectron2 is needed too, but is not on PyPI: it is installed by its own instructions, or by
    # tools/install_detectron2.py. `import wsbcn_d2.norms` does without.
    install_requires=[
        "torch>=2.11",  # requirements-oldest.txt has it for the tests
        "numpy",
        "pillow",
        "fvcore>=0.1.5",
        "iopath>=0.1.9",
        "omegaconf>=2.1",
        "pycocotools>=2.0.2",
        "submitit>=1.5,<1.6",  # wsbcn_slurm/batch_script.py and job.sh know its script
        "matplotlib",
        "portalocker",
        "shapely",
        "tabulate",
        "tensorboard",
        "tqdm",
    ],
    extras_require={
        "dev": ["mypy", "pytest", "pytest-cov", "pytest-timeout", "ruff"],
        "export": ["onnx", "onnxruntime"],
        "video": ["av"],
    },
    cmdclass={"build_py": BuildWithRecipes},
    zip_safe=False,
)
