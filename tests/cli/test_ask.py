"""`launch up --ask`: what is printed of answers that are none, that break off, or that would drive the terminal."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from launcher.cli.ask import AskThread
from launcher.cli.terminal import Terminal

Ask = Callable[..., str]


def said(content: str | None, **more: object) -> dict[str, object]:
    """A chunk of an answer."""
    return {"choices": [{"delta": {"content": content}}], **more}


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ask]:
    """Asks a front that answers with these chunks; gives all that was printed."""

    class Front(BaseHTTPRequestHandler):
        chunks: tuple[object, ...] = ()

        def do_POST(self) -> None:
            """One event each."""
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.end_headers()
            for chunk in self.chunks:
                self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")

        def log_message(self, *_: object) -> None:
            """Nothing."""

    def asked(*chunks: object) -> str:
        Front.chunks = chunks
        stream = io.StringIO()
        front = f"http://127.0.0.1:{server.server_port}"
        AskThread(Terminal(stream), front, "m", "hi", key_file=None, ends="Ctrl-C").run()
        return stream.getvalue()

    with HTTPServer(("127.0.0.1", 0), Front) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield asked
        server.shutdown()
        thread.join()


def test_an_answer(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked of the front itself, whatever proxy the environment names: it stays on this machine."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    printed = ask(said("Hel"), said("lo.\n"), said(None, timings={"predicted_per_second": 12.4}))
    assert "m: Hello.\n  (12 tokens/s)" in printed
    assert "Ask it yourself" in printed


def test_an_answer_that_breaks_off(ask: Ask) -> None:
    """The front says why in the stream: so do we."""
    printed = ask(said("Hel"), {"error": {"message": "it died", "code": "upstream_died"}})
    assert "no answer: it died" in printed
    assert "Ask it yourself" not in printed


@pytest.mark.parametrize(
    "chunk",
    [
        {"choices": [{"delta": None}]},
        {"choices": [None]},
        {"choices": 1},
        {"timings": 1},
        said("", timings={"predicted_per_second": "x"}),
    ],
)
def test_what_no_server_should_say(ask: Ask, chunk: object) -> None:
    """It is no answer, and no traceback of a thread."""
    assert "no answer: " in ask(chunk)


def test_an_answer_does_not_drive_the_terminal(ask: Ask) -> None:
    """What a model writes is text; its lines stay lines."""
    assert "m: a\n\tb�]0;x�" in ask(said("a\n\tb\x1b]0;x\x07"))
