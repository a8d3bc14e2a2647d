"""Small files that people or stages read: YAML mappings in, JSON out."""

import json
import os
from pathlib import Path
from typing import Any

import yaml

from storyflower.errors import InputError


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


def write_json(document: Any, path: Path) -> None:
    """Write JSON for people and programs; a reader sees the old file or the new, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    text = json.dumps(document, ensure_ascii=False, indent=2)
    partial.write_text(text + "\n", encoding="utf-8")
    os.replace(partial, path)
