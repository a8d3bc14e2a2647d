"""The process that opens a workbook: python workbook_child.py FILE, started by read_xlsx.py.

In: a path; then, on standard input, the number of the sheet that is wanted.
Out: JSON lines on standard output. First the visible sheets, each with its name and its first rows;
then, of the one that is wanted, all rows; then a line that says that it has ended.

A library that reads a format as large as Excel's may abort, hang, or take all memory on a hostile
file. Here it does so in a process of its own, with limits that the system enforces. It imports
nothing of the project, so it starts in milliseconds.
"""

import json
import sys
from collections.abc import Iterator

HEAD_ROWS = 20  # of each sheet, for the choice
MEMORY = 3 << 29  # bytes of address space
CPU_SECONDS = 60


def main() -> None:
    limited = set_limits()
    from python_calamine import CalamineWorkbook, SheetTypeEnum, SheetVisibleEnum

    book = CalamineWorkbook.from_path(sys.argv[1])
    sheets = [
        book.get_sheet_by_name(sheet.name)
        for sheet in book.sheets_metadata
        if sheet.visible == SheetVisibleEnum.Visible and sheet.typ == SheetTypeEnum.WorkSheet
    ]
    heads = [{"name": sheet.name, "rows": list(first(rows_of(sheet)))} for sheet in sheets]
    say({"limited": limited, "sheets": heads})
    wanted = sys.stdin.readline()  # empty where nobody wants one any more
    if wanted:
        for row in rows_of(sheets[int(wanted)]):
            say(row)
        say("end")


def set_limits() -> bool:
    """Let the system end this process when it takes too much; whether memory is limited, too."""
    import resource

    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    except (ValueError, OSError):  # macOS
        return False
    return True


def rows_of(sheet: object) -> Iterator[tuple[int, list]]:
    """(row number from 1, cells from column A) of the rows that hold anything.

    A cell is its text, "" when it is empty or holds an error such as #N/A, and 0 for anything else:
    what stands there is not passed on.
    """
    if sheet.start is None:
        return
    before = [""] * sheet.start[1]
    for number, cells in enumerate(sheet.iter_rows(), start=1):
        cells = [cell if type(cell) is str else 0 for cell in cells]
        while cells and cells[-1] == "":
            cells.pop()
        if cells:
            yield number, before + cells


def first(rows: Iterator[tuple[int, list]]) -> Iterator[tuple[int, list]]:
    for _, row in zip(range(HEAD_ROWS), rows, strict=False):
        yield row


def say(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    if not isinstance(value, tuple):
        sys.stdout.flush()


if __name__ == "__main__":
    main()
