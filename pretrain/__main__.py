"""The command line: python -m pretrain TEXTS... --output FOLDER.

In: text files (pretrain/texts.py says what they hold).
Out: an encoder folder, for a card of kind path.
"""

import argparse
import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from pretrain.recipe import SHAPE, Recipe
from pretrain.start import check_start
from pretrain.texts import check_files, read_texts
from pretrain.train import CHECKPOINTS, check_output, pretrain
from pretrain.vocabulary import SPECIAL
from storyflower.common.errors import InputError, exit_with_line

HELP = {
    "steps": "updates in all; 0: a vocabulary and random weights, or --start as it is",
    "pieces": "size of the vocabulary, at most",
    "layers": "layers of the encoder",
    "hidden": "size of a token's state",
    "heads": "attention heads of a layer; must divide --hidden",
    "batch_tokens": "tokens of an update, about",
    "max_len": "token ids of a text, [CLS] and [SEP] included; longer texts are cut",
    "rate": "peak learning rate",
    "warmup": "updates in which the learning rate rises; where 500 do not fit, a tenth of --steps",
    "weight_decay": "weight decay of AdamW",
    "seed": "the same one and the same texts give the same weights on one machine (CPU)",
    "precision": "auto: bf16 where the hardware has it, fp16 on older GPUs, fp32 elsewhere",
}
LIMITS = {  # smallest and largest value
    "steps": (0, math.inf),
    "pieces": (len(SPECIAL) + 1, 1 << 17),
    "layers": (1, math.inf),
    "hidden": (1, math.inf),
    "heads": (1, math.inf),
    "batch_tokens": (1, math.inf),
    "max_len": (3, 512),
    "warmup": (0, math.inf),
    "seed": (0, 2**32 - 1),
}


def main() -> None:
    options = parse()
    recipe = recipe_of(options)
    check_paths(options)
    pretrain(
        read_texts(options.texts),
        recipe,
        options.output,
        start=options.start,
        checkpoint_root=options.checkpoint_dir,
        checkpoint_minutes=options.checkpoint_minutes,
    )
    print(f"{options.output}: python -m storyflower card NAME {options.output} makes a card for it")


def parse() -> argparse.Namespace:
    """The command line; an option of the recipe that it leaves out is None. Raises InputError."""
    parser = argparse.ArgumentParser(
        prog="python -m pretrain",
        description="Pretrain a small BERT on text files.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "texts",
        nargs="+",
        type=Path,
        metavar="FILE",
        help=".txt, one text a line, or .tsv, a label, a tab and a text a line; or either with .gz",
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="the encoder folder; that of an earlier pretraining is replaced",
    )
    parser.add_argument(
        "--start",
        type=Path,
        metavar="FOLDER",
        help="an encoder folder to go on from, with its vocabulary and its shape",
    )
    parser.add_argument(
        "--checkpoint-minutes",
        type=float,
        default=5,
        metavar="MINUTES",
        help="between two checkpoints (default: 5)",
    )
    parser.add_argument(
        "--checkpoint-dir",
        type=Path,
        default=CHECKPOINTS,
        metavar="FOLDER",
        help=f"where checkpoints lie until the result is there (default: {CHECKPOINTS})",
    )
    for field in fields(Recipe):
        required = field.name == "steps"
        parser.add_argument(
            option_of(field.name),
            type=field.type,
            required=required,
            choices=("auto", "fp32", "bf16") if field.name == "precision" else None,
            metavar=None if field.name == "precision" else "NUMBER",
            help=HELP[field.name] + ("" if required else f" (default: {field.default})"),
        )
    options = parser.parse_args()
    if not 0 < (minutes := options.checkpoint_minutes) < math.inf:
        raise InputError(f"--checkpoint-minutes {minutes:g}: must be a number above 0")
    return options


def option_of(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def recipe_of(options: argparse.Namespace) -> Recipe:
    """The recipe that the options ask for; raises InputError for one that cannot be followed."""
    values = {field.name: getattr(options, field.name) for field in fields(Recipe)}
    given = {name: value for name, value in values.items() if value is not None}
    check_values(given)
    if options.start:
        for name in SHAPE:
            if name in given:
                raise InputError(
                    f"{option_of(name)} {given[name]}: --start brings its own; leave it out"
                )
    if "warmup" not in given and given["steps"] <= Recipe.warmup:
        given["warmup"] = given["steps"] // 10
    recipe = Recipe(**given)
    if 0 < recipe.steps <= recipe.warmup:
        raise InputError(
            f"--warmup {recipe.warmup}: must be less than --steps {recipe.steps}, or the peak "
            "learning rate is never reached"
        )
    if not options.start and recipe.hidden % recipe.heads:
        raise InputError(f"--heads {recipe.heads}: must divide --hidden {recipe.hidden}")
    return recipe


def check_values(given: Mapping[str, Any]) -> None:
    """Raise InputError for a value that is too small or too large."""
    for name, (smallest, largest) in LIMITS.items():
        if name in given and not smallest <= given[name] <= largest:
            limits = f"at least {smallest}" if largest == math.inf else f"{smallest} to {largest}"
            raise InputError(f"{option_of(name)} {given[name]}: must be {limits}")
    if not 0 < given.get("rate", Recipe.rate) <= 1:
        raise InputError(f"--rate {given['rate']:g}: must be above 0, and 1 at most")
    if not 0 <= given.get("weight_decay", Recipe.weight_decay) < math.inf:
        raise InputError(f"--weight-decay {given['weight_decay']:g}: must be at least 0")


def check_paths(options: argparse.Namespace) -> None:
    """Raise InputError, before any work, for what is not there or would be lost."""
    check_output(options.output)
    check_files(options.texts)
    if options.start:
        check_start(options.start)
    used = [("--start", options.start), ("--checkpoint-dir", options.checkpoint_dir)]
    for what, path in [*used, *(("the text file", file) for file in options.texts)]:
        if path and path.resolve().is_relative_to(options.output.resolve()):
            raise InputError(
                f"--output {options.output}: is replaced, and {what} {path} lies in it; name "
                "another folder"
            )


if __name__ == "__main__":
    exit_with_line(main)
