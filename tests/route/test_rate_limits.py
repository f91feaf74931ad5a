"""What keys may spend: requests and tokens a minute, requests at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.errors import HostError
from launcher.route import Front
from launcher.route.guard import Guard
from launcher.route.keys import read_keys
from launcher.route.problem import HttpError
from launcher.route.rate_limits import Limits, Usage
from tests.route.fleet import FakeFleet, RawClient, answering, ask, front_unit, get, post, running, table, target, until
from tests.route.test_routing import Holding

pytestmark = pytest.mark.timeout(300)


@given(
    st.integers(1, 50),
    st.integers(1, 500),
    st.lists(st.tuples(st.floats(0, 20), st.integers(0, 300)), max_size=80),
)
def test_no_minute_has_more_than_two_limits_and_a_wait_is_long_enough(
    requests: int, tokens: int, steps: list[tuple[float, int]]
) -> None:
    """One filled at once and one that came since; of tokens, the last request may overdraw. Who waits is admitted."""
    usage, now = Usage(Limits(requests, tokens), 0.0), 0.0
    admitted: list[tuple[float, int]] = []
    for pause, cost in steps:
        now += pause
        refused = _refused(usage, now)
        if refused is not None:
            assert (refused.status, refused.code) == (429, "rate_limited")
            assert refused.retry_after_s is not None
            now += refused.retry_after_s + 60  # both buckets may have been empty
            usage.admit(now)
        usage.ended(cost)
        admitted.append((now, cost))
        minute = [spent for at, spent in admitted if at > now - 60]
        assert len(minute) <= 2 * requests
        assert sum(minute[:-1]) < 2 * tokens + max(spent for spent in [*minute, 0])
    assert usage.in_flight == 0


def _refused(usage: Usage, now: float) -> HttpError | None:
    """Why a request is not admitted; None: it is."""
    try:
        usage.admit(now)
    except HttpError as error:
        return error
    return None


async def test_a_key_that_has_spent_its_share_is_told_when_to_come_back(tmp_path: Path) -> None:
    """Each limit by itself, in each API's shape; others are served, and looking costs nothing."""
    said = json.dumps({"usage": {"prompt_tokens": 30, "completion_tokens": 12}}).encode()
    ok = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(said) + said
    keys = tmp_path / "keys"
    keys.write_text(
        "often-key requests_per_minute=2\nwords-key name=w tokens_per_minute=40\n"
        "once-key in_flight=1 requests_per_minute=100\nfree-key\n"
    )
    keys.chmod(0o600)
    async with answering(ok) as up, Holding() as slow:
        units = (target("a", up.port), target("b", slow.port))
        front = Front(table(*units, front=front_unit(api_key_file=str(keys))), FakeFleet())

        def asking(key: str, model: str = "a", path: str = "/v1/chat/completions") -> bytes:
            return post({"model": model}, path, f"Authorization: Bearer {key}")

        async with running(front) as port, RawClient(port) as kept, RawClient(port) as busy:
            often = [await kept.ask(asking("often-key")) for _ in range(4)]
            free = await kept.ask(asking("free-key"))
            looked = await kept.ask(get("/v1/models", "Authorization: Bearer often-key"))
            words = [await ask(port, asking("words-key", path="/v1/messages")) for _ in range(2)]
            busy.send(asking("once-key", "b"))
            await until(lambda: front.view.targets["b"].gate.in_flight == 1)
            second = await ask(port, asking("once-key"))
            slow.gate.set()
            await busy.answer()
            third = await ask(port, asking("once-key"))
            front.take_keys(Guard(front.unit))
            still = await kept.ask(asking("often-key"))
            refused = dict(front.refused)
    assert [answer.status for answer in often] == [200, 200, 429, 429]
    assert (often[2].code, often[2].json()["error"]["type"]) == ("rate_limited", "rate_limit_error")
    assert 1 <= int(often[2].headers["retry-after"]) <= 30
    assert (free.status, looked.status) == (200, 200)
    assert [answer.status for answer in words] == [200, 429]
    assert words[1].json()["error"]["type"] == "rate_limit_error"
    assert "tokens a minute" in words[1].json()["error"]["message"]
    assert [answer.status for answer in (second, third, still)] == [429, 200, 429]
    assert refused == {"rate_limited": 5}


@pytest.mark.parametrize("words", ["in_flight=0", "tokens_per_minute=many", "requests_per_minute=-1", "in_flights=1"])
def test_a_limit_that_is_none_is_a_finding(tmp_path: Path, words: str) -> None:
    """Its line is named, the key is not."""
    keys = tmp_path / "keys"
    keys.write_text(f"# mine\nsecret-key {words}\n")
    keys.chmod(0o600)
    with pytest.raises(HostError, match="line 2") as caught:
        read_keys(str(keys))
    assert "secret-key" not in str(caught.value)


async def test_embeddings_for_ollama_are_paid_for(tmp_path: Path) -> None:
    """As they are at the other path."""
    said = json.dumps({"data": [{"embedding": [1.0]}], "usage": {"prompt_tokens": 30, "total_tokens": 30}}).encode()
    ok = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(said) + said
    keys = tmp_path / "keys"
    keys.write_text("words-key tokens_per_minute=20\n")
    keys.chmod(0o600)
    async with answering(ok) as up:
        unit = front_unit(api_key_file=str(keys), apis=("ollama",))
        async with running(Front(table(target("e", up.port, embedding=True), front=unit), FakeFleet())) as port:
            asked = post({"model": "e", "input": "x"}, "/api/embed", "Authorization: Bearer words-key")
            assert [(await ask(port, asked)).status for _ in range(2)] == [200, 429]
