"""The wheel in an environment of its own: it predicts, without the pipeline's packages."""

import json
import shutil
import subprocess
import sys
import venv
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support import ROOT


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment that holds the wheel and what it asks for, nothing else."""
    work = tmp_path_factory.mktemp("wheel")
    shutil.copytree(
        ROOT / "storyflower",
        work / "tree/storyflower",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, work / "tree" / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", work]
    subprocess.run([*pip, *build, work / "tree"], check=True, capture_output=True)
    (wheel,) = work.glob("*.whl")
    venv.create(work / "environment", with_pip=False)
    python = work / "environment/bin/python"
    subprocess.run(
        [*pip, "--python", python, "install", "--no-deps", "--no-index", wheel],
        check=True,
        capture_output=True,
    )
    (site,) = (work / "environment/lib").glob("python*/site-packages")
    (metadata,) = site.glob("storyflower-*.dist-info/METADATA")
    needs = [
        line.removeprefix("Requires-Dist: ")
        for line in metadata.read_text(encoding="utf-8").splitlines()
        if line.startswith("Requires-Dist: ")
    ]
    link_what_is_needed(needs, site)
    return python.parent


def link_what_is_needed(needs: list[str], site: Path) -> None:
    """Link the distributions that these requirements ask for, and those that they ask for."""
    waiting = [(line, "") for line in needs]
    seen: set[tuple[str, str]] = set()
    while waiting:
        line, extra = waiting.pop()
        need = Requirement(line)
        if need.marker and not need.marker.evaluate({"extra": extra}):
            continue
        for wanted in ("", *need.extras):
            here = (canonicalize_name(need.name), wanted)
            if here in seen:
                continue
            seen.add(here)
            found = distribution(need.name)
            assert need.specifier.contains(found.version, prereleases=True), line
            waiting += [(each, wanted) for each in found.requires or []]
            for top in {file.parts[0] for file in found.files or [] if file.parts[0] != ".."}:
                if top != "__pycache__" and not (site / top).exists():
                    (site / top).symlink_to(found.locate_file(top))


def run(installed: Path, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [installed / words[0], *words[1:]], cwd=cwd, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_the_wheel_predicts_without_the_pipeline(
    installed: Path, classifier: Path, tmp_path: Path
) -> None:
    done = run(installed, "storyflower", "--version", cwd=tmp_path)
    assert done.stdout == "storyflower 0.1.0\n"
    words = ["predict", "--model", str(classifier), "--json", "합격했어"]
    done = run(installed, "storyflower", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["label"] == "기쁨"

    (tmp_path / "diary.csv").write_text("일기\n따지고 싶어\n", encoding="utf-8")
    files = ["--input", "diary.csv", "--column", "일기", "--output", "out.xlsx"]
    done = run(
        installed, "storyflower", "predict", "--model", str(classifier), *files, cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (0, "out.xlsx: 1 rows\n"), done.stderr
    code = f"""
from storyflower import Classifier
print(Classifier.load({str(classifier)!r}).predict(["심장이 뛰어"])[0].label)
for name in ("dvc", "mlflow", "sklearn", "matplotlib", "pandas"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    print(name, "is there")
"""
    done = run(installed, "python", "-c", code, cwd=tmp_path)
    assert done.stdout == "불안\n", done.stderr


def test_every_package_is_in_the_wheel() -> None:
    """The list in pyproject.toml is written by hand: what it leaves out would not be installed."""
    import tomllib

    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    there = {
        ".".join(file.parent.relative_to(ROOT).parts)
        for file in (ROOT / "storyflower").rglob("__init__.py")
    }
    assert set(listed["tool"]["setuptools"]["packages"]) == there
