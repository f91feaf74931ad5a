"""A server's key file, as who presents the key reads it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launcher.base.regular import server_key


def test_a_pipe_in_its_place_holds_nobody_up(tmp_path: Path) -> None:
    """The front reads it in its event loop: what is no regular file is an error, and no wait for a writer."""
    os.mkfifo(tmp_path / "keys")
    with pytest.raises(OSError, match="no regular file"):
        server_key("chat", str(tmp_path / "keys"))
    with pytest.raises(OSError, match="no regular file"):
        server_key("chat", "/dev/zero")


def test_the_credential_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What systemd hands over is read in the place of the file, which may be root's alone."""
    (tmp_path / "key-chat").write_text("# of the unit\nhanded\n")
    (tmp_path / "keys").write_text("\nown\nsecond\n")
    assert server_key("chat", str(tmp_path / "keys")) == "own"
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert server_key("chat", str(tmp_path / "keys")) == "handed"
    assert server_key("other", str(tmp_path / "keys")) == "own"
