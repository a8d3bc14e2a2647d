"""Writes data/sample from the pieces: two workbooks in AI Hub's header, and situations.csv.

    python data/writers/build.py            # or another folder as the argument

Rows stand in the order of writers and pieces, as written. As in the real files a few labels end in
a blank. The same pieces give the same bytes.
"""

import csv
import sys
from datetime import datetime
from pathlib import Path

import xlsxwriter
from check import read_lines

HERE = Path(__file__).resolve().parent
SAMPLE = HERE.parent / "sample"
HEADER = (
    *("연령", "성별", "상황키워드", "신체질환", "감정_대분류", "감정_소분류"),
    *("사람문장1", "시스템문장1", "사람문장2", "시스템문장2", "사람문장3", "시스템문장3"),
)
BLANK_AFTER = 200  # every 200th label ends in a blank


def rows_of(split: str) -> list[dict]:
    """Each dialogue with its plan, in the order of the pieces."""
    rows = []
    for piece in sorted(HERE.glob("pieces/*.jsonl")):
        plan = {row["id"]: row for row in read_lines(HERE / "plan" / piece.name)}
        for row in read_lines(piece):
            if plan[row["id"]]["split"] == split:
                # "turns": the plan's is their number, the piece's their texts
                rows.append({**plan[row["id"]], **row})
    return rows


def cells_of(row: dict, number: int) -> list[str | int]:
    blank = " " * (number % BLANK_AFTER == 0)
    ill = row["age"] in ("장년", "노년") and number % 3 == 0
    turns = zip(row["turns"], row["replies"], strict=True)
    return [
        number,
        *(row["age"], row["sex"], row["keyword"], "만성질환 유" if ill else "해당없음"),
        *(row["major"] + blank, row["fine"]),
        *(cell for turn in turns for cell in turn),
    ]


def main() -> None:
    folder = Path(sys.argv[1]) if sys.argv[1:] else SAMPLE
    listed = []
    for split in ("Training", "Validation"):
        rows = rows_of(split)
        path = folder / f"감성대화_표본_{split}.xlsx"
        with xlsxwriter.Workbook(
            path, {"strings_to_formulas": False, "strings_to_urls": False}
        ) as book:
            book.set_properties({"created": datetime(2026, 1, 1)})
            sheet = book.add_worksheet("Sheet1")
            sheet.write_row(0, 1, HEADER)
            for number, row in enumerate(rows, start=1):
                sheet.write_row(number, 0, cells_of(row, number))
                # As the sheet numbers them
                listed.append([split, number + 1, row["writer"], row["situation"]])
        print(f"{path.name}: {len(rows)} rows")
    with (folder / "situations.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["split", "row", "작가", "situation"])
        writer.writerows(listed)


if __name__ == "__main__":
    main()
