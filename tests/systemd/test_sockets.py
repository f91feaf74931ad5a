"""Exclusive servers behind sockets: a request to one drains the other, streams are not cut, nobody is left out."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.systemd.booted import BootedHost
from tests.systemd.conftest import FRONT, Fleet

pytestmark = [pytest.mark.xdist_group("systemd"), pytest.mark.timeout(120)]


@pytest.fixture
def pair(fleet: Fleet) -> Fleet:
    """Two servers of which one may be loaded, each started by a connection to its own port."""
    fleet.config["runtime"]["drain_timeout_s"] = 20
    fleet.server("alpha", tier="warm", exclusive="one", default=True, n_ctx=4096)
    fleet.server("beta", tier="warm", exclusive="one", n_ctx=4096)
    fleet.install()
    return fleet


def asking(host: BootedHost, url: str, model: str, tokens: int, *, stream: bool = False) -> subprocess.Popen[str]:
    """A completion that is being made."""
    body = json.dumps(
        {
            "model": model,
            "prompt": "1",
            "max_tokens": tokens,
            "stream": stream,
            "ignore_eos": True,
            "cache_prompt": False,
        }
    )
    argv = ["curl", "-sN", "-m", "60", "-d", body, "-H", "Content-Type: application/json", f"{url}/v1/completions"]
    argv += [] if stream else ["-o", "/dev/null", "-w", "%{http_code}"]
    return subprocess.Popen(host.command(*argv), stdout=subprocess.PIPE, text=True)


def test_a_swap_behind_sockets_waits_for_a_stream(pair: Fleet) -> None:
    """A request to the second stops the first only when its stream has ended; both are answered; and back again."""
    host = pair.host
    ports = {"alpha": "http://127.0.0.1:8081", "beta": "http://127.0.0.1:8082"}
    for first, second in (("alpha", "beta"), ("beta", "alpha")):
        with asking(host, ports[first], first, 800, stream=True) as stream:
            assert stream.stdout is not None
            assert stream.stdout.readline().startswith("data: ")
            with asking(host, ports[second], second, 4) as other:
                rest = stream.stdout.read()
                assert "[DONE]" in rest
                assert '"finish_reason":"length"' in rest
                assert other.communicate(timeout=60)[0] == "200"
        assert host.show(f"launch-{first}.service", "ActiveState")["ActiveState"] == "inactive"


def test_both_at_once_are_answered(pair: Fleet) -> None:
    """Requests for both at the same time, several times over: each is answered, and both sockets stay open."""
    host = pair.host
    for _ in range(2):
        clients = [asking(host, FRONT, name, 8) for name in ("alpha", "beta") * 3]
        assert [client.communicate(timeout=60)[0] for client in clients] == ["200"] * 6
    sockets = {host.show(f"launch-{name}.socket", "ActiveState")["ActiveState"] for name in ("alpha", "beta")}
    assert sockets == {"active"}
