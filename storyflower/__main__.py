"""The command line: python -m storyflower {predict, serve, register, export, spark, card, …}.

In: arguments.
Out: each subcommand makes one library call and prints the result. No stage of the pipeline depends
on this file, so a change here retrains nothing.
"""

from __future__ import annotations  # lets a Python that is too old get as far as its error message

import argparse
import gc
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from storyflower import __version__, answers
from storyflower.answers import folder_of
from storyflower.common.errors import InputError, exit_with_line
from storyflower.serve.settings import Settings

Run = Callable[[argparse.Namespace], None]  # a subcommand
ENCODERS = Path("encoders")
CLASSIFIER = "models/classifier"
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

    def command(run: Run, help: str, *parents: Parser) -> Callable[..., argparse.Action]:
        """Add a subcommand with its function's name; return what adds an argument to it."""
        made = commands.add_parser(run.__name__, help=help, parents=parents, allow_abbrev=False)
        made.set_defaults(run=run)
        return made.add_argument

    loading = Parser(add_help=False)  # what Classifier.load takes
    add = loading.add_argument
    model = "or models:/NAME@ALIAS, models:/NAME/VERSION"
    add("--model", type=text, default=CLASSIFIER, metavar="FOLDER", help=model)
    native = "bf16 is faster where it is native"
    add("--precision", default="fp32", metavar="fp32|bf16", help=native)

    add = command(answers.predict, "say which emotion a sentence carries", loading)
    add("sentence", nargs="*", type=text, help="none: one sentence a line from standard input")
    add("--diary", action="store_true", help="all of it is one diary: the whole, then its pieces")
    unsure = "say 모름 below this probability"
    add("--unsure-below", type=share, default=0.0, metavar="P", help=unsure)
    add("--explain", action="store_true", help="how much each word moved the answer, in points")
    add("--json", action="store_true", help="one JSON object a line, for machines")
    add("--show-text", action="store_true", help="print the sentences, too")
    add("--input", type=path, metavar="FILE", help="a .xlsx, .csv, .jsonl or .parquet")
    column = "of the input's texts; without, the first that the model was trained on"
    add("--column", type=text, metavar="NAME", help=column)
    add("--output", type=path, metavar="FILE", help="the same, to write")

    add = command(register, "add the classifier to MLflow's registry")
    model = "or models:/NAME@ALIAS: scores that version on the present Validation"
    add("--model", default=CLASSIFIER, metavar="FOLDER", help=model)
    add("--name", default="storyflower", help="of the registered model")

    add = command(spark, "score Parquet on Apache Spark")
    champion = "models:/storyflower@champion"
    add("--model", default=champion, help="of MLflow's registry, or a folder")
    add("--input", required=True, metavar="IN", help="Parquet: a file or a folder")
    add("--column", metavar="NAME", help="of the texts; as with predict")
    add("--output", required=True, metavar="OUT", help="the folder to write")
    add("--master", default="local[2]", help="Spark's: local[CORES], spark://HOST:PORT, yarn, k8s")
    add("--partitions", type=int, metavar="N", help="spread the rows evenly over N tasks")
    add("--overwrite", action="store_true", help="replace OUT if it is there")
    add("--conf", action="append", default=[], metavar="KEY=VALUE", help="a setting of Spark's")

    add = command(export, "write the classifier for other languages: ONNX")
    add("--onnx", type=path, required=True, metavar="FOLDER", help="to write")
    add("--model", type=text, default=CLASSIFIER, metavar="FOLDER")
    add("--int8", action="store_true", help="a second graph, in int8")
    add("--examples", type=path, metavar="FILE", help="texts to write beside it, one a line")
    add("--check", type=path, metavar="CORPUS", help="compare on its Validation: data/sample")

    add = command(serve, "answer over HTTP, with a page at / (docs/serving.md)", loading)
    texts, window = Settings.batch_limit, 1000 * Settings.window
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=8000, help="0: any that is free")
    add("--workers", type=int, default=1, help="processes, a classifier in each")
    add("--listen-publicly", action="store_true", help="allow a --host that others reach")
    add("--cors", action="append", default=[], metavar="ORIGIN", help="a web site that may call")
    together = "computed together at most"
    add("--batch-limit", type=int, default=texts, metavar="TEXTS", help=together)
    add("--window-ms", type=float, default=window, metavar="MS", help="a request waits for others")
    waiting = "requests that may wait in a worker"
    add("--queue", type=int, default=Settings.queue, metavar="N", help=waiting)
    deadline = Settings.deadline
    add("--deadline", type=float, default=deadline, metavar="SECONDS", help="for one answer")

    add = command(card, "write a card for a hub id or a folder")
    add("name", help="what encoder: in params.yaml will say")
    add("source", help="a hub id such as klue/bert-base, or a folder")

    add = command(lock, "pin what a card's source holds now")
    add("name", nargs="+", help="of a card in encoders/")

    command(sync, "deliver runs that MLflow has not got")

    add = command(ui, "show the runs: MLflow's pages, on this machine alone")
    add("--port", type=int, default=5000)
    return parser


def serve(options: argparse.Namespace) -> None:
    from storyflower.serve import run

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
