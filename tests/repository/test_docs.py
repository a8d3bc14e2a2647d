"""README and docs/: what they name is there."""

import importlib.util
import re
from pathlib import Path

import pytest

from tests.support import ROOT

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
ROOMS = "storyflower|stages|tests|benchmarks|docs|encoders|notebooks"


@pytest.fixture(params=PAGES, ids=lambda page: page.name)
def page(request: pytest.FixtureRequest) -> tuple[Path, str]:
    return request.param, request.param.read_text(encoding="utf-8")


def test_a_file_that_is_named_is_there(page):
    path, text = page
    named = re.findall(rf"(?<![\w./-])(?:{ROOMS})/[\w./-]+\.(?:py|md|png|ipynb|sh)\b", text)
    assert [
        name for name in named if not any((r / name).exists() for r in (ROOT, path.parent))
    ] == []


def test_a_module_that_is_run_or_imported_is_there(page):
    _, text = page
    modules = re.findall(r"python3? -m ([\w.]*\w)(?![\w.<])", text)
    modules += re.findall(r"^\s*(?:from|import) ((?:storyflower|stages)[\w.]*)", text, re.MULTILINE)
    assert [module for module in modules if importlib.util.find_spec(module) is None] == []


def test_tests_that_are_chosen_by_name_are_there(page):
    _, text = page
    for file, names in re.findall(r"(tests/[\w/]+\.py) -k (\w+|\"[^\"]+\")", text):
        tests = re.findall(
            r"^def (test_\w+)", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE
        )
        for name in names.strip('"').split(" or "):
            assert any(name in test for test in tests), f"{file} -k {name}"


def test_a_program_lies_in_a_file_not_in_prose(page):
    _, text = page
    assert "python - <<" not in text


def test_links_lead_somewhere(page):
    path, text = page
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", text):
        linked = path.parent / target if target else path
        assert linked.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
            assert anchor in slugs
