"""What the system refuses to write during an install: said as a finding, and the next install goes on from there."""

from __future__ import annotations

import pytest

from tests.systemd.conftest import Fleet

pytestmark = [pytest.mark.xdist_group("systemd"), pytest.mark.timeout(300)]


@pytest.mark.slow
def test_a_full_and_a_read_only_disk(fleet: Fleet) -> None:
    """No space, read-only, a file where a folder must be: exit code 6 and the path; room again: whole, then nothing."""
    host = fleet.host
    fleet.server("alpha")
    host.run("mkdir", "/srv/image")
    host.run("mount", "-t", "tmpfs", "-o", "size=24k", "image", "/srv/image")
    full = fleet.install("--root=/srv/image", code=6)
    assert "error[host/cannot-write]" in full
    assert "No space left on device" in full
    assert "/srv/image/" in full
    assert "goes on from there" in full
    host.run("mount", "-o", "remount,size=4m", "/srv/image")
    fleet.install("--root=/srv/image")
    assert "0 files written, 0 removed" in fleet.install("--root=/srv/image")

    host.run("mount", "-o", "remount,ro", "/srv/image")
    fleet.config["servers"]["alpha"]["slots"] = 2
    assert "Read-only file system" in fleet.install("--root=/srv/image", code=6)
    assert "Read-only file system" in fleet.launch("uninstall", "dev-trio", "--root=/srv/image", code=6)

    host.run("touch", "/srv/file")
    blocked = fleet.install("--root=/srv/file", code=6)
    assert "error[host/cannot-write]" in blocked
    assert "Not a directory" in blocked

    host.run("mount", "-o", "remount,rw", "/srv/image")
    record = host.root / "srv/image/var/lib/launch/installed/dev-trio.json"
    record.write_bytes(record.read_bytes()[:-20])
    assert "is no install record" in fleet.install("--root=/srv/image", code=2)
