"""What a page copies runs; what several pages do at once, and to what is just changing, ends in a state that is one."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Cli
from tests.page.browser import browser
from tests.page.conftest import EVIL
from tests.page.test_page import choose, enter, go

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # `make pages`: it needs a browser
MODULES = Path(sys.prefix) / "axe" / "node_modules"
"""Where `make pages` puts the public client for Node."""
PROMPT = 'It\'s "quoted" $HOME `id` \\n %s \u05e9\u05dc\u05d5\u05dd\nand a second line'
DONE = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": []}


@contextmanager
def echo() -> Iterator[tuple[str, list[Any]]]:
    """A server's address, and the bodies that it was asked with."""
    bodies: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        """Answers a stream that says nothing."""

        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            self.wfile.write(f"data: {json.dumps(DONE)}\n\ndata: [DONE]\n\n".encode())

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", bodies
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_what_is_copied_runs(paged: Cli, tmp_path: Path) -> None:
    """As curl, Python and Node: each asks the very same, whatever quotes are in it, and prints what the model says."""
    assert MODULES.is_dir(), "`make pages` brings the client for Node"
    (tmp_path / "node_modules").symlink_to(MODULES)
    runs = {"curl": ["bash", "it.sh"], "Python": [sys.executable, "it.py"], "Node": ["node", "it.mjs"]}
    with browser() as page, echo() as (elsewhere, bodies):
        enter(page, paged)
        go(page, "try")
        choose(page, "chat")
        page.js(f"document.querySelector('#prompt').value = {json.dumps(PROMPT)}")
        for kind, argv in runs.items():
            page.click(f"Copy as {kind}")
            code = page.until("document.querySelector('pre:not([hidden])')?.textContent")
            for base in (paged.front, elsewhere):
                (tmp_path / argv[1]).write_text(code.replace(paged.front, base))
                done = subprocess.run(
                    argv, check=False, cwd=tmp_path, env=paged.env, capture_output=True, text=True, timeout=120
                )
                assert done.returncode == 0, done.stderr
                if kind != "curl" and base == paged.front:
                    assert done.stdout == EVIL
                assert kind != "curl" or "data: [DONE]" in done.stdout
        asked = {"model": "chat", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 256, "stream": True}
        assert bodies == [asked] * 3

        # after an answer: what was asked, not what was answered
        page.click("Send")
        page.until("!document.querySelector('button.main').disabled && document.querySelectorAll('.turn').length === 3")
        page.click("Copy as curl")
        again = page.js("document.querySelector('pre:not([hidden])').textContent")
        assert again.count('"role"') == 1


def test_several_act_at_once(paged: Cli) -> None:
    """Two pages stop one server; one is stopped while it comes in another's place; what ended cannot be cancelled."""
    with browser() as page:
        enter(page, paged)
        post = """(path) => fetch('/v1/launch/' + path, {method: 'POST', headers: {'content-type': 'application/json'},
          body: '{}'}).then(async (answer) => [answer.status, (await answer.json()).error?.code || ''])"""
        page.js(f"window.post = {post}; 0")
        twice = page.js("Promise.all([post('servers/chat/stop'), post('servers/chat/stop')])")
        assert twice == [[200, ""]] * 2
        page.until("launch.processes.get('chat').state === 'stopped'")
        swap = page.js("Promise.all([post('servers/right/start'), post('servers/right/stop')])")
        assert swap[1] == [200, ""], swap
        assert swap[0] == [200, ""] or swap[0][0] == 409, swap
        page.until("['ready', 'stopped'].includes(launch.processes.get('right').state)")  # whichever came first
        assert page.js("post('servers/right/stop')") == [200, ""]
        page.until("launch.processes.get('right').state === 'stopped'")
        both = page.js("Promise.all([post('servers/left/start'), post('servers/right/start')])")
        assert {status for status, _ in both} <= {200, 409}, both
        ready = "['left', 'right'].filter(n => launch.processes.get(n).state === 'ready').length"
        page.until(f"{ready} === 1", timeout_s=60)
        assert page.js("post('servers/chat/start')") == [200, ""]
        answer = page.js("""fetch('/v1/completions', {method: 'POST', headers: {'content-type': 'application/json'},
          body: JSON.stringify({model: 'chat', prompt: 'x', max_tokens: 2})})
          .then((r) => r.headers.get('x-request-id'))""")
        assert page.js(f"post('requests/{answer}/cancel')") == [404, "unknown_request"]
        assert page.js("post('requests/nobody/cancel')") == [404, "unknown_request"]
        page.until("launch.now.length === 0")
