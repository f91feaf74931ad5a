"""The pure parts, by properties: peeking, the breaker, the gate, the directory, error events."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from launcher.ir.fleet import BreakerUnit
from launcher.route import breaker
from launcher.route.body import filtered
from launcher.route.breaker import CLOSED, Breaker
from launcher.route.directory import Directory
from launcher.route.head import Head, connection_tokens
from launcher.route.peek import peek, peek_json, peek_multipart
from launcher.route.problem import HttpError, error_event
from launcher.route.target import Gate, can_wake
from tests.route.fleet import table, target

UNIT = BreakerUnit(failures=3, open_s=30, open_max_s=300)
KEYS = st.sampled_from(["model", "stream", "a", "mod", "models", 'q"model', "m\\odel", "é"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8) | st.just('"model":'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=12,
)


def escaped(key: str, which: list[bool]) -> str:
    """`key` as JSON, with some letters written as escapes."""
    letters = [f"\\u{ord(c):04x}" if flag else json.dumps(c)[1:-1] for c, flag in zip(key, which, strict=False)]
    return '"' + "".join(letters) + json.dumps(key[len(letters) :])[1:-1] + '"'


@given(st.lists(st.tuples(KEYS, VALUES, st.lists(st.booleans(), max_size=5)), max_size=6), st.booleans())
def test_keys_are_counted_as_a_full_parser_does(pairs: list[tuple[str, Any, list[bool]]], spaced: bool) -> None:
    """Duplicate keys are found in any spelling and nesting, as the standard parser sees them."""
    colon = " : " if spaced else ":"
    text = "{" + ",".join(escaped(k, e) + colon + json.dumps(v, ensure_ascii=spaced) for k, v, e in pairs) + "}"
    body = text.encode()
    outer: list[tuple[str, Any]] = json.loads(body, object_pairs_hook=lambda p: p)
    count = sum(k == "model" for k, _ in outer)
    last = dict(outer).get("model")
    try:
        found = peek_json(body)
    except HttpError as error:
        refused = (
            count > 1
            or not isinstance(last, str | None)
            or any(not isinstance(v, str | None) for k, v in outer if k == "model")
        )
        assert refused
        assert error.status == 400  # noqa: PT017  # raised for some inputs only
    else:
        assert count <= 1
        assert found == last


@given(st.binary(max_size=200))
def test_peek_never_fails_otherwise(body: bytes) -> None:
    """Any bytes give a peek or a 400."""
    for kind in (b"", b"application/json", b"multipart/form-data; boundary=B", b"audio/wav"):
        try:
            peek(body, kind, b"model=%ff&x", b"\xff")
        except HttpError as error:
            assert error.status == 400  # noqa: PT017  # raised for some inputs only


@given(st.binary(max_size=100), st.text(st.characters(exclude_characters="\r\n", codec="utf-8"), max_size=20))
def test_multipart_model_is_found(content: bytes, model: str) -> None:
    """A file's content, name and pretended fields do not count; the model's field does."""
    part = b'--Bb\r\nContent-Disposition: form-data; name="%s"%s\r\n%s\r\n%s\r\n'
    body = (
        part
        % (b"file", b'; filename="; name=model; \\"x"', b"Content-Type: audio/wav\r\n", content.replace(b"--Bb", b""))
        + part % (b"model", b"", b"", model.encode())
        + part % (b"stream", b"", b"", b"true")
        + b"--Bb--\r\n"
    )
    found = peek_multipart(body, b'Multipart/Form-Data; charset=x; boundary="Bb"')
    assert (found or "") == model
    with pytest.raises(HttpError):
        peek_multipart(part % (b"model", b"", b"", b"x") + body, b"multipart/form-data; boundary=Bb")


class BreakerMachine(RuleBasedStateMachine):
    """The breaker against its description, with a clock and requests in flight."""

    def __init__(self) -> None:
        """Closed, at time 0."""
        super().__init__()
        self.state = CLOSED
        self.now = 0.0
        self.in_flight = 0
        self.row = 0
        self.opened: list[float] = []

    @rule(seconds=st.floats(0, 400))
    def time_passes(self, seconds: float) -> None:
        """The clock goes on."""
        self.now += seconds

    @precondition(lambda self: breaker.admits(self.state, self.now))
    @rule()
    def begin(self) -> None:
        """A request goes through."""
        self.state = breaker.on_start(self.state)
        self.in_flight += 1
        if self.state.open_s:
            assert not breaker.admits(self.state, self.now)

    @precondition(lambda self: self.in_flight > 0)
    @rule()
    def succeed(self) -> None:
        """Any success closes it."""
        self.in_flight -= 1
        self.state = breaker.CLOSED
        assert self.state is CLOSED

    @precondition(lambda self: self.in_flight > 0)
    @rule()
    def fail(self) -> None:
        """The third failure in a row opens it; a failed probe doubles its time."""
        self.in_flight -= 1
        before = self.state
        self.state = breaker.on_failure(before, self.now, UNIT)
        if before.open_s == 0:
            assert (self.state.open_s > 0) == (before.failures + 1 >= UNIT.failures)
        elif before.probing:
            assert self.state.open_s == min(before.open_s * 2, UNIT.open_max_s)
            assert self.state.open_until == self.now + self.state.open_s
        else:
            assert self.state == before

    @precondition(lambda self: self.in_flight > 0)
    @rule()
    def abandon(self) -> None:
        """Nothing is learned."""
        self.in_flight -= 1
        self.state = breaker.on_abandon(self.state)
        assert not self.state.probing

    @invariant()
    def is_bounded(self) -> None:
        """It is never open beyond the limit, and when nobody probes it lets one through in time."""
        assert self.state.open_s <= UNIT.open_max_s
        assert self.state.open_until <= self.now + UNIT.open_max_s
        if not self.state.probing:
            assert breaker.admits(self.state, self.now + UNIT.open_max_s)


TestBreaker = BreakerMachine.TestCase


def test_breaker_as_the_document_says() -> None:
    """3 failures, 30 s, doubling to 300 s."""
    state, now, seen = CLOSED, 0.0, []
    for _ in range(3):
        state = breaker.on_failure(state, now, UNIT)
    for _ in range(6):
        seen.append(state.open_s)
        now = state.open_until
        assert not breaker.admits(state, now - 0.001)
        assert breaker.admits(state, now)
        state = breaker.on_failure(breaker.on_start(state), now, UNIT)
    assert seen == [30, 60, 120, 240, 300, 300]
    assert breaker.on_failure(Breaker(failures=2), 0, UNIT).open_s == 30


@given(st.integers(1, 4), st.integers(0, 6), st.lists(st.sampled_from("acgr"), max_size=60))
def test_gate_never_exceeds_its_slots(slots: int, queue_size: int, steps: list[str]) -> None:
    """Under any order of arrivals, cancellations, grants and releases: bounded, fair, nothing lost."""

    async def run() -> None:
        gate = Gate(slots)
        order: list[int] = []
        tasks: list[asyncio.Task[None]] = []
        held = 0

        async def arrive(number: int) -> None:
            await gate.acquire(queue_size=queue_size, timeout_s=60)
            order.append(number)

        for step in steps:
            if step == "a":
                tasks.append(asyncio.create_task(arrive(len(tasks))))
            elif step == "c" and tasks:
                tasks[-1].cancel()
            elif step == "r" and len(order) > held:
                held += 1
                gate.release()
            if step != "g":
                continue
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert gate.in_flight <= slots
            assert len(gate.waiters) <= queue_size
            assert order == sorted(order)
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            assert result is None or isinstance(result, asyncio.CancelledError) or result.code == "queue_full"  # type: ignore[union-attr]  # the only other
        assert gate.in_flight == len(order) - held
        assert not gate.waiters

    asyncio.run(run())


@given(st.dictionaries(st.sampled_from("abcd"), st.lists(st.sampled_from("abcdwx"), max_size=4).map(tuple), max_size=6))
def test_tiers_visit_no_server_twice(fallback: dict[str, tuple[str, ...]]) -> None:
    """Whatever the fallbacks, each name ends in finitely many servers, its own first, none twice."""
    units = [target(n, 1, roles=("w",) if n in "ab" else ("x",)) for n in "abcd"]
    directory = Directory(table(*units, fallback=fallback))
    for name in "abcdwx":
        tiers = directory.tiers(name)
        flat = [s for tier in tiers for s in tier]
        assert len(flat) == len(set(flat))
        assert tiers[0] == {"w": ("a", "b"), "x": ("c", "d")}.get(name, (name,))


@given(st.dictionaries(st.sampled_from("abc"), VALUES), st.dictionaries(st.sampled_from("abc"), VALUES))
def test_defaults_never_override(body: dict[str, Any], defaults: dict[str, Any]) -> None:
    """A client's own values win; what is no object is left alone."""
    merged = filtered(json.dumps(body).encode(), defaults, {}, ())
    assert json.loads(merged) == {**defaults, **body}
    assert filtered(b"\xffnot json", defaults, {}, ()) == b"\xffnot json"
    with pytest.raises(HttpError, match="plain JSON"):
        filtered(b"\xffnot json", defaults, {"a": 1}, ("b",))


@given(st.text(max_size=30), st.sampled_from(["/v1/chat/completions", "/v1/messages", "/v1/responses"]), st.booleans())
def test_error_events_are_one_event(message: str, path: str, boundary: bool) -> None:
    """Whatever the message, an event is one data line of JSON, ended by a blank line."""
    event = error_event(HttpError(502, "c", message), path, "id", at_boundary=boundary)
    lines = event.removeprefix(b"\n\n").decode().split("\n")
    assert lines[-2:] == ["", ""]
    data = [line for line in lines if line.startswith("data: ")]
    assert len(data) == 1
    assert msgspec.json.decode(data[0][6:])["error"]["message"] == message


def test_connection_tokens() -> None:
    """Only names that are not the framing's own words."""
    assert connection_tokens(b"keep-alive, X-A ,close,, x-b") == {b"x-a", b"x-b"}


def test_request_reads_and_sorts_headers() -> None:
    """Read-only headers are not forwarded, named hop-by-hop headers neither."""
    headers = [
        (b"host", b"h"),
        (b"content-type", b"a/b"),
        (b"connection", b"x-a"),
        (b"connection", b"x-b"),
        (b"x-a", b"1"),
        (b"x-b", b"2"),
        (b"x-c", b"3"),
    ]
    head = Head("POST", b"/x?y=%20", "1.1", headers, keep_alive=True)
    assert head.forwarded == [(b"content-type", b"a/b"), (b"x-c", b"3")]
    assert (head.path, head.query) == ("/x", b"y=%20")


@pytest.mark.parametrize(
    ("changes", "state", "expected"),
    [
        ({}, "starting", True),
        ({}, "backoff", True),
        ({}, "stopped", False),
        ({"start": "demand"}, "stopped", True),
        ({"exclusive": "gpu"}, "stopped", True),
        ({"exclusive": "gpu"}, "stopping", True),
        ({"exclusive": "gpu"}, "failed", False),
    ],
)
def test_what_can_be_waited_for(changes: dict[str, Any], state: Any, expected: bool) -> None:
    """A server on its way up, one started on demand, and a member of an exclusive group that was swapped out."""
    assert can_wake(state, target("m", 1, **changes)) is expected


def test_the_front_imports_what_it_uses() -> None:
    """What only errors, people's pages and odd file systems take is not in memory before."""
    late = {"difflib", "email", "html", "tempfile", "starlette", "uvicorn", "sqlite3"}
    code = f"import sys, uvloop; from launcher.route import Front, serve; sys.exit(str({late} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "set()"
