"""A stand-in for llama-server as router, validator or worker, which kills whom a test names at the step it names.

The worker writes `block 1` to `block 5` and `[DONE]`, by what its prompt says was written; the validator passes all.
`DIR/kill.json` is `{"role", "block", "when", "victim"}`; whoever is at that step takes it away and does it. Each
process writes its pid to `DIR/ROLE.pid`. Standard library only.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Handler(BaseHTTPRequestHandler):
    """Answers what the runtime asks."""

    protocol_version = "HTTP/1.1"
    options: argparse.Namespace

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it
        """No access log."""

    def do_GET(self) -> None:
        """`/health` and `/props`."""
        self.answer({"model_path": self.options.model, "total_slots": 1})

    def do_POST(self) -> None:
        """The probe's completion, templates, tokens, chats."""
        body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"{}")
        if self.path == "/apply-template":
            self.answer({"prompt": json.dumps(body["messages"])})
        elif self.path == "/tokenize":
            self.answer({"tokens": list(range(len(body["content"].split())))})
        elif self.path.endswith("/chat/completions"):
            self.chat(json.dumps(body["messages"]))
        else:
            self.answer({"content": "a", "tokens_predicted": 1})

    def chat(self, prompt: str) -> None:
        """A block or a verdict, with what is to happen before or after it."""
        numbers = [int(n) for n in re.findall(r"block (\d)", prompt)]
        judges = self.options.role == "validator"
        block = max(numbers, default=0) + (not judges)
        self.at(block, "before")
        text = '{"status": "PASS"}' if judges else f"block {block}" if block < 6 else "[DONE]"
        message = {"role": "assistant", "content": text}
        self.answer({"choices": [{"message": message, "finish_reason": "stop"}], "usage": {}})
        self.wfile.flush()
        self.at(block, "after")

    def at(self, block: int, when: str) -> None:
        """Kill whom the test names, if this is the step."""
        folder = Path(self.options.folder)
        try:
            plan = json.loads((folder / "kill.json").read_text())
            if (plan["role"], plan["block"], plan["when"]) != (self.options.role, block, when):
                return
            (folder / "kill.json").rename(folder / "killed.json")
        except FileNotFoundError:
            return
        os.kill(int((folder / f"{plan['victim']}.pid").read_text()), signal.SIGKILL)

    def answer(self, value: object) -> None:
        """Send JSON."""
        raw = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


def main() -> None:
    """Parse, say who we are, serve."""
    parser = argparse.ArgumentParser()
    for name in ("port", "model", "role", "folder"):
        parser.add_argument(f"--{name}", required=True)
    Handler.options = options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    server = ThreadingHTTPServer(("127.0.0.1", int(options.port)), Handler)
    server.daemon_threads = True
    Path(options.folder, f"{options.role}.pid").write_text(str(os.getpid()))
    server.serve_forever()


if __name__ == "__main__":
    main()
