"""An .xlsx file → a sheet.

In: a workbook. It is opened by python-calamine in a process of its own (workbook_child.py), which
may abort or be ended without harm.
Out: the rows of the visible sheet whose header names the wanted columns, numbered as the sheet
numbers them. A formula is what it showed when the file was saved, an error such as #N/A is an
empty cell. Nothing in the file is run or followed: no formula, no macro, no external link.
Not supported: the values of numbers and dates (such a cell only says what it is), .xls, .xlsb.
"""

import json
import signal
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from storyflower.common.errors import InputError, one_line
from storyflower.sheets import workbook_child
from storyflower.sheets.sheet import NoText, Sheet, find_header, header, note

# A hostile file ends within these. 50,000 dialogues need a tenth of each at most.
MAX_UNPACKED = 2**29  # bytes of a workbook's members; a zip bomb has more
MAX_MEMBERS = 10_000
CHUNK = 2**18  # bytes read at a time
MAX_CELL = 2**20  # characters; Excel stops at 32,767
HEADS_SECONDS = 120  # until the child has opened the file
# What zipfile and zlib raise for an archive that is not as it should be
DAMAGE = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    EOFError,
    LookupError,
    ValueError,
    RuntimeError,  # an encrypted member; a compression method that is not known
    OSError,
)
# How the child ends at its limit of seconds, and where the system is out of memory
ENDED_BY_A_LIMIT = (-signal.SIGXCPU, -signal.SIGKILL)
NO_TEXT = NoText("holds a number, date or truth value; write it as text")


@dataclass
class Head:
    """A visible sheet and its first rows, (row number, cells)."""

    name: str
    rows: list[tuple[int, list]]
    wanted: int = 0  # how many of the wanted columns its header names
    header: int = 0  # which of `rows` that is
    names: list[str] = field(default_factory=list)


def open_xlsx(path: Path, wanted: Set[str]) -> Sheet:
    """Open the visible sheet whose header names the `wanted` columns.

    Raises InputError for a file that is no workbook, is encrypted, damaged or too large, and where
    several sheets have all of the columns.
    """
    refuse_other_formats(path)
    check_archive(path)
    child = Child(path)
    heads = [Head(head["name"], head["rows"]) for head in child.heads()]
    if not heads:
        raise InputError(f"{path}: no visible worksheet; unhide the one with the dialogues")
    for head in heads:
        if found := find_header([cells for _, cells in head.rows], wanted):
            head.header, head.names = found
        elif head.rows:
            head.names = header(head.rows[0][1])
        head.wanted = len(wanted.intersection(head.names))
    best = max(heads, key=lambda head: (head.wanted, bool(head.rows)))  # the first of equals
    whole = [head.name for head in heads if head.wanted == len(wanted)]
    if len(whole) > 1:
        raise InputError(
            f"{path}: {len(whole)} sheets with the columns ({', '.join(whole[:10])}); hide or "
            "remove all but one"
        )
    where = f"{path}, sheet {best.name!r}"
    if not best.rows:
        raise InputError(f"{where}: the sheet is empty")
    top = best.rows[best.header][0]
    if best.wanted and best is not heads[0]:
        note(f"{path}: read from sheet {best.name!r}; the {len(heads) - 1} others are not read")
    if best.header:
        note(f"{where}: the header is row {top}; what stands above it is not read")
    rows = child.rows(heads.index(best))
    return Sheet(where, "row", best.names, ((n, cells) for n, cells in rows if n > top))


def refuse_other_formats(path: Path) -> None:
    """Raise InputError when the file's first bytes are not those of an .xlsx."""
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(b"PK\x03\x04"):
        return
    if not head:
        raise InputError(f"{path}: the file is empty")
    if head.startswith(b"\xd0\xcf\x11\xe0"):
        raise InputError(
            f"{path}: an encrypted workbook or an old .xls; save it as .xlsx without a password"
        )
    what = (
        "an HTML page"
        if b"<html" in head.lower() or b"<table" in head.lower()
        else "not a workbook"
    )
    raise InputError(f"{path}: {what}, whatever its name says; save it as .xlsx")


def check_archive(path: Path) -> None:
    """Raise InputError for a zip bomb, a password and damage.

    Each member's checksum is taken: damage inside would else become another text.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            # zipfile reads no more of a member than is declared here.
            if (
                sum(member.file_size for member in members) > MAX_UNPACKED
                or len(members) > MAX_MEMBERS
            ):
                raise InputError(
                    f"{path}: too large (it unpacks to over {MAX_UNPACKED >> 20} MiB); split it, "
                    "or save it as .csv"
                )
            if any(member.flag_bits & 1 for member in members):
                raise InputError(f"{path}: the workbook is encrypted; save it without a password")
            if len({member.filename for member in members}) < len(members):
                raise ValueError("a member stands in it twice")
            for member in members:
                with archive.open(member) as stream:
                    if b"<!DOCTYPE" in stream.read(CHUNK):  # the door to entities
                        raise ValueError("it has a document type, which no workbook has")
                    while stream.read(CHUNK):  # its end compares the checksum
                        pass
    except DAMAGE as error:
        raise damaged(path, error) from None


def damaged(path: Path, reason: object) -> InputError:
    return InputError(
        f"{path}: damaged or truncated workbook ({one_line(reason)}); export it again"
    )


class Child:
    """The process that opens the workbook. It ends with this object, or when it has said all."""

    def __init__(self, path: Path):
        self.path = path
        # -P: the folder of the script, whose modules have common names, is no place for imports.
        self.process = subprocess.Popen(
            [sys.executable, "-P", workbook_child.__file__, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # calamine's messages may quote the file
        )
        self.too_large = False

    def heads(self) -> list[dict]:
        """The visible sheets' names and first rows."""
        clock = threading.Timer(HEADS_SECONDS, self.end_for_size)
        clock.daemon = True
        clock.start()
        if sys.platform == "darwin":
            threading.Thread(target=self.watch_memory, daemon=True).start()
        try:
            return self.next_line()["sheets"]
        finally:
            clock.cancel()

    def rows(self, sheet: int) -> Iterator[tuple[int, list]]:
        """All rows of a sheet, (row number, cells)."""
        try:
            self.process.stdin.write(f"{sheet}\n".encode())
            self.process.stdin.flush()
            while (line := self.next_line()) != "end":
                number, cells = line
                for cell in cells:
                    if cell and len(cell) > MAX_CELL:
                        raise self.too_large_error(f"a cell of over {MAX_CELL:,} characters")
                yield number, [NO_TEXT if cell == 0 else cell for cell in cells]
        finally:
            self.process.kill()
            self.process.communicate()

    def next_line(self) -> object:
        """What the child says next; raises InputError where it has died."""
        try:
            return json.loads(self.process.stdout.readline())
        except ValueError:  # nothing, or the beginning of a line
            code = self.process.wait()
            self.process.communicate()
            if self.too_large or code in ENDED_BY_A_LIMIT:
                raise self.too_large_error("reading it takes too much time or memory") from None
            if code == -signal.SIGABRT:  # what calamine does on damage, and without memory
                reason = "its sheets cannot be read, or take too much memory"
                raise damaged(self.path, reason) from None
            raise damaged(self.path, "its sheets cannot be read") from None

    def too_large_error(self, reason: str) -> InputError:
        return InputError(f"{self.path}: too large ({reason}); split it, or save it as .csv")

    def end_for_size(self) -> None:
        self.too_large = True
        self.process.kill()

    def watch_memory(self) -> None:
        """In the place of the limit that macOS does not set."""
        try:
            child = psutil.Process(self.process.pid)
            while child.memory_info().rss < workbook_child.MEMORY:
                time.sleep(0.05)
            self.end_for_size()
        except psutil.Error:  # it has ended
            return
