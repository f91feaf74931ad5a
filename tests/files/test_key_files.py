"""A server's key file, as who presents the key reads it."""

from __future__ import annotations

import os
import subprocess
import sys
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


def test_a_terminal_in_its_place_does_not_become_ours() -> None:
    """A runtime that leads a session would end when that terminal hangs up."""
    script = (
        "import os\nfrom pathlib import Path\nfrom launcher.base.regular import read_regular\n"
        "ours, theirs = os.openpty()\n"
        "try:\n    read_regular(Path(os.ttyname(theirs)))\nexcept OSError as error:\n    print(error.strerror)\n"
        "try:\n    os.open('/dev/tty', os.O_RDWR)\nexcept OSError:\n    print('none')\n"
    )
    words = [sys.executable, "-c", script]
    said = subprocess.run(words, check=True, capture_output=True, text=True, start_new_session=True)
    assert said.stdout.splitlines() == ["it is no regular file", "none"]


def test_the_credential_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What systemd hands over is read in the place of the file, which may be root's alone."""
    (tmp_path / "key-chat").write_text("# of the unit\nhanded\n")
    (tmp_path / "keys").write_text("\nown\nsecond\n")
    assert server_key("chat", str(tmp_path / "keys")) == "own"
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert server_key("chat", str(tmp_path / "keys")) == "handed"
    assert server_key("other", str(tmp_path / "keys")) == "own"
