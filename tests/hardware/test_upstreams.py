"""Upstreams asked how they are: by a real server for each way to be unwell."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from launcher.hardware import upstreams
from launcher.hardware.upstreams import unwell_upstreams
from launcher.ir.fleet import FaceUnit, OutsideUnit, RouteTarget
from tests.ports import free_port
from tests.route.fleet import table, target

LISTED = json.dumps({"object": "list", "data": [{"id": "there"}, {"id": "also"}]})
ANSWERS = {
    "/v1/models": (200, LISTED),
    "/down": (503, "{}"),
    "/moved": (302, ""),
    "/health": (200, "fine"),
}


class _Handler(BaseHTTPRequestHandler):
    """Answers by path; `/keyed` to who has the key."""

    def do_GET(self) -> None:
        """One that drips sends a byte whenever its client is about to lose patience, for ever."""
        if self.path.startswith("/drips"):
            self.send_response(200)
            self.end_headers() if self.path.endswith("body") else self.flush_headers()
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(b"x")
                    time.sleep(0.1)
        status, body = ANSWERS.get(self.path, (404, ""))
        if self.path == "/keyed":
            status = 200 if self.headers["X-Api-Key"] == "fleet-key" else 401
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def port() -> Iterator[int]:
    """Of a server with `ANSWERS`."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("path", ["/drips/head", "/drips/body"])
def test_an_upstream_that_drips_is_given_its_time_and_no_more(
    port: int, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each byte is in time, and the whole never is."""
    monkeypatch.setattr(upstreams, "_PATIENCE_S", 0.3)
    begun = time.monotonic()
    drips = target("drips", port, outside=OutsideUnit(url=f"http://127.0.0.1:{port}/v1", health_path=path))
    found = unwell_upstreams(table(drips))
    assert found["drips"].startswith("does not answer: ")
    assert time.monotonic() - begun < 5


def test_who_is_unwell(port: int, tmp_path: Path) -> None:
    """Each is told apart, and those that answer are left out; services are asked by who starts them."""
    key = tmp_path / "key"
    key.write_text("# ours\nfleet-key\n")

    def one(name: str, path: str, *, at: int = port, scheme: str = "http", **changes: object) -> RouteTarget:
        how = {"supervised": changes.pop("supervised", False), "key_header": changes.pop("key_header", "authorization")}
        unit = OutsideUnit(url=f"{scheme}://127.0.0.1:{at}/v1", health_path=path, **how)  # type: ignore[arg-type]
        return target(name, at, outside=unit, **changes)

    faces = {"m": FaceUnit(request_set={"model": "there"}), "n": FaceUnit(request_set={"model": "gone"})}
    found = unwell_upstreams(
        table(
            one("well", "/v1/models", request_set={"model": "also"}),
            one("plain", "/health", request_set={"model": "whatever"}),
            one("keyed", "/keyed", api_key_file=str(key), key_header="x-api-key"),
            one("service", "/down", supervised=True),
            target("ours", free_port()),
            one("lacking", "/v1/models", faces=faces),
            one("refused", "/keyed", api_key_file=str(key)),
            one("open", "/keyed"),
            one("down", "/down"),
            one("moved", "/moved"),
            one("absent", "/v1/models", at=free_port()),
            one("clear", "/v1/models", scheme="https"),
            one("keyless", "/health", api_key_file=str(tmp_path / "none")),
        )
    )
    assert {name: wrong for name, wrong in found.items() if name not in ("absent", "clear", "keyless")} == {
        "lacking": "does not list gone",
        "refused": "does not take its key (status 401)",
        "open": "asks for a key (401)",
        "down": "answers 503 on /down",
        "moved": "answers 302 on /moved",
    }
    assert found["absent"].startswith("does not answer: ")
    assert "SSL" in found["clear"]
    assert "No such file" in found["keyless"]
