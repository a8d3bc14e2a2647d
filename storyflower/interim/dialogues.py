"""The table of dialogues: its columns, and how the later stages read it.

In: the Parquet file that ingest wrote.
Out: its batches or splits, and each row's class.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storyflower.common.errors import InputError, one_line

SPLITS = ("Training", "Validation")
ROWS = 16_384  # read at a time; larger batches are no faster
SCHEMA = pa.schema(
    [
        ("split", pa.string()),  # Training or Validation; all of Training comes first
        ("row", pa.int64()),  # the number in its file: sheet row, csv record or JSON item
        ("text", pa.string()),
        ("label", pa.string()),  # label_column, stripped
        ("fine", pa.string()),  # 감정_소분류, stripped; null where the file has none
        ("file", pa.string()),  # the source: a file, and the sheet if it is a workbook
    ]
)


def batches(path: Path, columns: list[str]) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Yield (split, up to 16,384 of its rows) in the table's order, in bounded memory.

    Raises InputError for a table that is not there or damaged.
    """
    with reading(path):
        file = pq.ParquetFile(path, pre_buffer=False)  # pre_buffer would keep what it has read
        if not file.schema_arrow.equals(SCHEMA):
            raise ValueError("its columns are not those that ingest writes")
        pieces = file.iter_batches(ROWS, columns=["split", *columns])
    while True:
        with reading(path):
            batch = next(pieces, None)
            if batch is None:
                return
            batch.validate(full=True)  # finds text that is not utf-8
        # The rows before `first` are Training, those after Validation.
        first = pc.sum(pc.equal(batch.column("split"), SPLITS[0]), min_count=0).as_py()
        for split, start, stop in ((SPLITS[0], 0, first), (SPLITS[1], first, len(batch))):
            if start < stop:
                yield split, batch.slice(start, stop - start)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise InputError for what pyarrow raises, which is damage."""
    try:
        yield
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{path}: {one_line(error)}; make it again with 'dvc repro'") from None


def texts(path: Path, split: str, every: int = 1) -> Iterator[str]:
    """Texts 0, every, 2 every, … of a split, in the table's order, in bounded memory."""
    seen = 0
    for name, batch in batches(path, ["text"]):
        if name == split:
            yield from batch.column("text").to_pylist()[-seen % every :: every]
            seen += len(batch)


def source(path: Path, split: str) -> str:
    """The files (and sheets) that a split was read from; for messages."""
    files: dict[str, None] = {}
    for name, batch in batches(path, ["file"]):
        if name == split:
            files.update(dict.fromkeys(batch.column("file").unique().to_pylist()))
    return ", ".join(files)


def class_names(rows: pa.Table | pa.RecordBatch, target: str) -> list[str]:
    """The class of every row: its label, or label/감정_소분류 for target "fine".

    고립된 and 혼란스러운 each belong to two majors, so a fine emotion alone is not a class.
    """
    majors = rows.column("label").to_pylist()
    if target == "major":
        return majors
    fines = rows.column("fine").to_pylist()
    return [f"{major}/{fine}" for major, fine in zip(majors, fines, strict=True)]
