"""Causes in words, from what real servers say when they fail."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.supervise.diagnosis import Diagnosis, diagnose
from launcher.supervise.fallbacks import OUT_OF_MEMORY_CODES
from tests.tinymodels import faulty

QUICK = ("--fit", "off", "--no-warmup", "--offline", "--device", "none", "-c", "512", "-np", "1", "--host", "127.0.0.1")


def fail(binary: Path, *flags: str | Path) -> tuple[int, tuple[str, ...]]:
    """Exit code and log of a llama-server that does not start, in an address space of 2 GiB."""
    done = subprocess.run(
        ["prlimit", f"--as={2 * 1024**3}", str(binary), *QUICK, *map(str, flags)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=60,
        check=False,
    )
    return done.returncode, tuple(done.stdout.splitlines())


def diagnosed(binary: Path, *flags: str | Path) -> Diagnosis:
    """The diagnosis of a failing start; again when the server lost its last lines (its logger is a thread)."""
    for _ in range(60):
        found = diagnose(*fail(binary, *flags), loading=True)
        if found.line:
            break
    return found


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("empty", "supervise/not-gguf"),
        ("garbage", "supervise/not-gguf"),
        ("lfs_pointer", "supervise/not-gguf"),
        ("truncated_header", "supervise/model-truncated"),
        ("one_byte_short", "supervise/model-truncated"),
        ("unknown_architecture", "supervise/unknown-architecture"),
    ],
)
def test_a_faulty_model_is_named(
    llama_server: Path, tiny_models: Callable[..., Path], tmp_path: Path, fault: str, code: str
) -> None:
    """The real server's own words are recognised for each fault of a file."""
    path = getattr(faulty, fault)(tiny_models("llama"), tmp_path)
    found = diagnosed(llama_server, "-m", path, "--port", "0")
    assert (found.code, bool(found.line)) == (code, True)


def test_faults_of_the_command_line_are_named(
    llama_server: Path, tiny_models: Callable[..., Path], tmp_path: Path
) -> None:
    """A missing file, an unknown flag, a bad value, a busy port, a K/V type without flash attention."""
    model = tiny_models("llama")
    cases = {
        "supervise/model-missing": ("-m", tmp_path / "none.gguf", "--port", "0"),
        "supervise/unknown-flag": ("-m", model, "--port", "0", "--nonsense"),
        "supervise/bad-flag-value": ("-m", model, "--port", "many"),
        "supervise/v-cache-needs-fa": ("-m", model, "--port", "0", "-fa", "off", "-ctv", "q8_0"),
        "supervise/split-missing": ("-m", faulty.missing_part(tmp_path), "--port", "0"),
    }
    with socket.create_server(("127.0.0.1", 0)) as held:
        cases["supervise/port-busy"] = ("-m", model, "--port", str(held.getsockname()[1]))
        found = {code: diagnosed(llama_server, *flags) for code, flags in cases.items()}
    assert {code: d.code for code, d in found.items()} == {code: code for code in cases}
    assert "--nonsense" in found["supervise/unknown-flag"].cause
    assert "none.gguf" in found["supervise/model-missing"].cause


def test_memory_that_does_not_fit_is_named(llama_server: Path, tiny_models: Callable[..., Path]) -> None:
    """A K/V cache beyond the address space: said in full at least once, and never taken for anything but memory."""
    words = ("-m", tiny_models("llama"), "--port", "0", "-c", "5000000")
    found = set[str]()
    for _ in range(20):  # its own line comes last, and llama-server, which crashes then, mostly loses it
        found.add(diagnosed(llama_server, *words).code)
        if "supervise/kv-out-of-memory" in found:
            break
    assert "supervise/kv-out-of-memory" in found
    assert found <= OUT_OF_MEMORY_CODES


def test_weights_that_cannot_be_mapped_are_too_little_memory(
    llama_server: Path, tiny_models: Callable[..., Path], tmp_path: Path
) -> None:
    """A file larger than the address space: the map fails before anything else asks for memory."""
    wide = tmp_path / "wide.gguf"
    wide.write_bytes(tiny_models("llama").read_bytes())
    with wide.open("r+b") as file:
        file.truncate(4 * 1024**3)  # sparse
    found = diagnosed(llama_server, "-m", wide, "--port", "0")
    assert (found.code, "mmap failed" in found.cause) == ("supervise/out-of-memory", True)
    assert found.code in OUT_OF_MEMORY_CODES


@pytest.mark.parametrize(
    ("code", "line", "expected"),
    [
        (-6, "ggml.c:1: GGML_ASSERT(a == b) failed", "supervise/assertion"),
        (134, "", "supervise/aborted"),
        (-9, "", "supervise/killed"),
        (-11, "", "supervise/crashed"),
        (0, "", "supervise/exited"),
        (3, "", "supervise/exited"),
        (None, "", "supervise/exited"),
        (127, "", "supervise/not-found"),
        (
            1,
            "ggml_backend_cuda_buffer_type_alloc_buffer: cudaMalloc failed: out of memory",
            "supervise/vram-out-of-memory",
        ),
        (1, "unable to allocate CUDA0 buffer", "supervise/vram-out-of-memory"),
        (1, "ROCm error: out of memory", "supervise/vram-out-of-memory"),
        (1, "ggml_vulkan: vk::Device::allocateMemory: ErrorOutOfHostMemory", "supervise/vram-out-of-memory"),
        (1, "(00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)", "supervise/vram-out-of-memory"),
        (1, "error loading model: mmap failed: Cannot allocate memory", "supervise/out-of-memory"),
        (1, "error loading model: mmap failed: No such device", "supervise/exited"),
        (1, "warning: failed to mlock 42-byte buffer (after 0 bytes): Cannot allocate memory", "supervise/exited"),
        (1, "unable to allocate AMX buffer", "supervise/out-of-memory"),
        (1, "llama_kv_cache: failed to allocate buffer for kv cache", "supervise/kv-out-of-memory"),
        (127, "x: error while loading shared libraries: libcuda.so.1: cannot open", "supervise/library-missing"),
    ],
)
def test_exit_codes_and_lines_have_their_cause(code: int | None, line: str, expected: str) -> None:
    """What cannot be provoked here is recognised by its recorded line or exit code."""
    found = diagnose(code, ("some line", line))
    assert found.code == expected
    assert found.cause
    assert found.remedy
