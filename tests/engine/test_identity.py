"""An engine is its bytes and every library that running it would load; what a script runs is seen by nobody."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from launcher.engine import binary_digest, may_be_kept, probe, recorded


def test_a_library_found_by_the_engines_own_path_counts(
    llama_server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lies neither beside the binary nor on a path of ours, and another one in its place is another engine."""
    libraries, binary = tmp_path / "libs/xx", tmp_path / "bin/llama-server"
    libraries.mkdir(parents=True)
    binary.parent.mkdir()
    binary.write_bytes(llama_server.read_bytes().replace(b"$ORIGIN\0", b"libs/xx\0"))  # RUNPATH
    binary.chmod(0o755)
    for library in llama_server.parent.glob("lib*.so*"):
        (libraries / library.name).symlink_to(library)
    monkeypatch.chdir(tmp_path)
    assert probe(binary, None).flags == recorded("b10068").flags
    before = binary_digest(binary, {})
    assert binary_digest(binary, {}) == before
    common = libraries / "libllama-common.so.0"
    real = common.readlink()
    common.unlink()
    shutil.copyfile(real, common)
    other = binary_digest(binary, {})
    assert other != before
    facts = common.stat()
    common.write_bytes(common.read_bytes())
    os.utime(common, ns=(facts.st_atime_ns, facts.st_mtime_ns))  # as `cp -p` and archives set it
    assert binary_digest(binary, {}) != other


def test_a_script_is_asked_every_time(llama_server: Path, tmp_path: Path) -> None:
    """What it runs is exchanged without a trace in it: the second answer is the new engine's."""
    target, script = tmp_path / "target", tmp_path / "llama-server"
    target.symlink_to(llama_server)
    script.write_text(f'#!/bin/sh\nexec {target} "$@"\n')
    script.chmod(0o755)
    assert not may_be_kept(script, {})
    assert may_be_kept(target, {})
    assert not may_be_kept(Path("/usr/bin/env"), {})  # a program that becomes another
    assert probe(script, tmp_path / "cache").flags == recorded("b10068").flags
    older = tmp_path / "older"
    older.write_text(f'#!/bin/sh\n{llama_server} "$@" | sed /--rpc/d\n')
    older.chmod(0o755)
    target.unlink()
    target.symlink_to(older)
    assert "--rpc" in recorded("b10068").index()
    assert "--rpc" not in probe(script, tmp_path / "cache").index()
