"""The control API: status, stop, reload, logs. Served on a unix socket, to which the front passes `/v1/launch/`. I/O.

Until the next version its paths exist below `/api/` too.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from launcher import __version__
from launcher.base.decoding import UNREADABLE
from launcher.errors import LaunchError
from launcher.ir.live import Control, ProcessStatus
from launcher.route.openapi import openapi
from launcher.route.peek import BOM
from launcher.route.problem import HttpError

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import BaseRoute

T = TypeVar("T", bound=msgspec.Struct)

_MAX_LINES = 10_000
_LINES_DIGITS = 10
_BLOCK_BYTES = 64 * 1024
_MAX_TAIL_BYTES = 4 * 1024**2
_FOLLOW_EVERY_S = 0.25
_MAX_BODY_BYTES = 64 * 1024


class StopBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `POST /api/stop`: servers to stop; none means everything, the runtime included."""

    names: tuple[str, ...] = ()


class ReloadBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `POST /api/reload`: servers to restart (none: what changed), and the deployment to take over."""

    names: tuple[str, ...] = ()
    deployment_dir: str | None = None


class _Endpoints:
    def __init__(self, control: Control) -> None:
        self._control = control

    async def status(self, _: Request) -> Response:
        """`GET /api/status`: the FleetStatus."""
        return _json(self._control.status())

    async def stop(self, request: Request) -> Response:
        """`POST /api/stop`: stop servers, or everything; answers once that is begun, for servers once they are gone."""
        body = await _body(request, StopBody)
        self._check(body.names)
        await self._control.stop(body.names)
        return _json({"stopped": body.names, "all": not body.names})

    async def reload(self, request: Request) -> Response:
        """`POST /api/reload`: what was started, stopped, restarted and kept."""
        body = await _body(request, ReloadBody)
        try:
            return _json(await self._control.reload(body.names, body.deployment_dir))
        except KeyError as error:
            raise self._unknown(str(error.args[0] if error.args else "")) from None

    async def logs(self, request: Request) -> Response:
        """`GET /api/logs/NAME?lines=200&follow=1`: the end of a log as text; with `follow`, also what is appended."""
        from starlette.responses import PlainTextResponse, StreamingResponse  # noqa: PLC0415  # late: 60 ms

        name = request.path_params["name"]
        process = self._check((name,))[0]
        text = request.query_params.get("lines", "200")
        lines = int(text) if text.isascii() and text.isdigit() and len(text) < _LINES_DIGITS else 0
        if not 0 < lines <= _MAX_LINES:
            raise HttpError(400, "invalid_request", f"lines must be a number from 1 to {_MAX_LINES}")
        if process.log_file is None:
            return PlainTextResponse("".join(f"{line}\n" for line in process.log_tail[-lines:]))
        path = Path(process.log_file)
        if request.query_params.get("follow", "0") in ("", "0", "false"):
            return PlainTextResponse(tail(path, lines)[0])
        return StreamingResponse(follow(path, lines), media_type="text/plain", headers={"x-accel-buffering": "no"})

    async def describe(self, _: Request) -> Response:
        """`GET /api/openapi.json`: the description of this API."""
        return _json(openapi(__version__, {"stop": StopBody, "reload": ReloadBody}, _MAX_LINES))

    def _check(self, names: tuple[str, ...]) -> list[ProcessStatus]:
        """The processes of these names. Raises HttpError 404 for one that is none."""
        known = {p.name: p for p in self._control.status().processes} if names else {}
        for name in names:
            if name not in known:
                raise self._unknown(name)
        return [known[name] for name in names]

    def _unknown(self, name: str) -> HttpError:
        import difflib  # noqa: PLC0415  # late: 0.2 MiB, as in `directory`

        known = [p.name for p in self._control.status().processes]
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else f"; known are {', '.join(known)}"
        return HttpError(404, "unknown_server", f"the fleet has no {name!r}{hint}")


def control_app(control: Control, more: Sequence[BaseRoute] = ()) -> Starlette:
    """The control API as an ASGI app, with `more` routes. It does not check callers: whoever mounts it does."""
    from starlette.applications import Starlette  # noqa: PLC0415  # late: starlette costs 60 ms
    from starlette.exceptions import HTTPException  # noqa: PLC0415
    from starlette.routing import Route  # noqa: PLC0415

    endpoints = _Endpoints(control)
    routes = [
        *(
            Route(f"{place}/{path}", answer, methods=[method])
            for place in ("/v1/launch", "/api")  # the second: its names before there was the first
            for path, answer, method in (
                ("status", endpoints.status, "GET"),
                ("stop", endpoints.stop, "POST"),
                ("reload", endpoints.reload, "POST"),
                ("openapi.json", endpoints.describe, "GET"),
                ("logs/{name}", endpoints.logs, "GET"),
            )
        ),
        *more,
    ]
    handlers: dict[Any, Any] = {
        HttpError: _on_refusal,
        LaunchError: _on_launch_error,
        HTTPException: _on_http_exception,
        Exception: _on_bug,
    }
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False  # a redirect would be built from the Host header
    return app


def tail(path: Path, lines: int) -> tuple[str, int]:
    """The last `lines` lines of a file, at most 4 MiB, and the offset of its end. What is no file has none."""
    with contextlib.ExitStack() as opened:
        file = _opened(path, opened)
        if file is None:
            return "", 0
        end = position = file.seek(0, 2)
        blocks: list[bytes] = []
        ends = 0
        while position > max(0, end - _MAX_TAIL_BYTES) and ends <= lines:
            step = min(_BLOCK_BYTES, position)
            position -= step
            file.seek(position)
            blocks.append(file.read(step))
            ends += blocks[-1].count(b"\n")
    return b"".join(b"".join(reversed(blocks)).splitlines(keepends=True)[-lines:]).decode("utf-8", "replace"), end


async def follow(path: Path, lines: int) -> AsyncIterator[bytes]:
    """The end of a file, then what is appended, across rotation and truncation, until the reader disconnects."""
    text, offset = tail(path, lines)
    with contextlib.ExitStack() as opened:
        file = _opened(path, opened)
        if file is not None and os.fstat(file.fileno()).st_size >= offset:
            file.seek(offset)
        yield text.encode()
        while True:
            await asyncio.sleep(_FOLLOW_EVERY_S)
            is_there = file is not None and _is_at(file, path)  # first: what was written before it was moved is read
            while file is not None and (added := file.read(_BLOCK_BYTES)):
                yield added
            if not is_there:
                opened.close()
                file = _opened(path, opened)


def _opened(path: Path, opened: contextlib.ExitStack) -> io.FileIO | None:
    try:  # a pipe would have to be written to before it is open
        return opened.enter_context(path.open("rb", buffering=0)) if path.is_file() else None
    except FileNotFoundError:
        return None


def _is_at(file: io.FileIO, path: Path) -> bool:
    """Whether it is the file at `path`, or there is none; one that shrank is read from its beginning."""
    facts = os.fstat(file.fileno())
    if facts.st_size < file.tell():
        file.seek(0)
    try:
        return os.path.samestat(path.stat(), facts)
    except FileNotFoundError:
        return True


async def _body(request: Request, kind: type[T]) -> T:
    """The JSON body as `kind`; an empty one is all defaults. Raises HttpError."""
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > _MAX_BODY_BYTES:
            raise HttpError(413, "body_too_large", f"the body exceeds {_MAX_BODY_BYTES} bytes")
    try:
        return msgspec.json.decode(data.removeprefix(BOM) or b"{}", type=kind)
    except UNREADABLE as error:
        raise HttpError(400, "invalid_request", str(error)) from None


def _json(value: object, status: int = 200) -> Response:
    from starlette.responses import Response  # noqa: PLC0415

    return Response(msgspec.json.encode(value), status, media_type="application/json")


def _on_refusal(_: Request, error: HttpError) -> Response:
    return _json({"error": {"code": error.code, "message": error.message}}, error.status)


def _on_launch_error(_: Request, error: LaunchError) -> Response:
    """An error of the runtime: its findings, with the exit code that the command line gives them."""
    code = error.findings[0].code if error.findings else "refused"
    body = {"code": code, "message": str(error), "findings": error.findings, "exit_code": error.exit_code}
    return _json({"error": body}, 409)


def _on_http_exception(_: Request, error: Any) -> Response:
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
    response = _json({"error": {"code": code, "message": error.detail}}, error.status_code)
    response.headers.update(error.headers or {})
    return response


def _on_bug(_: Request, __: Exception) -> Response:
    """An unexpected exception; Starlette raises it again for the log."""
    return _json({"error": {"code": "internal_error", "message": "an internal error; see the log"}}, 500)
