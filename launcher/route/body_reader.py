"""Reads big bodies with `launcher.route.body_worker` in a process of its own, one body at a time. I/O."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from launcher.ir.fleet import RouteTarget
from launcher.route.body import changes_for
from launcher.route.body_worker import BodyQuestion, BodyReply, content_of, memory_of
from launcher.route.problem import HttpError

_PATIENCE_S = 20.0
"""A body that takes longer to read is refused."""
_MESSAGE_BYTES = 1 << 20
_MAIN = "from launcher.route.body_worker import main; main()"
_PACKAGES = str(Path(__file__).parents[2])


class BodyReader:
    """The reader of big bodies. Its process starts with the first one, and ends with the front."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._sock: socket.socket | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._turn = asyncio.Lock()
        """A request that waits here frees its body when its client disconnects; a thread's queue would keep it."""

    async def model(
        self, body: bytes, content_type: bytes, query: bytes, header: bytes | None
    ) -> tuple[str | None, bytes, frozenset[str]]:
        """The request's model (as `peek`), its prompt's beginning, and its media (as `media_in`). Raises HttpError."""
        reply, _ = await self._ask(BodyQuestion("model", (content_type, query, header)), body)
        model, beginning, media = reply.value
        return model, beginning, frozenset(media)

    async def for_target(self, body: bytes, unit: RouteTarget, asked: str) -> bytes:
        """`body` as `unit` gets it, see `launcher.route.body.for_target`. Raises HttpError."""
        reply, changed = await self._ask(BodyQuestion("filtered", changes_for(unit, asked)), body)
        return changed if reply.changed else body

    async def outline(self, body: bytes) -> bytes:
        """`body` without its long values, see `launcher.route.body_worker`. Raises HttpError."""
        return (await self._ask(BodyQuestion("outline", ()), body))[1]

    def close(self) -> None:
        """End the process."""
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)
            self._thread = None
        self._end()

    async def _ask(self, question: BodyQuestion, body: bytes) -> tuple[BodyReply, bytes]:
        """The worker's answer. Raises HttpError."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "reading")
        loop = asyncio.get_running_loop()
        try:
            async with self._turn:
                reply, changed = await loop.run_in_executor(self._thread, self._asked, question, body)
        except (OSError, ValueError, msgspec.DecodeError) as error:
            raise HttpError(503, "body_not_read", f"the body could not be read in time: {error}") from None
        if reply.refused is not None:
            status, code, message, param = reply.refused
            raise HttpError(status, code, message, param=param)
        return reply, changed

    def _asked(self, question: BodyQuestion, body: bytes) -> tuple[BodyReply, bytes]:
        """In a thread: what takes long there are system calls. After an error the process is ended."""
        try:
            return self._exchanged(self._connected(), question, body)
        except BaseException:
            self._end()
            raise

    @staticmethod
    def _exchanged(sock: socket.socket, question: BodyQuestion, body: bytes) -> tuple[BodyReply, bytes]:
        fd = memory_of(body)
        try:
            socket.send_fds(sock, [msgspec.msgpack.encode(question)], [fd])
        finally:
            os.close(fd)
        data, fds, _, _ = socket.recv_fds(sock, _MESSAGE_BYTES, 1)
        if not data:
            raise ConnectionError("its reader ended")
        return msgspec.msgpack.decode(data, type=BodyReply), content_of(fds[0]) if fds else b""

    def _connected(self) -> socket.socket:
        """The socket to a live process."""
        if self._sock is None or self._process is None or self._process.poll() is not None:
            self._end()
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                argv = [sys.executable, "-P", "-c", _MAIN, str(theirs.fileno())]
                self._process = subprocess.Popen(
                    argv,
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    env=os.environ | {"PYTHONPATH": _PACKAGES},
                    start_new_session=True,  # Ctrl-C is the front's
                )
            ours.settimeout(_PATIENCE_S)
            self._sock = ours
        return self._sock

    def _end(self) -> None:
        sock, process, self._sock, self._process = self._sock, self._process, None, None
        if sock is not None:
            sock.close()
        if process is not None:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
