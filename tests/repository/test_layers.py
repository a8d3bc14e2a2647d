"""The rooms of storyflower/ import downwards only, and the README's tree shows all of them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_imports_run_down() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout
    assert "Contracts: 1 kept, 0 broken." in done.stdout


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("common/files.py", "from storyflower.interim import dialogues"),  # up
        ("train/fit.py", "from storyflower.evaluate import metrics"),  # across
        ("cellar/new.py", ""),  # a room that the list does not know
    ],
)
def test_the_contract_finds_what_it_looks_for(file: str, line: str, tmp_path: Path) -> None:
    for path in [*(ROOT / "storyflower").rglob("*.py"), ROOT / "pyproject.toml"]:
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    target = tmp_path / "storyflower" / file
    if not target.exists():
        target.parent.mkdir()
        (target.parent / "__init__.py").touch()
        target.touch()
    target.write_text(target.read_text(encoding="utf-8") + f"\n{line}\n", encoding="utf-8")
    assert lint_imports(tmp_path).returncode == 1


@pytest.mark.parametrize("readme", ["README.md", "README.ko.md"])
def test_the_tree_in_the_readme_shows_every_room(readme: str) -> None:
    (tree,) = re.findall(
        r"^```\nstages/ .*?^```$", (ROOT / readme).read_text(encoding="utf-8"), re.M | re.S
    )
    shown = set(re.findall(r"^  (\w+)/", tree.split("storyflower/")[1].split("\ntests/")[0], re.M))
    rooms = {path.parent.name for path in (ROOT / "storyflower").glob("*/__init__.py")}
    assert shown == rooms
    for folder in set(re.findall(r"^(\w+)/", tree, re.M)):
        assert (ROOT / folder).is_dir(), folder
