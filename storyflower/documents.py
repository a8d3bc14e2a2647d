"""Files that people or stages read: YAML mappings in, JSON out, and how any output is written.

Every output goes through `replacing`, so it appears whole or not at all, and a full disk or a
missing permission ends in one line that names it.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from storyflower.errors import InputError, disk_fault, path_of


def read_yaml(path: Path, if_missing: str) -> dict[str, Any]:
    """A YAML file's mapping, without tags that make objects.

    Raises InputError for anything else; `if_missing` says what to do when there is no file.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: not found; {if_missing}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not utf-8, or 2024-13-01
        raise InputError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise InputError(f"{path}: expected 'key: value' lines")
    return raw


@contextmanager
def replacing(*targets: Path) -> Iterator[tuple[Path, ...]]:
    """Yield a path beside each target, to write a file or a folder to, in this order.

    When the block ends well, each takes its target's place; else the targets stay as they were and
    nothing is left beside them. Raises InputError, which names the target, when the system refuses
    to write.
    """
    partials = tuple(target.with_name(f"{target.name}.part") for target in targets)
    try:
        for target, partial in zip(targets, partials, strict=True):
            target.parent.mkdir(parents=True, exist_ok=True)
            remove(partial)
        yield partials
        for target, partial in zip(targets, partials, strict=True):
            if partial.is_dir():
                remove(target)  # a folder cannot be renamed to one that is there
            os.replace(partial, target)
    except Exception as error:
        if (reason := disk_fault(error)) is None:
            raise
        said, place = path_of(error), None
        for target, partial in zip(targets, partials, strict=True):
            # A write does not say to which file; it is the one that was begun last.
            if partial.exists() if said is None else is_below(said, partial, target):
                place = f"cannot write {target}"
        raise InputError(f"{place or said or targets[0]}: {reason}") from None
    finally:
        for partial in partials:
            with suppress(OSError):
                remove(partial)


def is_below(path: str, *places: Path) -> bool:
    return any(Path(path).is_relative_to(place) for place in places)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it; nothing there is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(document: Any, path: Path) -> None:
    """Write JSON for people and programs; a reader sees the old file or the new, never half."""
    with replacing(path) as (partial,):
        partial.write_text(json_text(document), encoding="utf-8")


def json_text(document: Any) -> str:
    return json.dumps(document, ensure_ascii=False, indent=2) + "\n"
