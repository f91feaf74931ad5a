"""Listening sockets, and who has them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.supervise import ports
from launcher.supervise.identity import MARKER

ADDRESSES = ("127.0.0.1", "::1", "0.0.0.0", "::")
IN_THE_WAY = {
    "127.0.0.1": {"127.0.0.1", "0.0.0.0", "::", "localhost", ""},
    "::1": {"::1", "0.0.0.0", "::", "localhost", ""},
    "0.0.0.0": {"127.0.0.1", "127.0.0.2", "::1", "0.0.0.0", "::", "localhost", ""},
    "::": {"127.0.0.1", "127.0.0.2", "::1", "0.0.0.0", "::", "localhost", ""},
}


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_listener_is_found_where_it_is_in_the_way(address: str) -> None:
    """Equal addresses and wildcards meet, others do not; the socket is ours; once closed it is gone."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as sock:
        sock.bind((address, 0))
        sock.listen()
        port = sock.getsockname()[1]
        hosts = ("", "127.0.0.1", "127.0.0.2", "::1", "0.0.0.0", "::", "localhost")
        assert {h for h in hosts if ports.listeners(port, h)} == IN_THE_WAY[address]
        assert ports.listens(os.getpid(), port)
        assert not ports.listens(1, port)
    assert not ports.listeners(port)


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_listener_is_told_with_its_address_and_inode(address: str) -> None:
    """What is read of /proc/net is the socket itself; a connection to it is no listener."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as sock:
        sock.bind((address, 0))
        sock.listen()
        port = sock.getsockname()[1]
        with socket.create_connection((address, port)):
            found = ports.listeners(port)
        assert [(s.address, s.name) for s in found] == [
            (socket.inet_pton(family, address), f"socket:[{os.fstat(sock.fileno()).st_ino}]")
        ]


LISTENS = "import socket, sys; {}s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); "


@pytest.mark.parametrize(
    ("opens", "marked", "said"),
    [
        ("f = open('runtime.lock', 'w'); ", False, ", the front of epyc-full in {}"),
        ("", True, ", coder of epyc-full in {}"),
        ("", False, ""),
    ],
)
def test_a_listener_of_a_fleet_is_named_with_it(tmp_path: Path, opens: str, marked: bool, said: str) -> None:
    """A front by the lock that it holds, a server by its mark; of a stranger nothing is known."""
    state = tmp_path / "epyc-full"
    state.mkdir()
    env = {**os.environ, **({MARKER: str(state / "servers/coder.json")} if marked else {})}
    argv = [sys.executable, "-c", f"{LISTENS.format(opens)}sys.stdin.read()"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(argv, cwd=state, env=env, text=True, **pipes) as child:
        assert child.stdout is not None
        port = int(child.stdout.readline())
        assert str(ports.port_owner(port)) == f"{Path(sys.executable).name} (pid {child.pid}{said.format(state)})"
        child.communicate("")
