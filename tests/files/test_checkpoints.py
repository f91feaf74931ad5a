"""Digests that are computed once, and checkpoints that are whole or refused."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgspec
import pytest

from launcher.errors import ConfigError
from launcher.files.checkpoints import (
    Checkpoint,
    changed_since,
    checkpoint_dir,
    checkpoint_files,
    checkpoint_names,
    delete_checkpoint,
    file_digests,
    read_checkpoint,
    save_checkpoint,
)

CHECKPOINT = Checkpoint(
    name="one",
    deployment="fleet",
    created_at=1.0,
    launch_version="0",
    input_digest="sha256:0",
    request={"overrides": ["a=1"]},
    covered=(),
)
FILES = {"deployment/fleet.json": b"{}", "deployment/units/a.service": b"[Unit]", "inputs/0/config.yaml": b"a: 1"}


def old(path: Path) -> Path:
    """`path` with content and times that lie well behind."""
    path.write_bytes(path.name.encode() * 1000)
    os.utime(path, (1e9, 1e9))
    return path


def test_digests_are_right_and_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SHA-256 of each file; what has not changed for two seconds is not read again; a cache that is torn is no loss."""
    files = [str(old(tmp_path / name)) for name in "ab"]
    cache, read = tmp_path / "cache.json", []
    # ctime is now, and cannot be set: let the clock run on instead
    monkeypatch.setattr("launcher.files.checkpoints._SETTLED_NS", -1)

    def digests() -> dict[str, str]:
        found = file_digests(files, cache, on_file=lambda path, size: read.append(path))
        return {path: digest.digest for path, digest in found.items()}

    expected = {path: f"sha256:{hashlib.sha256(Path(path).read_bytes()).hexdigest()}" for path in files}
    assert (digests(), sorted(read)) == (expected, files)
    assert (digests(), len(read)) == (expected, 2)
    cache.write_bytes(b"{")
    assert (digests(), len(read)) == (expected, 4)


def test_a_file_that_changed_lately_is_read_again(tmp_path: Path) -> None:
    """Its times may not show another change within their resolution."""
    path, cache, read = tmp_path / "a", tmp_path / "cache.json", []
    path.write_bytes(b"x")
    for _ in range(2):
        file_digests([str(path)], cache, on_file=lambda path, size: read.append(path))
    assert len(read) == 2


def test_a_byte_is_noticed_behind_equal_size_and_mtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctime tells."""
    monkeypatch.setattr("launcher.files.checkpoints._SETTLED_NS", -1)
    path, cache = old(tmp_path / "a"), tmp_path / "cache.json"
    before = file_digests([str(path)], cache)[str(path)]
    with path.open("r+b") as file:
        file.write(b"X")
    os.utime(path, (1e9, 1e9))
    after = file_digests([str(path)], cache)[str(path)]
    assert after.digest != before.digest
    assert after.size_bytes == before.size_bytes


def test_what_cannot_be_read_says_why(tmp_path: Path) -> None:
    """Missing files, directories, pipes and what is no path: an error each, no wait, no exception."""
    os.mkfifo(tmp_path / "pipe")
    paths = [str(tmp_path / "gone"), str(tmp_path), str(tmp_path / "pipe"), str(tmp_path / "a\0b")]
    found = file_digests(paths, tmp_path / "cache.json")
    assert [bool(found[p].error) for p in paths] == [True] * 4
    assert not any(changed_since(path, 0) for path in (paths[0], paths[3]))


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    """Every file and field; listed; not overwritten; gone after delete."""
    state = tmp_path / "fleet"
    save_checkpoint(state, CHECKPOINT, FILES)
    found = read_checkpoint(state, "one")
    assert msgspec.structs.replace(found, contents={}) == CHECKPOINT
    assert checkpoint_files(state, found, "deployment") == {
        "fleet.json": b"{}",
        "units/a.service": b"[Unit]",
    }
    assert checkpoint_files(state, found, "inputs") == {"0/config.yaml": b"a: 1"}
    assert checkpoint_names(state) == ("one",)
    with pytest.raises(ConfigError, match="already"):
        save_checkpoint(state, CHECKPOINT, FILES)
    delete_checkpoint(state, "one")
    assert checkpoint_names(state) == ()
    with pytest.raises(ConfigError, match="no checkpoint one"):
        delete_checkpoint(state, "one")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", "-x", "a b", "x" * 101, "a\0"])
def test_names_stay_names(tmp_path: Path, name: str) -> None:
    """Nothing that leads elsewhere, or that looks like an option."""
    with pytest.raises(ConfigError, match="cannot be a checkpoint's name"):
        checkpoint_dir(tmp_path, name)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("deployment/fleet.json", b"{ }"),
        ("deployment/fleet.json", None),
        ("checkpoint.json", b"{"),
        ("checkpoint.json", b'{"schema": "launch.checkpoint/v2"}'),
        ("checkpoint.json", None),
    ],
)
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, file: str, content: bytes | None) -> None:
    """Changed, missing, torn, of another version: ConfigError; it can still be deleted."""
    state = tmp_path / "fleet"
    path = save_checkpoint(state, CHECKPOINT, FILES) / file
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match="not as it was written"):
        read_checkpoint(state, "one")
    delete_checkpoint(state, "one")


def test_a_checkpoint_of_another_fleet_is_refused(tmp_path: Path) -> None:
    """A directory that was copied from elsewhere, or renamed."""
    save_checkpoint(tmp_path / "fleet", CHECKPOINT, FILES)
    (tmp_path / "fleet").rename(tmp_path / "other")
    with pytest.raises(ConfigError, match="describes one of fleet"):
        read_checkpoint(tmp_path / "other", "one")
    (tmp_path / "other").rename(tmp_path / "fleet")
    (tmp_path / "fleet/checkpoints/one").rename(tmp_path / "fleet/checkpoints/two")
    with pytest.raises(ConfigError, match="describes one of fleet"):
        read_checkpoint(tmp_path / "fleet", "two")


def test_a_full_disk_leaves_no_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error while writing: nothing is listed, nothing lies about."""
    from launcher.errors import HostError
    from launcher.files import checkpoints

    def refuse(path: Path, data: bytes, *, mode: int) -> None:
        """The third file does not fit."""
        if path.name == "a.service":
            raise OSError(28, "No space left on device")
        path.write_bytes(data)

    monkeypatch.setattr(checkpoints, "write_atomic", refuse)
    with pytest.raises(HostError, match="No space left"):
        save_checkpoint(tmp_path / "fleet", CHECKPOINT, FILES)
    assert list((tmp_path / "fleet/checkpoints").iterdir()) == []
