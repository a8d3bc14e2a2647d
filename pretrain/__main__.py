"""The command line: python -m pretrain TEXTS... --output FOLDER.

In: text files (pretrain/texts.py says what they hold).
Out: an encoder folder, for a card of kind path.
"""

import argparse
from dataclasses import fields
from pathlib import Path

from pretrain.recipe import Recipe
from pretrain.texts import read_texts
from pretrain.train import CHECKPOINTS, pretrain
from storyflower.common.errors import InputError, exit_with_line

HELP = {
    "steps": "updates in all; 0: a vocabulary and random weights",
    "pieces": "of the vocabulary, at most",
    "layers": "of the encoder",
    "hidden": "size of a token's state",
    "heads": "of the attention; divides the size",
    "batch_tokens": "of an update, about",
    "max_len": "token ids of a text, [CLS] and [SEP] included",
    "rate": "of learning, at its peak",
    "warmup": "steps in which it rises",
    "weight_decay": "AdamW's",
    "seed": "the same one and the same texts give the same weights on one machine (CPU)",
    "precision": "auto, fp32 or bf16",
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pretrain", allow_abbrev=False)
    parser.add_argument("texts", nargs="+", type=Path, metavar="FILE", help=".txt or .tsv, or .gz")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--start", type=Path, metavar="FOLDER", help="goes on from its weights")
    parser.add_argument("--checkpoint-minutes", type=float, default=5)
    parser.add_argument("--checkpoint-dir", type=Path, default=CHECKPOINTS)
    for field in fields(Recipe):
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=field.type,
            help=HELP[field.name],
            **({"required": True} if field.name == "steps" else {"default": field.default}),
        )
    options = parser.parse_args()
    recipe = Recipe(**{field.name: getattr(options, field.name) for field in fields(Recipe)})
    check(recipe)
    if not options.output.parent.is_dir():
        raise InputError(f"{options.output.parent}: no such folder")
    pretrain(
        read_texts(options.texts),
        recipe,
        options.output,
        start=options.start,
        checkpoint_root=options.checkpoint_dir,
        checkpoint_minutes=options.checkpoint_minutes,
    )
    print(f"{options.output}: python -m storyflower card NAME {options.output} makes a card for it")


def check(recipe: Recipe) -> None:
    """Raise InputError for a recipe that cannot be followed."""
    for name in ("pieces", "layers", "hidden", "heads", "batch_tokens", "max_len"):
        if getattr(recipe, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} must be at least 1")
    if recipe.steps < 0 or recipe.warmup < 0:
        raise InputError("--steps and --warmup must be at least 0")
    if not 3 <= recipe.max_len <= 512:
        raise InputError(f"--max-len must be 3 to 512, got {recipe.max_len}")
    if recipe.hidden % recipe.heads:
        raise InputError(f"--heads must divide --hidden, got {recipe.heads} and {recipe.hidden}")
    if not 0 < recipe.rate <= 1:
        raise InputError(f"--rate must be in (0, 1], got {recipe.rate:g}")


if __name__ == "__main__":
    exit_with_line(main)
