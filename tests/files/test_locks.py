"""Locks on files: who holds one is seen without waiting, and by no trace of the look."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launcher.base.locks import LockOwner, is_locked, try_lock
from launcher.base.regular import read_json


@pytest.mark.parametrize("shared", [False, True])
def test_a_lock_is_seen_while_it_is_held(tmp_path: Path, shared: bool) -> None:
    """One held alone by whoever asks; a shared one by who asks for any."""
    path = tmp_path / "lock"
    holder = os.open(path, os.O_RDWR | os.O_CREAT)
    assert [is_locked(path), is_locked(path, shared=True)] == [False, False]
    assert try_lock(holder, shared=shared)
    assert [is_locked(path), is_locked(path, shared=True)] == [not shared, True]
    other = os.open(path, os.O_RDWR)
    assert [try_lock(other, shared=True), try_lock(other)] == [shared, False]
    os.close(holder)
    os.close(other)
    assert [is_locked(path), is_locked(path, shared=True)] == [False, False]


def test_two_who_ask_do_not_see_each_other(tmp_path: Path) -> None:
    """Asking whether somebody has it alone is a shared lock."""
    path = tmp_path / "lock"
    asking = os.open(path, os.O_RDWR | os.O_CREAT)
    assert try_lock(asking, shared=True)
    assert not is_locked(path)
    os.close(asking)


def test_what_is_no_lock_is_not_held(tmp_path: Path) -> None:
    """Nothing there, a file in the folder's place, a pipe that nobody writes to."""
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "none", tmp_path / "file/lock", tmp_path / "pipe"):
        assert not is_locked(path)
        assert read_json(path, LockOwner) is None


@pytest.mark.parametrize("text", [b"", b"{}", b'{"pid": "7"}', b"\xff", b"[" * 100_000, b'{"pid": 7}'])
def test_a_file_may_name_nobody(tmp_path: Path, text: bytes) -> None:
    """Garbage, or half of a name."""
    (tmp_path / "lock").write_bytes(text)
    assert read_json(tmp_path / "lock", LockOwner) is None


def test_a_file_names_its_owner(tmp_path: Path) -> None:
    """What newer versions write beside it is passed over."""
    (tmp_path / "lock").write_text('{"pid": 7, "start_ticks": 8, "boot_id": "b", "deployment_dir": "/g/d", "new": 1}')
    assert read_json(tmp_path / "lock", LockOwner) == LockOwner(
        pid=7, start_ticks=8, boot_id="b", deployment_dir="/g/d"
    )
