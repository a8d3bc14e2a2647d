"""The predict command: sentences, a diary or a file in, answers out.

In: the options that __main__.py parsed, and standard input.
Out: a line for each answer, or a JSON object; notes on standard error. A sentence is printed only
if --show-text asks for it, and never in an error.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from storyflower.common.errors import InputError, can_hold

if TYPE_CHECKING:
    from storyflower.predict import Piece, Prediction

# A sentence that ends in one of these is probably the name of a file to read
SUFFIXES = (".xlsx", ".xls", ".ods", ".csv", ".tsv", ".parquet")
SUFFIXES += (".txt", ".json", ".jsonl", ".hwp", ".docx")


def predict(options: argparse.Namespace) -> None:
    check_words(options.sentence, options.column)
    if options.input or options.output:
        if not (options.input and options.output) or options.sentence:
            raise InputError("--input and --output belong together, without sentences")
        if options.diary or options.explain or options.json or options.show_text:
            raise InputError(
                "--diary, --explain, --json and --show-text are for sentences, not for --input"
            )
        from storyflower.score_file import score_file

        scored = score_file(
            folder=folder_of(options.model),
            source=options.input,
            column=options.column,
            output=options.output,
            precision=options.precision,
            unsure_below=options.unsure_below,
        )
        print(f"{options.output}: {scored.rows} rows")
        note_unknown(scored.first_unknown, count=scored.unknown)
        return
    if options.column:
        raise InputError("--column is for --input, which reads a file")
    if sys.stdout is None:
        raise InputError("standard output is closed; there is nowhere to write the answer to")
    if options.diary:
        read_diary(options)
    else:
        predict_sentences(options)


def predict_sentences(options: argparse.Namespace) -> None:
    """Print a line for each sentence; with --explain, a line for each of its words below it."""
    from storyflower.predict import MOSTLY, Classifier
    from storyflower.sheets.sheet import says_nothing

    numbered = list(enumerate(options.sentence or lines_of_standard_input(), start=1))
    numbered = [(number, sentence) for number, sentence in numbered if not says_nothing(sentence)]
    if not numbered:
        raise InputError("no sentence given; put one in quotes or send lines to standard input")
    numbers, sentences = zip(*numbered, strict=True)
    classifier = Classifier.load(folder_of(options.model), precision=options.precision)
    if options.explain:
        for number, is_cut in zip(numbers, classifier.is_cut(sentences), strict=True):
            if is_cut:
                raise InputError(
                    f"row {number}: more than {classifier.max_len} token ids; add --diary, which "
                    "explains it piece by piece"
                )
        explained = (classifier.explain(text, options.unsure_below) for text in sentences)
        answers, shares = explained, classifier.unknown_shares(sentences)
    else:
        answers, shares = classifier.predict_whole(sentences, options.unsure_below)
    for number, sentence, answer in zip(numbers, sentences, answers, strict=True):
        if options.json:
            row = {"row": number, **json_answer(answer, sentence, options)}
            print(json_line({**row, "temperature": classifier.temperature}))
        else:
            print_answer(number, answer, sentence, options)
    note_unknown([n for n, share in zip(numbers, shares, strict=True) if share >= MOSTLY])


def read_diary(options: argparse.Namespace) -> None:
    """Print a diary's whole and its numbered pieces; several sentences are its lines."""
    from storyflower.predict import MOSTLY, Classifier
    from storyflower.sheets.sheet import says_nothing

    diary = "\n".join(options.sentence or lines_of_standard_input())
    if says_nothing(diary):
        raise InputError("no text given; put the diary in quotes or send it to standard input")
    classifier = Classifier.load(folder_of(options.model), precision=options.precision)
    reading = classifier.read(diary, options.unsure_below)
    numbered = list(enumerate(reading.pieces, start=1))

    def explained(piece: Piece) -> Piece | Prediction:
        if not options.explain or says_nothing(piece.text):
            return piece
        return classifier.explain(piece.text, options.unsure_below)

    if options.json:
        pieces = []
        for number, piece in numbered:
            place = {"piece": number, "start": piece.start, "end": piece.end}
            pieces.append(place | json_answer(explained(piece), piece.text, options))
        row = {"label": reading.label, "probabilities": reading.probabilities, "pieces": pieces}
        print(json_line({**row, "temperature": classifier.temperature}))
    else:
        print("whole", reading.label, listed(reading), sep="\t")
        for number, piece in numbered:
            print_answer(number, explained(piece), piece.text, options)
    shares = classifier.unknown_shares([piece.text for piece in reading.pieces])
    unknown = [n for (n, _), share in zip(numbered, shares, strict=True) if share >= MOSTLY]
    note_unknown(unknown, "piece")


def listed(answer: Prediction | Piece) -> str:
    return "  ".join(f"{name} {p:.1%}" for name, p in answer.probabilities.items())


def json_answer(answer: Prediction | Piece, sentence: str, options: argparse.Namespace) -> dict:
    """What --json says of a text and, if they are explained, of its words."""
    row = {"text": sentence} if options.show_text else {}
    row |= {"label": answer.label, "probabilities": answer.probabilities}
    if hasattr(answer, "words"):
        words = [asdict(word) for word in answer.words]
        if not options.show_text:
            for word in words:
                del word["text"]
        row["words"] = words
    return row


def print_answer(
    number: int, answer: Prediction | Piece, sentence: str, options: argparse.Namespace
) -> None:
    shown = [sentence] if options.show_text else []
    print(number, answer.label, listed(answer), *shown, sep="\t")
    for place, word in enumerate(getattr(answer, "words", ()), start=1):
        shown = [word.text] if options.show_text else []
        print("", f"word {place}", f"{100 * word.change:+.1f}", *shown, sep="\t")


def folder_of(model: str) -> Path:
    """The folder of --model; MLflow is asked only about one that is registered."""
    if not model.startswith("models:/"):
        return Path(model)
    from storyflower.registry import resolve

    return resolve(model)


def check_words(sentences: Sequence[str], column: str | None) -> None:
    """Raise InputError for arguments that are not sentences; the message does not repeat them."""
    for number, sentence in enumerate(sentences, start=1):
        if not is_utf8(sentence):
            raise InputError(
                f"sentence {number} is not UTF-8; send it to standard input, in UTF-8, or set the "
                "terminal to UTF-8"
            )
        if sentence.lower().endswith(SUFFIXES) or os.path.isfile(sentence):
            raise InputError(
                f"sentence {number} is the name of a file; predict --input FILE --output FILE "
                "reads a table, and predict < FILE a text, one sentence a line"
            )
    if not is_utf8(column or ""):
        raise InputError("--column is not UTF-8; set the terminal to UTF-8")


def is_utf8(word: str) -> bool:
    """Whether an argument is UTF-8; Python turns other bytes into lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in word)


def json_line(row: dict) -> str:
    """A JSON object that any program can read, whatever the encoding of the output."""
    line = json.dumps(row, ensure_ascii=False)
    return line if can_hold(sys.stdout, line) else json.dumps(row)


def note_unknown(rows: Sequence[int], what: str = "row", count: int | None = None) -> None:
    """Print the numbers of the rows, or pieces, that are mostly [UNK], but not their text.

    Of `count` rows, default all, the first ten numbers are enough.
    """
    if rows:
        count = len(rows) if count is None else count
        one = count == 1
        more = f" and {count - 10} more" if count > 10 else ""
        named = ", ".join(map(str, rows[:10]))
        print(
            f"note: {what}{'' if one else 's'} {named}{more} {'is' if one else 'are'} mostly "
            "[UNK]: the encoder's vocabulary lacks those words, so the label says little",
            file=sys.stderr,
        )


def lines_of_standard_input() -> list[str]:
    """Split lines as an editor does: other separators, such as U+2028, are part of a text."""
    if sys.stdin is None:  # closed
        return []
    try:
        return re.split("\r\n|\r|\n", sys.stdin.buffer.read().decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise InputError("standard input is not utf-8") from None
