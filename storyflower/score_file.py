"""A file in, a file out: the feeling of every record of a .xlsx, .csv, .jsonl or .parquet.

In: a classifier's folder, a file, and the name of the column that holds the texts.
Out: the same records in the same order with their own columns, and behind them the label and the
probability of every class. A file of any length needs the same memory (a workbook: see
sheets/read_xlsx.py).

The input is read three times: to find what is wrong with it, to score it, to write the output. What
is scored is kept in parts beside the output, so that a run that was stopped goes on there. Parts
hold labels and probabilities, never a text.
"""

import ctypes
import itertools
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from storyflower import __version__
from storyflower.common import locks
from storyflower.common.errors import InputError, disk_fault
from storyflower.common.files import read_json, remove, replacing, sha256, write_json
from storyflower.model.folder import digest
from storyflower.predict import MOSTLY, Classifier, check_share, text_column
from storyflower.sheets import sheet, write
from storyflower.sheets.records import KINDS, Parquet, Records, Spreadsheet, open_records

# Limits on how much of a file is in memory at a time, and so of a part: rows, roughly characters
BATCH, BATCH_TEXT = 4096, 2**24
NAMED = 10  # rows that a note lists
MAX_NAME = 255  # bytes of a file's name


@dataclass
class Scored:
    """What became of a file's rows."""

    rows: int = 0
    unknown: int = 0  # mostly [UNK]
    first_unknown: list[int] = field(default_factory=list)  # the first ten of these, by number


def score_file(
    *,
    folder: Path,
    source: Path,
    column: str | None,
    output: Path,
    unsure_below: float = 0.0,
    precision: str = "fp32",
) -> Scored:
    """Score one column of a file; write all its columns, `label` and `p(class)` of each class.

    `column` None is the first that the classifier was trained on.
    A row whose text says nothing gets neither. A text longer than the model's max_len is read
    whole, as Classifier.read does. Prints notes on standard error, and a progress bar if that is a
    terminal. Raises InputError for bad input before anything is scored; the old output then stays.
    """
    check_share(unsure_below)
    check_paths(source, output)
    stamp = stamp_of(source)
    column = column or text_column(folder)
    records = open_records(source, column)
    if isinstance(records, Parquet) and output.suffix.lower() != ".parquet":
        records.check_types()
    classifier = Classifier.load(folder, precision=precision)
    added = free_names(records.names, ["label", *(f"p({name})" for name in classifier.labels)])
    names, preview, blank = survey(records, output, added)
    note_survey(names, preview, blank)
    options = [column, unsure_below, precision, __version__, BATCH, BATCH_TEXT]
    run = {"input": sha256(source), "classifier": digest(folder), "options": options}
    parts = Parts(output, len(classifier.labels), run)

    def unchanged() -> None:
        if stamp_of(source) != stamp:
            parts.finish()  # some may be of the changed file
            raise InputError(f"{source}: was changed while it was read; run it again")

    with parts.held():
        score(classifier, records, parts, preview.rows, unsure_below)
        scored = Scored(preview.rows)
        join(
            records=records,
            names=names,
            preview=preview,
            answers=bar(parts.answers(scored), "writing", preview.rows),
            added=added,
            scratch=parts.folder,
            unchanged=unchanged,
        )
        parts.finish()
    return scored


def check_paths(source: Path, output: Path) -> None:
    """Raise InputError for names that cannot be the input and the output of one run."""
    for path in (source, output):
        if path.suffix.lower() not in KINDS:
            raise InputError(
                f"{path}: --input and --output are .xlsx, .csv, .jsonl or .parquet files"
            )
    if not output.parent.is_dir():
        raise InputError(f"{output.parent}: no such folder")
    if source.exists() and not source.is_file():
        raise InputError(f"{source}: is no regular file; the input is read more than once")
    if output.is_dir():
        raise InputError(f"{output}: is a folder; choose another name for the output")
    if output.exists() and source.exists() and output.samefile(source):
        raise InputError(f"{output}: is the input; choose another name for the output")
    if len(os.fsencode(parts_folder(output).name)) > MAX_NAME:
        raise InputError(f"{output}: the name is too long; choose a shorter one")


def free_names(taken: Sequence[str], names: list[str]) -> list[str]:
    """The names of the added columns; all of them with _2, _3 … behind if the file has one."""
    known = set(sheet.header(list(taken)))
    for suffix in itertools.chain([""], (f"_{number}" for number in itertools.count(2))):
        made = [name + suffix for name in names]
        if not known.intersection(made):
            if suffix:
                sheet.note(f"the input has such columns already: the added ones end in {suffix}")
            return made


def survey(
    records: Records, output: Path, added: Sequence[str]
) -> tuple[list[str], write.Preview, int]:
    """Read the whole file once, so that no error comes after hours of work.

    Returns the columns' names as the output has them, what writing will meet, and how many rows
    have no text. Raises InputError for the first broken row, and for cells that should hold text
    and do not, together.
    """
    preview = write.Preview(output, records.names, len(added))
    blank, no_text = 0, sheet.NoTextCells()
    if copies_columns(records, output):
        for number, text in bar(records.texts(decode_all=True), "reading", records.count):
            preview.rows = number
            blank += sheet.says_nothing(text)
    else:
        total = records.count if isinstance(records, Parquet) else None
        for number, cells in bar(records.rows(), "reading", total):
            preview.add(cells)
            try:
                blank += sheet.says_nothing(records.text(number, cells))
            except sheet.NoTextError as error:
                no_text.add(error)
        no_text.raise_any()
    return names_for(records, preview.width, output), preview, blank


def names_for(records: Records, width: int, output: Path) -> list[str]:
    """The names of `width` columns, as the output can have them. Raises InputError for twins."""
    names = records.names + [""] * (width - len(records.names))
    if output.suffix.lower() not in (".jsonl", ".parquet") or copies_columns(records, output):
        return names
    letters = [sheet.column_letters(index) for index in range(width)]
    if isinstance(records, Spreadsheet):
        names = [name or f"column {at}" for name, at in zip(names, letters, strict=True)]
    for name in names:
        same = [at for at, other in zip(letters, names, strict=True) if other == name]
        if len(same) > 1:
            raise InputError(
                f"{records.where}: columns {' and '.join(same)} have the same name, which a "
                f"{output.suffix.lower()} cannot hold; rename one"
            )
    return names


def copies_columns(records: Records, output: Path) -> bool:
    """Whether columns go from Parquet to Parquet as they are, whatever their types."""
    return isinstance(records, Parquet) and output.suffix.lower() == ".parquet"


def note_survey(names: Sequence[str], preview: write.Preview, blank: int) -> None:
    """Say how many rows have no text, and in which columns the output's cells are changed."""
    if blank:
        rows = "row has" if blank == 1 else "rows have"
        sheet.note(f"{blank:,} {rows} no text; label and probabilities stay empty there")
    if count := preview.guarded.total():
        shown = [
            f"{sheet.folded(names[index])[:40] or sheet.column_letters(index)} ({cells:,})"
            for index, cells in sorted(preview.guarded.items())
        ]
        more = f" and {len(shown) - NAMED} more columns" * (len(shown) > NAMED)
        sheet.note(
            f"{preview.path}: an apostrophe before {count:,} cell{'s' * (count > 1)} that a "
            f"spreadsheet would run as a formula, in {', '.join(shown[:NAMED])}{more}"
        )


def bar(rows: Iterable, what: str, total: int | None = None) -> Iterator:
    """The rows, with a progress bar if standard error is a terminal."""
    return iter(tqdm(rows, what, total, unit="row", leave=False, disable=None))


def score(
    classifier: Classifier, records: Records, parts: "Parts", rows: int, unsure_below: float
) -> None:
    """Score the chunks of a file that have no part yet."""
    done = sum(parts.sizes.values())
    if done:
        sheet.note(f"going on: {done:,} of {rows:,} rows are scored already")
    chunks = write.groups(records.texts(), (BATCH, BATCH_TEXT), lambda row: (1, len(row[1])))
    with tqdm(None, "scoring", rows, initial=done, unit="row", disable=None) as shown:
        for number, chunk in enumerate(chunks):
            if parts.sizes.get(number) != len(chunk):
                parts.write(number, answers_of(classifier, chunk, unsure_below))
                shown.update(len(chunk))
                give_back_freed()


def give_back_freed() -> None:
    """Give the memory that is free back to the system, where that is glibc's.

    It keeps what torch frees, in pieces that do not fit the next chunk: over a million rows the
    process grew to twice its size.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def answers_of(
    classifier: Classifier, chunk: Sequence[tuple[int, str]], unsure_below: float
) -> pa.Table:
    """One row for each of a chunk: its number, label, probabilities, whether it is mostly [UNK].

    Label and probabilities are null where a text says nothing.
    """
    texts = [text for _, text in chunk if not sheet.says_nothing(text)]
    predictions, shares = classifier.predict_whole(texts, unsure_below)
    answers = zip(predictions, shares.tolist(), strict=True)
    rows = []
    for number, text in chunk:
        if sheet.says_nothing(text):
            rows.append([number, False, None] + [None] * len(classifier.labels))
            continue
        answer, share = next(answers)
        shown = [answer.probabilities[name] for name in classifier.labels]
        rows.append([number, share >= MOSTLY, answer.label, *shown])
    schema = part_schema(len(classifier.labels))
    return pa.table(list(map(pa.array, zip(*rows, strict=True), schema.types)), schema=schema)


def part_schema(classes: int) -> pa.Schema:
    shares = [(f"p{index}", pa.float64()) for index in range(classes)]
    known = [("number", pa.int64()), ("unknown", pa.bool_()), ("label", pa.string())]
    return pa.schema(known + shares)


def join(
    *,
    records: Records,
    names: list[str],
    preview: write.Preview,
    answers: Iterator[list],
    added: Sequence[str],
    scratch: Path,
    unchanged: Callable[[], None],
) -> None:
    """Write the output: the file's own columns, and `answers` behind them.

    `unchanged`, which raises if the file is another by now, is called before the output gets its
    name.
    """
    output = preview.path
    schema = pa.schema([(added[0], pa.string()), *((name, pa.float64()) for name in added[1:])])

    def rows() -> Iterator[list]:
        for (_, cells), answer in zip(records.rows(), answers, strict=False):
            yield cells + [None] * (len(names) - len(cells)) + answer
        unchanged()

    def batches(wider: pa.Schema) -> Iterator[pa.RecordBatch]:
        for batch in records.batches():
            some = itertools.islice(answers, len(batch))
            columns = map(pa.array, zip(*some, strict=True), schema.types)
            yield pa.record_batch([*batch.columns, *columns], schema=wider)
        unchanged()

    try:
        if copies_columns(records, output):
            wider = pa.schema([*records.schema, *schema], records.schema.metadata)
            write.write_batches(output, wider, batches(wider))
        elif output.suffix.lower() == ".parquet":
            wider = pa.schema([*zip(names, preview.types(), strict=True), *schema])
            write.write_batches(output, wider, write.record_batches(wider, rows()))
        else:
            write.write_rows(output, [*names, *added], rows(), scratch)
    except (ValueError, TypeError):  # rows that do not fit the first reading; these quote a cell
        unchanged()
        raise InputError(f"{output}: its rows cannot be written; run it again") from None


def stamp_of(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file does; None if it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def parts_folder(output: Path) -> Path:
    return output.with_name(f".{output.name}.parts")


class Parts:
    """The scored chunks of a run, in a folder beside its output that only the owner can read.

    held() keeps a second run out. finish() removes the folder; without, what is there stays for the
    next run with the same `run` (the digests of what the answers depend on). A part gets its name
    when it is whole, and is read once before it is believed: a cut one has no footer, and a page in
    it has a checksum.
    """

    def __init__(self, output: Path, classes: int, run: dict[str, Any]):
        self.folder = parts_folder(output)
        self.sizes: dict[int, int] = {}  # part → its rows
        self._schema = part_schema(classes)
        self._run = run
        self._output = output

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder; raises InputError if another run does."""
        self._own_folder()
        lock = locks.acquire_free(self.folder / "lock")
        if lock is None:
            raise InputError(f"{self._output}: another run is writing it; wait for its end")
        with lock:
            self._keep_what_fits()
            try:
                yield
            except (SystemExit, KeyboardInterrupt):
                if rows := sum(self.sizes.values()):
                    with suppress(OSError):  # the terminal is gone
                        sheet.note(f"{rows:,} rows are scored; the same command goes on from there")
                raise
            finally:
                if not self.sizes:
                    remove(self.folder)

    def write(self, number: int, answers: pa.Table) -> None:
        """Keep one chunk. Raises InputError if the system refuses."""
        with replacing() as beside:
            part = beside(self._path(number))
            part.touch(mode=0o600)
            with part.open("wb") as file:
                pq.write_table(answers, file, write_page_checksum=True)
        self.sizes[number] = len(answers)

    def answers(self, scored: Scored) -> Iterator[list]:
        """Label and probabilities of every row, in order; counts them in `scored`."""
        for number in sorted(self.sizes):
            table = self._read(number)
            if table is None:
                raise InputError(f"{self._path(number)}: damaged; run it again")
            columns = (column.to_pylist() for column in table.columns)
            for row, unknown, *answer in zip(*columns, strict=True):
                if unknown:
                    scored.unknown += 1
                    if len(scored.first_unknown) < NAMED:
                        scored.first_unknown.append(row)
                yield answer

    def finish(self) -> None:
        """No run goes on from these parts: they go when the context ends."""
        self.sizes.clear()

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:08}.parquet"

    def _read(self, number: int) -> pa.Table | None:
        """A part; None if it is damaged or another's."""
        try:
            table = pq.read_table(self._path(number), page_checksum_verification=True)
        except (pa.ArrowException, OSError, ValueError):
            return None
        return table if table.schema.equals(self._schema) else None

    def _own_folder(self) -> None:
        """Make the folder; one that is there must be the user's, or its parts could be a lie."""
        try:
            self.folder.mkdir(mode=0o700)
        except FileExistsError:
            status = self.folder.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
                raise InputError(f"{self.folder}: is no folder of yours; remove it") from None
            self.folder.chmod(0o700)
        except OSError as error:
            reason = disk_fault(error) or error.strerror
            raise InputError(f"cannot write {self._output}: {reason}") from None

    def _keep_what_fits(self) -> None:
        """Find the parts of the same run; remove everything else from the folder."""
        file = self.folder / "run.json"
        try:
            before = read_json(file, missing={})
        except InputError:
            before = None
        same = before == self._run
        if not same and before != {}:
            known = before if isinstance(before, dict) else {}
            other = [key for key in self._run if known.get(key) != self._run[key]]
            sheet.note(
                f"{self.folder}: the stopped run had another {' and '.join(other)}; starting anew"
            )
        for path in self.folder.iterdir():
            part = re.fullmatch(r"([0-9]{8})\.parquet", path.name)
            table = self._read(int(part[1])) if part and same else None
            if table is not None:
                self.sizes[int(part[1])] = len(table)
            elif not (path == file and same) and path.stem != "lock":
                remove(path)
        if not same:
            write_json(self._run, file)
            file.chmod(0o600)
