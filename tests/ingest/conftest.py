"""The folder that the tests of ingest fill."""

from pathlib import Path

import pytest

from tests.ingest.test_ingest import good_sheet


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """data/aihub with a good Validation workbook; a test adds its Training file."""
    folder = tmp_path / "data" / "aihub"
    folder.mkdir(parents=True)
    good_sheet(folder / "감성대화_Validation.xlsx")
    return folder
