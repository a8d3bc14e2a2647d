"""Where the checkpoints of runs are stored, and when they are removed.

In: the checkpoint_dir of the params and a run's fingerprint.
Out: one folder per run, which the train stage fills and the evaluate stage discards. The folder is
not an output of a DVC stage: DVC removes a stage's outputs before it runs the stage.
"""

import time
from contextlib import suppress
from pathlib import Path

from storyflower.common import locks

DEFAULT = Path(".storyflower") / "checkpoints"  # under the main repository's root
STALE_SECONDS = 14 * 24 * 3600  # after two weeks, nobody is expected to resume a run that died
SAYS_WHICH = 16  # hex digits of a fingerprint that name its folder
FOLDERS = "[0-9a-f]" * SAYS_WHICH + "/"  # a pattern for glob


def root_of(checkpoint_dir: str, repository: Path) -> Path:
    """The folder of all runs' checkpoints; a relative path is below the repository's root."""
    return repository / (DEFAULT if checkpoint_dir == "auto" else Path(checkpoint_dir).expanduser())


def discard(root: Path, name: str) -> None:
    """Remove a finished run's checkpoints; `name` is the start of its fingerprint.

    They stay if another process is training the same run and so holds the folder's lock.
    """
    folder = root / name[:SAYS_WHICH]
    if folder in root.glob(FOLDERS):
        remove(folder)


def prune(root: Path) -> None:
    """Remove the checkpoints of runs that died long ago, unless they are in use."""
    for folder in root.glob(FOLDERS):
        with suppress(FileNotFoundError):  # a running training may replace files here
            newest = max(path.stat().st_mtime for path in [folder, *folder.iterdir()])
            if time.time() - newest > STALE_SECONDS:
                remove(folder)


def remove(folder: Path) -> None:
    """Remove a run's folder, unless a process holds its lock."""
    with suppress(OSError):
        if held := locks.acquire_free(locks.beside(folder)):
            with held:
                locks.remove(folder)
