"""A corpus folder → the files of each split.

In: a folder in any of AI Hub's layouts, or one with your own tables.
Out: the files of Training and of Validation, each in the order of their names. Files that name
neither split are Training's if no file names one.
Not supported: a split's name in another language.
"""

import os
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from storyflower.common.errors import InputError
from storyflower.common.files import sha256
from storyflower.interim.dialogues import SPLITS
from storyflower.sheets.read import check_readable
from storyflower.sheets.sheet import note

SUFFIXES = (".xlsx", ".csv", ".tsv", ".json", ".jsonl")
# Words in a file's or folder's name by which people set rows aside
SET_ASIDE = re.compile("(?<![a-z])(test|valid|val|dev|eval)(?![a-z])|검증|테스트")


def find_files(folder: Path, may_draw: bool = False) -> dict[str, list[Path]]:
    """Find the Training and the Validation files in and below a corpus folder.

    A file belongs to the split named in its own name, or else in the nearest parent folder up to
    `folder`. Names are compared in NFC and ignoring case, since unzip on macOS writes NFD. With
    `may_draw`, Validation may have no file, and if no file names a split, all are Training's.
    Raises InputError if a split has no file, or one file twice.
    """
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such folder; put the Training and the Validation file there, "
            "or set corpus in params.yaml"
        )
    present = [path.relative_to(folder) for path in files_below(folder)]
    present.sort(key=lambda path: (unicodedata.normalize("NFC", str(path)), path))
    for path in present:
        if "\ufffd" in os.fsencode(path).decode("utf-8", "replace"):
            # A cp949 name from a Windows zip; the report and the table cannot store it.
            raise InputError(f"{folder}: the file name {str(path)!a} is not utf-8; rename the file")
    tables = {path: splits_named(path) for path in present if path.suffix.lower() in SUFFIXES}
    for path, named in tables.items():
        if len(named) > 1:
            raise InputError(f"{folder / path}: names both splits; give each its own file")
    files = {split: [path for path in tables if split in tables[path]] for split in SPLITS}
    if may_draw and not files["Validation"]:
        others = [path for path, named in tables.items() if not named]
        refuse_set_aside(folder, [*files["Training"], *others])
        if not files["Training"]:
            files["Training"] = others
        elif others:
            names = ", ".join(map(str, others[:10]))
            note(f"{folder}: not read, for their names say neither split: {names}")
    for split in SPLITS:
        if not files[split] and not (may_draw and split == "Validation"):
            names = ", ".join(map(str, present[:10])) or "nothing"
            hint = "; or set validation_share in params.yaml, such as 0.1"
            raise InputError(
                f"{folder}: no {split} file ({', '.join(SUFFIXES)} with {split!r} in its name or "
                f"its folder's); found {names}{hint * (split == 'Validation')}"
            )
        refuse_twins(folder, files[split])
    return {split: [folder / path for path in paths] for split, paths in files.items()}


def refuse_set_aside(folder: Path, paths: list[Path]) -> None:
    """Raise InputError if one of several files says that it is not to be trained on."""
    for path in paths:
        if len(paths) > 1 and SET_ASIDE.search(unicodedata.normalize("NFC", str(path)).lower()):
            raise InputError(
                f"{folder / path}: its name says that it is set aside; write 'Validation' into it "
                "and 'Training' into the names of the others, or remove it"
            )


def refuse_twins(folder: Path, paths: list[Path]) -> None:
    """Raise InputError if two files of a split are equal to the byte."""
    by_size: dict[int, list[Path]] = {}
    for path in paths:
        by_size.setdefault((folder / path).stat().st_size, []).append(path)
    for alike in by_size.values():
        seen: dict[str, Path] = {}
        for path in alike if len(alike) > 1 else ():
            check_readable(folder / path)
            twin = seen.setdefault(sha256(folder / path), path)
            if twin != path:
                raise InputError(f"{folder}: {twin} and {path} are one file twice; keep one")


def files_below(folder: Path) -> Iterator[Path]:
    """The files in a folder and below it, without hidden files and those that programs left there.

    Links are followed, but no folder is entered twice, so a link to a parent folder cannot cause an
    endless loop. Raises InputError for a folder that the system refuses to open.
    """

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})")

    entered = set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in entered:
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        # macOS adds "__MACOSX" and "._" to zips; "~$" is Excel's lock file of an open workbook.
        folders[:] = sorted(name for name in folders if name[0] != "." and name != "__MACOSX")
        for name in names:
            path = Path(parent, name)
            if not name.startswith(("~$", ".")) and path.is_file():
                yield path


def splits_named(path: Path) -> list[str]:
    """The splits named in a path: those in its last part that names any."""
    for part in reversed(path.parts):
        name = unicodedata.normalize("NFC", part).lower()
        if named := [split for split in SPLITS if split.lower() in name]:
            return named
    return []
