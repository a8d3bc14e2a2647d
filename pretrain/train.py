"""Texts → an encoder folder: vocabulary, start, and the training loop.

In: texts, some with labels.
Out: a from_pretrained folder with its vocabulary, 16-bit weights, heads.safetensors, which only
--start reads, and pretraining.json, which says what was done and what each epoch gave. A run that
died goes on from its last checkpoint.
Not supported: several processes.

An epoch is once through the texts; its batches hold texts of about one length. The loop shares its
state and its checkpoints with the fine-tuning (storyflower/train).
"""

import hashlib
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, PreTrainedModel
from transformers.utils import logging

from pretrain.embeddings import embeddings_from_counts
from pretrain.objective import PretrainingModel, mask
from pretrain.texts import Texts
from pretrain.vocabulary import MAX_SENTENCES, SPECIAL, train_vocabulary
from storyflower.common.errors import InputError
from storyflower.common.files import json_text, replacing
from storyflower.interim import checkpoint_folders
from storyflower.interim.history import Epoch
from storyflower.interim.tokens import TokenArrays
from storyflower.model.batch import make_batch
from storyflower.model.device import Placement, choose
from storyflower.model.folder import read_encoder
from storyflower.tokenizer.load import load_tokenizer
from storyflower.train.checkpoint import Checkpoints, fingerprint
from storyflower.train.dev import take
from storyflower.train.fit import seed_step
from storyflower.train.optimizer import make_optimizer
from storyflower.train.state import State

HEADS = "heads.safetensors"
CHECKPOINTS = Path(".storyflower/pretrain")
CARD = {"tokenizer": "sentencepiece", "pretokenize": "bert"}
MOST_HELD_OUT = 2000  # texts that are scored and never trained on; a fiftieth of fewer
FIRST_SHARE, LAST_SHARE = 0.30, 0.15  # of the tokens, hidden at the first step and at the last
CLIP = 1.0  # L2 norm of the gradients


@dataclass(frozen=True)
class Recipe:
    """What decides about the result, beside the texts."""

    steps: int
    pieces: int = 8000
    layers: int = 4
    hidden: int = 256
    heads: int = 4
    batch_tokens: int = 4096
    max_len: int = 128
    rate: float = 1.5e-3
    warmup: int = 500  # steps
    weight_decay: float = 0.01
    seed: int = 42
    precision: str = "auto"


def pretrain(
    texts: Texts,
    recipe: Recipe,
    output: Path,
    *,
    start: Path | None = None,
    checkpoint_root: Path = CHECKPOINTS,
    checkpoint_minutes: float = 5,
    log_steps: int = 100,
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
                history = run(
                    model,
                    train=train,
                    held_out=held_out,
                    recipe=recipe,
                    placement=placement,
                    checkpoints=checkpoints,
                    log_steps=log_steps,
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


def batches(tokens: TokenArrays, most: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The texts of each batch of an epoch: about `most` tokens, about one length; in any order.

    Every epoch has as many.
    """
    rng = np.random.default_rng([seed, epoch])
    order = np.lexsort([rng.random(len(tokens)), tokens.lengths])
    total = np.cumsum(tokens.lengths[order])
    cuts = np.flatnonzero(np.diff(total // most)) + 1
    parts = np.split(order, cuts)
    return [parts[index] for index in rng.permutation(len(parts))]


def schedule(step: int, warmup: int, total: int) -> float:
    """Share of the peak rate: linear from 0, then linear down to 0."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return (total - step) / max(1, total - warmup)


def run(
    model: PretrainingModel,
    *,
    train: TokenArrays,
    held_out: TokenArrays,
    recipe: Recipe,
    placement: Placement,
    checkpoints: Checkpoints,
    log_steps: int,
) -> list[Epoch]:
    """Train in place; return a row an epoch, whose accuracy is that of the hidden tokens."""
    device = placement.device
    model.to(device).eval()  # no dropout: the texts are seen a few times only
    optimizer = make_optimizer(model, recipe.rate, recipe.weight_decay, device)
    for group in optimizer.param_groups:
        group["betas"], group["eps"] = (0.9, 0.98), 1e-6
    state = State(
        model=model,
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(device.type, enabled=placement.precision == "fp16"),
        loss_sum=torch.zeros((), device=device),
        correct=torch.zeros((), dtype=torch.int64, device=device),
    )
    checkpoints.restore(state)
    steps = len(batches(train, recipe.batch_tokens, recipe.seed, 0))
    with checkpoints.stop:
        while (done := state.epoch * steps + state.step) < recipe.steps:
            parts = batches(train, recipe.batch_tokens, recipe.seed, state.epoch)
            started = time.perf_counter() - state.seconds
            for rows in parts[state.step : state.step + recipe.steps - done]:
                step(state, train, rows, state.epoch * steps + state.step, recipe, placement)
                state.seconds = time.perf_counter() - started
                if (state.epoch * steps + state.step) % log_steps == 0:
                    report(state, state.epoch * steps + state.step, recipe)
                checkpoints.after_step(state)
            loss, accuracy = score(model, held_out, recipe, placement)
            row = Epoch(
                epoch=state.epoch + 1,
                loss=state.loss_sum.item() / state.seen,
                train_accuracy=state.correct.item() / state.seen,
                test_loss=loss,
                test_accuracy=accuracy,
                seconds=state.seconds,
                tokens=int(
                    train.offsets[-1] * min(1, (recipe.steps - state.epoch * steps) / steps)
                ),
            )
            print(
                f"epoch {row.epoch}: loss {row.loss:.4f}; on texts held out {row.test_loss:.4f}, "
                f"accuracy {row.test_accuracy:.4f}; {row.seconds:.0f} s",
                flush=True,
            )
            state.history.append(row)
            state.next_epoch()
            checkpoints.after_epoch(state)
    return state.history


def step(
    state: State,
    train: TokenArrays,
    rows: np.ndarray,
    done: int,
    recipe: Recipe,
    placement: Placement,
) -> None:
    """One update on some texts, counted in the state; `done` came before it in all."""
    model, optimizer = state.model, state.optimizer
    seed_step(recipe.seed, state.epoch, state.step, 0, placement.device)
    share = FIRST_SHARE + (LAST_SHARE - FIRST_SHARE) * done / recipe.steps
    masked = mask(make_batch(train, rows, placement.device), share, model.encoder.config.vocab_size)
    for group in optimizer.param_groups:
        group["lr"] = recipe.rate * schedule(done, recipe.warmup, recipe.steps)
    optimizer.zero_grad()
    with placement.autocast():
        token_loss, label_loss, logits = model(masked)
    state.scaler.scale(token_loss + label_loss).backward()
    state.scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    state.scaler.step(optimizer)
    state.scaler.update()
    state.loss_sum += token_loss.detach() * len(masked.targets)
    state.correct += (logits.argmax(dim=1) == masked.targets).sum()
    state.seen += len(masked.targets)
    state.step += 1


def report(state: State, done: int, recipe: Recipe) -> None:
    loss = state.loss_sum.item() / state.seen
    if not np.isfinite(loss):
        raise InputError(f"step {done}: loss {loss}; lower --rate ({recipe.rate:g})")
    rate = state.seen and state.step / state.seconds
    print(
        f"step {done}/{recipe.steps}: loss {loss:.4f} in this epoch, "
        f"{(recipe.steps - done) / rate / 60:.0f} min left",
        flush=True,
    )


def score(
    model: PretrainingModel, held_out: TokenArrays, recipe: Recipe, placement: Placement
) -> tuple[float, float]:
    """Loss (nats a hidden token) and accuracy on texts never trained on; the same tokens always."""
    total, right, seen = 0.0, 0, 0
    with torch.inference_mode(), placement.autocast():
        for number, rows in enumerate(batches(held_out, recipe.batch_tokens, 0, 0)):
            seed_step(0, 0, number, 0, placement.device)
            batch = make_batch(held_out, rows, placement.device)
            masked = mask(batch, LAST_SHARE, model.encoder.config.vocab_size)
            loss, _, logits = model(masked)
            total += loss.item() * len(masked.targets)
            right += int((logits.argmax(dim=1) == masked.targets).sum())
            seen += len(masked.targets)
    return total / seen, right / seen
