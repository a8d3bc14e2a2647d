"""Records of files that hold more than they seem to."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from storyflower.sheets.records import open_records
from storyflower.sheets.write import write_batches


def test_a_long_text_that_a_parquet_file_repeats(tmp_path: Path) -> None:
    """The file holds it once, the memory as often as a piece of the file has rows."""
    path, rows = tmp_path / "a.parquet", 4096
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), ["가" * 30_000])
    pq.write_table(pa.table({"일기": repeated}), path, store_schema=False)
    assert path.stat().st_size < 2**16
    sizes = [(len(batch), batch.nbytes) for batch in open_records(path, "일기").batches()]
    assert sum(count for count, _ in sizes) == rows
    assert max(size for _, size in sizes) < 2**26


def test_a_copy_has_no_more_row_groups_than_it_needs(tmp_path: Path) -> None:
    path, copy = tmp_path / "a.parquet", tmp_path / "b.parquet"
    pq.write_table(pa.table({"일기": ["글"] * 40_000}), path)
    records = open_records(path, "일기")
    write_batches(copy, records.schema, records.batches())
    assert pq.ParquetFile(copy).num_row_groups == 3
    assert pq.read_table(copy).equals(pq.read_table(path))
