"""How much faster a step of one commit is than another's, on a machine that is busy with others.

    python -m benchmarks.commits 9ee4576 HEAD
    python -m benchmarks.commits 9ee4576 HEAD --shape default --rounds 100

In: commits of this repository, the one to compare with first.
Out: a Markdown row for each: the median seconds of a step, the least, and the ratio to the first
commit, round by round (median, lower and upper quartile). A process of each commit's code waits
while another computes one step of the same batch, so that a busy moment is busy for all.
Not supported: commits whose fit() takes other arguments than today's.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from typing import TextIO

from storyflower.common.errors import InputError, exit_with_line

WARM_UP = 2  # rounds that are not counted
STEP = """
import os, sys, time
import numpy as np
from transformers import BertConfig
from benchmarks import peers, speed
from storyflower.model.device import choose
from storyflower.train import fit
try:
    from storyflower.train.memory import keep_freed
    keep_freed()  # as the train stage calls it, where there is one
except ImportError:
    pass
default, steps = sys.argv[1] == "default", int(sys.argv[2])
answer = os.fdopen(int(sys.argv[3]), "w")
shape = dict(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024)
batch, mean, width = (32, 65, 128) if default else (64, 35.7, 64)
table = speed.random_table(batch * steps, mean, width, seed=0)

class Turns:
    def restore(self, state):
        self.wait()
    def after_epoch(self, state): ...
    def after_step(self, state):
        print(time.perf_counter() - self.started, file=answer, flush=True)
        self.wait()
    def wait(self):
        sys.stdin.readline()
        self.started = time.perf_counter()

config = BertConfig(**speed.KOBERT, **(shape if default else {}))
fit.fit(
    peers.classifier(config, 0.5, "mean" if default else "first"),
    train=table,
    test=table,
    params=speed.params_of(num_epochs=1, batch_size=batch, max_len=width, shuffle=False),
    placement=choose("cpu", "auto"),
    on_epoch=lambda rows: None,
    checkpoints=Turns(),
)
"""


class Trained:
    """A process that trains with one commit's code, a step whenever it is asked."""

    def __init__(self, commit: str, shape: str, steps: int, stack: ExitStack):
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="storyflower-commit-"))
        git("worktree", "add", "--detach", "--force", folder, commit)
        stack.callback(git, "worktree", "remove", "--force", folder)
        read, write = os.pipe()
        words = [sys.executable, "-c", STEP, shape, str(steps), str(write)]
        self.process = subprocess.Popen(
            words,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=[write],
            text=True,
            env={**os.environ, "PYTHONPATH": folder},
        )
        stack.callback(self.process.wait)
        stack.callback(self.process.kill)
        os.close(write)
        self.answers: TextIO = stack.enter_context(os.fdopen(read))

    def step(self) -> float:
        """The seconds of one step more."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        answer = self.answers.readline()
        if not answer:
            raise InputError("a commit's training ended early; its error stands above")
        return float(answer)


def git(*words: str) -> None:
    found = subprocess.run(["git", *words], capture_output=True, text=True, check=False)
    if found.returncode:
        raise InputError(f"git {' '.join(words)}: {found.stderr.strip().splitlines()[-1]}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.commits")
    parser.add_argument("commits", nargs="+", metavar="COMMIT")
    parser.add_argument("--shape", choices=["kobert", "default"], default="kobert")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    with ExitStack() as stack:
        total = options.rounds + WARM_UP
        trained = [Trained(name, options.shape, total, stack) for name in options.commits]
        seconds: list[list[float]] = [[] for _ in trained]
        for turn in range(total):
            places = list(range(len(trained)))
            for place in places if turn % 2 else places[::-1]:
                seconds[place].append(trained[place].step())
        print("| commit | s a step | least | faster (quartiles) |\n| --- | --- | --- | --- |")
        counted = [mine[WARM_UP:] for mine in seconds]
        for name, mine in zip(options.commits, counted, strict=True):
            ratios = [one / other for one, other in zip(counted[0], mine, strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            faster = f"{middle:.2f} ({low:.2f} to {high:.2f})" if mine is not counted[0] else ""
            print(f"| {name} | {statistics.median(mine):.3f} | {min(mine):.3f} | {faster} |")


if __name__ == "__main__":
    exit_with_line(main)
