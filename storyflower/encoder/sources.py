"""A source on the network, or a folder → files on this disk, each found by its name.

In: a hub id, a base URL with checksums, or a folder.
Out: paths of whole files. Hub files live in huggingface_hub's own cache (HF_HOME, HF_ENDPOINT,
HF_HUB_OFFLINE, HF_TOKEN and the proxy variables mean what they mean there), others in
STORYFLOWER_CACHE or ~/.cache/storyflower. A file that is there is not asked for again, so a
second run needs no network.
Not supported: files that nobody reads; above all code, which is neither fetched nor run.
"""

import errno
import hashlib
import http.client
import os
import shutil
import stat
import sys
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Protocol
from urllib.parse import quote

from storyflower.common.errors import InputError, disk_fault, path_of

ATTEMPTS = 5  # failures in a row, none of which brought a byte, before a download is given up
FIRST_WAIT = 1.0  # seconds before the second attempt; doubled after each failure
TIMEOUT = 30  # seconds without a byte
CHUNK = 1 << 20  # bytes
# An archive may unpack to this many times its size. Weights hardly shrink; a zip bomb is all zeros.
MAX_UNPACKING, SMALL = 20, 100 << 20


class Source(Protocol):
    """Where an encoder's files come from."""

    revision: str | None  # of a hub source: the full commit, known after the first file
    files: dict[str, Path]  # what was taken from the source so far, to be checksummed

    def find(self, name: str) -> Path | None:
        """The file of that name, on this disk; None where the source has none."""
        ...


class LocalFolder:
    """A from_pretrained folder on this disk."""

    revision = None

    def __init__(self, folder: Path):
        if not folder.is_dir():
            raise InputError(f"{folder}: no such encoder folder")
        self.folder = folder
        self.files: dict[str, Path] = {}

    def find(self, name: str) -> Path | None:
        path = self.folder / name
        if not path.is_file():
            return None
        self.files[name] = path
        return path


class HubFolder:
    """A repository of the Hugging Face hub at one commit.

    The first file settles the commit. With a full commit hash, files in the cache need no network;
    with a branch or none, the hub is asked where that stands, and the cache answers when the hub
    cannot be reached.
    """

    def __init__(self, repo: str, revision: str | None):
        self.repo = repo
        self.revision = revision
        self.files: dict[str, Path] = {}
        self._settled = False

    def find(self, name: str) -> Path | None:
        """Raises InputError when the hub refuses, is out of reach, or has no such repository."""
        from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
        from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError
        from huggingface_hub.utils import disable_progress_bars

        if not sys.stderr.isatty():
            disable_progress_bars()
        found = None
        if self._settled:
            found = try_to_load_from_cache(self.repo, name, revision=self.revision)
        if found is _CACHED_NO_EXIST:
            return None
        if not isinstance(found, str):
            try:
                found = hf_hub_download(self.repo, name, revision=self.revision)
            except RemoteEntryNotFoundError:
                return None
            except LocalEntryNotFoundError as error:
                raise InputError(out_of_reach(self.repo, name, error)) from None
            # What its HTTP client raises shares no base class with its own errors.
            except Exception as error:
                raise InputError(refusal(self.repo, self.revision, name, error)) from None
        path = Path(found)
        if not self._settled:
            # …/snapshots/<commit>/<name>
            self.revision = path.parents[name.count("/")].name
            self._settled = True
        self.files[name] = path
        return path


def out_of_reach(repo: str, name: str, error: Exception) -> str:
    """Why a file that is not in the cache cannot be had now, in one line."""
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return f"{repo}: {name} is not in the hub cache, and HF_HUB_OFFLINE forbids to fetch it"
    cause = error.__cause__ or error
    return (
        f"{repo}: {name} is not in the hub cache, and {constants.ENDPOINT} cannot be reached "
        f"({first_line(cause)}); check the network, HF_ENDPOINT and the proxy settings"
    )


def refusal(repo: str, revision: str | None, name: str, error: Exception) -> str:
    """What went wrong with a file of the hub, and what to do, in one line."""
    from huggingface_hub import constants, errors

    login = "log in with 'hf auth login' or set HF_TOKEN"
    if isinstance(error, errors.GatedRepoError):
        page = f"{constants.ENDPOINT}/{repo}"
        return f"{repo}: gated: accept its conditions at {page}, then {login}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo}: the hub knows no revision {revision!r}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{repo}: no such repository on the hub; check the spelling, or {login} if private"
    if isinstance(error, errors.HFValidationError):
        return f"{repo}: not a hub id ({first_line(error)})"
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403):
            return f"{repo}: the hub refuses {name} ({status}); {login}"
        return f"{repo}: the hub answers {status} for {name}; try again later"
    if getattr(error, "errno", None) == errno.ENOSPC:
        return disk_full(Path(constants.HF_HUB_CACHE), "HF_HOME")
    if reason := disk_fault(error):
        return f"{path_of(error) or constants.HF_HUB_CACHE}: {reason}"
    return f"{repo}: {name} could not be downloaded ({first_line(error)}); run it again"


class UrlFolder:
    """Files under a base URL, each with its checksum; zip archives among them are unpacked."""

    revision = None

    def __init__(self, base: str, checksums: Mapping[str, str], unpacked: Path):
        """`unpacked` is a folder for the archives' content, which is not kept between runs."""
        self.files = {
            name: download(f"{base.rstrip('/')}/{quote(name)}", name, checksum)
            for name, checksum in checksums.items()
        }
        self._found = dict(self.files)
        for name, path in self.files.items():
            if name.endswith(".zip"):
                unzip(path, unpacked)
        for path in sorted(unpacked.rglob("*")):
            if path.is_file():
                if path.name in self._found:
                    raise InputError(f"{base}: more than one {path.name} in its files")
                self._found[path.name] = path

    def find(self, name: str) -> Path | None:
        return self._found.get(name)


def cache_folder() -> Path:
    """STORYFLOWER_CACHE, or ~/.cache/storyflower."""
    return Path(os.environ.get("STORYFLOWER_CACHE") or Path.home() / ".cache" / "storyflower")


def download(url: str, name: str, checksum: str) -> Path:
    """Fetch a file into the cache under a name, or find it there; its checksum is taken each time.

    `checksum` is "md5:…" or "sha256:…", or the beginning of one. Resumes what an earlier run left,
    and tries again with growing waits. Raises InputError when it cannot be had or is another file.
    """
    import filelock
    from huggingface_hub import constants

    folder = cache_folder() / checksum.replace(":", "-")
    target, part = folder / name, folder / f"{name}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / f"{name}.lock"):
            if target.is_file() and matches(target, checksum):
                return target
            if constants.is_offline_mode():
                raise InputError(f"{url}: not in {folder}, and HF_HUB_OFFLINE forbids to fetch it")
            resumed = part.exists()
            transfer(url, part)
            if resumed and not matches(part, checksum):
                # The part may be of another version of the file.
                part.unlink()
                transfer(url, part)
            if not matches(part, checksum):
                got = digest(part, checksum.split(":")[0])
                part.unlink()
                raise InputError(f"{url}: checksum {got}, but the card says {checksum}")
            os.replace(part, target)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise InputError(disk_full(folder, "STORYFLOWER_CACHE")) from None
        raise InputError(f"{folder}: cannot be written ({first_line(error)})") from None
    return target


def transfer(url: str, part: Path) -> None:
    """Bring `part` to the length of the file at `url`; raises InputError when that fails.

    A full disk is an OSError of its own.
    """
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            return transfer_once(url, part, before)
        except urllib.error.HTTPError as error:
            if error.code == 416:  # nothing after what is there; the checksum will judge it
                return None
            if error.code in (401, 403):
                raise InputError(f"{url}: the server refuses it ({error.code})") from None
            if error.code not in (408, 429) and error.code < 500:
                raise InputError(f"{url}: not there ({error.code})") from None
            reason = f"the server answers {error.code}"
        except (OSError, http.client.HTTPException) as error:
            if disk_fault(error):
                raise
            reason = first_line(error)
        grown = part.exists() and part.stat().st_size > before
        failures = 1 if grown else failures + 1
        if failures == ATTEMPTS:
            raise InputError(f"{url}: could not be downloaded ({reason}); run it again to resume")
        time.sleep(FIRST_WAIT * 2 ** (failures - 1))


def transfer_once(url: str, part: Path, start: int) -> None:
    """One request for what is missing from byte `start` on; raises OSError when it ends early."""
    from tqdm import tqdm

    headers = {"User-Agent": "storyflower", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        if response.status != 206 or not response.headers.get("Content-Range", "").startswith(
            f"bytes {start}-"
        ):
            start = 0  # the server sends the whole file
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        free = shutil.disk_usage(part.parent).free
        if total is not None and total - start > free:
            raise OSError(errno.ENOSPC, "disk full")
        quiet = not sys.stderr.isatty()
        with (
            part.open("r+b" if start else "wb") as file,
            tqdm(total=total, initial=start, unit="B", unit_scale=True, disable=quiet) as bar,
        ):
            file.seek(start)
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
            got = file.tell()
    if total is not None and got != total:
        raise ConnectionError(f"the connection ended after {got} of {total} bytes")


def unzip(archive: Path, folder: Path) -> None:
    """Unpack plain files and folders; raises InputError for anything that could land elsewhere."""
    try:
        with zipfile.ZipFile(archive) as file:
            members = file.infolist()
            unpacked = sum(member.file_size for member in members)
            if unpacked > max(SMALL, MAX_UNPACKING * archive.stat().st_size):
                raise InputError(f"{archive}: would unpack to {unpacked >> 20} MiB; refused")
            for member in members:
                check_member(archive, member)
            for member in members:
                if not member.is_dir():
                    target = folder / member.filename
                    target.parent.mkdir(parents=True, exist_ok=True)
                    # Reads no more than the stated size, and checks the CRC at its end.
                    with file.open(member) as source, target.open("wb") as sink:
                        shutil.copyfileobj(source, sink, CHUNK)
    # An encrypted member is a RuntimeError, an unknown compression a NotImplementedError.
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise InputError(f"{archive}: not a usable zip ({first_line(error)})") from None
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise InputError(disk_full(folder, "")) from None
        raise InputError(f"{archive}: cannot be unpacked ({first_line(error)})") from None


def check_member(archive: Path, member: zipfile.ZipInfo) -> None:
    """Raise InputError unless a zip's member is a plain file or folder below the target."""
    path = PurePosixPath(member.filename)
    outside = path.is_absolute() or ".." in path.parts
    foreign = "\\" in member.filename or ":" in member.filename  # a path to Windows
    kind = stat.S_IFMT(member.external_attr >> 16)
    if outside or foreign or kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise InputError(f"{archive}: refused: its member {member.filename!r} is not a plain file")


def digest(path: Path, algorithm: str) -> str:
    """ "sha256:…" or "md5:…" of a file."""
    with path.open("rb") as file:
        return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"


def matches(path: Path, checksum: str) -> bool:
    """Whether the file has this checksum, or one that begins with it."""
    return digest(path, checksum.split(":")[0]).startswith(checksum)


def disk_full(folder: Path, variable: str) -> str:
    hint = f", or set {variable} to a folder on another disk" if variable else ""
    return f"{folder}: the disk is full; make room{hint}"


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
