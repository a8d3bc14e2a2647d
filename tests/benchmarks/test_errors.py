"""What a benchmark says where its input is missing: one line, with the file and what to do."""

import runpy
import shutil
from pathlib import Path

import pytest

from tests.support import ROOT, set_params


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize(
    ("words", "present", "line"),
    [
        (["start"], [], "data/interim/dialogues.parquet: not found; 'dvc repro tokenize' makes it"),
        (["random_encoders"], [], "data/interim/dialogues.parquet: not found; 'dvc repro ingest' "),
        (["input"], [], "encoders/seedling.yaml: "),
        (["input"], ["encoders"], "data/sample: no such folder; "),
        (["speed", "steps", "--device", "cpu"], [], "params.yaml: not found; run this in the root"),
        (["scale", "--rows", "3"], [], "--rows must be at least 500, got 3"),
        (["default", "corpus", "data/sample"], [], "params.yaml: not found; "),
        (["default", "corpus", "data/sample"], ["params", "encoders"], "data/sample: no such "),
        (["diaries", "data/sample"], [], "params.yaml: not found; "),
        (["diaries", "data/sample"], ["params", "encoders"], "data/sample: no such "),
        (["diaries", "data/sample"], ["params", "encoders", "data"], "a class has 4 texts held ba"),
        (["default", "nsmc", "."], ["params", "encoders"], "ratings_train.tsv.gz: not found; "),
        (["default", "chat", "."], ["params", "encoders", "data"], "ChatbotData.csv.gz: not found"),
        (
            ["default", "writers", "data/sample"],
            ["params", "encoders", "data"],
            "data/sample/situations.csv: not found",
        ),
        (["encoders", "--only", "kobrt"], [], "--only: 'kobrt' has no shape here; known: seedling"),
        (["encoders", "--only", "kobert", "--device", "cpu"], [], "params.yaml: not found; "),
        (["default", "chat", ".", "--set", "dr_rate=2"], ["params"], "--set: dr_rate must be a "),
    ],
)
def test_a_missing_input_is_one_line(
    words: list[str],
    present: list[str],
    line: str,
    interim: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    if "params" in present:
        set_params(tmp_path)
    if "encoders" in present:
        shutil.copytree(interim / "tiny", tmp_path / "encoders/seedling")
        shutil.copyfile(ROOT / "encoders/seedling.yaml", tmp_path / "encoders/seedling.yaml")
    if "data" in present:
        shutil.copytree(interim / "sample", tmp_path / "data/sample")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as stop:
        runpy.run_module(f"benchmarks.{words[0]}", run_name="__main__")
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(f"error: {line}")
    assert stop.value.code == 1
