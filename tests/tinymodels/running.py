"""A real llama-server on a port of its own, for the length of a `with` block."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

BARE = ("--fit", "off", "--no-warmup", "--offline", "--cache-ram", "0", "--device", "none")
"""Flags for a quick and quiet start; give `flags=()` to leave them out."""

_BOUND = re.compile(rb"listening on http://127\.0\.0\.1:(\d+)")
_POLL_S = 0.002


class ServerExitedError(AssertionError):
    """The server ended before it was ready; the message has its status and the end of its log."""

    def __init__(self, code: int, log: str) -> None:
        super().__init__(f"llama-server exited with {code}:\n{log[-2000:]}")
        self.code = code
        self.log = log


def memory_breakdown(binary: Path, *args: str | Path, timeout_s: float = 20.0) -> list[str]:
    """The `common_memory_breakdown_print` rows of a dry run: `args` + `--fit on -lv 4`, killed before it loads.

    Works on sparse files. Raises ServerExitedError where the server refuses, before or instead of a projection.
    """
    argv = [str(binary), *map(str, args), "--fit", "on", "-lv", "4", "--offline", "--host", "127.0.0.1", "--port", "0"]
    rows: list[str] = []
    log: list[str] = []
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        alarm = threading.Timer(timeout_s, process.kill)
        alarm.start()
        try:
            for line in process.stdout:
                log.append(line)
                if "common_memory_breakdown_print: |" in line:
                    rows.append(line[line.index("|") :].rstrip())
                if "projected to use" in line:
                    return rows
        finally:
            alarm.cancel()
            process.kill()
    raise ServerExitedError(process.returncode, "".join(log))


class RunningServer:
    """Starts `binary` with `args`, waits for /health 200, and ends it, and only it, at the end of the block.

    Without `port` the server chooses its own (`--port 0`), which no other process can take meanwhile.
    Raises ServerExitedError where it exits early, TimeoutError after `timeout_s` seconds.
    """

    def __init__(
        self,
        binary: Path,
        *args: str | Path,
        flags: tuple[str, ...] = BARE,
        port: int = 0,
        env: Mapping[str, str] | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        own = (*flags, "--host", "127.0.0.1", "--port", str(port))
        self.argv: tuple[str, ...] = (str(binary), *(str(arg) for arg in args), *own)
        self.port = port
        self.ready_s = 0.0
        # With gdb installed an abort prints a backtrace that buries the assertion, and takes half a second.
        # Threads that wait without spinning: on cores that several tests share, spinning takes four times the work.
        own_env = {**os.environ, "GGML_NO_BACKTRACE": "1", "OMP_WAIT_POLICY": "passive"}
        self._env = own_env if env is None else env
        self._timeout_s = timeout_s
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        began = time.monotonic()
        self._process = subprocess.Popen(
            self.argv, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, env=self._env
        )
        try:
            self._wait_ready(began + self._timeout_s)
        except BaseException:
            self.close()
            raise
        self.ready_s = time.monotonic() - began
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self.process.pid

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The child process."""
        if self._process is None:
            raise RuntimeError("the server has not been started: use `with`")
        return self._process

    @property
    def url(self) -> str:
        """Base address, without a slash at its end."""
        return f"http://127.0.0.1:{self.port}"

    def log(self) -> str:
        """All that the server has written so far, both streams."""
        return self._log_bytes().decode("utf-8", "replace") if not self._log.closed else ""

    def get(self, path: str) -> tuple[int, Any]:
        """GET: status and decoded JSON (text where it is none)."""
        return self._request("GET", path, None)

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        """POST `body` as JSON: status and decoded JSON; invalid UTF-8 is a UnicodeDecodeError."""
        return self._request("POST", path, json.dumps(body).encode())

    def close(self) -> None:
        """SIGTERM, after ten seconds SIGKILL; the child is reaped. Twice is once."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._log.close()

    def _wait_ready(self, deadline: float) -> None:
        """Poll until ready; TimeoutError at `deadline` (monotonic seconds)."""
        while not self._is_ready():
            if time.monotonic() > deadline:
                raise TimeoutError(f"llama-server is not ready after {self._timeout_s} s:\n{self.log()[-2000:]}")
            time.sleep(_POLL_S)

    def _is_ready(self) -> bool:
        """Whether /health says 200; finds the port first where the server chose it."""
        code = self.process.poll()
        if code is not None:
            raise ServerExitedError(code, self.log())
        if not self.port:
            bound = _BOUND.search(self._log_bytes())
            if bound is None:
                return False
            self.port = int(bound[1])
        try:
            return self.get("/health")[0] == http.client.OK
        except (ConnectionError, http.client.HTTPException, TimeoutError):
            return False

    def _log_bytes(self) -> bytes:
        """The log, read beside the child's own file position."""
        return Path(f"/proc/self/fd/{self._log.fileno()}").read_bytes()

    def _request(self, method: str, path: str, body: bytes | None) -> tuple[int, Any]:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=self._timeout_s)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
            response = connection.getresponse()
            text = response.read().decode("utf-8")
        finally:
            connection.close()
        try:
            return response.status, json.loads(text)
        except json.JSONDecodeError:
            return response.status, text
