"""A benchmark's command in the test's own process: a new one would spend seconds on imports."""

from types import ModuleType
from unittest.mock import Mock

import pytest

from tests.support import ROOT


def call(monkeypatch: pytest.MonkeyPatch, module: ModuleType, *words: str) -> None:
    """As `python -m` with these words, in the repository's root."""
    monkeypatch.setattr("sys.argv", [module.__name__, *words])
    monkeypatch.chdir(ROOT)
    # What the command says to transformers' logging would hold for the tests that follow.
    monkeypatch.setattr(module, "logging", Mock(), raising=False)
    module.main()
