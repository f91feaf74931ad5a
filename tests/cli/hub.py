"""A hub on loopback that speaks as much of Hugging Face's API as `huggingface_hub` needs to download a file."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """`ORG/REPO` with these files, for the length of a `with` block.

    `lie`: state a wrong digest of this file; `cut`: the first longer body breaks off after so many bytes. `began` has
    the byte at which each file's body began.
    """

    def __init__(self, repo: str, files: dict[str, bytes], *, lie: str = "", cut: int = 0) -> None:
        self.asked: list[tuple[str, str, str]] = []
        self.cut, self.began = cut, list[int]()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: object) -> None:
                """Nothing."""

            def do_HEAD(self) -> None:
                """As GET, without the body."""
                self.answer(body=False)

            def do_GET(self) -> None:
                """Metadata of the repository, or a file of it."""
                self.answer(body=True)

            def answer(self, *, body: bool) -> None:
                """One request."""
                hub.asked.append((self.command, self.path, self.headers.get("Authorization", "")))
                if self.path.startswith(f"/api/models/{repo}"):
                    self.send(200, json.dumps(hub.info()).encode(), {"Content-Type": "application/json"}, body=body)
                elif self.path.startswith(f"/{repo}/resolve/{COMMIT}/"):
                    data = files[self.path.removeprefix(f"/{repo}/resolve/{COMMIT}/")]
                    headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
                    start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
                    headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
                    hub.began.append(start)
                    self.send(206 if start else 200, data[start:], headers, body=body)
                else:
                    self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body=body)

            def send(self, status: int, data: bytes, headers: dict[str, str], *, body: bool) -> None:
                """Status, headers, body."""
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if body:
                    breaks = 0 < hub.cut < len(data)
                    end, hub.cut = (hub.cut, 0) if breaks else (len(data), hub.cut)
                    self.wfile.write(data[:end])
                    self.close_connection = self.close_connection or breaks

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._repo, self._files, self._lie = repo, files, lie
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def info(self) -> dict[str, object]:
        """`/api/models/ORG/REPO`."""
        siblings = []
        for name, data in self._files.items():
            digest = "0" * 64 if name == self._lie else hashlib.sha256(data).hexdigest()
            lfs = {"sha256": digest, "size": len(data), "pointerSize": 134}
            siblings.append({"rfilename": name, "size": len(data), "blobId": "b", "lfs": lfs})
        return {"id": self._repo, "modelId": self._repo, "sha": COMMIT, "siblings": siblings, "private": False}

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
