"""One fleet on two hosts (two loopback addresses of this machine), with the real llama-server and the small model."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.cli.conftest import Cli

pytestmark = pytest.mark.xdist_group("fleet")


@pytest.fixture
def pair(cli: Cli, free_port: Callable[[], int]) -> Iterator[tuple[str, ...]]:
    """Overrides of the shipped pair on free ports; whatever runs is stopped."""
    port = free_port()
    yield (
        "hardware=two_hosts",
        "profile=pair",
        f"runtime.front.port={cli.front_port}",
        *(f"servers.assistant_{h}.{f}" for h in ("alpha", "beta") for f in (f"port={port}", "n_ctx_per_slot=512")),
    )
    cli.run("stop", "--all", code=None)


def ask(cli: Cli, model: str | None = None) -> httpx.Response:
    """One token of `model` from the front on alpha."""
    named = {"model": model} if model else {}
    messages = [{"role": "user", "content": "Say hello."}]
    return httpx.post(
        f"{cli.front}/v1/chat/completions", json={**named, "messages": messages, "max_tokens": 1}, timeout=60
    )


@pytest.mark.slow
def test_one_front_serves_both_hosts(cli: Cli, pair: tuple[str, ...]) -> None:
    """Each host runs its own servers; the front asks the other by its address, does without it, and finds it again."""
    refused = cli.run("up", *pair, code=2).stderr
    assert "config/which-host" in refused
    assert "--host alpha | beta" in refused
    cli.run("up", *pair, "--host", "beta", "--detach")
    cli.run("up", *pair, "--host", "alpha", "--detach")
    shown = cli.run("status").stdout
    assert re.findall(r"(?m)^two_hosts-pair-(\w+) +ready.*front http://(\S+):", shown) == [
        ("alpha", "127.0.0.1"),
        ("beta", "127.0.0.2"),
    ]
    assert ask(cli, "assistant_beta").headers["x-launch-server"] == "assistant_beta"
    assert ask(cli).headers["x-launch-server"] == "assistant_alpha"
    cli.run("stop", "assistant_beta")
    gone = ask(cli, "assistant_beta")
    assert (gone.is_server_error, gone.json()["error"]["code"]) == (True, "upstream_unreachable")
    cli.run("reload", "assistant_beta")
    assert ask(cli, "assistant_beta").status_code == 200
    cli.run("stop", "assistant_alpha")
    assert ask(cli, "assistant").headers["x-launch-server"] == "assistant_beta"


@pytest.mark.slow
def test_one_bundle_a_host(cli: Cli, pair: tuple[str, ...]) -> None:
    """`render` writes a folder a host, `install --host` takes one of them; each has a runtime of its own."""
    cli.run("render", *pair)
    assert cli.run("render", *pair, "--check").stdout.endswith("0 differ\n")
    bundles = cli.home / "generated/two_hosts-pair"
    units = {p.relative_to(bundles).as_posix() for p in bundles.glob("*/systemd/*.service")}
    assert units == {
        "alpha/systemd/launch-two_hosts-pair-alpha.service",
        "alpha/systemd/launch-assistant_alpha.service",
        "beta/systemd/launch-two_hosts-pair-beta.service",
        "beta/systemd/launch-assistant_beta.service",
    }
    assert "--host 127.0.0.2" in (bundles / "beta/commands/assistant_beta.sh").read_text()
    for what in ((str(bundles),), pair):
        assert "config/which-host" in cli.run("install", *what, "--dry-run", code=2).stderr
        shown = cli.run("install", *what, "--host", "beta", "--root", str(cli.home / "image"), "--dry-run").stdout
        assert set(re.findall(r"launch-[a-z_]+\.service", shown)) == {"launch-assistant_beta.service"}


def test_a_single_machine_has_no_hosts(cli: Cli) -> None:
    """`--host` there is refused instead of ignored."""
    assert "is for one machine" in cli.run("check", *cli.dev, "--host", "alpha", code=2).stderr


def test_the_view_says_where(cli: Cli, pair: tuple[str, ...]) -> None:
    """A row a memory and host, ports with their hosts."""
    shown = cli.run("plan", *pair).stdout
    assert [line.split()[:2] for line in shown.splitlines() if " ram " in line and "budget" in line] == [
        ["alpha", "ram"],
        ["beta", "ram"],
    ]
    assert re.search(r"assistant_beta +beta:\d+ ", shown)


def test_this_machine_is_known_by_its_name(cli: Cli, tmp_path: Path) -> None:
    """A host named as this machine needs no option."""
    name = socket.gethostname().partition(".")[0]
    own = (
        "hardware=dev",
        f"+hardware.hosts.{name}.address=127.0.0.1",
        f"+hardware.hosts.other{name}.address=127.0.0.2",
    )
    document = cli.json(
        "check", *own, f"runtime.front.port={cli.front_port}", f"servers.assistant.port={cli.server_port}"
    )
    assert document["deployment"] == f"dev-dev-{name}"
