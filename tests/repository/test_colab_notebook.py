"""The Colab notebook runs from top to bottom; Drive, git and the install are this machine's own."""

import json
import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.support import ROOT, environment_of

FILE = ROOT / "notebooks/colab.ipynb"
REPLACED = ("drive", "git", "install")  # tags of the cells that need Colab or a network


def test_the_notebook_has_no_results_in_it() -> None:
    notebook = nbformat.read(FILE, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert cell.cell_type != "code" or (cell.outputs, cell.execution_count) == ([], None)
    tags = [tag for cell in notebook.cells for tag in cell.metadata.get("tags", [])]
    assert tags == [*REPLACED, "data"]


@pytest.mark.slow
def test_the_notebook_trains_and_leaves_its_results_in_drive(
    make_repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, drive = make_repository(dr_rate=0.1), tmp_path / "drive"
    (drive / "mine").mkdir(parents=True)
    for file in (root / "data/sample").iterdir():
        file.rename(drive / "mine" / file.name)
    for key in set(os.environ) - set(environment_of()):
        monkeypatch.delenv(key)
    for key, value in environment_of().items():
        monkeypatch.setenv(key, value)
    notebook = nbformat.read(FILE, as_version=4)
    ours = {
        "drive": f"DRIVE = {str(drive)!r}",
        "git": f"%cd {root}",
        "install": "",
    }
    for cell in notebook.cells:
        for tag in cell.metadata.get("tags", []):
            cell.source = ours.get(tag, cell.source)
            cell.source = cell.source.replace('"aihub", "kobert", 5', '"mine", "tiny", 3')
    # Started as this python is: no kernel of the machine's need be registered.
    client = NotebookClient(notebook, timeout=300, kernel_name="python3")
    client.create_kernel_manager()
    client.km.kernel_spec.argv[0] = sys.executable
    client.execute(cwd=str(tmp_path))

    metrics = json.loads((drive / "reports/metrics.json").read_text(encoding="utf-8"))
    (printed,) = [
        output.text
        for cell in notebook.cells
        if "metrics = json" in cell.source
        for output in cell.outputs
    ]
    assert printed.startswith(f"accuracy {metrics['accuracy']:.4f} (")
    assert metrics["baselines"][0]["verdict"] in printed
    shown = [
        output.data
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "display_data"
    ]
    assert ["image/png" in data for data in shown] == [True, True]
    for name in ("classifier/classifier.json", "mlflow.db"):
        assert (drive / name).exists()
    assert list((drive / "storyflower").iterdir()) == []  # the checkpoints that were there are gone
