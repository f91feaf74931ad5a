"""Files that a person may edit at any time."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from launcher.files import ChangedMeanwhileError, folder_lock, replace_if_unchanged


def test_a_link_stays_one(tmp_path: Path) -> None:
    """A fleet file in a folder of dotfiles: that file is written, with its mode."""
    real, link = tmp_path / "dotfiles.yaml", tmp_path / "launch.yaml"
    real.write_bytes(b"old")
    real.chmod(0o640)
    link.symlink_to(real)
    replace_if_unchanged(link, b"old", b"new")
    assert link.is_symlink()
    assert (real.read_bytes(), real.stat().st_mode & 0o777) == (b"new", 0o640)


def test_what_was_saved_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    """An editor was quicker."""
    file = tmp_path / "launch.yaml"
    file.write_bytes(b"saved")
    with pytest.raises(ChangedMeanwhileError):
        replace_if_unchanged(file, b"read", b"new")
    assert file.read_bytes() == b"saved"


def test_one_follows_the_other(tmp_path: Path) -> None:
    """Two that add to one file at once: both are in it."""
    file = tmp_path / "launch.yaml"
    file.write_bytes(b"")

    def add() -> None:
        for _ in range(20):
            with folder_lock(file):
                before = file.read_bytes()
                replace_if_unchanged(file, before, before + b"x")

    both = [threading.Thread(target=add) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert file.read_bytes() == b"x" * 40
