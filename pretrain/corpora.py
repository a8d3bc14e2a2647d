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
from collections.abc import Iterator, Sequence
from pathlib import Path

from storyflower.common.errors import InputError, exit_with_line
from storyflower.common.files import replacing
from storyflower.ingest.aihub import TURN
from storyflower.ingest.ingest import find_files, open_file
from storyflower.sheets.sheet import cell_text, folded

POLARITY = ("부정", "긍정")  # NSMC's labels 0 and 1
LABELS = "|"  # between GoEmotions' labels of one text


def is_test(id_: str) -> bool:
    """Whether a rating belongs to the tenth that no training sees."""
    return int.from_bytes(hashlib.sha256(id_.encode()).digest()[:4], "big") % 10 == 0


def rows(file: Path, delimiter: str, columns: Sequence[str]) -> Iterator[list[str]]:
    """Cells of the named columns, each on one line; raises InputError for another header."""
    with gzip.open(file, "rt", encoding="utf-8", newline="") as stream:
        quoting = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
        reader = csv.DictReader(stream, delimiter=delimiter, quoting=quoting)
        if missing := set(columns) - set(reader.fieldnames or ()):
            raise InputError(f"{file}: no column {', '.join(sorted(missing))}")
        for row in reader:
            yield [" ".join((row[name] or "").split()) for name in columns]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pretrain.corpora")
    for name in ("nsmc", "chat", "goemo", "corpus", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args()
    ratings = list(rows(options.nsmc / "ratings_train.tsv.gz", "\t", ["id", "document", "label"]))
    test = {folded(text) for id_, text, _ in ratings if is_test(id_)}
    with gzip.open(options.nsmc / "reviews.txt.gz", "rt", encoding="utf-8") as stream:
        reviews = [" ".join(line.split()) for line in stream]
    goemotions = list(rows(options.goemo / "train.tsv.gz", "\t", ["text", "labels"]))
    chat = rows(options.chat / "ChatbotData.csv.gz", ",", ["Q", "A"])
    written = {
        "reviews.txt": [text for text in reviews if folded(text) not in test],
        "ratings.tsv": [
            f"{POLARITY[int(label)]}\t{text}"
            for _, text, label in ratings
            if text and folded(text) not in test
        ],
        "chat.txt": [text for pair in chat for text in pair],
        "goemotions.txt": [text for text, _ in goemotions],
        "goemotions.tsv": [
            f"{labels}\t{text}" for text, labels in goemotions if text and LABELS not in labels
        ],
        "diaries.txt": list(turns(options.corpus)),
    }
    options.output.mkdir(exist_ok=True)
    for name, lines in written.items():
        lines = [line for line in lines if line]
        with replacing() as beside:
            beside(options.output / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{options.output / name}: {len(lines):,} lines")


def turns(corpus: Path) -> Iterator[str]:
    """What the persons of a corpus's Training say, a turn each and all turns of a dialogue."""
    wanted = {TURN.format(turn) for turn in range(1, 5)}
    sheet = open_file(find_files(corpus)["Training"], wanted)
    columns = [sheet.columns.index(name) for name in sorted(wanted & set(sheet.columns))]
    for number, cells in sheet.rows:
        texts = [cell_text(sheet, number, column, cells) for column in columns]
        texts = [" ".join(text.split()) for text in texts if text]
        yield from texts
        if len(texts) > 1:
            yield " ".join(texts)


if __name__ == "__main__":
    exit_with_line(main)
