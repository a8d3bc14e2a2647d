"""Texts → an encoder folder: its vocabulary, where it starts, and what is written.

In: texts, some with labels.
Out: a from_pretrained folder with its vocabulary, 16-bit weights, heads.safetensors, which only
--start reads, and pretraining.json, which says what was done and what each epoch gave. A run that
died goes on from its last checkpoint.
Not supported: several processes.
"""

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, PreTrainedModel
from transformers.utils import logging

from pretrain.embeddings import embeddings_from_counts
from pretrain.loop import fit
from pretrain.objective import PretrainingModel
from pretrain.recipe import Recipe
from pretrain.texts import Texts
from pretrain.vocabulary import MAX_SENTENCES, SPECIAL, train_vocabulary
from storyflower.common.errors import InputError
from storyflower.common.files import json_text, replacing
from storyflower.interim import checkpoint_folders
from storyflower.interim.tokens import TokenArrays
from storyflower.model.device import choose
from storyflower.model.folder import read_encoder
from storyflower.tokenizer.load import load_tokenizer
from storyflower.train.checkpoint import Checkpoints, fingerprint
from storyflower.train.dev import take

HEADS = "heads.safetensors"
CHECKPOINTS = Path(".storyflower/pretrain")
CARD = {"tokenizer": "sentencepiece", "pretokenize": "bert"}
MOST_HELD_OUT = 2000  # texts that are scored and never trained on; a fiftieth of fewer


def pretrain(
    texts: Texts,
    recipe: Recipe,
    output: Path,
    *,
    start: Path | None = None,
    checkpoint_root: Path = CHECKPOINTS,
    checkpoint_minutes: float = 5,
) -> None:
    """Write an encoder folder; an old one is replaced when the new one is whole.

    `start` is a folder whose vocabulary and weights are taken on; the optimizer begins anew. With
    0 steps the weights are random, as BertConfig draws them. Raises InputError.
    """
    placement = choose("auto", recipe.precision)
    with replacing() as beside:
        folder = beside(output)
        folder.mkdir()
        vocabulary = folder / "spiece.model"
        if start:
            vocabulary.write_bytes((start / "spiece.model").read_bytes())
        else:
            every = -(-len(texts) // MAX_SENTENCES)
            sample = list(texts.label_of)[::every]
            train_vocabulary(sample, vocabulary, pieces=recipe.pieces, seed=recipe.seed)
        size = load_tokenizer(folder, CARD).vocab_size
        torch.manual_seed(recipe.seed)
        encoder = read_encoder(start) if start else random_encoder(recipe, size)
        document: dict[str, Any] = {"recipe": asdict(recipe), "texts": len(texts)}
        if recipe.steps:
            train, held_out = split(encode(texts, folder, recipe))
            facts = {**document, "device": str(placement), "tokens": digest(train)}
            name = fingerprint(facts, [vocabulary, *([start] if start else [])])
            with Checkpoints(
                checkpoint_root, name, checkpoint_minutes, command="the same command"
            ) as checkpoints:
                if not start and checkpoints.saved is None:
                    table = embeddings_from_counts(train, size, recipe.hidden, seed=recipe.seed)
                    encoder.get_input_embeddings().weight.data.copy_(torch.from_numpy(table))
                model = PretrainingModel(encoder, texts.tasks)
                if start:
                    load_heads(model, start)
                history = fit(
                    model,
                    train=train,
                    held_out=held_out,
                    recipe=recipe,
                    placement=placement,
                    checkpoints=checkpoints,
                )
            save_file(heads_of(model), folder / HEADS)
            document |= {
                "tokens": len(train.ids),
                "tasks": {task: len(labels) for task, labels in texts.classes.items()},
                "device": str(placement),
                "epochs": [asdict(row) for row in history],
            }
        encoder.to("cpu", torch.float16).save_pretrained(folder)
        (folder / "pretraining.json").write_text(json_text(document), encoding="utf-8")
    if recipe.steps:  # the result is there
        checkpoint_folders.discard(checkpoint_root, name[: checkpoint_folders.SAYS_WHICH])


def heads_of(model: PretrainingModel) -> dict[str, torch.Tensor]:
    """What the encoder does without, for a pretraining that goes on from it; float16."""
    return {
        name: value.to("cpu", torch.float16).contiguous()
        for name, value in model.state_dict().items()
        if not name.startswith("encoder.")
    }


def load_heads(model: PretrainingModel, folder: Path) -> None:
    """Take on the heads of a folder, if it has any, as far as they are of the same shape."""
    if (folder / HEADS).is_file():
        own = model.state_dict()
        saved = load_file(folder / HEADS)
        fitting = {k: v for k, v in saved.items() if k in own and v.shape == own[k].shape}
        model.load_state_dict(fitting, strict=False)


def digest(tokens: TokenArrays) -> str:
    """sha256 of arrays."""
    result = hashlib.sha256()
    for array in (tokens.ids, tokens.offsets, tokens.labels):
        result.update(np.ascontiguousarray(array).data)
    return result.hexdigest()


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


def encode(texts: Texts, folder: Path, recipe: Recipe) -> TokenArrays:
    tokens = load_tokenizer(folder, CARD).encode(list(texts.label_of), recipe.max_len)
    return TokenArrays(tokens.ids, tokens.offsets, texts.labels)


def split(tokens: TokenArrays) -> tuple[TokenArrays, TokenArrays]:
    """(what is trained on, what is only scored): every n-th text, 2,000 at most."""
    every = max(50, len(tokens) // MOST_HELD_OUT)
    held_out = np.arange(len(tokens)) % every == every - 1
    if not held_out.any():
        raise InputError(f"{len(tokens)} texts are too few to train on; expected at least 50")
    return take(tokens, ~held_out), take(tokens, held_out)
