"""A loopback Hub: the few routes by which the Hugging Face library lists and downloads one revision of a model."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

_INFO = re.compile(r"/api/models/([^/]+/[^/]+)/revision/([^/]+)")
_TREE = re.compile(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)")
_FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class Repo:
    """One model. `large` files are stored apart, as the Hub stores weights: known by their SHA-256."""

    commits: dict[str, dict[str, bytes]]
    """Files by commit; the last one is `main`."""
    licence: str = "apache-2.0"
    gated: bool = False
    large: tuple[str, ...] = ("model.safetensors",)

    def files_at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commit = list(self.commits)[-1] if revision == "main" else revision
        return (commit, self.commits[commit]) if commit in self.commits else None


@dataclass
class Hub:
    """The running service. `asked` holds method, path and Range of every request; `tokens` every key that was shown.

    `stops_at` breaks the connection of the next download of a file after so many bytes; `broken` files answer 500 once.
    """

    repos: dict[str, Repo]
    url: str = ""
    token: str = ""
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    stops_at: dict[str, int] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    lies: dict[str, bytes] = field(default_factory=dict)
    """Bytes that are sent in place of a file's own."""

    def downloads(self) -> list[str]:
        """Files whose bytes were asked for."""
        return [path.rpartition("/")[2] for method, path, _ in self.asked if method == "GET" and "/resolve/" in path]


@contextmanager
def hub_server(repos: dict[str, Repo], token: str = "") -> Iterator[Hub]:
    """A Hub on a free port of 127.0.0.1, for as long as the block runs."""
    http = _Http(("127.0.0.1", 0), _Handler)
    http.hub = Hub(repos, f"http://127.0.0.1:{http.server_port}", token)
    threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield http.hub
    finally:
        http.shutdown()
        http.server_close()


class _Http(ThreadingHTTPServer):
    hub: Hub
    daemon_threads = True
    block_on_close = False


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30
    disable_nagle_algorithm = True

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        assert isinstance(self.server, _Http)
        hub, path = self.server.hub, unquote(urlsplit(self.path).path)
        hub.asked.append((self.command, path, self.headers.get("Range")))
        shown = self.headers.get("Authorization", "").removeprefix("Bearer ")
        for route, pattern in (("info", _INFO), ("tree", _TREE), ("file", _FILE)):
            if found := pattern.fullmatch(path):
                hub.tokens.add(shown)
                repo = hub.repos.get(found[1])
                if repo is None:
                    return self._refuse(404, "RepoNotFound", "Repository not found")
                at = repo.files_at(found[2])
                if at is None:
                    return self._refuse(404, "RevisionNotFound", "Invalid rev id")
                if route == "file" and repo.gated and (not shown or shown != hub.token):
                    status = 403 if shown else 401
                    return self._refuse(status, "GatedRepo", f"Access to {found[1]} is restricted; you sent {shown}")
                if route == "file":
                    return self._send_file(hub, repo, at[0], found[3], at[1][found[3]])
                body = _info(found[1], repo, *at) if route == "info" else _tree(repo, at[1])
                return self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})
        self._refuse(404, "EntryNotFound", f"no route {path}")

    def _send_file(self, hub: Hub, repo: Repo, commit: str, name: str, data: bytes) -> None:
        headers = {"ETag": f'"{_etag(repo, name, data)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        data = hub.lies.get(name, data)
        if self.command == "HEAD":
            return self._send(200, data, headers)
        if name in hub.broken:
            hub.broken.discard(name)
            return self._refuse(500, "", "scripted")
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        if stop := hub.stops_at.pop(name, 0):
            self._send(200, data[:stop], {**headers, "Content-Length": str(len(data))})
            self.close_connection = True
        elif start:
            place = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
            self._send(206, data[start:], {**headers, **place})
        else:
            self._send(200, data, headers)

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": message})

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        with suppress(OSError):  # the client went away
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Silence."""


def _etag(repo: Repo, name: str, data: bytes) -> str:
    if name in repo.large:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _lfs(repo: Repo, name: str, data: bytes, key: str) -> dict[str, Any]:
    return {"lfs": {key: _etag(repo, name, data), "size": len(data), "pointerSize": 134}} if name in repo.large else {}


def _info(name: str, repo: Repo, commit: str, files: dict[str, bytes]) -> dict[str, Any]:
    siblings = [
        {
            "rfilename": file,
            "size": len(data),
            "blobId": _etag(repo, file, data)[:40],
            **_lfs(repo, file, data, "sha256"),
        }
        for file, data in files.items()
    ]
    tags = ["transformers", f"license:{repo.licence}"]
    return {"_id": "1", "id": name, "modelId": name, "sha": commit, "tags": tags, "siblings": siblings}


def _tree(repo: Repo, files: dict[str, bytes]) -> list[dict[str, Any]]:
    return [
        {
            "type": "file",
            "path": file,
            "size": len(data),
            "oid": _etag(repo, file, data)[:40],
            **_lfs(repo, file, data, "oid"),
        }
        for file, data in files.items()
    ]
