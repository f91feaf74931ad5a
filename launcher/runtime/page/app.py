"""The routes of the page, of its event stream and of its buttons. I/O: static files beside this one."""

from __future__ import annotations

import functools
import mimetypes
import re
from importlib import resources
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from launcher.base.decoding import decoded
from launcher.ir.live import UnavailableError
from launcher.runtime.page.stream import stream

if TYPE_CHECKING:
    from launcher.runtime.paging import Pages

_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data: blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SAFE = {
    "content-security-policy": _CSP,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}
_MAX_BODY_BYTES = 16 * 1024
_ACTS = ("start", "stop", "restart", "degrade", "restore")
_CODE = re.compile(r"[a-z]+(?:[/-][a-z0-9]+)*")
_POOL = ("preload", "pin", "unpin", "evict")


class Enter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `POST /ui/enter`: the token of a link, or an API key with the scope `admin`."""

    token: str = ""
    key: str = ""


class _Routes:
    """The page's handlers over one fleet. Only static files are cached."""

    def __init__(self, host: Pages) -> None:
        self._host = host

    async def static(self, request: Request) -> Response:
        """`GET /ui/…`: a file of the page; `/ui/` is `index.html`. They contain nothing about the fleet."""
        name = request.path_params.get("name") or "index.html"
        data = static_file(name)
        if data is None:
            return _error(404, "not_found", f"the page has no {name!r}")
        kind = "text/javascript" if name.endswith(".js") else mimetypes.guess_type(name)[0] or "text/plain"
        return Response(data, media_type=kind, headers=_SAFE)

    async def to_page(self, _: Request) -> Response:
        """`GET /ui`: redirect to `/ui/`."""
        return Response(status_code=303, headers={"location": "/ui/"})

    async def enter(self, request: Request) -> Response:
        """`POST /ui/enter`: open a session, with a cookie that scripts cannot read."""
        body = await _body(request, Enter)
        cookie = self._host.enter(token=body.token, key=body.key) if body is not None else None
        if cookie is None:
            message = "that link was used or is too old, or that key has no scope admin; `launch ui` makes a new link"
            return _error(403, "not_admitted", message)
        return _json({"admitted": True}, headers={"set-cookie": cookie, "cache-control": "no-store"})

    async def leave(self, request: Request) -> Response:
        """`POST /v1/launch/leave`: end the session."""
        self._host.leave(request.headers.get("cookie", ""))
        return _json({"admitted": False})

    async def link(self, _: Request) -> Response:
        """`POST /v1/launch/link`: a token that opens one session; for `launch ui`."""
        return _json({"token": self._host.make_link()}, headers={"cache-control": "no-store"})

    async def events(self, request: Request) -> Response:
        """`GET /v1/launch/events`: the stream; as JSON the events after number `after`, as far as they are kept."""
        last = request.headers.get("last-event-id", request.query_params.get("after", ""))
        if last and not (last.isascii() and last.isdigit() and len(last) < 18):
            return _error(400, "invalid_request", "Last-Event-ID and after are the number of an event")
        after = int(last) if last else None
        if "text/event-stream" in request.headers.get("accept", ""):
            headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
            return StreamingResponse(stream(self._host, after), media_type="text/event-stream", headers=headers)
        return _json({"events": self._host.events(after or 0)})

    async def fleet(self, _: Request) -> Response:
        """`GET /v1/launch/fleet`: devices and servers as planned."""
        return _json(self._host.fleet())

    async def gpus(self, _: Request) -> Response:
        """`GET /v1/launch/gpus`: the load of each GPU, and free RAM, in total and by NUMA node."""
        return _json(await self._host.loads())

    async def speeds(self, _: Request) -> Response:
        """`GET /v1/launch/speeds`: tokens/s of each server's answers over the last hour, by minute."""
        return _json({"speeds": self._host.speeds()})

    async def requests(self, _: Request) -> Response:
        """`GET /v1/launch/requests`: those that run or wait now, and the last thousand that ended."""
        return _json({"now": self._host.running(), "ended": self._host.ended(0)})

    async def cancel(self, request: Request) -> Response:
        """`POST /v1/launch/requests/{id}/cancel`: end a request."""
        name = request.path_params["id"]
        if not self._host.cancel(name):
            return _error(404, "unknown_request", f"no request {name!r} runs or waits")
        return _json({"cancelled": name})

    async def act(self, request: Request) -> Response:
        """`POST /v1/launch/servers/{name}/start`, `stop`, `restart`, `degrade` or `restore`."""
        name, verb = request.path_params["name"], request.path_params["verb"]
        if name not in {process.name for process in self._host.status().processes}:
            return _error(404, "unknown_server", f"the fleet has no {name!r}")
        try:
            if verb == "start":
                await self._host.start(name)
            elif verb == "stop":
                await self._host.stop((name,))
            elif verb == "restart":
                await self._host.restart(name)
            elif verb in ("degrade", "restore"):
                await self._host.change_rung(name, down=verb == "degrade")
            else:
                return _error(404, "not_found", f"a server can be told to {', '.join(_ACTS)}, not to {verb!r}")
        except UnavailableError as error:
            return _error(409, error.code, error.message)
        return _json({"done": verb, "name": name})

    async def pool(self, request: Request) -> Response:
        """`POST /v1/launch/pool/{name}/preload`, `pin`, `unpin` or `evict`."""
        name, verb = request.path_params["name"], request.path_params["verb"]
        if verb not in _POOL:
            return _error(404, "not_found", f"the files of a model can be told to {', '.join(_POOL)}, not to {verb!r}")
        try:
            self._host.pool(verb, name)
        except KeyError as error:
            return _error(404, "unknown_server", str(error.args[0]))
        return _json({"done": verb, "name": name})

    async def projects(self, request: Request) -> Response:
        """`GET /v1/launch/projects`; with `?name=` (and `owner=`) the last generations of one."""
        name = request.query_params.get("name")
        if name is None:
            return _json({"projects": await self._host.projects()})
        owner = request.query_params.get("owner", "")
        return _json({"generations": await self._host.project(owner, name)})

    async def generation(self, request: Request) -> Response:
        """`GET /v1/launch/generations/{id}`: a generation with its blocks, verdicts and notes."""
        found = await self._host.generation(request.path_params["id"])
        return _error(404, "generation_not_found", "there is no such generation") if found is None else _json(found)

    async def plan(self, _: Request) -> Response:
        """`GET /v1/launch/plan`: the plan of the present files, its findings, and what a reload would change."""
        return _json(await self._host.command("reload", "--dry-run", "--json"))

    async def explain(self, request: Request) -> Response:
        """`GET /v1/launch/explanations/CODE`: meaning, example and remedy of a finding."""
        code = request.path_params["code"]
        explanation = await self._host.explain(code) if _CODE.fullmatch(code) else {}
        return (
            _json(explanation)
            if explanation.get("codes")
            else _error(404, "not_found", f"no finding has the code {code[:80]!r}")
        )

    async def apply(self, _: Request) -> Response:
        """`POST /v1/launch/apply`: reload with the present files."""
        return _json(await self._host.command("reload", "--json"))


def page_routes(host: Pages) -> list[Route]:
    """The routes to be added to the control application."""
    pages = _Routes(host)
    get, post = ["GET"], ["POST"]
    return [
        Route("/ui", pages.to_page, methods=get),
        Route("/ui/", pages.static, methods=get),
        Route("/ui/enter", pages.enter, methods=post),
        Route("/ui/{name}", pages.static, methods=get),
        Route("/v1/launch/events", pages.events, methods=get),
        Route("/v1/launch/fleet", pages.fleet, methods=get),
        Route("/v1/launch/gpus", pages.gpus, methods=get),
        Route("/v1/launch/speeds", pages.speeds, methods=get),
        Route("/v1/launch/explanations/{code:path}", pages.explain, methods=get),
        Route("/v1/launch/requests", pages.requests, methods=get),
        Route("/v1/launch/requests/{id}/cancel", pages.cancel, methods=post),
        Route("/v1/launch/servers/{name}/{verb}", pages.act, methods=post),
        Route("/v1/launch/pool/{name}/{verb}", pages.pool, methods=post),
        Route("/v1/launch/projects", pages.projects, methods=get),
        Route("/v1/launch/generations/{id}", pages.generation, methods=get),
        Route("/v1/launch/plan", pages.plan, methods=get),
        Route("/v1/launch/apply", pages.apply, methods=post),
        Route("/v1/launch/link", pages.link, methods=post),
        Route("/v1/launch/leave", pages.leave, methods=post),
    ]


@functools.cache
def static_file(name: str) -> bytes | None:
    """A file of the page, by its plain name; None where there is none."""
    if name not in static_names():
        return None
    return resources.files(__package__).joinpath("static", name).read_bytes()


@functools.cache
def static_names() -> frozenset[str]:
    """Names of the page's files."""
    folder = resources.files(__package__).joinpath("static")
    return frozenset(entry.name for entry in folder.iterdir() if entry.is_file())


async def _body(request: Request, kind: type[Any]) -> Any:
    """The JSON body as `kind`; None where it is not of that kind, or longer than 16 KiB."""
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > _MAX_BODY_BYTES:
            return None
    return decoded(data, kind)


def _json(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json", headers=headers)


def _error(status: int, code: str, message: str) -> Response:
    return _json({"error": {"code": code, "message": message}}, status)
