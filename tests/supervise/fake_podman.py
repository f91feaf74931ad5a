"""A stand-in for podman that really runs the process: `run`, `rm --force`, `inspect`, as far as launch uses them.

As with the real one, the container is no child of its client: it lives in a session of its own and outlives a client
that is killed. FAKE_PODMAN_DIR holds a file with the pid for each container. Image `web:1` serves HTTP on the host
port that `--publish=ADDRESS:HOST:CONTAINER` names; the other arguments are kept in `NAME.args`. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(os.environ["FAKE_PODMAN_DIR"])
WEB = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("content-length", "2"); self.end_headers(); self.wfile.write(b"ok")
    def log_message(self, *_): pass
ballast = b"x" * (32 << 20)
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def pid_of(name: str) -> int | None:
    """The container's process, while it lives."""
    try:
        pid = int((HERE / name).read_text())
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, ValueError):
        return None
    return None if state == "Z" else pid


def remove(name: str) -> None:
    """Kill a container and forget it."""
    pid = pid_of(name)
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):  # its client may just have ended it
            os.kill(pid, signal.SIGKILL)
        while pid_of(name) is not None:
            time.sleep(0.01)
    (HERE / name).unlink(missing_ok=True)


def run(words: list[str]) -> int:
    """Start the container, pass SIGTERM on, wait for its end; its exit code."""
    options = [word for word in words if word.startswith("--")][: words.index("web:1")]
    name = next(o.removeprefix("--name=") for o in options if o.startswith("--name="))
    port = next(o.removeprefix("--publish=") for o in options if o.startswith("--publish=")).split(":")[-2]
    if pid_of(name) is not None:
        if "--replace" not in options:
            sys.exit(f"Error: the container name {name} is in use")
        remove(name)
    (HERE / f"{name}.args").write_text("\n".join(words))
    # as conmon does: not in the client's session, not its child
    env = {key: value for key, value in os.environ.items() if key != "LAUNCH_STATE_FILE"}
    child = subprocess.Popen([sys.executable, "-S", "-c", WEB, port], start_new_session=True, env=env)
    (HERE / name).write_text(str(child.pid))
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    code = child.wait()
    (HERE / name).unlink(missing_ok=True)
    return code


def main() -> int:
    """One command."""
    command, *words = sys.argv[1:]
    if command == "run":
        return run(words)
    if command == "rm" and words[0] == "--force":
        remove(words[-1])
        return 0
    if command == "inspect" and words[:2] == ["--format", "{{.State.Pid}}"]:
        pid = pid_of(words[2])
        if pid is None:
            sys.exit("Error: no such container")
        sys.stdout.write(f"{pid}\n")
        return 0
    sys.exit(f"Error: unknown command {command} {words}")


if __name__ == "__main__":
    sys.exit(main())
