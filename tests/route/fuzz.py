"""`python -m tests.route.fuzz --seconds 600`: hypothesis against the front, as a client and as its upstream at once.

A case is what a client sends, in how many pieces, and what the upstream answers. Whatever they are: no answer is
missing or crossed, nothing hangs, and a well-behaved request afterwards gets its own answer. Inputs that were answered
in a way not seen before are kept in `corpus/`, which the ordinary suite plays again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import uvloop
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from launcher.ir.fleet import FaceUnit, OutsideUnit
from launcher.route import Front, StaticUpstreams
from tests.route.fleet import OK, Upstream, ask, front_unit, get, post, read_request, running, table, target

CORPUS = Path(__file__).parent / "corpus"
_SILENCE_S = 0.03
_HANGS_AFTER_S = 8.0
MARK = b'{"model":"m","mark":"0123456789"}'
_REQUESTS = [
    b"POST /v1/chat/completions HTTP/1.1\r\n",
    *(b"Host: localhost\r\n", b"Content-Length: 13\r\n", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n"),
    *(
        b"Expect: 100-continue\r\n",
        b"Upgrade: h2c\r\nConnection: upgrade\r\n",
        b"X-Model: m\r\n",
        b"\r\n",
        b"\r",
        b"\n",
    ),
    *(b'{"model":"m"}', b'd\r\n{"model":"m"}\r\n0\r\n\r\n', b"0\r\n\r\n", b"GET /health HTTP/1.1\r\n", b" ", b"\x00"),
    *(
        b'{"model":"m","model":"n"}',
        b"[" * 2000,
        b"Content-Length: 999999999999\r\n",
        b"HTTP/1.0\r\n",
        b"X: " + b"a" * 300,
    ),
    post({"model": "m"}),
    post({"model": "nobody"}),
    get("/v1/stream?conv_id=c", method="DELETE"),
    post({"conversation_ids": ["c", "d"]}, "/v1/streams/lookup"),
    post({"id": "c", "action": "reasoning_end"}, "/v1/chat/completions/control"),
    post(b"\xef\xbb\xbf[]", "/lora-adapters?model=m"),
    post({"model": "m", "messages": [{"content": [{"type": "image_url"}]}]}),
    get("/props"),
    *(get(path) for path in ("/api/tags", "/api/ps", "/running", "/models/sse", "/upstream/m/props", "/upstream/m")),
    *(post({"model": "m"}, path) for path in ("/api/show", "/api/generate", "/models/load", "/models/unload")),
    post({"model": "m:latest", "messages": [{"role": "user", "content": "x", "images": ["AA=="]}]}, "/api/chat"),
    post({"model": "m", "prompt": "x", "stream": False, "format": {}, "options": {"stop": "x"}}, "/api/generate"),
    post({"model": "m", "input": ["a", "b"], "keep_alive": 0}, "/api/embed"),
    post({"model": "m"}, "/upstream/n/v1/chat/completions"),
    post({"model": "o", "n": 1}),
    post({"model": "big", "stream": True}),
    post({"model": "o"}, "/slots/0?model=o"),
    post(
        b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\no\r\n--x--\r\n',
        "/v1/audio/transcriptions",
        "Content-Type: multipart/form-data; boundary=x",
    ),
]
_ANSWERS = [
    *(b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 204 No Content\r\n", b"HTTP/1.0 500 X\r\n"),
    *(
        b"Content-Length: 2\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Content-Type: text/event-stream\r\n",
        b"\r\n",
        b"{}",
    ),
    *(b"2\r\n{}\r\n", b"0\r\n\r\n", b"data: {}\n\n", b"Connection: close\r\n", b"X-A: b\r\n c\r\n", b"\x00", b"zz\r\n"),
    b"HTTP/1.1 400 X\r\nContent-Length: 25\r\n\r\nexceed_context_size_error",
    OK,
    *(b"HTTP/1.1 429 X\r\nRetry-After: 1e400\r\n", b"HTTP/1.1 302 X\r\n", b"HTTP/1.1 401 X\r\n"),
    b"Content-Type: text/html\r\n",
    b'{"choices":[{"delta":{"content":"x"}}],"usage":{"prompt_tokens":1e400}}\n\ndata: [DONE]\n\n',
    b'{"choices":[{"message":{"content":null,"tool_calls":[{"function":{"arguments":"{"}}]}}],"usage":null}',
    b'{"data":[{"embedding":[1,"x"]}],"usage":{}}',
]


class Case(msgspec.Struct, frozen=True):
    """One conversation. `cut` bytes of the client's go first, the rest after a pause."""

    sent: bytes
    answered: bytes
    cut: int = 0


def _bytes_of(parts: list[bytes]) -> st.SearchStrategy[bytes]:
    """Known parts in any order, with noise between."""
    return st.lists(st.sampled_from(parts) | st.binary(max_size=6), max_size=14).map(b"".join)


_POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
_HEADED = st.tuples(st.just(_POST), _bytes_of(_REQUESTS[2:8]), st.just(b"\r\n"), _bytes_of(_REQUESTS[10:])).map(
    b"".join
)
_SENT = st.lists(_HEADED | _bytes_of(_REQUESTS) | st.just(post({"model": "m"})), max_size=3).map(b"".join)
_STATUS = st.sampled_from([b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 500 X\r\n", b"HTTP/1.0 200 OK\r\n"])
_FRAMED = st.tuples(_STATUS, _bytes_of(_ANSWERS[4:7]), st.just(b"\r\n"), _bytes_of(_ANSWERS[8:12])).map(b"".join)
CASES = st.builds(Case, sent=_SENT, answered=_FRAMED | _bytes_of(_ANSWERS), cut=st.integers(0, 200))


class Arena:
    """A front and its upstream, for many cases."""

    def __init__(self) -> None:
        """Not open yet."""
        self.upstream = Upstream(self._script)
        self.answered = b""
        self.port = 0
        self.faults: list[str] = []

    async def _script(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer what carries the mark with it, anything else as the case says; then end."""
        while True:
            seen = await read_request(reader)
            if seen.body == MARK:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(MARK), MARK))
                continue
            writer.write(self.answered)
            return

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Listen."""
        asyncio.get_running_loop().set_exception_handler(lambda _, context: self.faults.append(repr(context)))
        apis = ("llama_router", "llama_swap", "ollama")
        unit = front_unit(header_timeout_s=0.5, idle_timeout_s=0.5, apis=apis, ping_after_s=0.02)
        async with self.upstream:
            units = [target(name, self.upstream.port, slots=4, request_timeout_s=2.0) for name in ("m", "n")]
            how = OutsideUnit(url=f"http://127.0.0.1:{self.upstream.port}/v1", health_path="/v1/models")
            faces = {"big": FaceUnit(request_set={"model": "their/big"})}
            units.append(target("o", self.upstream.port, outside=how, faces=faces, request_set={"model": "their/o"}))
            names = {n: (n,) for n in ("m", "n", "o")} | {"big": ("o",)}
            routes = table(*units, front=unit, names=names, escalation={"m": "n"})
            front = Front(msgspec.structs.replace(routes, breaker=_NEVER), StaticUpstreams())
            async with running(front) as self.port:
                yield

    async def play(self, case: Case) -> str:
        """What the client was told: the status lines. Raises AssertionError or TimeoutError for a fault of ours."""
        self.answered = case.answered
        async with asyncio.timeout(_HANGS_AFTER_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            writer.write(case.sent[: case.cut])
            await asyncio.sleep(0)
            writer.write(case.sent[case.cut :])
            got = b""
            with contextlib.suppress(ConnectionError, TimeoutError):
                while part := await asyncio.wait_for(reader.read(65536), _SILENCE_S):
                    got += part
            writer.close()
            assert MARK not in got or MARK in case.sent
            answer = await ask(self.port, post(MARK))
        assert (answer.status, answer.body) == (200, MARK)
        assert self.faults == []
        statuses = [line[9:12].decode("latin-1") for line in got.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
        assert not any(status == "500" for status in statuses) or b" 500 " in case.answered
        codes = [part.split(b'"')[0].decode("latin-1") for part in got.split(b'"code":"')[1:]]
        return " ".join(statuses + codes)


def kept() -> list[Path]:
    """The corpus."""
    return sorted(CORPUS.glob("*.json"))


def main() -> None:
    """Fuzz until the time is over; print how much was tried and kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    seconds: float = parser.parse_args().seconds
    CORPUS.mkdir(exist_ok=True)
    tried = 0
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        arena = Arena()
        opened = arena.open()
        runner.run(opened.__aenter__())
        known = [msgspec.json.decode(path.read_bytes(), type=Case) for path in kept()]
        told = {runner.run(arena.play(case)) for case in known}
        until = time.monotonic() + seconds

        def fuzz(case: Case) -> None:
            """One case; kept when its answers are new."""
            nonlocal tried
            tried += 1
            outcome = runner.run(arena.play(case))
            if outcome not in told and len(told) < _MOST_KEPT:
                told.add(outcome)
                data = msgspec.json.encode(case)
                (CORPUS / f"{hashlib.sha256(data).hexdigest()[:16]}.json").write_bytes(data)

        while time.monotonic() < until:
            phases = [Phase.generate, Phase.shrink]
            quiet = settings(
                max_examples=200, deadline=None, database=None, phases=phases, suppress_health_check=list(HealthCheck)
            )
            seed(time.time_ns())(quiet(given(CASES)(fuzz)))()
        runner.run(opened.__aexit__(None, None, None))
    print(f"{tried} cases in {seconds:.0f} s, {len(kept())} kept")  # noqa: T201  # a program's answer


_MOST_KEPT = 150
"""Cases in the corpus at most: what the ordinary suite has time to play."""
_NEVER = msgspec.structs.replace(table().breaker, failures=10**9)
"""A breaker that does not open: the well-behaved request must reach the upstream."""

if __name__ == "__main__":
    main()
