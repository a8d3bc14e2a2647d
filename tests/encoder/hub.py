"""The Hugging Face hub on this machine, for tests: it listens on 127.0.0.1."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import huggingface_hub
import pytest
from huggingface_hub import constants

LARGE = (".bin", ".safetensors", ".zip", ".model", ".spiece")  # as .gitattributes on the hub has it


class Hub:
    """Repositories over HTTP, as the Hugging Face hub answers.

    As there, a large file is a redirect to a store, and ETag and size are those of the file.
    """

    def __init__(self):
        self.repos: dict[str, list[dict[str, bytes]]] = {}  # id → its commits, newest last
        self.gated: set[str] = set()
        self.store: dict[str, bytes] = {}  # sha256 → content of a large file
        self.die_after: list[int] = []  # bytes after which the next answers break off
        self.status: dict[str, list[int]] = {}  # method → of its next answers, instead of content
        self.log: list[tuple[str, str, str | None]] = []  # method, path, Range
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self):
                hub.answer(self)

            def do_GET(self):
                hub.answer(self)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        # Another origin, as the hub's is: a client asks the first one what the file is.
        self.store_url = f"http://localhost:{self.server.server_port}/store"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def publish(self, repo: str, files: dict[str, bytes]) -> str:
        """Add a commit; return its name."""
        self.repos.setdefault(repo, []).append(files)
        return self.commit(repo, len(self.repos[repo]) - 1)

    @staticmethod
    def commit(repo: str, number: int) -> str:
        return hashlib.sha1(f"{repo} {number}".encode()).hexdigest()

    def answer(self, request) -> None:
        path = unquote(request.path).lstrip("/")
        if path.startswith("api/"):  # the client's own questions, which are about no file
            return self.refuse(request, 404, "")
        self.log.append((request.command, path, request.headers.get("Range")))
        if self.status.get(request.command):
            return self.refuse(request, self.status[request.command].pop(0), "")
        if path.startswith("store/"):
            return self.send(request, self.store[path.removeprefix("store/")], {})
        repo, _, rest = path.partition("/resolve/")
        revision, _, name = rest.partition("/")
        if repo in self.gated:
            return self.refuse(request, 403, "GatedRepo")
        if repo not in self.repos:
            # What the hub says to someone who is not logged in.
            return self.refuse(request, 401 if rest else 404, "RepoNotFound" if rest else "")
        commits = [self.commit(repo, number) for number in range(len(self.repos[repo]))]
        if revision == "main":
            revision = commits[-1]
        if revision not in commits:
            return self.refuse(request, 404, "RevisionNotFound")
        head = {"X-Repo-Commit": revision}
        files = self.repos[repo][commits.index(revision)]
        if name not in files:
            return self.refuse(request, 404, "EntryNotFound", head)
        content, digest = files[name], hashlib.sha256(files[name]).hexdigest()
        if not name.endswith(LARGE):
            return self.send(request, content, {**head, "ETag": f'"{digest}"'})
        self.store[digest] = content
        head |= {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(content))}
        return self.refuse(request, 302, "", {**head, "Location": f"{self.store_url}/{digest}"})

    def refuse(self, request, status: int, code: str, head=()) -> None:
        request.send_response(status)
        head = {"Content-Length": "0", **dict(head)} | ({"X-Error-Code": code} if code else {})
        for key, value in head.items():
            request.send_header(key, value)
        request.end_headers()

    def send(self, request, content: bytes, head: dict[str, str]) -> None:
        start, status = 0, 200
        if wanted := request.headers.get("Range"):
            start, status = int(wanted.removeprefix("bytes=").split("-")[0]), 206
            head["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            if start >= len(content):
                return self.refuse(request, 416, "")
        content = content[start:]
        request.send_response(status)
        for key, value in {**head, "Content-Length": str(len(content))}.items():
            request.send_header(key, value)
        request.end_headers()
        if request.command == "GET":
            if self.die_after:
                content = content[: self.die_after.pop(0)]
                request.close_connection = True
            request.wfile.write(content)
        return None

    def paths(self) -> list[str]:
        return [path for _, path, _ in self.log]


@contextmanager
def running_hub(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Hub]:
    """A hub that huggingface_hub asks, with a cache of its own and no waits between attempts."""
    hub = Hub()
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1,localhost")
    ask(monkeypatch, hub.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        constants, "AGENT_HARNESSES_PATH", str(cache / "agents.json"), raising=False
    )
    monkeypatch.setattr(huggingface_hub.file_download.time, "sleep", lambda _: None)
    huggingface_hub.close_session()
    yield hub
    hub.server.shutdown()
    hub.server.server_close()
    huggingface_hub.close_session()


def ask(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """What HF_ENDPOINT does at the start of a process."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
