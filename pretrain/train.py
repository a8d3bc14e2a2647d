"""Texts → an encoder folder: its vocabulary, where it starts, and what is written.

In: texts, some with labels.
Out: a from_pretrained folder with its vocabulary, 16-bit weights, heads.safetensors, which only
--start reads, and pretraining.json, which says what was done and what each epoch gave. A run that
died goes on from its last checkpoint.
Not supported: several processes.
"""

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import BertConfig, BertModel, PreTrainedModel
from transformers.utils import logging

from pretrain.embeddings import embeddings_from_counts
from pretrain.loop import fit
from pretrain.objective import PretrainingModel
from pretrain.recipe import Recipe
from pretrain.start import HEADS, digest_start, load_heads, read_start, save_heads
from pretrain.texts import Texts
from pretrain.vocabulary import CARD, MAX_SENTENCES, SPECIAL, train_vocabulary
from storyflower.common import locks
from storyflower.common.errors import InputError
from storyflower.common.files import json_text, replacing
from storyflower.interim import checkpoint_folders
from storyflower.interim.tokens import TokenArrays
from storyflower.model.device import Placement, choose
from storyflower.tokenizer.load import load_tokenizer
from storyflower.train.checkpoint import Checkpoints, fingerprint
from storyflower.train.dev import hash_texts, take
from storyflower.train.memory import keep_freed
from storyflower.train.run import loaded_code, machine

CHECKPOINTS = Path(".storyflower/pretrain")
VOCABULARY, RECORD = "spiece.model", "pretraining.json"
MOST_HELD_OUT = 2000  # texts that are scored and never trained on
HELD_OUT = 50  # and of fewer texts, one in so many


def pretrain(
    texts: Texts,
    recipe: Recipe,
    output: Path,
    *,
    start: Path | None = None,
    checkpoint_root: Path = CHECKPOINTS,
    checkpoint_minutes: float = 5,
) -> None:
    """Write an encoder folder; that of an earlier pretraining is replaced by the whole new one.

    `start` is a folder (pretrain/start.py) whose vocabulary, shape, weights and heads are taken on;
    the optimizer begins anew. With 0 steps they are written as they are; without a start, the
    weights are random then, as BertConfig draws them. A process that writes the same output is
    waited for. Raises InputError.
    """
    check_output(output)
    placement = choose("auto", recipe.precision)
    keep_freed()
    with held_alone(output):
        with replacing() as beside:
            folder = beside(output)
            folder.mkdir()
            if start:
                encoder, recipe = take_on(start, folder, recipe)
            else:
                encoder = begin(texts, folder, recipe)
            document: dict[str, Any] = {"recipe": asdict(recipe), "texts": len(texts)}
            if start:
                document["start"] = {"folder": start.resolve().name, "sha256": digest_start(start)}
            if recipe.steps:
                train, held_out = split(encode(texts, folder, recipe.max_len))
                facts = {**document, "tasks": texts.tasks}
                facts |= {"train": digest(train), "held_out": digest(held_out)}
                run = run_fingerprint(facts, placement, folder)
                with Checkpoints(
                    checkpoint_root, run, checkpoint_minutes, command="the same command"
                ) as checkpoints:
                    if not start and checkpoints.saved_extra is None:
                        set_embeddings(encoder, train, recipe.seed)
                    model = PretrainingModel(encoder, list(map(len, texts.tasks.values())))
                    if start and checkpoints.saved_extra is None:
                        load_heads(model, texts.tasks, start)
                    history = fit(
                        model,
                        train=train,
                        held_out=held_out,
                        recipe=recipe,
                        placement=placement,
                        checkpoints=checkpoints,
                    )
                check_weights(model)
                save_heads(model, texts.tasks, folder)
                document |= {
                    "tokens": len(train.ids),
                    "tasks": {task: len(labels) for task, labels in texts.tasks.items()},
                    "device": str(placement),
                    "epochs": [asdict(row) for row in history],
                }
            elif start and (start / HEADS).is_file():
                shutil.copyfile(start / HEADS, folder / HEADS)
            check_weights(encoder)
            encoder.to("cpu", torch.float16).save_pretrained(folder)
            (folder / RECORD).write_text(json_text(document), encoding="utf-8")
        if recipe.steps:  # the result is there
            checkpoint_folders.discard(checkpoint_root, run[: checkpoint_folders.SAYS_WHICH])


def check_output(output: Path) -> None:
    """Raise InputError for an output that is not there to be written or replaced."""
    if output.name in ("", ".."):
        raise InputError(f"--output {output}: name a new folder, such as {output / 'encoder'}")
    if not output.parent.is_dir():
        raise InputError(f"--output {output}: no folder {output.parent}; make it first")
    if output.is_dir():
        if any(output.iterdir()) and not (output / RECORD).is_file():
            raise InputError(
                f"--output {output}: holds something else than a pretraining, which would be "
                "lost; name a new folder"
            )
    elif output.exists() or output.is_symlink():
        raise InputError(f"--output {output}: not a folder; name a new one")


@contextmanager
def held_alone(output: Path) -> Iterator[None]:
    """Hold the output's lock; no file of it stays, for DVC hashes all that lies in encoders/."""
    lock = locks.beside(output)
    with locks.acquire(lock, f"pretrains {output}"):
        try:
            yield
        finally:
            locks.remove_files(lock)


def begin(texts: Texts, folder: Path, recipe: Recipe) -> PreTrainedModel:
    """Write a vocabulary for the texts; return random weights."""
    every = -(-len(texts) // MAX_SENTENCES)
    sample = list(texts.label_of)[::every]
    train_vocabulary(sample, folder / VOCABULARY, pieces=recipe.pieces, seed=recipe.seed)
    torch.manual_seed(recipe.seed)
    return random_encoder(recipe, load_tokenizer(folder, CARD).vocab_size)


def take_on(start: Path, folder: Path, recipe: Recipe) -> tuple[PreTrainedModel, Recipe]:
    """Copy a start's vocabulary; return its encoder, and the recipe with its shape."""
    encoder = read_start(start, recipe.max_len)
    shutil.copyfile(start / VOCABULARY, folder / VOCABULARY)
    torch.manual_seed(recipe.seed)  # for heads that begin anew
    config = encoder.config
    shape = {
        "pieces": config.vocab_size,
        "layers": config.num_hidden_layers,
        "hidden": config.hidden_size,
        "heads": config.num_attention_heads,
    }
    return encoder, replace(recipe, **shape)


def set_embeddings(encoder: PreTrainedModel, tokens: TokenArrays, seed: int) -> None:
    """Let the embeddings begin where the counts of the tokens put them."""
    weight = encoder.get_input_embeddings().weight
    weight.data.copy_(torch.from_numpy(embeddings_from_counts(tokens, *weight.shape, seed=seed)))


def run_fingerprint(facts: Mapping[str, Any], placement: Placement, folder: Path) -> str:
    """Says of two runs that they end with the same weights; the folder holds the vocabulary."""
    facts = {**facts, "machine": machine(placement), "code": loaded_code("pretrain")}
    return fingerprint(facts, [folder / VOCABULARY])


def digest(tokens: TokenArrays) -> str:
    """sha256 of arrays."""
    result = hashlib.sha256()
    for array in (tokens.ids, tokens.offsets, tokens.labels):
        result.update(np.ascontiguousarray(array).data)
    return result.hexdigest()


def check_weights(model: nn.Module) -> None:
    """Raise InputError for weights that 16 bits cannot hold, or that are no numbers."""
    for name, value in model.state_dict().items():
        if not value.to(torch.float16).isfinite().all():
            raise InputError(
                f"{name}: a weight is no number, or too large for 16 bits; lower --rate, or name "
                "another --start"
            )


def random_encoder(recipe: Recipe, vocabulary: int) -> PreTrainedModel:
    """A BERT of the recipe's shape, with weights from torch's random state and no pooler."""
    logging.disable_progress_bar()
    config = BertConfig(
        vocab_size=vocabulary,
        num_hidden_layers=recipe.layers,
        hidden_size=recipe.hidden,
        num_attention_heads=recipe.heads,
        intermediate_size=4 * recipe.hidden,
        pad_token_id=SPECIAL.index("[PAD]"),
    )
    return BertModel(config, add_pooling_layer=False)


def encode(texts: Texts, folder: Path, max_len: int) -> TokenArrays:
    """The texts as the folder's vocabulary cuts them, without those that have nothing to learn.

    Of a text of invisible characters alone, say, no token could be hidden.
    """
    tokens = load_tokenizer(folder, CARD).encode(list(texts.label_of), max_len)
    if count := int(tokens.cut.sum()):
        print(
            f"{count:,} of {len(texts):,} texts are longer than --max-len {max_len}: they are cut"
        )
    arrays = TokenArrays(tokens.ids, tokens.offsets, texts.labels)
    known = np.logical_or.reduceat(tokens.ids >= len(SPECIAL), tokens.offsets[:-1])
    if known.all():
        return arrays
    count = int((~known).sum())
    print(f"{count:,} of {len(texts):,} texts have no token of the vocabulary: they are left out")
    return take(arrays, known)


def split(tokens: TokenArrays) -> tuple[TokenArrays, TokenArrays]:
    """(what is trained on, what is only scored): 2,000 texts at most, of fewer a fiftieth.

    A hash of the tokens chooses, among the texts whose tokens no other text has: so no text is on
    both sides, and neither the seed nor the order of the files decides. But a dialogue that was
    joined into one text may share its sentences with its turns, which are texts, too.
    """
    _, first, count = np.unique(hash_texts(tokens, 0), return_index=True, return_counts=True)
    chosen = first[count == 1][: min(MOST_HELD_OUT, len(tokens) // HELD_OUT)]
    if not len(chosen):
        raise InputError(
            f"{len(tokens)} texts are too few to train on; expected at least {HELD_OUT}"
        )
    held_out = np.zeros(len(tokens), dtype=bool)
    held_out[chosen] = True
    return take(tokens, ~held_out), take(tokens, held_out)
