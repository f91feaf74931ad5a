"""The devices that a build sees, asked of the real one: none here, but those of an RPC server."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.engine import NoAnswerError, SeenDevice, list_devices


def test_no_device_on_a_machine_without(llama_server: Path) -> None:
    """The build answers, with nothing."""
    assert list_devices(llama_server) == ()


def test_a_remote_device_is_seen(llama_server: Path, free_port: Callable[[], int], no_orphans: None) -> None:
    """ggml-rpc-server stands for a GPU elsewhere."""
    port = free_port()
    with subprocess.Popen(
        [llama_server.with_name("ggml-rpc-server"), "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as remote:
        try:
            for _ in range(200):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.05)
            (seen,) = list_devices(llama_server, rpc=f"127.0.0.1:{port}") or ()
            assert (seen.name, seen.model) == ("RPC0", f"127.0.0.1:{port}")
            assert 0 < seen.free_bytes <= seen.total_bytes
        finally:
            remote.terminate()


def test_what_cannot_say_is_not_known(tmp_path: Path) -> None:
    """A missing binary, one that fails, one that says something else."""
    assert list_devices(tmp_path / "gone") is None
    for number, script in enumerate(("exit 1", "echo hello")):
        program = tmp_path / f"program{number}"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        assert list_devices(program) is None


def test_what_dies_or_garbles_is_no_device(tmp_path: Path) -> None:
    """A signal is said, figures that are none are left out, and a terminal gets no escapes."""
    program = tmp_path / "program"

    def listed(does: str) -> tuple[SeenDevice, ...] | None:
        program.write_text(f"#!/bin/sh\n{does}\n")
        program.chmod(0o755)
        return list_devices(program)

    with pytest.raises(NoAnswerError, match=r"signal 4 \(SIGILL\)"):
        listed("kill -ILL $$")
    shown = f"Available devices:\\n  Vulkan0: \\033[31mRED\\007 ({'9' * 5000} MiB, 1 MiB free)\\n"
    ((name, model, total, free),) = listed(f"printf '{shown}'") or ()
    assert (name, total, free) == ("Vulkan0", 0, 0)
    assert model.startswith("[31mRED (99")
