"""Proof that a server is ready: it is our child that answers, with our model, and it gives a token.

Steps: our process listens on the port or unix socket; `/health` is 200 (503 = loading); `/props` shows the model path
and slots; one token, embedding or score comes out. The caller owns the timers (start, stall) and notices the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from typing import Any

from launcher.base import claimed_name, procfs
from launcher.base.addresses import is_path, port_or_path
from launcher.base.regular import server_key
from launcher.supervise import http, ports
from launcher.supervise.owner import OwnedProcess
from launcher.supervise.spec import ProcessSpec

_POLL_FIRST_S = 0.004
_POLL_MAX_S = 0.02
"""On average, readiness is noticed half of it late. One poll costs 0.2 ms, on one connection."""
_POLL_GROWTH = 1.1
_ASK_S = 2.0
"""/health and /props answer from the HTTP threads, at once."""
_NONSENSE = 20
"""Answers that are not HTTP before the server counts as unfit: some 0.2 s."""
_STEP_BYTES = 4 * 1024**2
"""Growth of bytes read, or resident in RAM, that counts as progress."""
_TOKEN_PROBES: dict[str, tuple[str, dict[str, Any]]] = {
    "completion": ("/completion", {"prompt": "a", "n_predict": 1, "cache_prompt": False, "temperature": 0}),
    "embedding": ("/embedding", {"content": "a"}),
    "rerank": ("/v1/rerank", {"query": "a", "documents": ["a"]}),
}


class UnfitError(Exception):
    """The server answers, but is not what was planned, and waiting does not change that."""


async def wait_started(process: OwnedProcess, interval_s: float, on_progress: Callable[[bool], None]) -> int:
    """Wait until the process exists; returns its pid. Waiting for a node counts as progress, not as a late start."""
    if not process.waits:
        return await process.started()
    starting = asyncio.ensure_future(process.started())
    try:
        while process.waits and not (await asyncio.wait({starting}, timeout=interval_s))[0]:
            on_progress(True)
        return await starting
    finally:
        starting.cancel()


async def prove(spec: ProcessSpec, pid: int, *, token: bool = True) -> None:
    """Return once the process `pid` is proven ready as `spec`; there is no time limit.

    `pid` 0: a process on another machine, which is identified by the name that it reports. `token` False leaves out the
    last step (for a server that was proven before and may be busy). Raises UnfitError when a stranger has the port,
    model or slots differ, or no token is generated; OSError when the last step gets no answer.
    """
    if spec.unit.protocol == "rpc":
        while pid and not ports.listens(pid, spec.unit.port):  # noqa: ASYNC110 - of /proc, which tells nobody
            await asyncio.sleep(_POLL_MAX_S)
        return
    line = http.HttpConnection(spec.unit.host, spec.unit.port)
    try:
        await _until_healthy(spec, pid, line)
        if spec.unit.probe == "health":
            return
        headers = auth_headers(spec)
        _check_props(spec, await _ask(line, "/props", headers))
        if not pid:
            _check_name(spec, await _ask(line, "/v1/models", headers))
        if token:
            await _prove_token(spec, line, headers)
    finally:
        line.close()


async def healthy(spec: ProcessSpec, timeout_s: float) -> bool:
    """Whether `/health` answers 2xx within `timeout_s`; for an RPC server (it has one client), whether it listens."""
    if spec.unit.protocol == "rpc":
        return ports.port_owner(spec.unit.port, spec.unit.host) is not None
    try:
        reply = await http.request(spec.unit.host, spec.unit.port, spec.unit.health_path, timeout_s=timeout_s)
    except OSError:
        return False
    return 200 <= reply.status < 300


async def asleep(spec: ProcessSpec, timeout_s: float) -> bool | None:
    """Whether llama-server has unloaded its model by itself (`--sleep-idle-seconds`); asking does not wake it.

    None: it did not answer in time.
    """
    try:
        reply = await http.request(
            spec.unit.host, spec.unit.port, "/props", timeout_s=timeout_s, headers=auth_headers(spec)
        )
    except OSError:
        return None
    props = reply.json()
    return isinstance(props, dict) and props.get("is_sleeping") is True


async def watch_progress(
    process: OwnedProcess,
    pid: int,
    interval_s: float,
    on_progress: Callable[[bool], None],
    trim_log: Callable[[], Awaitable[None]],
) -> None:
    """Call `on_progress` whenever the log of `process` grew (False), or what it read or holds in RAM (True).

    Runs until cancelled. Bytes read count too, because weights on their way to a GPU do not stay in RAM.
    """
    mark: object = None
    most: tuple[int, ...] | None = None
    while True:
        with contextlib.suppress(OSError):  # no descriptor left: the next look is tried all the same
            await trim_log()  # what floods its log before it is ready fills no disk
            before, mark = mark, await process.log_mark()
            stat = procfs.proc_stat(pid)
            steps = procfs.read_bytes(pid) // _STEP_BYTES, (stat.rss_bytes if stat else 0) // _STEP_BYTES
            if most is not None:
                loading = any(now > known for now, known in zip(steps, most, strict=True))
                if loading or mark != before:
                    on_progress(loading)
            most = steps if most is None else tuple(map(max, steps, most))
        await asyncio.sleep(interval_s)


def auth_headers(spec: ProcessSpec) -> dict[str, str]:
    """Authorization for a server that was given `--api-key-file`: its first key. The key stays in memory."""
    if "--api-key-file" not in spec.unit.argv[:-1]:
        return {}
    try:
        key = server_key(spec.name, spec.unit.argv[spec.unit.argv.index("--api-key-file") + 1])
    except (OSError, UnicodeDecodeError):
        return {}
    return {"Authorization": f"Bearer {key}"} if key else {}


async def _until_healthy(spec: ProcessSpec, pid: int, line: http.HttpConnection) -> None:
    """Poll, at first every few milliseconds, until `/health` is 2xx from our own process. Raises UnfitError.

    The process that answers is checked once per connection, preferably while it is still loading.
    """
    pause, known, nonsense = _POLL_FIRST_S, 0, 0
    while True:
        reply = None
        try:
            reply = await line.request(spec.unit.health_path, timeout_s=_ASK_S)
        except http.NotHttpError as error:
            nonsense += 1
            if nonsense == _NONSENSE:
                at, who = port_or_path(spec.unit.host, spec.unit.port), _stranger(spec, pid, line)
                who = who or "the server that was started"
                raise UnfitError(f"{at} is answered by {who}, with what is {error}") from None
        except OSError:
            pass  # nobody answers yet
        if reply is not None:
            healthy = 200 <= reply.status < 300
            owner = _stranger(spec, pid, line) if line.opened != known else None
            if owner is None:
                known = line.opened
                if healthy:
                    return
            elif healthy:
                at = port_or_path(spec.unit.host, spec.unit.port)
                raise UnfitError(f"{at} is answered by {owner}, not by the server that was started")
            else:
                line.close()
        await asyncio.sleep(pause)
        pause = min(_POLL_MAX_S, pause * _POLL_GROWTH)


def _stranger(spec: ProcessSpec, pid: int, line: http.HttpConnection) -> str | ports.PortOwner | None:
    """The process that listens in place of the process `pid`; for a unix socket, the one that `line` led to."""
    if not pid:
        return None
    if is_path(spec.unit.host):
        try:
            return ports.stranger_behind(pid, line.peer)
        except ProcessLookupError:
            return ports.process_at(line.peer)
    if ports.listens(pid, spec.unit.port) or spec.unit.container:
        return None
    return ports.port_owner(spec.unit.port, spec.unit.host)


async def _ask(line: http.HttpConnection, path: str, headers: dict[str, str]) -> http.Reply:
    """GET `path`, repeated while the server does not answer or is still loading (503)."""
    while True:
        try:
            reply = await line.request(path, timeout_s=_ASK_S, headers=headers)
            if reply.status != 503:
                return reply
        except OSError:
            pass
        await asyncio.sleep(_POLL_MAX_S)


async def _prove_token(spec: ProcessSpec, line: http.HttpConnection, headers: dict[str, str]) -> None:
    """Get one token, vector or score from the server. Raises UnfitError when there is none."""
    probe = spec.unit.probe
    path, body = _TOKEN_PROBES[probe]
    limit_s = spec.policy.start_timeout_s
    reply = await line.request(path, body=body, headers=headers, timeout_s=limit_s)
    if reply.status == 500 and probe == "completion":
        # A first token that is half a character is an error to llama-server: ask for one that is whole.
        reply = await line.request(path, body={**body, "grammar": 'root ::= "a"'}, headers=headers, timeout_s=limit_s)
    match probe, reply.json() if reply.status == 200 else None:
        case "completion", {"tokens_predicted": int(tokens)} if tokens >= 1:
            return
        case "embedding", [{"embedding": vector}, *_] if vector:
            return
        case "rerank", {"results": results} if results:
            return
    raise UnfitError(f"{path} gave no {probe} (status {reply.status}): {_short(reply)}")


def _check_props(spec: ProcessSpec, reply: http.Reply) -> None:
    """`/props` must show the planned model and slots. Raises UnfitError."""
    props = reply.json()
    if reply.status != 200 or not isinstance(props, dict):
        raise UnfitError(f"/props answers {reply.status}: {_short(reply)}")
    path = str(props.get("model_path", ""))
    if "\0" in path or os.path.realpath(path) != os.path.realpath(spec.unit.model_path):
        raise UnfitError(f"/props shows the model {path or 'none'}, planned is {spec.unit.model_path}")
    if props.get("total_slots") != spec.unit.slots:
        raise UnfitError(f"/props shows {props.get('total_slots')} slots, planned are {spec.unit.slots}")


def _check_name(spec: ProcessSpec, reply: http.Reply) -> None:
    """`/v1/models` must show the server's name. Raises UnfitError."""
    who = claimed_name.wrong_server(spec.name, reply.body)
    if who is not None:
        raise UnfitError(f"{spec.unit.host}:{spec.unit.port} is answered by another server: {who}")


def _short(reply: http.Reply) -> str:
    return reply.body[:200].decode(errors="replace")
