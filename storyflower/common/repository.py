"""The repository that a command runs in: its root, its commit, and its folders of dialogues.

Diary text is personal data. What the stages write is the owner's alone (exit_with_line sets the
umask), but DVC makes readable copies of it: in its cache, in the folders of its experiments, in
data/interim. So their parents are closed.

Not supported: a cache that `dvc cache dir` moved elsewhere, whose readers are somebody's
decision.
"""

import os
import subprocess
from contextlib import suppress
from pathlib import Path

# Of the main repository, which holds the cache and the experiments' folders; and of this one.
MAIN = (".dvc/cache", ".dvc/tmp", ".storyflower")
HERE = ("data/interim",)


def close_folders() -> None:
    """Make them, where they are missing, and close them to everyone but their owner."""
    root = main_root()
    folders = [Path(name) for name in HERE]
    folders += [root / name for name in MAIN if name[:4] != ".dvc" or (root / ".dvc").is_dir()]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(PermissionError):  # another's folder, which is another's decision
            folder.chmod(0o700)


def main_root() -> Path:
    """The main repository, whatever folder an experiment runs in (DVC sets DVC_ROOT)."""
    return Path(os.environ.get("DVC_ROOT") or os.getcwd()).resolve()


def git_commit() -> str | None:
    """The checked-out commit; None outside a git repository."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
