"""What a runtime takes over on request: only what is whole, and nobody else's to write."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from launcher.errors import ConfigError
from launcher.runtime import ControlClient, read_deployment, run, spawn_detached
from launcher.supervise.control import SOCKET_NAME
from tests.supervise.conftest import fake, manifest, write_deployment_dir
from tests.supervise.test_runtime import deploy

__all__ = ["deploy"]

FreePort = Callable[[], int]


def code_of(directory: Path) -> str:
    """The code that reading `directory` is refused with."""
    with pytest.raises(ConfigError) as caught:
        read_deployment(directory)
    return caught.value.findings[0].code


@pytest.mark.parametrize("name", [".", "fleet.json", "routes.json"])
@pytest.mark.parametrize("more", [0o020, 0o002])
def test_what_others_may_write_is_not_taken_over(tmp_path: Path, free_port: FreePort, name: str, more: int) -> None:
    """H7: directory and files each, for a start as for a reload."""
    directory = write_deployment_dir(tmp_path / "d", manifest(fake("a", free_port())), free_port())
    for path in (directory, *directory.iterdir()):
        path.chmod(0o755)
    read_deployment(directory)
    (directory / name).chmod(0o755 | more)
    assert code_of(directory) == "manifest/untrusted"
    with pytest.raises(ConfigError, match="manifest/untrusted"):
        run(directory)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("name", [".", "fleet.json", "routes.json"])
def test_what_somebody_else_owns_is_not_run(
    tmp_path: Path, free_port: FreePort, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H7: as root another user's manifest is nobody's to run, but for who became root by sudo, whose it is."""
    monkeypatch.delenv("SUDO_UID", raising=False)
    directory = write_deployment_dir(tmp_path / "d", manifest(fake("a", free_port())), free_port())
    os.chown(directory / name, 12345, 12345)
    assert code_of(directory) == "manifest/untrusted"
    with pytest.raises(ConfigError, match="manifest/untrusted"):
        run(directory)
    monkeypatch.setenv("SUDO_UID", "12346")
    assert code_of(directory) == "manifest/untrusted"
    monkeypatch.setenv("SUDO_UID", "12345")
    read_deployment(directory)


def test_an_argv_that_was_edited_by_hand_is_refused(tmp_path: Path, free_port: FreePort) -> None:
    """The digest beside it no longer agrees."""
    directory = write_deployment_dir(tmp_path / "d", manifest(fake("a", free_port())), free_port())
    plain = msgspec.json.decode((directory / "fleet.json").read_bytes())
    plain["servers"][0]["argv"] = ["/bin/sh", "-c", "id"]
    (directory / "fleet.json").write_bytes(msgspec.json.encode(plain))
    assert code_of(directory) == "manifest/invalid"


def test_reload_answers_strange_directories_with_typed_errors(
    deploy: Any, state_dir: Path, tmp_path: Path, free_port: FreePort
) -> None:
    """NUL, a file, a pipe, nothing, somebody else's: 409 with a code each, and the fleet goes on."""
    server = fake("a", free_port())
    spawn_detached(deploy(server))
    open_to_all = write_deployment_dir(tmp_path / "open", manifest(server), free_port())
    open_to_all.chmod(0o777)
    pipes = tmp_path / "pipes"
    pipes.mkdir(mode=0o755)
    os.mkfifo(pipes / "fleet.json", 0o600)
    transport = httpx.HTTPTransport(uds=str(state_dir / SOCKET_NAME))
    with httpx.Client(transport=transport, base_url="http://launch", timeout=10) as http:
        for directory, code in (
            ("/e\0tc", "manifest/missing"),
            ("/etc/passwd", "manifest/missing"),
            ("/no/such/place", "manifest/missing"),
            ("x" * 5000, "manifest/missing"),
            (str(pipes), "manifest/missing"),
            (str(open_to_all), "manifest/untrusted"),
        ):
            answer = http.post("/api/reload", json={"names": ["a"], "deployment_dir": directory})
            assert (answer.status_code, answer.json()["error"]["code"]) == (409, code)
    with ControlClient(state_dir) as client:
        assert client.status().ready
