"""fit(): the training loop, and only the loop.

In: a classifier, the token arrays of Training and Validation, the params.
Out: the trained classifier and one row of history per epoch. As in the original notebook: AdamW,
cosine schedule with warm-up from 0, gradient clipping.
Not supported: padding (the dialogues of a batch lie end to end).

"Train accuracy" is a running value: dropout on, weights changing, each dialogue counted when it is
trained on. Test accuracy is reported for each epoch and never used to choose an epoch.
"""

import math
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from storyflower.common.errors import InputError
from storyflower.common.params import Params
from storyflower.interim.history import Epoch, best_epoch
from storyflower.interim.tokens import TokenArrays
from storyflower.model import scoring
from storyflower.model.batch import Batch, make_batch
from storyflower.model.classifier import EmotionClassifier
from storyflower.model.device import Placement
from storyflower.model.processes import ALONE, Ranks
from storyflower.train.checkpoint import Checkpoints
from storyflower.train.collapse import LossWatch, is_late, note_one_class
from storyflower.train.cuda_graphs import Replayed
from storyflower.train.dev import take
from storyflower.train.masking import hide
from storyflower.train.optimizer import make_optimizer, prepare_update, schedule
from storyflower.train.progress import Progress
from storyflower.train.state import State


def fit(
    model: EmotionClassifier,
    *,
    train: TokenArrays,
    test: TokenArrays,
    held: np.ndarray | None = None,
    params: Params,
    placement: Placement,
    on_epoch: Callable[[list[Epoch]], None],
    mask_id: int | None = None,
    checkpoints: Checkpoints | None = None,
    ranks: Ranks = ALONE,
) -> list[Epoch]:
    """Train the model in place and return the history.

    `params` are resolved (train/run.py): their learning_rate and optimizer are no longer "auto".
    `held`, bool (dialogues,), marks the rows of `train` that are not trained on but scored like
    `test`; keep: best and patience need them. `mask_id` is the id of [MASK], for mask_rate.
    `on_epoch` gets the history so far after each epoch. With `checkpoints`, training resumes from
    the newest one and saves more. With several `ranks`, each trains on its share of every batch,
    and all return the same history. Raises InputError if the loss is no longer finite.
    """
    if held is None and (params.keep == "best" or params.patience):
        raise ValueError("keep: best and patience need rows that are held back")
    kept = None if held is None else np.flatnonzero(~held)
    dev = None if held is None else take(train, held)
    count = len(train) if dev is None else len(kept)
    tokens = int(train.offsets[-1]) - (0 if dev is None else int(dev.offsets[-1]))
    state = new_state(model, params, placement)
    if checkpoints:
        checkpoints.restore(state)
    if not ranks.agree([state.epoch, state.step]):
        raise InputError("the processes found different checkpoints; let checkpoint_dir be shared")
    steps = math.ceil(count / params.batch_size)  # per epoch
    warmup = int(steps * params.num_epochs * params.warmup_ratio)
    train_step = make_step(
        state,
        train=train,
        steps=steps,
        warmup=warmup,
        params=params,
        placement=placement,
        mask_id=mask_id,
        ranks=ranks,
    )
    for epoch in range(state.epoch, params.num_epochs):
        if is_over(state.history, params):
            break
        order = epoch_order(count, epoch, params)
        if kept is not None:
            order = kept[order]
        progress = Progress(state, params, steps, silent=not ranks.first)
        started = time.perf_counter() - state.seconds
        model.train()
        for start in range(state.step * params.batch_size, len(order), params.batch_size):
            train_step(order[start : start + params.batch_size])
            state.seconds = time.perf_counter() - started
            progress.step()
            if checkpoints:
                checkpoints.after_step(state)
        placement.synchronize()
        state.seconds = time.perf_counter() - started
        progress.close()
        row = score_epoch(
            state,
            tokens=tokens,
            judged=is_late((epoch + 1) * steps, warmup, last=epoch + 1 == params.num_epochs),
            test=test,
            dev=dev,
            placement=placement,
            ranks=ranks,
        )
        if ranks.first:
            print(f"epoch {row.epoch}/{params.num_epochs}: {row}", flush=True)
        state.history.append(row)
        if params.keep == "best" and best_epoch(state.history) == row.epoch:
            state.keep()
        on_epoch(state.history)
        state.next_epoch()
        if checkpoints:
            checkpoints.after_epoch(state)
    if state.best:
        model.load_state_dict(state.best)
    return state.history


def is_over(history: list[Epoch], params: Params) -> bool:
    """Whether none of the last `patience` epochs is the best on the dev part."""
    if not (history and params.patience):
        return False
    return len(history) - best_epoch(history) >= params.patience


def new_state(model: EmotionClassifier, params: Params, placement: Placement) -> State:
    """The state before the first step, on the device."""
    device = placement.device
    model.to(device)
    return State(
        model=model,
        optimizer=make_optimizer(model, params.learning_rate, params.weight_decay, device),
        # Only for fp16, in which small gradients become 0 without scaling.
        scaler=torch.amp.GradScaler(device.type, enabled=placement.precision == "fp16"),
        # These sums stay on the device: reading one waits for the device, so only for display.
        loss_sum=torch.zeros((), device=device),
        correct=torch.zeros((), dtype=torch.int64, device=device),
    )


def make_step(
    state: State,
    *,
    train: TokenArrays,
    steps: int,
    warmup: int,
    params: Params,
    placement: Placement,
    mask_id: int | None,
    ranks: Ranks,
) -> Callable[[np.ndarray], None]:
    """A function that does one update on rows of `train`, (dialogues,), and counts it in `state`.

    An epoch has `steps` updates; the rate rises during the first `warmup` updates of the training.
    """
    device = placement.device
    total = steps * params.num_epochs
    backward = make_backward(ranks.wrap(state.model), state.scaler, placement, ranks)
    watch = LossWatch(train.labels, warmup, params.learning_rate)

    def train_step(rows: np.ndarray) -> None:
        seed_step(params.seed, state.epoch, state.step, ranks.rank, device)
        mine = ranks.share(rows, train.offsets[rows + 1] - train.offsets[rows])
        batch = make_batch(train, mine if len(mine) else rows[:1], device)
        if params.mask_rate:
            batch = hide(batch, params.mask_rate, mask_id)
        # A process without dialogues in this batch computes one with weight 0.
        weight = torch.full((), (len(mine) > 0) / len(rows), device=device)
        sums = ranks.sum(backward(batch, weight).clone())  # (2,): mean loss, correct predictions

        done = state.epoch * steps + state.step
        rate = params.learning_rate * schedule(done, warmup, total)
        prepare_update(
            state.optimizer, rate=rate, name=params.optimizer, done=done, scaler=state.scaler
        )
        state.scaler.unscale_(state.optimizer)
        nn.utils.clip_grad_norm_(state.model.parameters(), params.max_grad_norm)
        state.scaler.step(state.optimizer)
        state.scaler.update()

        if ranks.first:
            watch.step(done, sums[0])
        state.loss_sum += sums[0] * len(rows)
        state.correct += sums[1].long()
        state.seen += len(rows)
        state.step += 1

    return train_step


def score_epoch(
    state: State,
    *,
    tokens: int,
    judged: bool,
    test: TokenArrays,
    dev: TokenArrays | None,
    placement: Placement,
    ranks: Ranks,
) -> Epoch:
    """The row of history for an epoch whose steps are done.

    `tokens` is how many tokens it trained on. If `judged`, it is late enough in the training to
    warn about a model that predicts only one class. Raises InputError if the loss is not finite.
    """
    mean_loss = state.loss_sum.item() / state.seen
    if not math.isfinite(mean_loss):
        rate = state.optimizer.defaults["lr"]
        raise InputError(
            f"epoch {state.epoch + 1}: loss {mean_loss}; lower learning_rate ({rate:g})"
        )
    probability = scoring.probabilities(state.model, test, placement, ranks)  # (rows, classes)
    predicted = probability.argmax(axis=1)
    if ranks.first and judged:
        note_one_class(predicted, test.labels, state.epoch + 1, state.optimizer.defaults["lr"])
    dev_figures = {}
    if dev is not None:
        by_class = scoring.probabilities(state.model, dev, placement, ranks)
        dev_figures = {
            "dev_loss": scoring.cross_entropy(by_class, dev.labels),
            "dev_accuracy": int((by_class.argmax(axis=1) == dev.labels).sum()) / len(dev),
        }
    return Epoch(
        epoch=state.epoch + 1,
        loss=mean_loss,
        train_accuracy=state.correct.item() / state.seen,
        test_loss=scoring.cross_entropy(probability, test.labels),
        test_accuracy=int((predicted == test.labels).sum()) / len(test),
        seconds=state.seconds,
        tokens=tokens,
        **dev_figures,
    )


def epoch_order(rows: int, epoch: int, params: Params) -> np.ndarray:
    """The order of Training's rows in an epoch, (rows,); a function of seed and epoch only."""
    if not params.shuffle:
        return np.arange(rows)
    return np.random.default_rng([params.seed, epoch]).permutation(rows)


def seed_step(seed: int, epoch: int, step: int, rank: int, device: torch.device) -> None:
    """Make dropout a function of seed, epoch, step and process: no random state must be saved."""
    value = int(np.random.SeedSequence([seed, epoch, step, rank]).generate_state(1, np.uint64)[0])
    # Not torch.manual_seed: it seeds every type of device, which takes longer than a small step.
    if device.type == "cuda":
        torch.cuda.manual_seed(value)
    elif device.type == "mps":
        torch.mps.manual_seed(value)
    else:
        torch.default_generator.manual_seed(value)


def make_backward(
    model: nn.Module, scaler: torch.amp.GradScaler, placement: Placement, ranks: Ranks
) -> Callable[[Batch, torch.Tensor], torch.Tensor]:
    """A function that computes the gradients of one batch and overwrites the old ones.

    It takes the batch, and each dialogue's weight in the mean: 1 / (dialogues in the global batch),
    or 0. It returns float32 (2,): this process's part of the mean loss, and its number of correct
    predictions.
    """
    parameters = list(model.parameters())

    def backward(batch: Batch, weight: torch.Tensor) -> torch.Tensor:
        if graphed:  # a graph writes to the tensors it was recorded with, so keep them
            torch._foreach_zero_([parameter.grad for parameter in parameters])
        else:
            for parameter in parameters:
                parameter.grad = None
        with placement.autocast():
            logits = model(batch)  # (dialogues, classes)
        loss = nn.functional.cross_entropy(logits.float(), batch.labels, reduction="sum") * weight
        # DistributedDataParallel divides the sum of the gradients by the number of processes.
        scaler.scale(loss * ranks.count).backward()
        right = (logits.detach().argmax(dim=-1) == batch.labels).sum() * (weight > 0)
        return torch.stack([loss.detach(), right.float()])

    # DistributedDataParallel's hooks do not work with a graph. With several processes, a graph
    # would also save fewer launches per process.
    graphed = placement.device.type == "cuda" and ranks.count == 1
    return Replayed(backward, parameters) if graphed else backward
