"""Rate and memory of a file in, a file out.

    make repro && python -m benchmarks.files --rows 1000000

In: a classifier's folder, a number of rows and formats.
Out: for each format, a line with the rows a second, start included, and the most memory of the
process. The rows are texts of the sample corpus, over and over, each with its number behind it.
"""

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from storyflower.common.errors import InputError, exit_with_line
from storyflower.sheets.records import open_records
from storyflower.sheets.write import record_batches, write_batches, write_rows

ROOT = Path(__file__).parents[1]
COLUMNS = ["번호", "일기"]
FORMATS = ["csv", "jsonl", "parquet"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, default=Path("models/classifier"))
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--formats", choices=FORMATS, nargs="+", default=FORMATS)
    options = parser.parse_args()
    for form in options.formats:
        with tempfile.TemporaryDirectory(prefix="storyflower-files-") as work:
            measure(options.model, Path(work, f"in.{form}"), options.rows)


def measure(model: Path, source: Path, count: int) -> None:
    """Score a file of `count` rows and print its line. Raises InputError if that fails."""
    if source.suffix == ".parquet":
        schema = pa.schema([(name, pa.string()) for name in COLUMNS])
        write_batches(source, schema, record_batches(schema, rows(count)))
    else:
        write_rows(source, COLUMNS, rows(count))
    files = ["--input", source, "--output", source.with_stem("out"), "--column", COLUMNS[1]]
    words = [sys.executable, "-m", "storyflower", "predict", "--model", model, *files]
    started = time.perf_counter()
    child = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - started
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise InputError(f"{source.name}: predict ended with {child.returncode}")
    memory = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    print(
        f"{source.suffix[1:]}: {count:,} rows, {source.stat().st_size / 1e6:,.1f} MB, in "
        f"{seconds:,.0f} s, {count / seconds:,.0f} rows/s, at most {memory:,.0f} MiB",
        flush=True,
    )


def rows(count: int) -> Iterator[tuple[str, str]]:
    """`count` numbered texts."""
    (source,) = (ROOT / "data/sample").glob("*Training.xlsx")
    texts = [text for _, text in open_records(source, "사람문장1").texts()]
    for number, text in zip(range(count), itertools.cycle(texts), strict=False):
        yield str(number), f"{text} {number}"


if __name__ == "__main__":
    exit_with_line(main)
