"""A hub repository or a folder → files on this disk, found by name and checked.

In: a card that names a hub id or a folder, and its lock if it has one.
Out: paths of complete files. Files from the hub stay in huggingface_hub's own cache; HF_HOME,
HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN and the proxy variables work as usual. A cached file is not
requested again, so a second run works without a network.
Not supported: files that nothing here reads; above all code, which is neither fetched nor run.
"""

import errno
import hashlib
import re
import stat
import sys
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from storyflower.common.errors import InputError, disk_fault, one_line, path_of
from storyflower.encoder.card import Card, Lock

# An archive may unpack to 20 times its size, or to 100 MiB. Weights hardly compress; a zip bomb is
# all zeros.
MAX_UNPACKING, SMALL = 20, 100 << 20


class LocalFolder:
    """A from_pretrained folder on this disk."""

    revision = None  # only a hub source has one

    def __init__(self, folder: Path):
        if not folder.is_dir():
            raise InputError(f"{folder}: no such encoder folder")
        self.folder = folder

    def find(self, name: str) -> Path | None:
        """The path of a file; None if there is none of this name."""
        path = self.folder / name
        return path if path.is_file() else None


class HubFolder:
    """A repository on the Hugging Face hub at one commit.

    `revision` becomes a full commit with the first file found. With a full commit, cached files
    need no network. With a branch or no revision, the hub is asked for the current commit; if the
    hub cannot be reached, the cache answers.
    """

    def __init__(self, repo: str, revision: str | None):
        self.repo = repo
        self.revision = revision

    def find(self, name: str) -> Path | None:
        """The path of a file in the cache; None if the repository has none of this name.

        Raises InputError if the hub refuses, is unreachable, or has no such repository.
        """
        from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
        from huggingface_hub.errors import RemoteEntryNotFoundError
        from huggingface_hub.utils import disable_progress_bars, logging

        logging.set_verbosity_error()  # else it reports every attempt; we report the last one
        if not sys.stderr.isatty():
            disable_progress_bars()
        if re.fullmatch("[0-9a-f]{40}", self.revision or ""):
            cached = try_to_load_from_cache(self.repo, name, revision=self.revision)
            if cached is _CACHED_NO_EXIST:  # hf_hub_download would ask the hub again
                return None
        try:
            path = Path(hf_hub_download(self.repo, name, revision=self.revision))
        except RemoteEntryNotFoundError:
            return None
        # Errors of the HTTP client share no base class with huggingface_hub's own.
        except Exception as error:
            raise InputError(refusal(self.repo, self.revision, name, error)) from None
        self.revision = path.parents[name.count("/")].name  # …/snapshots/<commit>/<name>
        return path


def refusal(repo: str, revision: str | None, name: str, error: BaseException) -> str:
    """Why a file cannot be downloaded from the hub, and what to do, in one line."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.LocalEntryNotFoundError):
        missing = f"{repo}: {name} is not in the hub cache"
        if constants.is_offline_mode():
            return f"{missing}, and HF_HUB_OFFLINE forbids to fetch it"
        cause = error.__cause__ or error  # why the download failed
        if isinstance(cause, errors.HfHubHTTPError):
            return refusal(repo, revision, name, cause)
        return (
            f"{missing}, and {constants.ENDPOINT} cannot be reached ({one_line(cause)}); "
            "check the network, HF_ENDPOINT and the proxy settings"
        )
    login = "log in with 'hf auth login' or set HF_TOKEN"
    if isinstance(error, errors.GatedRepoError):
        page = f"{constants.ENDPOINT}/{repo}"
        return f"{repo}: gated: accept its conditions at {page}, then {login}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo}: the hub knows no revision {revision!r}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{repo}: no such repository on the hub; check the spelling, or {login} if private"
    if isinstance(error, errors.HFValidationError):
        return f"{repo}: not a hub id ({one_line(error)})"
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403):
            return f"{repo}: the hub refuses {name} ({status}); {login}"
        return f"{repo}: the hub answers {status} for {name}; try again later"
    if getattr(error, "errno", None) == errno.ENOSPC:
        cache = constants.HF_HUB_CACHE
        return f"{cache}: the disk is full; make room, or set HF_HOME to a folder on another disk"
    if reason := disk_fault(error):
        return f"{path_of(error) or constants.HF_HUB_CACHE}: {reason}"
    return f"{repo}: {name} could not be downloaded ({one_line(error)}); run it again"


class CheckedSource:
    """A card's source; each file is compared with the lock before it is used."""

    def __init__(self, card_file: Path, card: Card, lock: Lock | None):
        self.source: HubFolder | LocalFolder
        if card.kind == "hub":
            self.source = HubFolder(card.source, lock.revision if lock else card.revision)
        else:
            self.source = LocalFolder(card_file.parent / card.source)
        self.taken: dict[str, str] = {}  # name → sha256 of each file found so far
        self._card_file, self._lock = card_file, lock

    @property
    def revision(self) -> str | None:
        return self.source.revision

    def find(self, name: str) -> Path | None:
        """The path of a file; None if there is none of this name. Raises InputError."""
        # A lock names every file that existed, so other names need no request to the network.
        if self._lock is not None and name not in self._lock.files:
            return None
        path = self.source.find(name)
        if path is not None:
            self.taken[name] = digest(path, "sha256")
            if self._lock is not None:
                again = f"python -m storyflower lock {self._card_file.stem}"
                self._compare(path, self._lock.files[name], Lock.beside(self._card_file), again)
        return path

    def check_folder(self, name: str) -> None:
        """Raise InputError if a folder has a file that its lock does not name, or the reverse.

        From the hub, a lock pins a commit, which never changes.
        """
        if self._lock is None or not isinstance(self.source, LocalFolder):
            return
        there, named = self.source.find(name) is not None, name in self._lock.files
        if there != named:
            lock = Lock.beside(self._card_file)
            raise InputError(
                f"{self.source.folder / name}: "
                f"{f'not in {lock}' if there else f'not found, but {lock} has it'}; "
                f"lock it again: python -m storyflower lock {self._card_file.stem}"
            )

    def find_all(self, checksums: Mapping[str, str], unpacked: Path) -> dict[str, Path]:
        """The files that a card names, and the contents of its zips: name without folder → path.

        `unpacked` is the folder to unpack zips to. Raises InputError for a missing file, a wrong
        checksum, a zip that `unzip` refuses, or two files of the same name.
        """
        paths = []
        for name, checksum in checksums.items():
            path = self.find(name)
            if path is None:
                raise InputError(f"{self._card_file}: its source has no {name}")
            self._compare(path, checksum, self._card_file, "change the card")
            paths.append(path)
            if path.suffix == ".zip":
                unzip(path, unpacked)
        paths += filter(Path.is_file, sorted(unpacked.rglob("*")))
        found: dict[str, Path] = {}
        for path in paths:
            if path.name in found:
                raise InputError(f"{self._card_file}: more than one {path.name} in its files")
            found[path.name] = path
        return found

    def _compare(self, path: Path, checksum: str, says: Path, remedy: str) -> None:
        actual = digest(path, checksum.split(":")[0])
        if not actual.startswith(checksum):  # a checksum may be shortened
            raise InputError(
                f"{path.resolve()}: {actual}, but {says} says {checksum}; if it is damaged, delete "
                f"it and run again; if the source has changed: {remedy}"
            )


def unzip(archive: Path, folder: Path) -> None:
    """Unpack plain files and folders; raises InputError for members that could land elsewhere.

    Also for a zip that is damaged, encrypted or would unpack to too much.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            members = file.infolist()
            unpacked = sum(member.file_size for member in members)
            if unpacked > max(SMALL, MAX_UNPACKING * archive.stat().st_size):
                raise InputError(f"{archive}: would unpack to {unpacked >> 20} MiB; refused")
            for member in members:
                check_member(archive, member)
            file.extractall(folder)  # no more than the stated sizes; checks the CRCs
    # An encrypted member raises RuntimeError, an unknown compression its subclass
    # NotImplementedError.
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise InputError(f"{archive}: not a usable zip ({one_line(error)})") from None
    except OSError as error:
        reason = disk_fault(error) or one_line(error)
        raise InputError(f"{archive}: cannot be unpacked: {reason}") from None


def check_member(archive: Path, member: zipfile.ZipInfo) -> None:
    """Raise InputError unless a zip's member is a plain file or folder below the target."""
    path = PurePosixPath(member.filename)
    outside = path.is_absolute() or ".." in path.parts
    foreign = "\\" in member.filename or ":" in member.filename  # a path on Windows
    kind = stat.S_IFMT(member.external_attr >> 16)
    if outside or foreign or kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise InputError(f"{archive}: refused: its member {member.filename!r} is not a plain file")


def digest(path: Path, algorithm: str) -> str:
    """ "sha256:…" or "md5:…" of a file."""
    with path.open("rb") as file:
        return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"
