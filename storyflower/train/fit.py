"""fit(): the training loop, and only the loop.

In: a classifier, the token arrays of Training and Validation, the params.
Out: the trained classifier and one row of history per epoch. As in the original notebook: AdamW,
cosine schedule with warm-up from 0, gradient clipping.
Not supported: batches padded by the caller (where an encoder needs padding, model/padded.py does).

"Train accuracy" is a running value: dropout on, weights changing, each dialogue counted when it is
trained on. So is the loss, which is always the plain cross-entropy, as that of the test, also where
class weights or label smoothing make something else small (loss.py). Test accuracy is reported for
each epoch and never used to choose an epoch.
"""

import math
import time
from collections.abc import Callable

import numpy as np
import torch

from storyflower.common.errors import InputError
from storyflower.common.params import Params
from storyflower.interim.history import Epoch, best_epoch
from storyflower.interim.tokens import TokenArrays
from storyflower.model import scoring
from storyflower.model.classifier import EmotionClassifier
from storyflower.model.device import Placement
from storyflower.model.processes import ALONE, Ranks
from storyflower.train.checkpoint import Checkpoints
from storyflower.train.collapse import is_late, note_one_class
from storyflower.train.dev import take
from storyflower.train.optimizer import make_optimizer
from storyflower.train.progress import Progress
from storyflower.train.state import State
from storyflower.train.step import make_step


def fit(
    model: EmotionClassifier,
    *,
    train: TokenArrays,
    test: TokenArrays,
    is_dev: np.ndarray | None = None,
    params: Params,
    placement: Placement,
    on_epoch: Callable[[list[Epoch]], None],
    mask_id: int | None = None,
    checkpoints: Checkpoints | None = None,
    ranks: Ranks = ALONE,
) -> State:
    """Train the model in place; return the state at the end, which has the history.

    `params` are resolved (train/run.py): what the encoder's card can say is no longer "auto".
    `is_dev`, bool (dialogues,), marks the rows of `train` that are not trained on but scored like
    `test`; keep: best and patience need them. `mask_id` is the id of [MASK], for mask_rate.
    `on_epoch` gets the history so far after each epoch. With `checkpoints`, training resumes from
    the newest one and saves more. With several `ranks`, each trains on its share of every batch,
    and all return the same history. With average_last, the model ends with the mean of the last
    epochs' weights; the history stays that of each epoch's own. Raises InputError if the loss is no
    longer finite, if one dialogue is too much for the memory, and as make_optimizer does.
    """
    if is_dev is None and (params.keep == "best" or params.patience):
        raise ValueError("keep: best and patience need rows that are held back")
    dev = None if is_dev is None else take(train, is_dev)
    trained = np.arange(len(train)) if is_dev is None else np.flatnonzero(~is_dev)
    state = new_state(model, params, placement)
    if checkpoints:
        checkpoints.restore(state)
    if not ranks.agree([state.epoch, state.step]):
        raise InputError("the processes found different checkpoints; let checkpoint_dir be shared")
    steps = math.ceil(len(trained) / params.batch_size)  # per epoch
    warmup = int(steps * params.num_epochs * params.warmup_ratio)
    train_step = make_step(
        state,
        train=train,
        labels=np.asarray(train.labels)[trained],
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
        order = trained[epoch_order(len(trained), epoch, params)]
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
        check_finite(state, params.learning_rate)
        row, predicted = score_epoch(
            state,
            tokens=int(train.lengths[trained].sum()),
            test=test,
            dev=dev,
            placement=placement,
            ranks=ranks,
        )
        if ranks.first:
            if is_late((epoch + 1) * steps, warmup, last=epoch + 1 == params.num_epochs):
                note_one_class(predicted, test.labels, row.epoch, params.learning_rate)
            print(f"epoch {row.epoch}/{params.num_epochs}: {row}", flush=True)
        state.history.append(row)
        keep_weights(state, params)
        on_epoch(state.history)
        state.next_epoch()
        if checkpoints:
            checkpoints.after_epoch(state)
    if state.kept:
        state.take_kept(params.average_last)
    return state


def is_over(history: list[Epoch], params: Params) -> bool:
    """Whether none of the last `patience` epochs is the best on the dev part."""
    if not (history and params.patience):
        return False
    return len(history) - best_epoch(history) >= params.patience


def keep_weights(state: State, params: Params) -> None:
    """Keep the weights of the epoch that ended if the training may end with them.

    With keep: best, those of the best epoch; with average_last above 1, the sum of the last
    epochs'. (One of the two at most: params.py.)
    """
    if params.keep == "best" and best_epoch(state.history) == len(state.history):
        state.keep()
    if params.average_last > 1 and len(state.history) > params.num_epochs - params.average_last:
        state.add_to_kept()


def new_state(model: EmotionClassifier, params: Params, placement: Placement) -> State:
    """The state before the first step, on the device."""
    device = placement.device
    model.to(device)
    return State(
        model=model,
        optimizer=make_optimizer(
            model,
            params.learning_rate,
            params.weight_decay,
            device,
            layer_decay=params.layer_decay,
        ),
        # Only for fp16, in which small gradients become 0 without scaling.
        scaler=torch.amp.GradScaler(device.type, enabled=placement.precision == "fp16"),
        # These sums stay on the device: reading one waits for the device, so only for display.
        loss_sum=torch.zeros((), device=device),
        correct=torch.zeros((), dtype=torch.int64, device=device),
        micro_batch=None if params.micro_batch == "none" else params.micro_batch,
    )


def check_finite(state: State, rate: float) -> None:
    """Raise InputError if the mean loss of an epoch whose steps are done is not finite."""
    loss = state.loss_sum.item() / state.seen
    if not math.isfinite(loss):
        raise InputError(f"epoch {state.epoch + 1}: loss {loss}; lower learning_rate ({rate:g})")


def score_epoch(
    state: State,
    *,
    tokens: int,
    test: TokenArrays,
    dev: TokenArrays | None,
    placement: Placement,
    ranks: Ranks,
) -> tuple[Epoch, np.ndarray]:
    """The row of history for an epoch whose steps are done, and the classes predicted for `test`.

    `tokens` is how many tokens it trained on.
    """
    probability = scoring.probabilities(state.model, test, placement, ranks)  # (rows, classes)
    predicted = probability.argmax(axis=1)
    dev_figures = {}
    if dev is not None:
        by_class = scoring.probabilities(state.model, dev, placement, ranks)
        dev_figures = {
            "dev_loss": scoring.cross_entropy(by_class, dev.labels),
            "dev_accuracy": int((by_class.argmax(axis=1) == dev.labels).sum()) / len(dev),
        }
    row = Epoch(
        epoch=state.epoch + 1,
        loss=state.loss_sum.item() / state.seen,
        train_accuracy=state.correct.item() / state.seen,
        test_loss=scoring.cross_entropy(probability, test.labels),
        test_accuracy=int((predicted == test.labels).sum()) / len(test),
        seconds=state.seconds,
        tokens=tokens,
        **dev_figures,
    )
    return row, predicted


def epoch_order(rows: int, epoch: int, params: Params) -> np.ndarray:
    """The order of Training's rows in an epoch, (rows,); a function of seed and epoch only."""
    if not params.shuffle:
        return np.arange(rows)
    return np.random.default_rng([params.seed, epoch]).permutation(rows)
