"""Who may see the page's data and act through it: links, sessions, keys, other origins, other hosts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from launcher.route import Front, control_app, figures
from launcher.route.key_watch import renew
from launcher.route.requests import MINUTES, Requests
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


async def test_a_session_ends_with_the_key_that_opened_it(tmp_path: Path) -> None:
    """Who was let in by a key that is gone, or that may no longer look after the fleet, is out; by a link, not."""
    keys = tmp_path / "keys"
    keys.write_text("boss-key scopes=admin\nother-key scopes=admin\n")
    async with fronted(tmp_path, api_key_file=str(keys)) as (front, port, by_link):
        sessions = front.sessions
        by_key = {key: f"Cookie: {sessions.cookie}={sessions.open(key)}" for key in ("boss-key", "other-key")}
        logs = "/v1/launch/logs/tailed"
        for cookie in (by_link, *by_key.values()):
            assert (await ask(port, get(logs, cookie))).status == 200
        keys.write_text("boss-key scopes=infer\nthird-key scopes=admin\n")
        await renew(front)
        assert (await ask(port, get(logs, by_link))).status == 200
        for cookie in by_key.values():
            assert (await ask(port, get(logs, cookie))).code == "api_key_required"


async def test_a_cookie_that_somebody_else_chose_never_becomes_a_session(tmp_path: Path) -> None:
    """Another port of this host can set cookies for it: whoever enters gets a word that nobody had before."""
    async with fronted(tmp_path) as (front, port, _cookie):
        chosen = f"{front.sessions.cookie}=chosen"
        first, second = (front.sessions.enter(front.sessions.make_link()) for _ in range(2))
        assert len({"chosen", first, second}) == 3
        assert (await ask(port, get("/v1/launch/logs/tailed", f"Cookie: {chosen}"))).code == "control_needs_key"
        # two of one name, as a browser sends them that was given one by somebody else: nobody is locked out by it
        both = f"Cookie: {chosen}; {front.sessions.cookie}={first}"
        assert (await ask(port, get("/v1/launch/logs/tailed", both))).status == 200


async def test_a_link_that_two_use_at_once_lets_one_in(tmp_path: Path) -> None:
    """However many ask with it at the same time."""
    async with fronted(tmp_path) as (front, _port, _cookie):
        link = front.sessions.make_link()
        found = await asyncio.gather(*(asyncio.to_thread(front.sessions.enter, link) for _ in range(8)))
    assert len([session for session in found if session is not None]) == 1


async def test_a_cookie_never_reaches_a_server(tmp_path: Path) -> None:
    """Whatever a browser sends to this host, a model server is not told."""
    async with answering(OK) as up, running(Front(table(target("m", up.port)), FakeFleet())) as port:
        await ask(port, post({"model": "m"}, "/v1/chat/completions", "Cookie: a=secret"))
    assert up.requests[0].header("cookie") is None


async def test_what_a_client_asked_for_is_seen_and_how_fast_it_was_answered(tmp_path: Path) -> None:
    """A name that nobody has is seen, too, as far as it is kept; speeds of answers are kept by minute."""
    usage = b'{"usage":{"prompt_tokens":3,"completion_tokens":8},"timings":{"predicted_per_second":31.5}}'
    whole = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(usage), usage)
    async with answering(whole) as up:
        front = Front(table(target("m", up.port)), FakeFleet())
        async with running(front) as port:
            for name in ("m", "nobody", "x" * 5000):
                await ask(port, post({"model": name}))
    assert [(r.asked[:7], len(r.asked), r.status) for r in front.requests.ended()] == [
        ("m", 1, 200),
        ("nobody", 6, 404),
        ("x" * 7, 128, 404),
    ]
    [(minute, speed)] = front.requests.speeds()["m"]
    assert (minute % 60, speed) == (0, 31.5)


async def test_how_long_a_stream_lets_its_client_wait_is_kept(tmp_path: Path) -> None:
    """From the request to the first part, of the last stream with tokens; an answer in one piece says nothing."""
    usage = b'{"usage":{"prompt_tokens":3,"completion_tokens":8},"timings":{"predicted_per_second":31.5}}'
    whole = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(usage), usage)
    event = b"data: %b\n\n" % usage
    stream = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n%b" % (len(event), event)
    for answer, is_kept in ((whole, False), (stream, True)):
        async with answering(answer) as up:
            front = Front(table(target("m", up.port)), FakeFleet())
            async with running(front) as port:
                assert (await ask(port, post({"model": "m"}))).status == 200
                known = figures(front.view.targets)["m"].first_token_s
        assert (known is not None) is is_kept
        assert known is None or 0 < known < 60


def test_speeds_are_of_an_hour_whatever_the_clock_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Means by minute; a clock that jumps back or ahead loses figures at the most."""
    requests, now = Requests(), [100 * 3600.0]
    monkeypatch.setattr("launcher.route.requests.time.time", lambda: now[0])
    for speed in (10.0, 20.0):
        requests._note_speed("a", speed)
    assert requests.speeds() == {"a": [(360000, 15.0)]}
    for jump in (60, -7200, 90, 1e9, -1e9):
        now[0] += jump
        requests._note_speed("a", 1.0)
        assert requests.speeds()["a"][-1] == (int(now[0] // 60) * 60, 1.0)
    for _ in range(200):
        now[0] += 60
        requests._note_speed("a", 1.0)
    assert len(requests.speeds()["a"]) == MINUTES
    now[0] += 4000
    assert requests.speeds() == {"a": []}


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
    assert sessions.opened_by(f"launch={session}".encode()) is not None
    for cookies in (b"", b"launch=", b"launch", f"other={session}".encode(), f"launch={session}x".encode(), b"\xff;="):
        assert sessions.opened_by(cookies) is None
    late = sessions.make_link()
    now[0] += LINK_S
    assert sessions.enter(late) is None
    now[0] = SESSION_S - 1
    assert sessions.opened_by(f"launch={session}".encode()) is not None
    now[0] = SESSION_S
    assert sessions.opened_by(f"launch={session}".encode()) is None
    words = [sessions.make_link() for _ in range(1000)]
    assert [sessions.enter(word) is not None for word in (words[0], words[-1])] == [False, True]
