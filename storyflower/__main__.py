"""The command line: python -m storyflower {predict, serve, register, export, spark, card, …}.

In: arguments.
Out: each subcommand makes one library call and prints the result. No stage of the pipeline depends
on this file, so a change here retrains nothing.
"""

from __future__ import annotations  # lets a Python that is too old get as far as its error message

import argparse
import gc
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from storyflower import __version__
from storyflower.common.errors import InputError, can_hold, exit_with_line

if TYPE_CHECKING:
    from storyflower.predict import Explanation, Piece, Prediction, Reading

ENCODERS = Path("encoders")
# A sentence that ends in one of these is probably the name of a file to read
SUFFIXES = (".xlsx", ".xls", ".ods", ".csv", ".tsv", ".parquet")
SUFFIXES += (".txt", ".json", ".jsonl", ".hwp", ".docx")
# A word that looks like an option, known or not. "-_-" is an emoticon, not an option.
OPTION = re.compile("--?[A-Za-z][A-Za-z0-9_-]*(=.*)?", re.DOTALL)
MARK = "\0"  # put before a sentence that begins with a dash; no argument can contain it


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one subcommand. Raises InputError, and SystemExit(2) for invalid arguments."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["predict"]:
        words = marked(words)
    options = make_parser().parse_args(words)
    gc.set_threshold(1_000_000)  # as in stages/__init__.py
    options.run(options)


class Parser(argparse.ArgumentParser):
    """A parser whose errors do not repeat the bad argument, which may be a user's sentence."""

    def error(self, message: str) -> NoReturn:
        if message.startswith("argument COMMAND: "):
            message = "no such command, see --help; a sentence goes behind predict"
        elif number := re.match("argument (--[a-z-]+): invalid (int|float) value", message):
            message = f"argument {number[1]}: expected a number"
        elif not re.match("argument [^:]*: expected |the following arguments are req", message):
            message = (
                "an argument is not known, see --help behind the command; a sentence that begins "
                "with a dash goes behind -- or to standard input"
            )
        super().error(message)


def marked(words: Sequence[str]) -> list[str]:
    """The arguments with MARK before each sentence that begins with a dash, without the `--`."""
    result, only_sentences = [], False
    for word in words:
        if word == "--" and not only_sentences:
            only_sentences = True
        elif word.startswith("-") and (only_sentences or not OPTION.fullmatch(word)):
            result.append(MARK + word)
        else:
            result.append(word)
    return result


def text(word: str) -> str:
    return word.removeprefix(MARK)


def share(word: str) -> float:
    """A number from 0 to 1. Not left to argparse, whose message would not name the range."""
    try:
        value = float(text(word))
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise InputError("--unsure-below must be a number from 0 to 1, such as 0.5")
    return value


def path(word: str) -> Path:
    return Path(text(word))


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="storyflower",
        description="StoryFlower (담화): which feeling a Korean text carries.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"storyflower {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    loading = Parser(add_help=False)  # what Classifier.load takes
    loading.add_argument(
        "--model",
        type=text,
        default="models/classifier",
        metavar="FOLDER",
        help="or models:/NAME@ALIAS, models:/NAME/VERSION",
    )
    loading.add_argument(
        "--precision", default="fp32", metavar="fp32|bf16", help="bf16 is faster where it is native"
    )

    command = commands.add_parser(
        "predict",
        help="say which emotion a sentence carries",
        allow_abbrev=False,
        parents=[loading],
    )
    command.set_defaults(run=predict)
    command.add_argument(
        "sentence", nargs="*", type=text, help="none: one sentence a line from standard input"
    )
    command.add_argument(
        "--diary", action="store_true", help="all of it is one diary: the whole, then its pieces"
    )
    command.add_argument(
        "--unsure-below",
        type=share,
        default=0.0,
        metavar="P",
        help="say 모름 below this probability",
    )
    command.add_argument(
        "--explain", action="store_true", help="how much each word moved the answer, in points"
    )
    command.add_argument("--json", action="store_true", help="one JSON object a line, for machines")
    command.add_argument("--show-text", action="store_true", help="print the sentences, too")
    command.add_argument(
        "--input", type=path, metavar="FILE", help="a .xlsx, .csv, .jsonl or .parquet"
    )
    command.add_argument(
        "--column",
        type=text,
        metavar="NAME",
        help="of the input's texts; without, the first that the model was trained on",
    )
    command.add_argument("--output", type=path, metavar="FILE", help="the same, to write")

    command = commands.add_parser("register", help="add the classifier to MLflow's registry")
    command.set_defaults(run=register)
    command.add_argument(
        "--model",
        default="models/classifier",
        metavar="FOLDER",
        help="or models:/NAME@ALIAS: scores that version on the present Validation",
    )
    command.add_argument("--name", default="storyflower", help="of the registered model")

    command = commands.add_parser("spark", help="score Parquet on Apache Spark", allow_abbrev=False)
    command.set_defaults(run=spark)
    command.add_argument(
        "--model", default="models:/storyflower@champion", help="of MLflow's registry, or a folder"
    )
    command.add_argument("--input", required=True, metavar="IN", help="Parquet: a file or a folder")
    command.add_argument("--column", metavar="NAME", help="of the texts; as with predict")
    command.add_argument("--output", required=True, metavar="OUT", help="the folder to write")
    command.add_argument(
        "--master", default="local[2]", help="Spark's: local[CORES], spark://HOST:PORT, yarn, k8s"
    )
    command.add_argument(
        "--partitions", type=int, metavar="N", help="spread the rows evenly over N tasks"
    )
    command.add_argument("--overwrite", action="store_true", help="replace OUT if it is there")
    command.add_argument(
        "--conf", action="append", default=[], metavar="KEY=VALUE", help="a setting of Spark's"
    )

    command = commands.add_parser("export", help="write the classifier for other languages: ONNX")
    command.set_defaults(run=export)
    command.add_argument("--onnx", type=path, required=True, metavar="FOLDER", help="to write")
    command.add_argument("--model", type=text, default="models/classifier", metavar="FOLDER")
    command.add_argument("--int8", action="store_true", help="a second graph, in int8")
    command.add_argument(
        "--examples", type=path, metavar="FILE", help="texts to write beside it, one a line"
    )
    command.add_argument(
        "--check", type=path, metavar="CORPUS", help="compare on its Validation: data/sample"
    )

    command = commands.add_parser(
        "serve",
        help="answer over HTTP, with a page at / (docs/serving.md)",
        allow_abbrev=False,
        parents=[loading],
    )
    command.set_defaults(run=serve)
    command.add_argument("--host", default="127.0.0.1")
    command.add_argument("--port", type=int, default=8000, help="0: any that is free")
    command.add_argument("--workers", type=int, default=1, help="processes, a classifier in each")
    command.add_argument(
        "--listen-publicly", action="store_true", help="allow a --host that others reach"
    )
    command.add_argument(
        "--cors", action="append", default=[], metavar="ORIGIN", help="a web site that may call"
    )
    command.add_argument(
        "--batch-limit", type=int, default=16, metavar="TEXTS", help="computed together at most"
    )
    command.add_argument(
        "--window-ms", type=float, default=2.0, metavar="MS", help="a request waits for others"
    )
    command.add_argument(
        "--queue", type=int, default=256, metavar="N", help="requests that may wait in a worker"
    )
    command.add_argument(
        "--deadline", type=float, default=30.0, metavar="SECONDS", help="for one answer"
    )

    command = commands.add_parser("card", help="write a card for a hub id or a folder")
    command.set_defaults(run=card)
    command.add_argument("name", help="what encoder: in params.yaml will say")
    command.add_argument("source", help="a hub id such as klue/bert-base, or a folder")

    command = commands.add_parser("lock", help="pin what a card's source holds now")
    command.set_defaults(run=lock)
    command.add_argument("name", nargs="+", help="of a card in encoders/")

    command = commands.add_parser("sync", help="deliver runs that MLflow has not got")
    command.set_defaults(run=sync)

    command = commands.add_parser("ui", help="show the runs: MLflow's pages, on this machine alone")
    command.set_defaults(run=ui)
    command.add_argument("--port", type=int, default=5000)
    return parser


def predict(options: argparse.Namespace) -> None:
    check_words(options.sentence, options.column)
    if options.input or options.output:
        if not (options.input and options.output) or options.sentence:
            raise InputError("--input and --output belong together, without sentences")
        if options.diary or options.explain:
            raise InputError("--diary and --explain are for sentences, not for --input")
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
    answers, shares = classifier.predict_whole(sentences, options.unsure_below)
    for number, sentence, answer in zip(numbers, sentences, answers, strict=True):
        if options.explain:
            answer = classifier.explain(sentence, options.unsure_below)
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

    def explained(piece: Piece) -> Piece | Explanation:
        if not options.explain or says_nothing(piece.text):
            return piece
        return classifier.explain(piece.text, options.unsure_below)

    if options.json:
        pieces = [
            {
                "piece": number,
                "start": piece.start,
                "end": piece.end,
                **json_answer(explained(piece), piece.text, options),
            }
            for number, piece in numbered
        ]
        row = {"label": reading.label, "probabilities": reading.probabilities, "pieces": pieces}
        print(json_line({**row, "temperature": classifier.temperature}))
    else:
        print("whole", reading.label, listed(reading), sep="\t")
        for number, piece in numbered:
            print_answer(number, explained(piece), piece.text, options)
    shares = classifier.unknown_shares([piece.text for piece in reading.pieces])
    unknown = [n for (n, _), share in zip(numbered, shares, strict=True) if share >= MOSTLY]
    note_unknown(unknown, "piece")


def listed(answer: Prediction | Reading | Piece | Explanation) -> str:
    return "  ".join(f"{name} {p:.1%}" for name, p in answer.probabilities.items())


def json_answer(
    answer: Prediction | Piece | Explanation, sentence: str, options: argparse.Namespace
) -> dict:
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
    number: int,
    answer: Prediction | Piece | Explanation,
    sentence: str,
    options: argparse.Namespace,
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


def serve(options: argparse.Namespace) -> None:
    from storyflower.serve import run
    from storyflower.serve.settings import Settings

    place = run.Place(options.host, options.port, options.workers, options.listen_publicly)
    settings = Settings(
        batch_limit=options.batch_limit,
        window=options.window_ms / 1000,
        queue=options.queue,
        precision=options.precision,
        deadline=options.deadline,
        origins=tuple(options.cors),
    )
    run.serve(folder_of(options.model), place, settings)


def register(options: argparse.Namespace) -> None:
    from storyflower.common.repository import main_root
    from storyflower.registry import register as register_model

    done = register_model(
        model=options.model,
        name=options.name,
        predictions=Path("data/interim/predictions.parquet"),
        record=Path("reports/run.json"),
        root=main_root(),
    )
    before = "" if done.new else " (registered before)"
    print(f"models:/{done.name}/{done.version}{before}: {done.sentence}")


def spark(options: argparse.Namespace) -> None:
    from storyflower.spark import score

    if wrong := [word for word in options.conf if not word.partition("=")[2]]:
        raise InputError(f"--conf {wrong[0]}: expected KEY=VALUE")
    if options.partitions is not None and options.partitions < 1:
        raise InputError("--partitions: expected 1 or more")
    scored = score(
        model=options.model,
        source=options.input,
        column=options.column,
        output=options.output,
        master=options.master,
        partitions=options.partitions,
        overwrite=options.overwrite,
        settings=dict(word.split("=", 1) for word in options.conf),
    )
    blank = f", {scored.blank} without a text" if scored.blank else ""
    print(f"{options.output}: {scored.rows} rows{blank}")


def export(options: argparse.Namespace) -> None:
    from storyflower.export import CLEAR, NAMED
    from storyflower.export import export as export_classifier

    check = export_classifier(
        folder_of(options.model),
        options.onnx,
        examples=options.examples,
        corpus=options.check,
        int8=options.int8,
    )
    accuracy = "" if check.accuracy is None else f", accuracy {check.accuracy:.4f}"
    print(
        f"{options.onnx}: onnxruntime's logits are torch's to {check.largest:.0e} on "
        f"{check.texts} texts{accuracy}"
    )
    if not options.int8:
        return
    print(
        f"int8: {check.clear_agree} of {check.clear} labels agree where the two best classes lie "
        f"more than {CLEAR:.0%} apart"
    )
    if check.accuracy is not None:
        points = 100 * (check.int8_accuracy - check.accuracy)
        print(f"int8: accuracy {check.int8_accuracy:.4f}, {points:+.2f} points")
    for row in check.differences[:NAMED]:
        print(f"text {row.number}: {row.label}, in int8 {row.int8_label}, margin {row.margin:.1%}")
    if (more := len(check.differences) - NAMED) > 0:
        print(f"and {more} more")


def card(options: argparse.Namespace) -> None:
    from storyflower.encoder.card import Card, write_card

    file = write_card(options.name, options.source, ENCODERS)
    Card.load(file)
    print(f"{file}: use it with encoder: {options.name}; its licence is yours to fill in")


def lock(options: argparse.Namespace) -> None:
    from storyflower.encoder.card import Lock
    from storyflower.encoder.lock import lock as lock_card

    for name in options.name:
        file = ENCODERS / f"{name}.yaml"
        written = lock_card(file)
        at = f" at {written.revision}" if written.revision else ""
        print(f"{Lock.beside(file)}: {written.source}{at}, {len(written.files)} files")


def sync(options: argparse.Namespace) -> None:
    from storyflower.common.repository import main_root
    from storyflower.tracking.run import sync as deliver

    delivered, living = deliver(main_root())
    print(f"{delivered} runs delivered to MLflow" + f", {living} still under way" * bool(living))


def ui(options: argparse.Namespace) -> None:
    from storyflower.common.repository import main_root
    from storyflower.tracking.ui import serve

    serve(main_root(), options.port)


def command() -> None:
    """The storyflower command of an installed package."""
    exit_with_line(main)


if __name__ == "__main__":
    command()
