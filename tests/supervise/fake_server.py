"""A scripted stand-in for llama-server, for faults that a real one will not show.

`python fake_server.py --port N --model PATH [--slots N] [--fault WORD]…` with the words below; `--socket PATH` instead
of a port. Standard library only.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

FAULTS = (
    "hang-loading",  # /health stays 503, nothing is logged
    "slow-loading",  # 503 for 0.6 s, logging all the while
    "long-loading",  # the same for 1.6 s
    "exit-134",  # aborts after an assertion
    "exit-1",  # ends at once
    "ignore-term",  # only SIGKILL ends it
    "flood-log",  # writes 1 MiB to its log before it serves, and more with every request
    "grandchild",  # forks a child that ignores SIGTERM and keeps the log open
    "no-token",  # healthy, and /completion never answers
    "wrong-model",  # /props shows another model
    "deaf",  # healthy at first, then /health never answers again
    "oom-at-start",  # ends as one that cannot allocate its K/V cache
    "segv-loading",  # dies without a word, as a llama-server that was refused its K/V cache and lost its last lines
    "oom-dying",  # dies in a request as after cudaMalloc failed; the readiness probe is spared
    "oom-lingering",  # the same, and its connection breaks 2.5 s before it is gone: it writes a core, and is mute
    "breaks-one",  # breaks the connection of its first request after the probe, and lives on
    "oom-living",  # answers a request with 500 and std::bad_alloc, and lives on
    "die-after-ready",  # exits with 3 when it is asked for its health after the first completion: it was found ready
    "mute-once",  # ends without a word the first time (the file --note is there then), with its reason the second
    "out-of-memory",  # says that memory ran out, and is killed
)


class Handler(BaseHTTPRequestHandler):
    """Answers what the readiness probes ask."""

    protocol_version = "HTTP/1.1"
    options: argparse.Namespace
    began = 0.0
    tokens = 0
    is_mute = False

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it
        """No access log."""

    def do_GET(self) -> None:
        """`/health`, `/v1/models` and `/props`."""
        faults = self.options.fault
        if self.path == "/health":
            lasts = 0.6 if "slow-loading" in faults else 1.6 if "long-loading" in faults else 0
            slow = time.monotonic() - Handler.began < lasts
            loading = "hang-loading" in faults or slow
            if slow:
                say("loading")
            if Handler.is_mute or ("deaf" in faults and Handler.tokens):
                time.sleep(3600)
            if "die-after-ready" in faults and Handler.tokens:
                os._exit(3)
            self.answer(503 if loading else 200, {"status": "ok"})
        elif self.path == "/v1/models":
            self.answer(200, {"data": [{"id": self.options.alias}]})
        else:
            model = "/other.gguf" if "wrong-model" in faults else self.options.model
            self.answer(200, {"model_path": model, "total_slots": self.options.slots})

    def do_POST(self) -> None:
        """`/completion`; `{"sleep_s": x}` holds the answer back."""
        body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"{}")
        if "no-token" in self.options.fault:
            time.sleep(3600)
        time.sleep(float(body.get("sleep_s", 0)))
        if Handler.tokens and "oom-dying" in self.options.fault:
            say("ggml_backend_cuda_buffer_type_alloc_buffer: cudaMalloc failed: out of memory")
            os.abort()
        if Handler.tokens and "oom-lingering" in self.options.fault:
            say("ggml_backend_cuda_buffer_type_alloc_buffer: cudaMalloc failed: out of memory")
            Handler.is_mute = True
            self.connection.shutdown(socket.SHUT_RDWR)
            time.sleep(2.5)
            os.abort()
        if Handler.tokens == 1 and "breaks-one" in self.options.fault:
            Handler.tokens += 1
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if Handler.tokens and "oom-living" in self.options.fault:
            self.answer(500, {"error": {"code": 500, "message": "decode() failed: std::bad_alloc"}})
            return
        Handler.tokens += 1
        self.answer(200, {"content": "a", "tokens_predicted": 1, "model": self.options.alias})
        if "flood-log" in self.options.fault:
            flood()

    def answer(self, status: int, value: object) -> None:
        """Send JSON."""
        raw = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


class OnPath(ThreadingHTTPServer):
    """It listens on a unix socket."""

    address_family = socket.AF_UNIX

    def __init__(self, path: str, handler: type[Handler]) -> None:
        """Bound already."""
        super().__init__(path, handler)  # type: ignore[arg-type] # the address of this family

    def server_bind(self) -> None:
        """No name and port are told of a path."""
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = "localhost", 0


def say(text: str) -> None:
    """Write a line of log."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def flood() -> None:
    """Write a little more than 1 MiB of log."""
    say("\n".join(["x" * 1023] * 1024) + "\nthat was more than 1 MiB")


def misbehave(faults: list[str], note: str) -> None:
    """What happens before the socket opens."""
    die_at_start(faults, note)
    if "ignore-term" in faults:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if "flood-log" in faults:
        flood()
    if "grandchild" in faults:
        script = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(3600)"
        subprocess.Popen([sys.executable, "-c", script])


def die_at_start(faults: list[str], note: str) -> None:
    """The faults that let it never serve."""
    if "exit-1" in faults:
        sys.exit("error: invalid argument: --nonsense")
    if "oom-at-start" in faults:
        say("llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache")
        sys.exit(1)
    if "segv-loading" in faults:
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGSEGV)
    if "mute-once" in faults:
        if not Path(note).exists():
            Path(note).touch()
            sys.exit(1)
        sys.exit("error: invalid argument: --nonsense")
    if "out-of-memory" in faults:
        say("ggml_aligned_malloc: insufficient memory (attempted to allocate 1000.00 MB)")
        os.kill(os.getpid(), signal.SIGKILL)
    if "exit-134" in faults:
        say("/src/ggml.c:42: GGML_ASSERT(n > 0) failed")
        os.abort()


def main() -> None:
    """Parse, misbehave, serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--socket", default="")
    parser.add_argument("--model", default="")
    parser.add_argument("--alias", default="")
    parser.add_argument("--slots", type=int, default=1)
    parser.add_argument("--fault", action="append", default=[], choices=FAULTS)
    parser.add_argument("--note", default="")
    Handler.options = parser.parse_args()
    misbehave(Handler.options.fault, Handler.options.note)
    Handler.began = time.monotonic()
    path = Handler.options.socket
    address = (Handler.options.host, Handler.options.port)
    server = OnPath(path, Handler) if path else ThreadingHTTPServer(address, Handler)
    server.daemon_threads = True
    server.serve_forever()


if __name__ == "__main__":
    main()
