"""Read YAML and JSON, write JSON, hash files, and replace any output as a whole.

Every output goes through `replacing`, so it appears whole or not at all. A full disk or a missing
permission gives a one-line error that names the output.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from storyflower.common.errors import InputError, disk_fault, one_line, path_of


def read_yaml(path: Path, if_missing: str) -> dict[str, Any]:
    """The mapping in a YAML file, read without the tags that create Python objects.

    Raises InputError for anything else. `if_missing` tells the user what to do if there is no file.
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
    """Yield a function: output path → temporary path beside it, for a file or a folder.

    If the block succeeds, each temporary path replaces its output. If not, the outputs stay as they
    were and the temporary paths are removed. Raises InputError if the system refuses to write; if
    the system's error names no file, it names the output that was requested last.
    """
    partials: dict[Path, Path] = {}  # output → temporary path beside it

    def beside(output: Path) -> Path:
        partials[output] = output.with_name(f"{output.name}.part")
        output.parent.mkdir(parents=True, exist_ok=True)
        remove(partials[output])
        return partials[output]

    try:
        yield beside
        for output, partial in partials.items():
            if partial.is_dir():
                remove(output)  # os.replace cannot replace an existing folder
            os.replace(partial, output)
    except Exception as error:
        if (reason := disk_fault(error)) is None:
            raise
        named = where = path_of(error)  # None for a failed write; a failed open names its file
        for output, partial in partials.items():
            if named is None or Path(named).is_relative_to(partial) or Path(named) == output:
                where = f"cannot write {output}"
        raise InputError(f"{where}: {reason}") from None
    finally:
        for partial in partials.values():
            with suppress(OSError):
                remove(partial)


def remove(path: Path) -> None:
    """Remove a file, or a folder and everything in it; does nothing if the path does not exist."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(document: Any, path: Path) -> None:
    """Write indented JSON. A reader sees the old file or the new one, never a partial file."""
    with replacing() as beside:
        beside(path).write_text(json_text(document), encoding="utf-8")


def json_text(document: Any) -> str:
    return json.dumps(document, ensure_ascii=False, indent=2) + "\n"


def sha256(path: Path) -> str:
    """The sha256 of a file's bytes, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """sha256 of each named file; "missing" if it does not exist."""
    return {
        name: sha256(folder / name) if (folder / name).is_file() else "missing" for name in names
    }


def read_json(file: Path, missing: Any = None) -> Any:
    """A JSON file's content, or `missing` if there is no file. Raises InputError."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if missing is not None:
            return missing
        raise InputError(f"{file}: not found") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not readable as JSON: {one_line(error)}") from None
