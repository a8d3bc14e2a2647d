"""The command line: python -m storyflower {predict, card, lock, sync}.

In: arguments.
Out: one call of the library each, and its result in lines. No stage of the pipeline depends on
this file, so a change here retrains nothing.
"""

import argparse
import gc
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from storyflower.common.errors import InputError, exit_with_line

ENCODERS = Path("encoders")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one subcommand; raises InputError, and SystemExit(2) for arguments that make no sense."""
    options = make_parser().parse_args(arguments)
    gc.set_threshold(1_000_000)  # as in stages/__init__.py
    options.run(options)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="storyflower", description="StoryFlower (담화): which feeling a Korean text carries."
    )
    parser.add_argument("--version", action="version", version=f"storyflower {own_version()}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("predict", help="say which emotion a sentence carries")
    command.set_defaults(run=predict)
    command.add_argument(
        "sentence", nargs="*", help="none: one sentence a line from standard input"
    )
    command.add_argument("--model", type=Path, default=Path("models/classifier"), metavar="FOLDER")
    command.add_argument("--json", action="store_true", help="one JSON object a line, for machines")
    command.add_argument("--show-text", action="store_true", help="print the sentences, too")
    command.add_argument(
        "--input", type=Path, metavar="FILE", help="an .xlsx or .csv with a header"
    )
    command.add_argument(
        "--column", default="사람문장1", metavar="NAME", help="of the input's texts"
    )
    command.add_argument("--output", type=Path, metavar="FILE", help="the .xlsx or .csv to write")

    command = commands.add_parser("card", help="write a card for a hub id or a folder")
    command.set_defaults(run=card)
    command.add_argument("name", help="what encoder: in params.yaml will say")
    command.add_argument("source", help="a hub id such as klue/bert-base, or a folder")

    command = commands.add_parser("lock", help="pin what a card's source holds now")
    command.set_defaults(run=lock)
    command.add_argument("name", nargs="+", help="of a card in encoders/")

    command = commands.add_parser("sync", help="deliver runs that MLflow has not got")
    command.set_defaults(run=sync)
    return parser


def own_version() -> str:
    try:
        return version("storyflower")
    except PackageNotFoundError:  # run from a checkout, which is not installed
        return "(not installed)"


def predict(options: argparse.Namespace) -> None:
    from storyflower.predict import Classifier, predict_file

    if options.input or options.output:
        if not (options.input and options.output) or options.sentence:
            raise InputError("--input and --output belong together, without sentences")
        count = predict_file(options.model, options.input, options.column, options.output)
        print(f"{options.output}: {count} rows")
        return
    numbered = list(enumerate(options.sentence or lines_of_standard_input(), start=1))
    numbered = [(number, sentence) for number, sentence in numbered if sentence.strip()]
    if not numbered:
        raise InputError("no sentence given; put one in quotes or send lines to standard input")
    predictions = Classifier.load(options.model).predict([sentence for _, sentence in numbered])
    for (number, sentence), prediction in zip(numbered, predictions, strict=True):
        text = {"text": sentence} if options.show_text else {}
        if options.json:
            row = {"row": number, **text, **asdict(prediction)}
            print(json.dumps(row, ensure_ascii=False))
        else:
            shares = "  ".join(f"{name} {p:.1%}" for name, p in prediction.probabilities.items())
            print(number, prediction.label, shares, *text.values(), sep="\t")


def lines_of_standard_input() -> list[str]:
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise InputError("standard input is not utf-8") from None


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


def command() -> None:
    """The storyflower command of an installed package."""
    exit_with_line(main)


if __name__ == "__main__":
    command()
