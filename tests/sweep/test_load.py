"""Load on a server, and the file that keeps what it gave: many requests at once, files that are damaged or full."""

from __future__ import annotations

import json
import resource
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from launcher.ir.sweep import Workload
from launcher.sweep import read_rows, row_text
from launcher.trial import Experiment, Prompts, TrialError
from launcher.trial.load import LoadClient
from launcher.trial.server import tail
from tests.sweep.test_sweep_pure import SAMPLE

AT_ONCE = 130
"""More than an HTTP client has connections by itself."""


class Scripted(ThreadingHTTPServer):
    """Answers a completion only when as many as `wanted` are under way; `tokens` are those of any text."""

    request_queue_size = 512
    daemon_threads = True

    def __init__(self) -> None:
        """Listens on a free port."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self.tokens = [1, 2, 3]
        self.gate = threading.Barrier(AT_ONCE)
        self.refusal = ""


class _Handler(BaseHTTPRequestHandler):
    server: Scripted

    def do_POST(self) -> None:
        """`/tokenize` or `/completion`."""
        self.rfile.read(int(self.headers["content-length"]))
        answer: dict[str, object] = {"tokens": self.server.tokens}
        refused = self.path == "/completion" and self.server.refusal
        if self.path == "/completion" and not refused:
            self.server.gate.wait(20)
            answer = {"timings": {"prompt_n": 1, "prompt_ms": 1.0, "predicted_n": 1, "predicted_ms": 1.0}}
        body = refused.encode() if refused else json.dumps(answer).encode()
        self.send_response(400 if refused else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def server() -> Iterator[Scripted]:
    """One that is gone after the test."""
    with Scripted() as made:
        thread = threading.Thread(target=made.serve_forever, daemon=True)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def client(server: Scripted, length: int = 8) -> LoadClient:
    """A client with prompts of `length` tokens."""
    return LoadClient(f"http://127.0.0.1:{server.server_port}", Workload(prompt_tokens=(length,)), Prompts())


def test_so_many_requests_really_are_under_way_at_once(server: Scripted) -> None:
    """None waits in the client for a connection, which would be measured as the server's latency."""
    with closing(client(server)) as asking:
        _, answers = asking.batch(0, AT_ONCE)
    assert len(answers) == AT_ONCE


def test_more_requests_than_this_host_has_threads(server: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said; those that were to begin together with the others do not wait for ever."""
    left, start = iter(range(3)), threading.Thread.start

    def refused(thread: threading.Thread) -> None:
        """The third thread more is refused by the system."""
        if thread.name.startswith("ThreadPoolExecutor") and next(left, None) is None:
            raise RuntimeError("can't start new thread")
        start(thread)

    with closing(client(server)) as asking:
        monkeypatch.setattr(threading.Thread, "start", refused)
        with pytest.raises(TrialError, match="can't start new thread"):
            asking.batch(0, AT_ONCE)


def test_prompts_that_cannot_be_made(server: Scripted) -> None:
    """Longer than any context, or from a server that knows no tokens: said before anything is sent."""
    with pytest.raises(TrialError, match="longer than"), closing(client(server, 10**22)) as asking:
        asking.batch(0, 1)
    with pytest.raises(TrialError, match="more than"), closing(client(server)) as asking:
        asking.batch(0, 10**9)
    server.tokens = []
    with pytest.raises(TrialError, match="no tokens"), closing(client(server)) as asking:
        asking.batch(0, 2)


def test_what_a_server_says_is_one_plain_line(tmp_path: Path, server: Scripted) -> None:
    """Its log, and the text of a refusal, are shown to people: they drive no terminal."""
    (tmp_path / "log").write_text("one\nerror: \x1b]0;x\x07no\tluck\x9b2J\n")
    assert tail(tmp_path / "log") == "error: ]0;xno luck2J"
    server.refusal = "bad\x1b[2J\nprompt"
    with pytest.raises(TrialError, match=r"answers 400: bad\[2J prompt$"), closing(client(server)) as asking:
        asking.batch(0, 1)


def opened(csv: Path) -> Experiment:
    """The experiment of `csv`."""
    return Experiment(Workload(), Prompts(), csv, csv.with_suffix(".log"), lambda *_: None)


def test_a_full_disk_takes_nothing_that_was_measured(tmp_path: Path) -> None:
    """What an earlier run measured is never for a moment on no disk; a torn line goes once there is room."""
    csv = tmp_path / "a.csv"
    before = row_text([SAMPLE], header=True) + "torn"
    csv.write_text(before)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            opened(csv)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert csv.read_text() == before
    assert list(tmp_path.iterdir()) == [csv]
    opened(csv)
    assert csv.read_text() == row_text([SAMPLE], header=True)


def test_files_that_are_none_of_a_sweep(tmp_path: Path) -> None:
    """A line that no CSV has is another file; a device, or a pipe, is neither read for ever nor replaced."""
    with pytest.raises(ValueError, match="field larger"):
        read_rows("x" * 200_000 + "\n")
    with pytest.raises(OSError, match="regular"):
        opened(Path("/dev/null"))
    link = tmp_path / "link.csv"
    (tmp_path / "there.csv").write_text("")
    link.symlink_to(tmp_path / "there.csv")
    opened(link)
    assert link.is_symlink()
    assert (tmp_path / "there.csv").read_text() == row_text([], header=True)
