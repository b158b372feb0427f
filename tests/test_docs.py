"""What the documentation points at exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("projects/*/README.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_relative_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    missing = [x for x in links if "://" not in x and not (page.parent / x).exists()]
    assert not missing


def test_each_trap_names_tests_that_exist():
    rows = re.findall(r"^\| (\d+) \|.*$", (ROOT / "docs/traps.md").read_text(), flags=re.MULTILINE)
    assert [int(number) for number in rows] == list(range(1, 21))
    text = (ROOT / "docs/traps.md").read_text(encoding="utf-8")
    for line in text.splitlines():
        if not re.match(r"\| \d+ \|", line):
            continue
        cited = re.findall(r"`([\w/]+\.py)::(test_\w+)`", line)
        assert cited, line
        for file, name in cited:
            source = (ROOT / "tests" / file).read_text(encoding="utf-8")
            assert f"def {name}(" in source, f"{file}::{name}"
