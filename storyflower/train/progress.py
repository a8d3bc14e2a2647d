"""The progress of an epoch: a bar in a terminal, elsewhere a line now and then."""

import sys
import time

from tqdm import tqdm

from storyflower.common.params import Params
from storyflower.train.state import State


class Progress:
    """A bar in a terminal; elsewhere one line every log_interval steps; if silent, neither."""

    def __init__(self, state: State, params: Params, steps: int, *, silent: bool):
        self.state = state
        self.prefix = f"epoch {state.epoch + 1}/{params.num_epochs}"
        self.interval = params.log_interval
        self.steps = steps
        self.shown = time.perf_counter()
        self.lines = not (silent or sys.stderr.isatty())
        self.bar = tqdm(
            total=steps,
            initial=state.step,
            desc=self.prefix,
            unit="step",
            disable=silent or self.lines,
        )

    def step(self) -> None:
        """Count a step; if it is time to, show the running figures, which waits for the device."""
        self.bar.update()
        now = time.perf_counter()
        if not self.bar.disable and now - self.shown > 1:
            self.shown = now
            self.bar.set_postfix_str(self.figures())
        elif self.lines and self.state.step % self.interval == 0:
            done = self.state.step
            left = self.state.seconds / done * (self.steps - done)
            print(
                f"{self.prefix}, step {done}/{self.steps}: {self.figures()}, {left:.0f} s left",
                flush=True,
            )

    def figures(self) -> str:
        state = self.state
        return (
            f"loss {state.loss_sum.item() / state.seen:.4f}, "
            f"accuracy {state.correct.item() / state.seen:.4f}, "
            f"{state.seen / state.seconds:.0f} dialogues/s"
        )

    def close(self) -> None:
        self.bar.close()
