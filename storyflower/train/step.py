"""One step of a training: the gradients of a batch, the rate, the update, the counts.

In: the state, and the rows of one batch.
Out: the state after one update more, with the batch counted in it.
Not supported: anything that an epoch does (fit.py).
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from storyflower.common.params import Params
from storyflower.interim.tokens import TokenArrays
from storyflower.model.batch import Batch, make_batch
from storyflower.model.device import Placement
from storyflower.model.processes import Ranks
from storyflower.train.collapse import LossWatch
from storyflower.train.loss import make_loss
from storyflower.train.masking import hide
from storyflower.train.micro_batches import Gradients
from storyflower.train.optimizer import prepare_update, schedule
from storyflower.train.state import State


def make_step(
    state: State,
    *,
    train: TokenArrays,
    labels: np.ndarray,
    steps: int,
    warmup: int,
    params: Params,
    placement: Placement,
    mask_id: int | None,
    ranks: Ranks,
) -> Callable[[np.ndarray], None]:
    """A function that does one update on rows of `train`, (dialogues,), and counts it in `state`.

    `labels` are those of all rows that are trained on. An epoch has `steps` updates; the rate rises
    during the first `warmup` updates of the training.
    """
    device = placement.device
    total = steps * params.num_epochs
    loss = make_loss(params, labels, state.model.linear.out_features)
    watch = LossWatch(loss.blind(labels), warmup, params.learning_rate)

    def load(rows: np.ndarray) -> Batch:
        batch = make_batch(train, rows, device)
        return hide(batch, params.mask_rate, mask_id) if params.mask_rate else batch

    gradients = Gradients(
        state,
        train=train,
        load=load,
        seed=lambda: seed_step(params.seed, state.epoch, state.step, ranks.rank, device),
        loss=loss,
        placement=placement,
        ranks=ranks,
    )

    def train_step(rows: np.ndarray) -> None:
        mine = ranks.share(rows, train.offsets[rows + 1] - train.offsets[rows])
        # A process without dialogues in this batch computes one with weight 0.
        weight = torch.full((), (len(mine) > 0) / loss.total(train.labels[rows]), device=device)
        sums = ranks.sum(gradients(mine if len(mine) else rows[:1], weight))

        done = state.epoch * steps + state.step
        rate = params.learning_rate * schedule(done, warmup, total)
        prepare_update(
            state.optimizer, rate=rate, name=params.optimizer, done=done, scaler=state.scaler
        )
        state.scaler.unscale_(state.optimizer)
        clip(state, params.max_grad_norm, placement)
        state.scaler.step(state.optimizer)
        state.scaler.update()

        made_small, plain, correct = sums
        if ranks.first:
            watch.step(done, made_small)
        state.loss_sum += plain
        state.correct += correct.long()
        state.seen += len(rows)
        state.step += 1

    return train_step


def clip(state: State, most: float, placement: Placement) -> None:
    """Scale the gradients down so that their norm is at most `most`.

    On a CPU in bfloat16, AdamW does so in its own pass over them. (In float32, where products
    take the most, its division would change the last bits of earlier results.)
    """
    if placement.device.type != "cpu" or placement.precision != "bf16":
        nn.utils.clip_grad_norm_(state.model.parameters(), most)
        return
    norm = nn.utils.get_total_norm([p.grad for p in state.model.parameters() if p.grad is not None])
    # What torch's AdamW divides its gradients by, and what torch.amp.GradScaler sets.
    state.optimizer.grad_scale = ((norm + 1e-6) / most).clamp(min=1.0)


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
