"""A stand-in for the Hub on 127.0.0.1: slow, gated, behind a portal, or another server entirely."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
import time
from typing import Any
from urllib.parse import urlsplit

COMMIT = "a" * 40
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "model.safetensors": bytes(3_500_000),
    "pytorch_model.bin": b"not wanted",
}
GATED = "Access to model org/{} is restricted."
REFUSALS = {  # the id's second part: status, X-Error-Code, X-Error-Message
    "gated": (401, "GatedRepo", GATED.format("gated") + " Please log in."),
    "unlisted": (403, "GatedRepo", GATED.format("unlisted") + " You are not in the list."),
    "token": (401, "", "Invalid credentials in Authorization header"),
    "expired": (401, "", "User Access Token is expired"),
    "unknown": (401, "RepoNotFound", "Invalid username or password."),
    "disabled": (403, "", "Access to this resource is disabled."),
    "forbidden": (403, "", "Your network is not allowed"),
    "revision": (404, "RevisionNotFound", "Invalid rev id: main"),
    "busy": (429, "", "We had to rate limit you"),
    "proxy": (407, "", "Who are you?"),
    "down": (501, "", "We are repairing the Hub"),
}


class Handler(http.server.BaseHTTPRequestHandler):
    """The Hub's paths. The model's name or the endpoint's path chooses the failure."""

    protocol_version = "HTTP/1.1"
    server: Any

    def do_HEAD(self) -> None:
        path = urlsplit(self.path).path  # a proxy is asked for a whole URL
        self.server.requests.append(f"{self.command} {path}")
        prefix, _, rest = path.removeprefix("/").partition("/")
        if prefix == "portal":
            return self._answer(200, b"<html><title>Hotel\nWiFi</title>Log in</html>", "text/html")
        if prefix == "mirror":
            return self._answer(200, b'{"status": "ok"}')
        if prefix == "plain":
            return self._answer(200, b"OK")
        repo = rest.removeprefix("api/models/").split("/")[1]
        if repo in REFUSALS:
            status, code, message = REFUSALS[repo]
            words = {"X-Error-Code": code, "X-Error-Message": message}
            return self._answer(status, b'{"error": "x"}', **{k: v for k, v in words.items() if v})
        if "/tree/" in rest:
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": "b" * 40}
                for name, data in FILES.items()
            ]
            return self._answer(200, json.dumps(entries).encode())
        if rest.startswith("api/models/"):
            return self._answer(200, json.dumps({"id": f"org/{repo}", "sha": COMMIT}).encode())
        self._file(repo, rest.rsplit("/", 1)[1])

    do_GET = do_HEAD

    def _file(self, repo: str, name: str) -> None:
        data = FILES[name]
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        self._head(200, len(data), ETag=etag, **{"X-Repo-Commit": COMMIT})
        if self.command == "HEAD":
            return
        if repo == "stalled" and name.endswith("safetensors"):
            self.wfile.write(data[:1_500_000])
            self.wfile.flush()
            self.server.stalled.set()
            self.server.over.wait(60)
        elif repo == "slow" and name.endswith("safetensors"):
            for start in range(0, len(data), 500_000):
                self.wfile.write(data[start : start + 500_000])
                self.wfile.flush()
                time.sleep(0.1)
        else:
            self.wfile.write(data)

    def _answer(self, status: int, body: bytes, kind: str = "application/json", **headers: str):
        self._head(status, len(body), **{"Content-Type": kind, **headers})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: int, length: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: Any) -> None: ...


class StandIn(http.server.ThreadingHTTPServer):
    """The server; `requests` lists what it was asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[str] = []
        self.stalled, self.over = threading.Event(), threading.Event()

    def handle_error(self, request: Any, client_address: Any) -> None: ...

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"
