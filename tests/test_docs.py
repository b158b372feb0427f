"""What the documentation, and what runs make, point at exists."""

import re
from pathlib import Path

import pytest

import wsbcn_d2

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    page for pattern in ("*.md", "docs/*.md", "projects/*/README.md") for page in ROOT.glob(pattern)
)
CALLERS = (".ci/run", ".github/workflows/ci.yml", ".pre-commit-config.yaml")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_relative_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    missing = [x for x in links if "://" not in x and not (page.parent / x).exists()]
    assert not missing


@pytest.mark.parametrize("file", [*CALLERS, "README.md", "CONTRIBUTING.md"])
def test_make_targets_that_are_called_exist(file):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    text = (ROOT / file).read_text(encoding="utf-8")
    # In the workflow's matrix too. A line, or text in backticks, that starts with make.
    called = re.findall(r"target: ([a-z-]+)", text)
    for words in re.findall(r"(?:^\s*|`|: )make((?: [a-z-]+)+)", text, flags=re.MULTILINE):
        called += words.split()
    assert called and set(called) <= set(targets)


def test_changelog_and_citation_know_the_version():
    version = re.escape(wsbcn_d2.__version__)
    assert re.search(rf"^## \[{version}\] - \d{{4}}-", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert re.search(rf"^version: {version}$", (ROOT / "CITATION.cff").read_text(), re.M)


def test_each_trap_names_tests_that_exist():
    rows = re.findall(r"^\| (\d+) \|.*$", (ROOT / "docs/traps.md").read_text(), flags=re.MULTILINE)
    assert [int(number) for number in rows] == list(range(1, len(rows) + 1))
    assert len(rows) >= 20
    text = (ROOT / "docs/traps.md").read_text(encoding="utf-8")
    for line in text.splitlines():
        if not re.match(r"\| \d+ \|", line):
            continue
        cited = re.findall(r"`([\w/]+\.py)::(test_\w+)`", line)
        assert cited, line
        for file, name in cited:
            source = (ROOT / "tests" / file).read_text(encoding="utf-8")
            assert f"def {name}(" in source, f"{file}::{name}"
