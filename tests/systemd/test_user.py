"""Units of a user without root, run by that user's own manager."""

from __future__ import annotations

import time

import pytest

from tests.systemd.conftest import Fleet

pytestmark = [pytest.mark.xdist_group("systemd"), pytest.mark.timeout(600)]

USER = ("runuser", "-u", "op", "--", "env", "HOME=/home/op")
MANAGER = (*USER, "XDG_RUNTIME_DIR=/run/user/4711", "systemctl", "--user")
INSTALL = ("launch", "install", "--user", "--config-dir=/srv/conf", "hardware=dev", "profile=trio")


@pytest.mark.slow
def test_a_users_fleet(fleet: Fleet) -> None:
    """Install, serve, survive kill -9, show, stop, uninstall without a trace; root is not asked."""
    host = fleet.host
    host.run("useradd", "--uid", "4711", "--create-home", "op")
    host.run("systemctl", "start", "user@4711.service", "dbus.socket")
    fleet.server("alpha")
    fleet.server("beta", tier="warm", host="/run/user/4711/launch-beta/http.sock", port=None)
    fleet.write()
    said = host.run(*USER, *INSTALL).stdout
    assert "started   launch-alpha.service" in said
    assert {fleet.chat(name) for name in ("alpha", "beta")} == {200}
    refused = host.run(*USER, "launch", "install", *INSTALL[3:], check=False)
    assert "install/not-root" in refused.stderr

    def pid() -> int:
        """The server's process."""
        return int(host.run(*MANAGER, "show", "--property=MainPID", "--value", "launch-alpha.service").stdout)

    old = pid()
    host.run("kill", "-KILL", str(old))
    began = time.monotonic()
    while pid() in (0, old) or fleet.chat("alpha") != 200:
        assert time.monotonic() - began < 20
    shown = host.run(*USER, "launch", "status").stdout
    assert "run by systemd --user, runtime pid" in shown
    assert "ready" in shown
    assert "Started launch-alpha.service" in host.run(*USER, "launch", "logs", "alpha", "-n", "500").stdout
    host.run(*USER, "launch", "stop", "--all")
    assert pid() == 0
    host.run(*USER, "launch", "uninstall", "--user", "dev-trio")
    left = host.run("find", "/home/op", "-path", "*launch*", "-not", "-path", "*/.local/state/launch*").stdout
    assert left == ""  # besides what compiling remembers
