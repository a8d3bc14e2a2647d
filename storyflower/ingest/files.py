"""A corpus folder → the files of each split.

In: a folder in any of AI Hub's layouts, or one with your own tables.
Out: the files of Training and of Validation, each in the order of their names. Files that name
neither split are Training's if no file names one and Validation may be drawn; else they are not
read, which a note says, or refused.
Not supported: a split's name in another language.
"""

import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

from storyflower.common.errors import InputError
from storyflower.common.files import sha256
from storyflower.interim.dialogues import SPLITS
from storyflower.sheets.read import check_readable
from storyflower.sheets.sheet import note

SUFFIXES = (".xlsx", ".csv", ".tsv", ".json", ".jsonl")
# Suffixes of other tables, which a person may believe to be read
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
OTHER_TABLES = (".xls", ".xlsm", ".xlsb", ".ods", ".numbers", ".parquet", ".feather", *COMPRESSED)
ARCHIVES = (".zip", ".7z", ".tar", ".tgz", ".rar")
# Suffixes of what explains a corpus, whatever split its name names
NO_TABLES = (".md", ".ipynb", ".py", ".pdf", ".docx", ".hwp", ".hwpx", ".html", ".log", ".yaml")
NO_TABLES += (".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp", ".doc", ".ppt", ".pptx", ".rtf")
NO_TABLES += (".rst", ".tex", ".htm", ".sh", ".yml", ".toml", ".ini", ".cfg")
# Words in a file's or folder's name by which people set rows aside: not latest, contest, values
SET_ASIDE = re.compile(
    "(?<![a-z])(test|valid|eval|hold.?out|(val|dev)s?(set|data)?(?![a-z]))|검증|테스트|평가|시험"
)


def find_files(
    folder: Path, may_draw: bool = False, fits: Callable[[Path], bool] = lambda _: True
) -> dict[str, list[Path]]:
    """Find the Training and the Validation files in and below a corpus folder.

    A file belongs to the split named in its own name, or else in the nearest parent folder up to
    `folder`. Names are compared in NFC and ignoring case, since unzip on macOS writes NFD. With
    `may_draw`, Validation may have no file, and if no file names a split, all are Training's. A
    file that names none beside others that do is only mentioned if it `fits` the corpus. Raises
    InputError if a split has no file, if a file may be the Validation that is missing, and if one
    file is there twice. Prints a note on tables of a format that is not read.
    """
    # In a locale such as ko_KR.eucKR, Python would not find a name that is utf-8 on the disk, or
    # take it for another one.
    encoding = sys.getfilesystemencoding()
    remedy = f"here file names are read as {encoding}; type 'export PYTHONUTF8=1' first"
    if encoding != "utf-8" and not str(folder).isascii():
        raise InputError(f"{folder}: {remedy}")
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such folder; put the Training and the Validation file there, "
            "or set corpus in params.yaml"
        )
    present = [path.relative_to(folder) for path in files_below(folder)]
    present.sort(key=lambda path: (unicodedata.normalize("NFC", str(path)), path))
    for path in present:
        name = os.fsencode(path).decode("utf-8", "replace")
        if "\ufffd" in name:
            # A cp949 name from a Windows zip; the report and the table cannot store it.
            raise InputError(f"{folder}: the file name {str(path)!a} is not utf-8; rename the file")
        if name != str(path):
            raise InputError(f"{folder / name}: {remedy}")
    tables = {path: splits_named(path) for path in present if path.suffix.lower() in SUFFIXES}
    for path, named in tables.items():
        if len(named) > 1:
            raise InputError(f"{folder / path}: names both splits; give each its own file")
    files = {split: [path for path in tables if split in tables[path]] for split in SPLITS}
    look_at_unread(folder, present, tables)
    others = [path for path, named in tables.items() if not named]
    if files["Training"]:  # then they are not read
        others = [path for path in others if fits(folder / path)]
    if may_draw and not files["Validation"]:
        refuse_set_aside(folder, [*files["Training"], *others])
        if files["Training"] and others:
            raise InputError(
                f"{folder}: no Validation file, and no split is named by {listed(others)}; write "
                "'Training' or 'Validation' into that name, or move the file away"
            )
        if len(others) > 1:
            note(f"{folder}: read as Training, for no name says a split: {listed(others)}")
        files["Training"] = files["Training"] or others
    elif others and all(files.values()):
        note(f"{folder}: not read, for their names say neither split: {listed(others)}")
    for split in SPLITS:
        if not files[split] and not (may_draw and split == "Validation"):
            hint = "; or set validation_share in params.yaml, such as 0.1"
            raise InputError(
                f"{folder}: no {split} file ({', '.join(SUFFIXES)} with {split!r} in its name or "
                f"its folder's); found {listed(present)}{hint * (split == 'Validation')}"
            )
    refuse_twins(folder, files)
    return {split: [folder / path for path in paths] for split, paths in files.items()}


def look_at_unread(folder: Path, present: list[Path], tables: dict[Path, list[str]]) -> None:
    """Print a note on the files beside the tables that may be tables, too, of another format.

    Raises InputError if one of them may be the Validation that is missing, or is DVC's pointer to a
    table that is not here.
    """
    found = {split for named in tables.values() for split in named}
    unpacked = {path.with_suffix("") for path in tables}
    odd = []
    for path in present:
        pointer = path.suffix.lower() == ".dvc"
        named = path.with_suffix("") if pointer else path
        about, suffix = named.with_suffix(""), named.suffix.lower()
        if about.suffix.lower() == ".tar":
            about, suffix = about.with_suffix(""), ".tar"
        # Training.csv.bak is about Training.csv, and Training.zip what it was unpacked from.
        packed = suffix in ARCHIVES or suffix in COMPRESSED
        if named in tables or about in tables or (packed and about in unpacked):
            continue
        if suffix in NO_TABLES or (pointer and holds_a_file(folder / named)):
            continue
        missing = "Validation" not in found and "Validation" in splits_named(named)
        # DVC names a folder's content by a checksum that ends in .dir
        is_folder = pointer and b".dir" in (folder / path).read_bytes()
        if pointer and (missing or is_folder or suffix in SUFFIXES):
            if found.issuperset(SPLITS) and not splits_named(named):
                odd.append(path)
                continue
            raise InputError(
                f"{folder / path}: its data is not here; type 'dvc pull', or remove the .dvc file"
            )
        if not tables:
            continue
        if missing:
            raise InputError(
                f"{folder / path}: names Validation, and only {', '.join(SUFFIXES)} are read; save "
                "it as one of them, rename it or move it away"
            )
        own = splits_named(Path(path.name))
        if suffix in OTHER_TABLES or (own and not (suffix in ARCHIVES and found.issuperset(own))):
            odd.append(path)
    if odd:
        note(f"{folder}: not read, for only {', '.join(SUFFIXES)} are: {listed(odd)}")


def holds_a_file(path: Path) -> bool:
    return path.is_file() or any(inner.is_file() for inner in path.rglob("*"))


def listed(paths: list[Path]) -> str:
    """The first ten paths, and how many more there are."""
    more = f" and {len(paths) - 10} more" * (len(paths) > 10)
    return ", ".join(map(str, paths[:10])) + more or "nothing"


def refuse_set_aside(folder: Path, paths: list[Path]) -> None:
    """Raise InputError if one of several files says that it is not to be trained on."""
    for path in paths:
        if len(paths) > 1 and SET_ASIDE.search(unicodedata.normalize("NFC", str(path)).lower()):
            raise InputError(
                f"{folder / path}: its name says that it is set aside; write 'Validation' into it "
                "and 'Training' into the names of the others, or remove it"
            )


def refuse_twins(folder: Path, files: dict[str, list[Path]]) -> None:
    """Raise InputError if two files, of one split or of both, are equal to the byte."""
    split_of = {path: split for split, paths in files.items() for path in paths}
    by_size: dict[int, list[Path]] = {}
    for path in split_of:
        by_size.setdefault((folder / path).stat().st_size, []).append(path)
    for alike in by_size.values():
        seen: dict[str, Path] = {}
        for path in alike if len(alike) > 1 else ():
            check_readable(folder / path)
            twin = seen.setdefault(sha256(folder / path), path)
            if twin != path:
                both = ", and Validation would be learned by heart"
                raise InputError(
                    f"{folder}: {twin} and {path} are one file twice"
                    f"{both * (split_of[twin] != split_of[path])}; keep one"
                )


def files_below(folder: Path) -> Iterator[Path]:
    """The files in a folder and below it, without hidden files and those that programs left there.

    Links are followed, but no folder is entered twice, so a link to a parent folder cannot cause an
    endless loop. Raises InputError for a link to nothing, for a folder that cannot be opened and
    for a file that macOS has moved to iCloud.
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
            if path.suffix == ".icloud" and path.stem.lower().endswith(SUFFIXES):
                raise InputError(
                    f"{path}: this file is in iCloud only; open the folder in the Finder and "
                    "choose 'Download Now'"
                )
            if name.startswith(("~$", ".")):
                continue
            if not path.exists():
                raise InputError(
                    f"{path}: a link to a file that is not there; bring it back or remove the link"
                )
            if path.is_file():
                yield path


def splits_named(path: Path) -> list[str]:
    """The splits named in a path: those in its last part that names any."""
    for part in reversed(path.parts):
        name = unicodedata.normalize("NFC", part).lower()
        if named := [split for split in SPLITS if split.lower() in name]:
            return named
    return []
