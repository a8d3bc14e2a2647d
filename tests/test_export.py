"""Export where its packages are missing; tests/onnx has the rest."""

import sys
from pathlib import Path

import pytest

from storyflower.__main__ import main
from storyflower.common.errors import InputError


@pytest.mark.parametrize("name", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_one_line(
    name: str, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, sys)
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    with pytest.raises(InputError, match=f"no package {name}; .* pip install -r requirements-"):
        main(["export", "--model", str(classifier), "--onnx", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
