"""Two booted hosts on one bridge: one compile, a bundle each, one front; a pulled cable and a power cut."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from tests.systemd.booted import BootedHost
from tests.systemd.conftest import FRONT, Fleet, binary_there, binds
from tests.systemd.network import Network

pytestmark = [pytest.mark.xdist_group("systemd"), pytest.mark.timeout(300)]

KEY = "a-long-enough-key-0123456789"


class Pair:
    """Two hosts with one config: `alpha` on the first, `beta` on the second, each stands in for the other."""

    def __init__(self, network: Network, hosts: list[BootedHost], model: Path, binary: Path) -> None:
        self.network, self.hosts = network, hosts
        self.fleets = [Fleet(host, model, binary) for host in hosts]
        first, second = self.fleets
        first.config["hardware"] = {
            "hosts": {
                "one": {"address": network.addresses[0]},
                "two": {"address": network.addresses[1], "api_key_file": "/etc/launch.key"},
            }
        }
        first.config["routing"] |= {"default": "worker", "fallback": {"alpha": ["beta"]}}
        first.config["runtime"]["front"] |= {"connect_timeout_s": 1}
        for name, where in (("alpha", "one"), ("beta", "two")):
            first.server(name, roles=["worker"], host=where, n_ctx=32768)
        second.config = first.config
        for host in hosts:
            self.prepare(host)

    def prepare(self, host: BootedHost) -> None:
        """The key that the second host's server asks for is root's alone."""
        key = host.root / "etc/launch.key"
        key.write_text(f"{KEY}\n")
        key.chmod(0o600)

    def install(self) -> None:
        """Compile once, on the first; copy the bundles; install each on its host, the second first."""
        first, second = self.fleets
        first.write()
        first.launch("render", "--config-dir=/srv/conf", "hardware=dev", "profile=trio", "--output=/srv/generated")
        shutil.copytree(first.host.root / "srv/generated", second.host.root / "srv/generated")
        for fleet, name in ((second, "two"), (first, "one")):
            fleet.launch("install", "/srv/generated/dev-trio", "--host", name)

    def ask(self, model: str) -> tuple[int, str]:
        """Status of a completion by the front, and who answered or the error's code."""
        body = {"model": model, "prompt": "1", "max_tokens": 2}
        status, said = self.fleets[0].ask(FRONT, "/v1/completions", body)
        return status, said["model"] if status == 200 else said["error"]["code"]

    def streaming(self, model: str) -> subprocess.Popen[str]:
        """A long answer that the front is passing on."""
        body = json.dumps({"model": model, "prompt": "1", "max_tokens": 30000, "stream": True, "ignore_eos": True})
        argv = [
            "curl",
            "-sN",
            "-m",
            "60",
            "-d",
            body,
            "-H",
            "Content-Type: application/json",
            f"{FRONT}/v1/completions",
        ]
        return subprocess.Popen(self.hosts[0].command(*argv), stdout=subprocess.PIPE, text=True)

    def refused(self, model: str) -> None:
        """A request is answered with a typed error, within the seconds that an unacknowledged one is waited for."""
        began = time.monotonic()
        status, code = self.ask(model)
        assert (status, code) in ((503, "upstream_unreachable"), (502, "upstream_died"))
        assert time.monotonic() - began < 15

    def until(self, model: str, status: int, within_s: float) -> None:
        """Ask until the answer has `status`; each answer before that is a typed error or a good one."""
        began = time.monotonic()
        while (said := self.ask(model))[0] != status:
            assert said[0] in (200, 502, 503, 504), said
            assert time.monotonic() - began < within_s, said
            time.sleep(0.1)


@pytest.fixture
def pair(can_boot: None, tiny_models: Callable[..., Path], llama_server: Path) -> Iterator[Pair]:
    """Both hosts booted, nothing installed."""
    if shutil.which("ip") is None:
        pytest.skip("no network of hosts here: iproute2 is not installed")
    with ExitStack() as stack:
        network = stack.enter_context(Network(2))
        hosts = [stack.enter_context(BootedHost(network=network.option(i), binds=binds())) for i in range(2)]
        yield Pair(network, hosts, tiny_models("llama"), binary_there(llama_server))


def test_two_hosts(pair: Pair) -> None:
    """One front over both; without the second typed errors for its server, fallback for roles; then all is back."""
    pair.install()
    one, two = pair.hosts
    assert [sorted(p.name for p in (h.root / "etc/systemd/system").glob("launch-*.service")) for h in pair.hosts] == [
        ["launch-alpha.service", "launch-dev-trio-one.service"],
        ["launch-beta.service", "launch-dev-trio-two.service"],
    ]
    assert pair.ask("alpha") == (200, "alpha")
    assert pair.ask("beta") == (200, "beta")
    assert pair.fleets[1].ask(f"http://{pair.network.addresses[1]}:8082", "/v1/completions", {"prompt": "1"})[0] == 401

    with pair.streaming("beta") as stream:
        assert stream.stdout is not None
        assert stream.stdout.readline().startswith("data: ")
        pair.network.cable(1, "down")
        pair.refused("beta")
        assert pair.ask("worker") == (200, "alpha")
        assert '"code":"upstream_died"' in stream.stdout.read()
    pair.network.cable(1, "up")
    pair.until("beta", 200, 30)

    pair.fleets[0].launch("stop", "alpha")
    assert pair.ask("worker") == (200, "beta")
    assert pair.ask("alpha") == (200, "beta")
    pair.fleets[0].launch("reload", "alpha")

    os.kill(two.leader, signal.SIGKILL)
    while psutil.pid_exists(two.leader):
        time.sleep(0.01)
    pair.refused("beta")
    assert pair.ask("worker") == (200, "alpha")
    with BootedHost(network=pair.network.option(1), binds=binds()) as again:
        fleet = Fleet(again, pair.fleets[1].model, pair.fleets[1].binary)
        pair.prepare(again)
        shutil.copytree(one.root / "srv/generated", again.root / "srv/generated")
        fleet.launch("install", "/srv/generated/dev-trio", "--host", "two")
        pair.until("beta", 200, 30)
