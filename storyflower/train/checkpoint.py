"""Checkpoints, from which a killed training resumes: saved atomically, verified when read.

In: the state of the loop.
Out: one safetensors file per checkpoint, in a folder for the run's fingerprint (params, data,
encoder, code, machine), so that a training never resumes from another run's checkpoint. A file gets
its final name last, and the name contains the checksum of its bytes: a file damaged by a kill, a
full disk or a bad cable is never used. The newest two are kept.
Not supported: saving in the background. Training pauses while it saves, for 1 to 2 seconds per
gigabyte.

No random state is saved: randomness is a function of seed, epoch and step (train/step.py).
"""

import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

import safetensors
import safetensors.torch

from storyflower.common import locks
from storyflower.common.errors import one_line
from storyflower.common.files import sha256
from storyflower.common.signals import PendingStop
from storyflower.interim.checkpoint_folders import SAYS_WHICH, prune
from storyflower.model.processes import ALONE, Ranks
from storyflower.train.state import State

NAME = re.compile(r"[0-9]{12}-([0-9a-f]{32})\.safetensors")  # position, sha256 of the content
KEPT = 2


class Checkpoints:
    """The checkpoints of one run; a context that holds the run's lock and finds the newest one.

    If the folder cannot be written, one warning is printed and the training goes on. `saved_extra`
    is what `extra` returned when the newest checkpoint was saved, or None without a checkpoint.
    With several `ranks`, only the first process saves; the others only read, and end after the
    first one ends. `command` is the command that resumes the run.
    """

    def __init__(
        self,
        root: Path,
        fingerprint: str,
        minutes: float,
        ranks: Ranks = ALONE,
        command: str | None = None,
    ):
        self.folder = root / fingerprint[:SAYS_WHICH]
        self.fingerprint = fingerprint
        self.minutes = minutes
        self.ranks = ranks
        self.command = command or same_command()
        self.extra: Callable[[], dict[str, Any]] = dict  # what else a checkpoint holds
        self.stop = PendingStop()
        self.saved_extra: dict[str, Any] | None = None
        self._newest: Path | None = None
        self._numbers: dict[str, Any] = {}
        self._saved_at = time.monotonic()
        self._warned = False
        self._locked = ExitStack()

    def __enter__(self) -> Self:
        if not self.ranks.first:
            self.ranks.wait()  # until the first process has removed damaged checkpoints
            self._find()
            return self
        with self._locked:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                lock = locks.beside(self.folder)
                self._locked.enter_context(locks.acquire(lock, "trains the very same run"))
                prune(self.folder.parent)
                for path in [*self.folder.glob("*.part"), *self.folder.glob(".tmp*")]:
                    path.unlink()
            except OSError as error:
                self._warn(error)
            self._find()
            self._locked = self._locked.pop_all()
        self.ranks.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._locked.close()

    def restore(self, state: State) -> None:
        """Load the newest checkpoint into the state; without one, leave the state unchanged."""
        if self._newest is not None:
            state.restore(safetensors.torch.load_file(self._newest), self._numbers)
            if self.ranks.first:
                print(f"going on from the checkpoint after {state.moment()}", flush=True)

    def after_step(self, state: State) -> None:
        """Save if it is time to; after a stop signal, save and end the process."""
        if not self.ranks.first:
            return  # the first process gets the signal too; when it ends, the next sum fails here
        if self.stop or time.monotonic() - self._saved_at >= 60 * self.minutes:
            self.after_epoch(state)

    def after_epoch(self, state: State) -> None:
        """Save; end the process if a stop signal has arrived."""
        if not self.ranks.first:
            return
        saved = self._save(state)
        if self.stop:
            how = f"saved; go on with: {self.command}" if saved else "could not be saved"
            self.stop.leave(f"stopped after {state.moment()}; {how}")

    def _save(self, state: State) -> bool:
        numbers = {**state.numbers(), "fingerprint": self.fingerprint, "more": self.extra()}
        # The end of an epoch can be saved twice, before and after scoring. The second position
        # belongs to the next epoch, so it sorts as the newer one.
        position = f"{state.epoch:05d}{state.step:07d}"
        part = self.folder / f"{position}.part"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            metadata = {"numbers": json.dumps(numbers, ensure_ascii=False)}
            safetensors.torch.save_file(state.tensors(), part, metadata)
            sync(part)
            os.replace(part, self.folder / f"{position}-{sha256(part)[:32]}.safetensors")
            with suppress(OSError):  # not every file system can sync a folder (Drive cannot)
                sync(self.folder)
            for old in self._all()[KEPT:]:
                old.unlink()
            return True
        except (OSError, safetensors.SafetensorError) as error:
            with suppress(OSError):
                part.unlink()
            self._warn(error)
            return False
        finally:
            self._saved_at = time.monotonic()

    def _all(self) -> list[Path]:
        """The run's checkpoints, newest first."""
        names = (path for path in self.folder.glob("*.safetensors") if NAME.fullmatch(path.name))
        return sorted(names, key=lambda path: (path.name[:12], path.stat().st_mtime), reverse=True)

    def _find(self) -> None:
        """Find the newest undamaged checkpoint of this fingerprint; remove damaged ones."""
        try:
            candidates = self._all()
        except OSError:
            return
        for path in candidates:
            try:
                numbers = read_numbers(path)
                if numbers["fingerprint"] == self.fingerprint:
                    self._newest, self._numbers, self.saved_extra = path, numbers, numbers["more"]
                    return
            except OSError as error:  # perhaps Drive is disconnected; the file may be good
                print(f"warning: checkpoint {path}: {error}", file=sys.stderr)
            except (ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
                print(
                    f"warning: checkpoint {path} is damaged ({one_line(error)}); "
                    "taking the one before it",
                    file=sys.stderr,
                )
                with suppress(OSError):
                    path.unlink()

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            print(
                f"warning: no checkpoint can be saved in {self.folder} "
                f"({one_line(error)}); the training goes on, and cannot be resumed "
                "from here",
                file=sys.stderr,
                flush=True,
            )
        self._warned = True


def read_numbers(path: Path) -> dict[str, Any]:
    """A checkpoint's content other than tensors; raises ValueError if its checksum is wrong."""
    if not sha256(path).startswith(NAME.fullmatch(path.name)[1]):
        raise ValueError("its checksum is not that in its name")
    with safetensors.safe_open(path, "pt") as file:
        return json.loads(file.metadata()["numbers"])


def fingerprint(facts: dict[str, Any], paths: Iterable[Path]) -> str:
    """sha256, 64 hex digits, of `facts` and of the names and bytes of all files in `paths`."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, ensure_ascii=False).encode())
    for path in paths:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.is_file():
                digest.update(bytes.fromhex(sha256(file)))
                digest.update(file.relative_to(path.parent).as_posix().encode() + b"\0")
    return digest.hexdigest()


def same_command() -> str:
    return "the same 'dvc exp run' command" if "DVC_EXP_NAME" in os.environ else "dvc repro"


def sync(path: Path) -> None:
    """Write a file's bytes, or a folder's file names, to disk, so that they survive a power cut."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
