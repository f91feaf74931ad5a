"""Who may see the page's data and act through it: links, sessions, keys, other origins, other hosts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from launcher.route import Front, control_app
from launcher.route.sessions import LINK_S, SESSION_S, Sessions
from tests.route.fleet import OK, FakeFleet, answering, ask, controlled, front_unit, get, post, running, table, target
from tests.route.test_api import Recorded

EVENTS = "/v1/launch/events"


@asynccontextmanager
async def fronted(tmp_path: Path, **unit: Any) -> AsyncIterator[tuple[Front, int, str]]:
    """A front with a control application behind it, its port, and a Cookie line of a good session."""
    async with (
        answering(OK) as up,
        controlled(control_app(Recorded()), tmp_path) as control,
    ):
        front = Front(table(target("m", up.port), front=front_unit(**unit)), FakeFleet(), control=control)
        async with running(front) as port:
            yield front, port, f"Cookie: other=1; {front.sessions.cookie}={front.sessions.open()}"


async def test_without_keys_only_a_session_sees_and_acts(tmp_path: Path) -> None:
    """Loopback proves nothing; a session's reads pass, its acts too when they come from the front's own page."""
    async with fronted(tmp_path) as (_, port, cookie):
        own = "Origin: http://localhost"
        for path in (EVENTS, "/v1/launch/logs/m"):
            assert (await ask(port, get(path))).code == "control_needs_key"
        assert (await ask(port, get("/v1/launch/logs/tailed", cookie))).status == 200
        stop: dict[str, Any] = {"names": ["m"]}
        assert (await ask(port, post(stop, "/api/stop", cookie, own))).status == 200
        assert (await ask(port, post(stop, "/api/stop", cookie))).code == "control_needs_key"
        assert (await ask(port, post(stop, "/api/stop", own))).code == "control_needs_key"


async def test_other_pages_and_hosts_reach_nothing(tmp_path: Path) -> None:
    """A page of another site, of another port of this machine, and a rebound name: refused, cookie or not."""
    async with fronted(tmp_path) as (front, port, cookie):
        for origin in ("http://evil.example", f"http://localhost:{port + 1}", "null", "http://localhost:3000"):
            line = f"Origin: {origin}"
            for raw in (
                post({"names": ["m"]}, "/api/stop", cookie, line),
                post(b"", "/v1/launch/servers/m/stop", cookie, line),
                post({"token": front.sessions.make_link()}, "/ui/enter", line),
                get("/v1/launch/logs/tailed", cookie, line),
                get("/ui/", line),
            ):
                answer = await ask(port, raw)
                assert (answer.status, answer.code) == (403, "origin_not_allowed"), origin
        for path in ("/ui/", "/", "/v1/launch/logs/tailed"):
            answer = await ask(port, get(path, cookie, "Accept: text/html", host="evil.example"))
            assert (answer.status, answer.code) == (403, "host_not_allowed")


async def test_a_session_of_another_origin_asks_no_model_where_keys_are_asked_for(tmp_path: Path) -> None:
    """The page itself may chat without a key; another page that the browser sends the cookie for may not."""
    keys = tmp_path / "keys"
    keys.write_text("plain-key scopes=infer\nboss-key scopes=admin,infer\n")
    async with fronted(tmp_path, api_key_file=str(keys)) as (front, port, cookie):
        chat = {"model": "m"}
        own = "Origin: http://localhost"
        assert (await ask(port, post(chat, "/v1/chat/completions", cookie, own))).status == 200
        near = "Origin: http://127.0.0.1:1"
        assert (await ask(port, post(chat, "/v1/chat/completions", cookie, near))).code == "api_key_required"
        assert (await ask(port, get(EVENTS))).code == "api_key_required"
        assert (await ask(port, get(EVENTS, "X-Api-Key: plain-key"))).code == "scope_missing"
        assert (await ask(port, get("/v1/launch/logs/tailed", "X-Api-Key: boss-key"))).status == 200
        assert [front.admits(key) for key in ("boss-key", "plain-key", "", "nobody")] == [True, False, False, False]


async def test_a_cookie_never_reaches_a_server(tmp_path: Path) -> None:
    """Whatever a browser sends to this host, a model server is not told."""
    async with answering(OK) as up, running(Front(table(target("m", up.port)), FakeFleet())) as port:
        await ask(port, post({"model": "m"}, "/v1/chat/completions", "Cookie: a=secret"))
    assert up.requests[0].header("cookie") is None


async def test_a_browser_is_led_to_the_page(tmp_path: Path) -> None:
    """`/` for a browser; for others the plain page, as before; without a control application there is no other."""
    async with fronted(tmp_path) as (_, port, _cookie):
        answer = await ask(port, get("/", "Accept: text/html,*/*"))
        assert (answer.status, answer.headers["location"]) == (303, "/ui/")
        assert (await ask(port, get("/"))).status == 200
    async with running(Front(table(target("m", 1)), FakeFleet())) as port:
        assert (await ask(port, get("/", "Accept: text/html"))).status == 200


async def test_a_session_that_ended_is_looked_at_again_on_the_same_connection(tmp_path: Path) -> None:
    """What was found good for one request is asked again for the next with the very same head."""
    async with fronted(tmp_path) as (front, port, cookie):
        raw = get("/v1/launch/logs/tailed", cookie)
        assert (await ask(port, raw)).status == 200
        front.sessions.end(cookie.removeprefix("Cookie: ").encode())
        assert (await ask(port, raw)).code == "control_needs_key"


def test_links_and_sessions_end() -> None:
    """A link is good once and for minutes, a session for hours; there are never too many."""
    now = [0.0]
    sessions = Sessions(clock=lambda: now[0])
    link = sessions.make_link()
    session = sessions.enter(link)
    assert session is not None
    assert sessions.enter(link) is None
    assert sessions.enter("") is None
    assert sessions.holds(f"launch={session}".encode())
    for cookies in (b"", b"launch=", b"launch", f"other={session}".encode(), f"launch={session}x".encode(), b"\xff;="):
        assert not sessions.holds(cookies)
    late = sessions.make_link()
    now[0] += LINK_S
    assert sessions.enter(late) is None
    now[0] = SESSION_S - 1
    assert sessions.holds(f"launch={session}".encode())
    now[0] = SESSION_S
    assert not sessions.holds(f"launch={session}".encode())
    words = [sessions.make_link() for _ in range(1000)]
    assert [sessions.enter(word) is not None for word in (words[0], words[-1])] == [False, True]
