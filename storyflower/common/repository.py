"""The repository that a command runs in: its root, its commit, and its folders of dialogues.

Diary text is personal data. Only the owner can read what the stages write (exit_with_line sets the
umask), but DVC makes copies that others can read: in its cache, in the folders of its experiments,
in data/interim. So the parent folders are closed to other users.

Not supported: a cache moved elsewhere with `dvc cache dir`; whoever moved it decides who reads it.
"""

import os
import shlex
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from storyflower.common.errors import InputError

SHALLOW = (
    "a shallow clone (git clone --depth), in which DVC loses what --temp and the queue have done; "
    "make it whole: git fetch --unshallow"
)


class NotKept(InputError):
    """The result of this command would be lost."""

    exit_code = 2


def close_folders() -> None:
    """Create the folders that hold dialogues if missing, closed to all but their owner."""
    root = main_root()
    folders = [Path("data/interim"), root / ".storyflower"]
    if (root / ".dvc").is_dir():
        folders += [root / ".dvc/cache", root / ".dvc/tmp"]  # experiments run in the second
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(PermissionError):  # another user's folder; its owner decides
            folder.chmod(0o700)


def main_root() -> Path:
    """The root of the main repository, also from an experiment's folder (DVC sets DVC_ROOT)."""
    return Path(os.environ.get("DVC_ROOT") or os.getcwd()).resolve()


def refuse_what_is_lost() -> None:
    """Raise NotKept in an experiment whose result DVC would silently lose.

    DVC cannot bring a result from --temp or from the queue back into a shallow clone.
    """
    root = main_root()
    if Path.cwd().resolve() != root and is_shallow(root):
        raise NotKept(f"{root}: {SHALLOW}")


def check_clone() -> None:
    """Warn if this clone loses results or hides its commit; raises as refuse_what_is_lost()."""
    refuse_what_is_lost()
    root = main_root()
    if is_shallow(root):
        print(f"warning: {SHALLOW}", file=sys.stderr)
    commit, error = git("rev-parse", "HEAD", folder=root)
    if not commit and "dubious ownership" in error:
        print(
            "warning: this clone is another user's, so git does not say its commit, and the run in "
            "MLflow has none; trust it: git config --global --add safe.directory "
            f"{shlex.quote(str(root))}",
            file=sys.stderr,
        )


def is_shallow(root: Path) -> bool:
    return git("rev-parse", "--is-shallow-repository", folder=root)[0] == "true"


def git_commit() -> str | None:
    """The checked-out commit; None outside a git repository."""
    return git("rev-parse", "HEAD", folder=Path.cwd())[0] or None


def git(*words: str, folder: Path) -> tuple[str, str]:
    """git's output and its error text, run in a folder; both "" if git is not installed."""
    english = {**os.environ, "LC_ALL": "C"}  # git's errors may be in Korean otherwise
    try:
        done = subprocess.run(
            ["git", *words],
            cwd=folder,
            env=english,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
    except OSError:
        return "", ""
    return (done.stdout.strip() if done.returncode == 0 else ""), done.stderr
