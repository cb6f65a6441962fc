"""A hub of models on a loopback address, in the form of Hugging Face's, that can break off."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

REPO = "org/toy"
COMMIT = "a" * 40


@dataclass
class Hub:
    """Serves the files of one repository.

    Attributes:
        stall_at: bytes of a weight file after which sending waits for `go_on`; None never waits.
        drop_at: bytes after which a connection is closed once; the next one is served.
        ranges: the `Range` headers of the requests for weights.
        stalled: set when sending waits.
    """

    files: Mapping[str, bytes]
    stall_at: int | None = None
    drop_at: int | None = None
    ranges: list[str | None] = field(default_factory=list)
    stalled: Event = field(default_factory=Event)
    go_on: Event = field(default_factory=Event)
    address: str = ""

    def environment(self, home: Path) -> dict[str, str]:
        """Variables for a process that takes this for the hub, with a cache in `home`."""
        return {"HF_ENDPOINT": self.address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}


@contextmanager
def serving(folder: Path, **how: Any) -> Iterator[Hub]:
    """Serve a model folder as `REPO`."""
    hub = Hub({file.name: file.read_bytes() for file in folder.iterdir()}, **how)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.go_on.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self, body: bool) -> None:
            path = self.path.split("?")[0]
            if re.fullmatch(rf"/api/models/{REPO}(/revision/\w+)?", path):
                return self._json(
                    {
                        "id": REPO,
                        "sha": COMMIT,
                        "siblings": [
                            {"rfilename": name, "size": len(content), "blobId": _etag(content)}
                            for name, content in hub.files.items()
                        ],
                    }
                )
            if re.fullmatch(rf"/api/models/{REPO}/tree/\w+", path):
                return self._json(
                    [
                        {"type": "file", "path": name, "size": len(content), "oid": _etag(content)}
                        for name, content in hub.files.items()
                    ]
                )
            found = re.fullmatch(rf"/{REPO}/resolve/\w+/(.+)", path)
            if found is None:
                return self._json({"error": "Repository not found"}, 404, "RepoNotFound")
            if found[1] not in hub.files:
                return self._json({"error": "Entry not found"}, 404, "EntryNotFound")
            return self._file(found[1], hub.files[found[1]], body)

        def _json(self, value: Any, status: int = 200, fault: str | None = None) -> None:
            content = json.dumps(value).encode()
            self.send_response(status)
            if fault is not None:
                self.send_header("X-Error-Code", fault)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def _file(self, name: str, content: bytes, body: bool) -> None:
            wanted = self.headers.get("Range")
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
            self.send_response(206 if wanted else 200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{_etag(content)}"')
            self.send_header("Content-Length", str(len(content) - start))
            if wanted:
                span = f"bytes {start}-{len(content) - 1}/{len(content)}"
                self.send_header("Content-Range", span)
            self.end_headers()
            if body:
                self._send(name.endswith(".safetensors"), content[start:], wanted)

        def _send(self, weights: bool, content: bytes, wanted: str | None) -> None:
            if weights:
                hub.ranges.append(wanted)
                if hub.drop_at is not None and len(content) > hub.drop_at:
                    self.wfile.write(content[: hub.drop_at])
                    hub.drop_at = None
                    self.close_connection = True
                    return
                if hub.stall_at is not None and len(content) > hub.stall_at:
                    self.wfile.write(content[: hub.stall_at])
                    self.wfile.flush()
                    hub.stalled.set()
                    hub.go_on.wait()
                    return
            self.wfile.write(content)

    return Handler


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
