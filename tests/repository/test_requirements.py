"""requirements.txt: every package that the project gets stands there, and at one version."""

import ast
import json
import re
import sys
import tomllib
from importlib.metadata import distribution, packages_distributions
from itertools import chain

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support import ROOT

# Extras that the shared environment does not have, and their pins beside requirements.txt
APART = {"onnx": "requirements-onnx.txt", "spark": "requirements-spark.txt"}
PLATFORMS = {
    "Linux x86-64": ("linux", "Linux", "x86_64"),
    "Linux arm64": ("linux", "Linux", "aarch64"),
    "macOS arm64": ("darwin", "Darwin", "arm64"),
}


def read(name: str) -> list[Requirement]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    stated = [re.split(r"(?:^|\s)#", line)[0].strip() for line in lines]
    return [Requirement(line) for line in stated if line]


def declared(*apart: str) -> list[Requirement]:
    """What pyproject.toml asks for, extras included; of those in APART, only the ones named."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    chosen = [lines for name, lines in extras.items() if name in apart or name not in APART]
    return [Requirement(line) for line in chain(project["dependencies"], *chosen)]


def environment(platform: str, python: str) -> dict[str, str]:
    system, name, machine = PLATFORMS[platform]
    return {
        **default_environment(),
        "sys_platform": system,
        "platform_system": name,
        "platform_machine": machine,
        "python_version": python,
        "python_full_version": f"{python}.9",
        "extra": "",
    }


def pins(where: dict[str, str]) -> dict[str, Requirement]:
    """What pip would take there, by name."""
    taken = [
        pin for pin in read("requirements.txt") if pin.marker is None or pin.marker.evaluate(where)
    ]
    result = {canonicalize_name(pin.name): pin for pin in taken}
    assert len(result) == len(taken)  # no package twice
    return result


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-cuda.txt", *APART.values()])
def test_every_line_pins_one_version(name: str) -> None:
    for pin in read(name):
        (version,) = pin.specifier
        assert version.operator == "==" and "*" not in version.version, str(pin)
        assert not pin.url and not pin.extras, str(pin)
        # Such as +cpu, which the package index does not have.
        assert "+" not in version.version, str(pin)


def test_what_is_asked_for_is_pinned() -> None:
    pinned = pins(environment("Linux x86-64", "3.11"))
    assert str(pinned["torch"].specifier) == "==2.13.0"
    for asked in declared():
        (version,) = pinned[canonicalize_name(asked.name)].specifier
        assert asked.specifier.contains(version.version), str(asked)


@pytest.mark.parametrize("extra", APART)
def test_an_extra_apart_is_pinned_apart(extra: str) -> None:
    shared = pins(environment("Linux x86-64", "3.11"))
    apart = {canonicalize_name(pin.name): pin for pin in read(APART[extra])}
    assert not shared.keys() & apart.keys()  # installing it changes nothing that is pinned
    asked = [each for each in declared(extra) if each not in declared()]
    assert asked
    for each in asked:
        (version,) = apart[canonicalize_name(each.name)].specifier
        assert each.specifier.contains(version.version), str(each)


@pytest.mark.parametrize("python", ["3.11", "3.12"])
@pytest.mark.parametrize("platform", PLATFORMS)
def test_what_a_pinned_package_needs_is_pinned(platform: str, python: str) -> None:
    """By what the installed packages say of themselves; torch's CPU wheels need no CUDA."""
    where = environment(platform, python)
    pinned = pins(where)
    cuda = {canonicalize_name(pin.name): pin for pin in read("requirements-cuda.txt")}
    waiting = [(pin.name, "") for pin in declared()]
    found: set[tuple[str, str]] = set()
    while waiting:
        name, extra = here = waiting.pop()
        if here in found:
            continue
        found.add(here)
        if name == "appnope":  # macOS alone gets it, so it cannot be read here; it needs nothing
            continue
        for line in distribution(name).requires or []:
            need = Requirement(line)
            if need.marker and not need.marker.evaluate({**where, "extra": extra}):
                continue
            if canonicalize_name(need.name) in cuda:
                continue
            (version,) = pinned[canonicalize_name(need.name)].specifier
            assert need.specifier.contains(version.version, prereleases=True), f"{name}: {line}"
            waiting += [(need.name, each) for each in ("", *need.extras)]
    assert len(found) > 100


def test_torch_can_be_left_to_the_machine() -> None:
    """What the Colab notebook does: it takes all but torch, whose line alone begins so."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split()[0] for line in lines if line.startswith("torch==")] == ["torch==2.13.0"]
    notebook = json.loads((ROOT / "notebooks/colab.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"]]
    assert any('grep -v "^torch==" requirements.txt' in cell for cell in cells)


def test_whatever_is_imported_is_declared() -> None:
    names = {canonicalize_name(requirement.name) for requirement in declared(*APART)}
    owners = packages_distributions()
    # kobert, gluonnlp and mxnet are the originals, which the tests meet in an environment apart.
    own = {
        "storyflower",
        "stages",
        "pretrain",
        "benchmarks",
        "tests",
        "docs",
        "kobert",
        "gluonnlp",
        "mxnet",
    }
    undeclared = set()
    for folder in ("storyflower", "stages", "pretrain", "benchmarks", "tests", "docs"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                modules = []
                if isinstance(node, ast.Import):
                    modules = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.module:
                    modules = [node.module]
                for module in {name.split(".")[0] for name in modules} - own:
                    if module in sys.stdlib_module_names:
                        continue
                    found = {canonicalize_name(name) for name in owners.get(module, [module])}
                    if not found & names:
                        undeclared.add(f"{file.relative_to(ROOT)}: {module}")
    assert undeclared == set()
