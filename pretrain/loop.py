"""The pretraining loop: batches, updates, and what each epoch gave.

In: a model with its heads, token arrays to train on and to score, the recipe.
Out: the trained model and a row an epoch.

An epoch is once through the texts; its batches hold texts of about one length. The state and its
checkpoints are those of the fine-tuning (storyflower/train).
"""

import math
import time

import numpy as np
import torch

from pretrain.objective import PretrainingModel, mask
from pretrain.recipe import Recipe
from pretrain.state import PretrainingEpoch, PretrainingState, in_words
from pretrain.texts import NO_LABEL
from storyflower.common.errors import InputError
from storyflower.interim.tokens import TokenArrays
from storyflower.model.batch import make_batch
from storyflower.model.device import Placement
from storyflower.train.checkpoint import Checkpoints
from storyflower.train.optimizer import make_optimizer
from storyflower.train.step import seed_step

FIRST_SHARE, LAST_SHARE = 0.30, 0.15  # of the tokens, hidden at the first step and at the last
CLIP = 1.0  # L2 norm of the gradients
LOG_STEPS = 100  # between two lines


def fit(
    model: PretrainingModel,
    *,
    train: TokenArrays,
    held_out: TokenArrays,
    recipe: Recipe,
    placement: Placement,
    checkpoints: Checkpoints,
) -> list[PretrainingEpoch]:
    """Train in place; go on from the newest checkpoint, and save more.

    Raises InputError when a loss is no longer finite.
    """
    state = new_state(model, train, recipe, placement)
    checkpoints.restore(state)
    with checkpoints.stop:
        # A checkpoint of the very last step leaves its epoch to be scored.
        while state.done < recipe.steps or state.step:
            parts = batches(train, recipe.batch_tokens, recipe.seed, state.epoch)
            parts = parts[: recipe.steps - state.epoch * state.steps_per_epoch]
            started = time.perf_counter() - state.seconds
            for rows in parts[state.step :]:
                update(state, train=train, rows=rows, recipe=recipe, placement=placement)
                state.seconds = time.perf_counter() - started
                if state.done % LOG_STEPS == 0:
                    report(state, recipe)
                checkpoints.after_step(state)
            tokens = int(train.lengths[np.concatenate(parts)].sum())
            row = score_epoch(
                state, held_out=held_out, tokens=tokens, recipe=recipe, placement=placement
            )
            print(f"epoch {row.epoch}: {row}", flush=True)
            state.history.append(row)
            state.next_epoch()
            checkpoints.after_epoch(state)
    return state.history


def new_state(
    model: PretrainingModel, train: TokenArrays, recipe: Recipe, placement: Placement
) -> PretrainingState:
    """The state before the first step, on the device."""
    device = placement.device
    model.to(device).eval()  # no dropout: the texts are seen a few times only
    optimizer = make_optimizer(model, recipe.rate, recipe.weight_decay, device)
    for group in optimizer.param_groups:
        group["betas"], group["eps"] = (0.9, 0.98), 1e-6
    return PretrainingState(
        model=model,
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(device.type, enabled=placement.precision == "fp16"),
        loss_sum=torch.zeros((), device=device),
        correct=torch.zeros((), dtype=torch.int64, device=device),
        steps_per_epoch=len(batches(train, recipe.batch_tokens, recipe.seed, 0)),
        label_loss_sum=torch.zeros((), device=device),
    )


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
    """Share of the peak rate at a step from 0; no step has a rate of 0.

    It rises in equal parts to 1 at step `warmup`, and falls in equal parts to what would be 0 at
    step `total`, the first that is not taken.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return (total - step) / (total - warmup)


def update(
    state: PretrainingState,
    *,
    train: TokenArrays,
    rows: np.ndarray,
    recipe: Recipe,
    placement: Placement,
) -> None:
    """One update on the texts `rows`, counted in the state."""
    model, optimizer = state.model, state.optimizer
    seed_step(recipe.seed, state.epoch, state.step, 0, placement.device)
    share = FIRST_SHARE + (LAST_SHARE - FIRST_SHARE) * state.done / recipe.steps
    masked = mask(make_batch(train, rows, placement.device), share, model.encoder.config.vocab_size)
    for group in optimizer.param_groups:
        group["lr"] = recipe.rate * schedule(state.done, recipe.warmup, recipe.steps)
    optimizer.zero_grad()
    with placement.autocast():
        token_loss, label_loss, logits = model(masked)
    state.scaler.scale(token_loss + label_loss).backward()
    state.scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    state.scaler.step(optimizer)
    state.scaler.update()
    labelled = count_labelled(train, rows)
    state.loss_sum += token_loss.detach() * len(masked.targets)
    state.label_loss_sum += label_loss.detach() * labelled
    state.correct += (logits.argmax(dim=1) == masked.targets).sum()
    state.seen += len(masked.targets)
    state.labelled += labelled
    state.step += 1


def count_labelled(tokens: TokenArrays, rows: np.ndarray) -> int:
    return int((tokens.labels[rows] != NO_LABEL).sum())


def report(state: PretrainingState, recipe: Recipe) -> None:
    """Say how far it is; raises InputError when a loss is no longer finite."""
    losses = state.losses()
    check_finite(f"step {state.done}", losses, recipe.rate)
    left = (recipe.steps - state.done) * state.seconds / state.step
    print(
        f"step {state.done}/{recipe.steps}: {in_words(*losses)} in this epoch, "
        f"{left / 60:.0f} min left",
        flush=True,
    )


def check_finite(where: str, losses: tuple[float, float | None], rate: float) -> None:
    """Raise InputError for the loss of tokens or of labels that is no number any more."""
    for name, loss in zip(("loss", "label loss"), losses, strict=True):
        if loss is not None and not math.isfinite(loss):
            raise InputError(f"{where}: {name} {loss}; lower --rate ({rate:g})")


def score_epoch(
    state: PretrainingState,
    *,
    held_out: TokenArrays,
    tokens: int,
    recipe: Recipe,
    placement: Placement,
) -> PretrainingEpoch:
    """The row of an epoch of `tokens` tokens whose steps are done.

    Raises InputError when a loss is no longer finite, also on the texts held out, which alone tell
    it of the last update.
    """
    where = f"epoch {state.epoch + 1}"
    loss, label_loss = state.losses()
    check_finite(where, (loss, label_loss), recipe.rate)
    held_out_loss, accuracy, held_out_label_loss = score(state.model, held_out, recipe, placement)
    check_finite(f"{where}, texts held out", (held_out_loss, held_out_label_loss), recipe.rate)
    return PretrainingEpoch(
        epoch=state.epoch + 1,
        steps=state.step,
        tokens=tokens,
        seconds=state.seconds,
        loss=loss,
        accuracy=state.correct.item() / state.seen,
        label_loss=label_loss,
        held_out_loss=held_out_loss,
        held_out_accuracy=accuracy,
        held_out_label_loss=held_out_label_loss,
    )


def score(
    model: PretrainingModel, held_out: TokenArrays, recipe: Recipe, placement: Placement
) -> tuple[float, float, float | None]:
    """(loss, accuracy, label loss) on texts never trained on; the same tokens are always hidden.

    Losses are means in nats, of the hidden tokens and of the labelled texts; None where no text is.
    """
    loss_sum, label_loss_sum, right, seen, labelled = 0.0, 0.0, 0, 0, 0
    with torch.inference_mode(), placement.autocast():
        for number, rows in enumerate(batches(held_out, recipe.batch_tokens, 0, 0)):
            seed_step(0, 0, number, 0, placement.device)
            batch = make_batch(held_out, rows, placement.device)
            masked = mask(batch, LAST_SHARE, model.encoder.config.vocab_size)
            token_loss, label_loss, logits = model(masked)
            count = count_labelled(held_out, rows)
            loss_sum += token_loss.item() * len(masked.targets)
            label_loss_sum += label_loss.item() * count
            right += int((logits.argmax(dim=1) == masked.targets).sum())
            seen += len(masked.targets)
            labelled += count
    return loss_sum / seen, right / seen, label_loss_sum / labelled if labelled else None
