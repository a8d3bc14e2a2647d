"""Files that people or stages read: YAML and JSON in, JSON out, and how any output is written.

Every output goes through `replacing`, so it appears whole or not at all, and a full disk or a
missing permission ends in one line that names it.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from storyflower.common.errors import InputError, disk_fault, one_line, path_of


def read_yaml(path: Path, if_missing: str) -> dict[str, Any]:
    """A YAML file's mapping, without tags that make objects.

    Raises InputError for anything else; `if_missing` says what to do when there is no file.
    """
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, yaml.SafeLoader)
        raw = yaml.safe_load(text)
    except FileNotFoundError:
        raise InputError(f"{path}: not found; {if_missing}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: 2024-13-01
        raise InputError(f"{path}: not readable as YAML: {one_line(error)}") from None
    if not isinstance(raw, dict):
        raise InputError(f"{path}: expected 'key: value' lines")
    keys = [key.value for key, _ in root.value]
    for key in keys:
        if keys.count(key) > 1:  # yaml would take the last one
            raise InputError(f"{path}: key {key!r} is there {keys.count(key)} times; keep one")
    return raw


@contextmanager
def replacing() -> Iterator[Callable[[Path], Path]]:
    """Yield a function that gives, for an output, a path beside it to write a file or a folder to.

    When the block ends well, each takes its output's place; else the outputs stay as they were and
    nothing is left beside them. Raises InputError when the system refuses to write; it names the
    output that was asked for last.
    """
    partials: dict[Path, Path] = {}  # output → what is written beside it

    def beside(output: Path) -> Path:
        partials[output] = output.with_name(f"{output.name}.part")
        output.parent.mkdir(parents=True, exist_ok=True)
        remove(partials[output])
        return partials[output]

    try:
        yield beside
        for output, partial in partials.items():
            if partial.is_dir():
                remove(output)  # a folder cannot be renamed to one that is there
            os.replace(partial, output)
    except Exception as error:
        if (reason := disk_fault(error)) is None:
            raise
        named = where = path_of(error)  # a refused write names no file, a refused open does
        for output, partial in partials.items():
            if named is None or Path(named).is_relative_to(partial) or Path(named) == output:
                where = f"cannot write {output}"
        raise InputError(f"{where}: {reason}") from None
    finally:
        for partial in partials.values():
            with suppress(OSError):
                remove(partial)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it; nothing there is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(document: Any, path: Path) -> None:
    """Write JSON for people and programs; a reader sees the old file or the new, never half."""
    with replacing() as beside:
        beside(path).write_text(json_text(document), encoding="utf-8")


def json_text(document: Any) -> str:
    return json.dumps(document, ensure_ascii=False, indent=2) + "\n"


def read_json(file: Path, missing: Any = None) -> Any:
    """A JSON file's content, or `missing` where there is no file; raises InputError."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if missing is not None:
            return missing
        raise InputError(f"{file}: not found") from None
    except ValueError as error:
        raise InputError(f"{file}: not readable as JSON: {one_line(error)}") from None
