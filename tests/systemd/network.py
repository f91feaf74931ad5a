"""A network of hosts: a bridge in a namespace of its own, a cable to each host. Nothing of the machine's own."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

_CLONE_NEWNET = 0x40000000
_NOBODY = "02:00:00:00:00:01"
"""A hardware address that nobody on the bridge has."""


class Network:
    """Namespaces `switch` and one a host, held by sleeping processes; host i is 10.99.0.(i + 1)."""

    def __init__(self, hosts: int) -> None:
        """Makes nothing yet."""
        self.addresses = tuple(f"10.99.0.{i + 1}" for i in range(hosts))
        self._holders: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        try:
            self._holders = [subprocess.Popen(["unshare", "--net", "sleep", "infinity"]) for _ in (0, *self.addresses)]
            for holder in self._holders:
                _wait_for_namespace(holder.pid)
            switch, *hosts = (holder.pid for holder in self._holders)
            _ip(switch, "link add br0 type bridge")
            _ip(switch, "link set br0 up")
            for i, (pid, address) in enumerate(zip(hosts, self.addresses, strict=True)):
                _ip(switch, f"link add port{i} type veth peer name host0 netns {pid}")
                _ip(switch, f"link set port{i} master br0 up")
                _ip(pid, "link set lo up")
                _ip(pid, f"address add {address}/24 dev host0")
                _ip(pid, "link set host0 up")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def option(self, host: int) -> str:
        """The option of systemd-nspawn that puts a machine into the namespace of `host`."""
        return f"--network-namespace-path=/proc/{self._holders[host + 1].pid}/ns/net"

    def inside(self, host: int) -> tuple[str, ...]:
        """What stands before a program that is to run in the namespace of `host`."""
        return ("nsenter", "-t", str(self._holders[host + 1].pid), "-n", "--")

    def tcp_socket(self, host: int) -> socket.socket:
        """A TCP socket of `host` for this process: it stays in the namespace in which it was made."""
        with ThreadPoolExecutor(1) as thread:  # which alone enters, and ends
            return thread.submit(_socket_of, self._holders[host + 1].pid).result()

    def cable(self, host: int, state: str) -> None:
        """Pull (`down`) or plug (`up`) the cable of `host` at the switch."""
        _ip(self._holders[0].pid, f"link set port{host} {state}")

    def lose(self, sender: int, to: int) -> None:
        """Have what `sender` sends to `to` be lost without a word, until `deliver`; the other way is as before."""
        pid, address = self._holders[sender + 1].pid, self.addresses[to]
        _ip(pid, f"neigh replace {address} lladdr {_NOBODY} dev host0 nud permanent")

    def deliver(self, sender: int, to: int) -> None:
        """End what `lose` began."""
        _ip(self._holders[sender + 1].pid, f"neigh del {self.addresses[to]} dev host0")

    def close(self) -> None:
        """The namespaces end with who holds them."""
        for holder in self._holders:
            holder.kill()
            holder.wait()


def _ip(pid: int, words: str) -> None:
    """`ip WORDS` in the network namespace of `pid`. CalledProcessError with what it said."""
    argv = ["nsenter", "-t", str(pid), "-n", "ip", *words.split()]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {words}: {done.stderr.strip()}")


def _socket_of(pid: int) -> socket.socket:
    """A TCP socket of the network namespace of `pid`, which the calling thread enters. Raises OSError."""
    namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(namespace, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
        return socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    finally:
        os.close(namespace)


def _wait_for_namespace(pid: int) -> None:
    """Wait until `pid` has a network namespace of its own."""
    while Path(f"/proc/{pid}/ns/net").readlink() == Path("/proc/self/ns/net").readlink():
        time.sleep(0.005)
