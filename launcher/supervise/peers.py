"""RPC servers that hold parts of a server's model: it is started when all answer, and ended when one is lost. I/O.

A server started without one of them would run with fewer devices, or end at once; and an RPC server lets a second
client wait for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import struct
from collections.abc import Callable, Iterable

from launcher.supervise.diagnosis import Diagnosis
from launcher.supervise.owner import Ending, OwnedProcess, RefusedError
from launcher.supervise.ports import connected
from launcher.supervise.spec import ProcessSpec

MISSING = "supervise/peer-missing"
"""Code of a start that was given up because a peer did not answer; it is repeated when all do."""
_PATIENCE_S = 20.0
"""Seconds that a start waits for its peers: several hosts boot at the same time."""
_LOOK_S = 0.25
_ASK_S = 2.0
_CAPABILITIES = 24
_HELLO = struct.pack("<BQ", 14, _CAPABILITIES) + bytes(_CAPABILITIES)
"""llama.cpp's RPC_CMD_HELLO: the command, the length of what follows, and our capabilities beside TCP: none."""
_LONGEST = 256


async def answers_hello(endpoint: str) -> bool:
    """Whether an RPC server at `host:port` answers within two seconds. One that already has a client does not."""
    host, _, port = endpoint.rpartition(":")
    try:
        async with asyncio.timeout(_ASK_S):
            reader, writer = await asyncio.open_connection(host, int(port))
            try:
                writer.write(_HELLO)
                length = int.from_bytes(await reader.readexactly(8), "little")
                return 3 <= length <= _LONGEST and len(await reader.readexactly(length)) == length
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError):
        return False


async def absent(endpoints: Iterable[str]) -> list[str]:
    """The `endpoints` that do not answer, or that have another client."""
    known = list(endpoints)
    answers = await asyncio.gather(*map(answers_hello, known))
    return [endpoint for endpoint, answered in zip(known, answers, strict=True) if not answered]


def lost(endpoints: Iterable[str]) -> list[str]:
    """The `endpoints` to which this machine has no connection. A running server keeps one to each of its peers."""
    return [endpoint for endpoint in endpoints if not connected(*endpoint.rsplit(":", 1))]


def _missing(peers: list[str]) -> Diagnosis:
    cause = f"it has a part of its model at {', '.join(peers)}, where no RPC server is free"
    remedy = "it is started when all its peers (`rpc`) answer: start theirs, or see who else uses them"
    return Diagnosis(code=MISSING, cause=cause, remedy=remedy)


class AfterPeers:
    """A `launcher.supervise.owner.OwnedProcess` that is started once all its RPC peers answer."""

    def __init__(self, spec: ProcessSpec, start: Callable[[], OwnedProcess], on_exit: Callable[[Ending], None]) -> None:
        """`start` starts it, as `spec`; `on_exit` hears where that never comes to be."""
        limits = (spec.policy.start_timeout_s, spec.policy.stall_timeout_s)
        self._patience_s = min(_PATIENCE_S, *(limit / 2 for limit in limits if limit > 0))
        self._peers, self._start = spec.unit.peers, start
        self._inner: OwnedProcess | None = None
        self._ready: asyncio.Future[OwnedProcess] = asyncio.get_running_loop().create_future()
        self._looks = itertools.count()
        self._on_exit: Callable[[Ending], None] | None = on_exit
        self._task = asyncio.get_running_loop().create_task(self._wait())

    @property
    def pid(self) -> int:
        """Pid of the process; 0 until it is started."""
        return self._inner.pid if self._inner is not None else 0

    @property
    def address(self) -> tuple[str, int] | None:
        """See `OwnedProcess`."""
        return self._inner.address if self._inner is not None else None

    @property
    def waits(self) -> bool:
        """See `OwnedProcess`; the wait for peers has its own limit, which is below the start timeout."""
        return self._inner is not None and self._inner.waits

    async def started(self) -> int:
        """Wait until the peers have answered and the process exists; returns its pid."""
        return await (await asyncio.shield(self._ready)).started()

    def terminate(self) -> None:
        """End the process; if it is not started yet, it never is."""
        if self._inner is not None:
            self._inner.terminate()
        else:
            self._never()

    def kill(self) -> None:
        """Kill the process; if it is not started yet, it never is."""
        if self._inner is not None:
            self._inner.kill()
        else:
            self._never()

    def release(self) -> None:
        """See `OwnedProcess`."""
        self._task.cancel()
        if self._inner is not None:
            self._inner.release()

    async def log_mark(self) -> object:
        """See `OwnedProcess`; a new value for each call while it waits for peers."""
        return next(self._looks) if self._inner is None else await self._inner.log_mark()

    async def _wait(self) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + self._patience_s
        while missing := await absent(self._peers):
            if loop.time() >= until:
                self._over(Ending(code=None, refused=_missing(missing)))
                return
            await asyncio.sleep(_LOOK_S)
        try:
            self._inner = self._start()
        except RefusedError as error:
            self._over(Ending(code=None, refused=error.why))
            return
        self._ready.set_result(self._inner)

    def _never(self) -> None:
        self._task.cancel()
        asyncio.get_running_loop().call_soon(self._over, Ending(code=None))

    def _over(self, how: Ending) -> None:
        self._ready.cancel()
        on_exit, self._on_exit = self._on_exit, None
        if on_exit is not None:
            on_exit(how)
