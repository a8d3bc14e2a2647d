"""The table of dialogues: its columns, and how the later stages read it.

Enters: the Parquet file that ingest wrote. Leaves: batches or splits of it, and each row's class.
"""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SPLITS = ("Training", "Validation")
SCHEMA = pa.schema(
    [
        ("split", pa.string()),  # Training or Validation; all of Training comes first
        ("row", pa.int64()),  # as the file numbers it: the sheet's row, the csv record, the item
        ("text", pa.string()),
        ("label", pa.string()),  # 감정_대분류, stripped
        ("fine", pa.string()),  # 감정_소분류, stripped; null where the file has none
    ]
)


def batches(path: Path, columns: list[str]) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Yield (split, up to 65,536 rows of it) in the table's order, in bounded memory."""
    for batch in pq.ParquetFile(path).iter_batches(columns=["split", *columns]):
        splits = batch.column("split").to_pylist()
        first = splits.count(SPLITS[0])  # the rows before are Training, those after Validation
        for split, start, stop in ((SPLITS[0], 0, first), (SPLITS[1], first, len(splits))):
            if start < stop:
                yield split, batch.slice(start, stop - start)


def read_split(path: Path, split: str, columns: list[str]) -> pa.Table:
    """One split as a whole, in the table's order."""
    return pq.read_table(path, columns=columns, filters=[("split", "==", split)])


def source(path: Path, split: str) -> str:
    """The file, and sheet, that a split was read from; for messages."""
    return pq.read_schema(path).metadata[split.encode()].decode()


def class_names(rows: pa.Table | pa.RecordBatch, target: str) -> list[str]:
    """The class of every row: 감정_대분류, or 감정_대분류/감정_소분류 for target "fine".

    고립된 and 혼란스러운 stand under two majors each, so a fine emotion alone is no class.
    """
    majors = rows.column("label").to_pylist()
    if target == "major":
        return majors
    fines = rows.column("fine").to_pylist()
    return [f"{major}/{fine}" for major, fine in zip(majors, fines, strict=True)]
