"""Public corpora → the text files of the shipped encoder.

    python -m pretrain.corpora --nsmc FOLDER --chat FOLDER --goemo FOLDER --corpus data/sample \
        --output texts

In: NSMC's reviews.txt.gz (one review a line) and ratings_train.tsv.gz (id, document, label);
ChatbotData.csv.gz (Q, A, label); GoEmotions-Korean's train.tsv.gz (text, labels); a corpus folder,
of which Training alone is read.
Out: reviews.txt, ratings.tsv, chat.txt, goemotions.txt, goemotions.tsv, diaries.txt.

A tenth of NSMC's ratings, chosen by a hash of the id, is for a test: it and every review that has
its text are left out.
"""

import argparse
import csv
import gzip
import hashlib
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from storyflower.common.errors import InputError, exit_with_line, one_line
from storyflower.common.files import replacing
from storyflower.ingest.aihub import TURNS
from storyflower.ingest.files import find_files
from storyflower.ingest.ingest import open_file
from storyflower.sheets.sheet import cell_text, folded

POLARITY = {"0": "부정", "1": "긍정"}  # NSMC's labels
FILES = {  # option → what its folder holds
    "nsmc": ("reviews.txt.gz", "ratings_train.tsv.gz"),
    "chat": ("ChatbotData.csv.gz",),
    "goemo": ("train.tsv.gz",),
    "corpus": (),  # storyflower/ingest finds and names its files
}
LABELS = "|"  # between GoEmotions' labels of one text


def is_test(id_: str) -> bool:
    """Whether a rating belongs to the tenth that no training sees."""
    return int.from_bytes(hashlib.sha256(id_.encode()).digest()[:4], "big") % 10 == 0


@contextmanager
def open_gz(file: Path) -> Iterator[TextIO]:
    """A compressed text; raises InputError for one that is damaged or not utf-8."""
    try:
        with gzip.open(file, "rt", encoding="utf-8", newline="") as stream:
            yield stream
    except UnicodeDecodeError:
        raise InputError(f"{file}: not utf-8; save the file as utf-8") from None
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise InputError(f"{file}: damaged or truncated gzip; download it again") from None
    except csv.Error as error:
        raise InputError(f"{file}: not readable as a table ({one_line(error)})") from None


def rows(file: Path, delimiter: str, columns: Sequence[str]) -> Iterator[list[str]]:
    """Cells of the named columns, each on one line; raises InputError for another header."""
    with open_gz(file) as stream:
        quoting = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
        reader = csv.DictReader(stream, delimiter=delimiter, quoting=quoting)
        if missing := set(columns) - set(reader.fieldnames or ()):
            raise InputError(f"{file}: no column {', '.join(sorted(missing))}")
        for row in reader:
            yield [" ".join((row[name] or "").split()) for name in columns]


def read_ratings(file: Path) -> list[tuple[str, str, str]]:
    """(id, text, polarity) of NSMC's ratings that have a text; raises InputError."""
    ratings = []
    for number, (id_, text, label) in enumerate(rows(file, "\t", ["id", "document", "label"]), 1):
        if label not in POLARITY:
            raise InputError(f"{file}, row {number}: the label must be 0 or 1")
        if text:
            ratings.append((id_, text, POLARITY[label]))
    return ratings


def read_emotions(file: Path) -> list[tuple[str, str]]:
    """(text, labels) of GoEmotions' rows that have a text; raises InputError."""
    emotions = []
    for number, (text, labels) in enumerate(rows(file, "\t", ["text", "labels"]), 1):
        if not labels:
            raise InputError(f"{file}, row {number}: no label; complete or remove the row")
        if text:
            emotions.append((text, labels))
    return emotions


def main() -> None:
    options = parse()
    ratings = read_ratings(options.nsmc / "ratings_train.tsv.gz")
    test = {folded(text) for id_, text, _ in ratings if is_test(id_)}
    with open_gz(options.nsmc / "reviews.txt.gz") as stream:
        reviews = [" ".join(line.split()) for line in stream]
    emotions = read_emotions(options.goemo / "train.tsv.gz")
    chat = rows(options.chat / "ChatbotData.csv.gz", ",", ["Q", "A"])
    written = {
        "reviews.txt": [text for text in reviews if folded(text) not in test],
        "ratings.tsv": [
            f"{polarity}\t{text}" for _, text, polarity in ratings if folded(text) not in test
        ],
        "chat.txt": [text for pair in chat for text in pair],
        "goemotions.txt": [text for text, _ in emotions],
        "goemotions.tsv": [
            f"{labels}\t{text}" for text, labels in emotions if LABELS not in labels
        ],
        "diaries.txt": list(turns(options.corpus)),
    }
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"--output: {error.filename} is a file; name another folder") from None
    for name, lines in written.items():
        lines = [line for line in lines if line]
        with replacing() as beside:
            beside(options.output / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{options.output / name}: {len(lines):,} lines")


def parse() -> argparse.Namespace:
    """The command line; raises InputError for a file that is not there, before any is read."""
    parser = argparse.ArgumentParser(prog="python -m pretrain.corpora", allow_abbrev=False)
    for option, files in FILES.items():
        content = f"holds {' and '.join(files)}" if files else "a corpus folder; Training is read"
        parser.add_argument(f"--{option}", type=Path, required=True, metavar="FOLDER", help=content)
    where = "where the text files go; made if it is not there"
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help=where)
    options = parser.parse_args()
    for option, files in FILES.items():
        folder = getattr(options, option)
        if not folder.is_dir():
            raise InputError(f"--{option} {folder}: no such folder")
        for name in files:
            if not (folder / name).is_file():
                raise InputError(f"{folder / name}: not found; --{option} names its folder")
    return options


def turns(corpus: Path) -> Iterator[str]:
    """What the persons of a corpus's Training say, a turn each and all turns of a dialogue."""
    for path in find_files(corpus)["Training"]:
        sheet = open_file(path, set(TURNS))
        columns = [sheet.columns.index(name) for name in TURNS if name in sheet.columns]
        for number, cells in sheet.rows:
            texts = [cell_text(sheet, number, column, cells) for column in columns]
            texts = [" ".join(text.split()) for text in texts if text]
            yield from texts
            if len(texts) > 1:
                yield " ".join(texts)


if __name__ == "__main__":
    exit_with_line(main)
