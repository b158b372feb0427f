"""The tests' small maps take the passes that large ones take; one test compares the two paths."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture(autouse=True)
def passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["wsbcn_d2.norms.normalize"], "_SMALL", 0)
