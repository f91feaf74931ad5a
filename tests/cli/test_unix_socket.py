"""A fleet whose server listens on a unix socket, from its one file: every command names the path."""

from __future__ import annotations

import socket

import httpx
import pytest

from tests.cli.conftest import Cli

pytestmark = pytest.mark.xdist_group("fleet")

FILE = """\
servers:
  small: {{file: {model}, host: {path}, n_ctx_per_slot: 256, slots: 1, threads: 1, cache_ram_mib: 0}}
runtime: {{front: {{port: {front}}}}}
"""


def test_a_server_on_a_unix_socket(cli: Cli, smollm2: object) -> None:
    """Planned without a port; a stranger there is found by `check`; started, asked, stopped, no socket left."""
    path = cli.home / "made/small.sock"
    (cli.home / "launch.yaml").write_text(FILE.format(model=smollm2, path=path, front=cli.front_port))
    (server,) = cli.json("plan")["servers"]
    assert (server["port"], server["socket"]) == (0, str(path))
    assert server["argv"][server["argv"].index("--host") + 1] == str(path)
    assert "--port" not in server["argv"]
    assert str(path) in cli.run("plan").stdout

    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(str(path))
        stranger.listen()
        said = cli.run("check", code=6)
        assert f"error[host/port-taken]: small: {path} is held by" in said.stdout + said.stderr
    cli.run("check")

    assert f", {path}, log " in cli.run("up", "--detach").stderr
    shown = cli.process("small")
    assert (shown["state"], shown["port"], shown["socket"]) == ("ready", 0, str(path))
    assert str(path) in cli.run("status").stdout
    assert f"starts on {path}" in cli.run("events").stdout
    body = {"model": "small", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, "ignore_eos": True}
    answer = httpx.post(f"{cli.front}/v1/chat/completions", json=body, timeout=60)
    assert answer.json()["usage"]["completion_tokens"] == 2
    cli.run("stop", "--all")
    assert not path.exists()
