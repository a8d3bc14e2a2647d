"""The repository that a command runs in: its root, its commit, and its folders of dialogues.

Diary text is personal data. What the stages write is the owner's alone (exit_with_line sets the
umask), but DVC makes readable copies of it: in its cache, in the folders of its experiments, in
data/interim. So their parents are closed.

Not supported: a cache that `dvc cache dir` moved elsewhere, whose readers are somebody's
decision.
"""

import os
import shlex
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from storyflower.common.errors import InputError

# Of the main repository, which holds the cache and the experiments' folders; and of this one.
MAIN = (".dvc/cache", ".dvc/tmp", ".storyflower")
HERE = ("data/interim",)
SHALLOW = (
    "a shallow clone (git clone --depth), in which DVC loses what --temp and the queue have done; "
    "make it whole: git fetch --unshallow"
)


class NotKept(InputError):
    """The result of this command would be lost."""

    exit_code = 2


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


def refuse_what_is_lost() -> None:
    """Raise NotKept in an experiment whose result DVC would drop without a word.

    It cannot push what ran in --temp or in the queue into a shallow clone.
    """
    root = main_root()
    if Path.cwd().resolve() != root and is_shallow(root):
        raise NotKept(f"{root}: {SHALLOW}")


def check_clone() -> None:
    """Say what of this clone loses results or the commit; raises as refuse_what_is_lost()."""
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
    """What git answers in a folder, and what it complains of; both "" where there is no git."""
    english = {**os.environ, "LC_ALL": "C"}  # it complains in Korean, too
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
