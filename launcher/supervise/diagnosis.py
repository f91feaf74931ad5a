"""What an exit code and the end of a log mean, in words, with a remedy. Pure.

The signatures were seen from real llama-servers (build b10434); the first that matches wins, so a root cause
stands above what follows from it.
"""

from __future__ import annotations

import re
import signal

import msgspec


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """Why a server failed. `code` is stable; `line` is the log line that says so ("" for none)."""

    code: str
    cause: str
    remedy: str
    line: str = ""


class _Signature(msgspec.Struct, frozen=True):
    """A pattern of one log line; groups of the pattern fill `{0}`, `{1}` in cause and remedy."""

    pattern: str
    code: str
    cause: str
    remedy: str


_SIGNATURES = tuple(
    _Signature(*row)
    for row in (
        (
            r"couldn't bind HTTP server socket.*?port:? *(\d+)",
            "supervise/port-busy",
            "port {0} is already in use, or its address is not this host's",
            "stop what holds the port, or set another `port`",
        ),
        (
            r"failed to load GGUF split from (.*)",
            "supervise/split-missing",
            "a part of the split model is missing: {0}",
            "fetch all parts into one directory",
        ),
        (
            r"gguf_init_from_file: failed to open GGUF file '([^']*)'",
            "supervise/model-missing",
            "the model file {0} cannot be opened",
            "check the path, and that this user may read it",
        ),
        (
            r"(failed to read key-value pairs|tensor '.*' data is not within the file bounds)",
            "supervise/model-truncated",
            "the model file is truncated or corrupt",
            "fetch it again and compare its size",
        ),
        (
            r"(failed to read magic|invalid magic characters)",
            "supervise/not-gguf",
            "the model file is empty or not GGUF",
            "check that the path is a .gguf file, not a pointer to one",
        ),
        (
            r"unknown model architecture: '([^']*)'",
            "supervise/unknown-architecture",
            "this build does not know the architecture {0}",
            "use a newer llama-server (`engine`), or another model",
        ),
        (
            r"mismatch between text model \(n_embd = (\d+)\) and mmproj \(n_embd = (\d+)\)",
            "supervise/projector-mismatch",
            "the projector (width {1}) belongs to another model (width {0})",
            "use the projector that was published with the model",
        ),
        (
            r"(the argument has been removed.*)",
            "supervise/removed-flag",
            "this build no longer has a flag that was passed: {0}",
            "`launch render` again with this binary's dialect",
        ),
        (
            r"error: invalid argument: (\S+)",
            "supervise/unknown-flag",
            "this build does not know the flag {0}",
            "`launch render` again with this binary's dialect, or correct `extra_args`",
        ),
        (
            r'error while handling argument "([^"]*)": (.*)',
            "supervise/bad-flag-value",
            "the flag {0} refuses its value: {1}",
            "correct the field behind it, or `extra_args`",
        ),
        (
            r"quantized V cache requires flash_attn|V cache quantization requires flash_attn",
            "supervise/v-cache-needs-fa",
            "a quantised V cache needs flash attention",
            "set `flash_attention=on`, or `cache_type_v=f16`",
        ),
        (
            r"failed to allocate buffer for kv cache",
            "supervise/kv-out-of-memory",
            "the K/V cache does not fit",
            "lower `n_ctx` or `slots`, or set `cache_type_k=q8_0`",
        ),
        (
            (
                r"((?:cudaMalloc failed|(?:CUDA|ROCm|MUSA) error): out of memory|OutOfDeviceMemory|OutOfHostMemory"
                r"|CallbackErrorOutOfMemory|to allocate (?!CPU|AMX)\S+ buffer)"
            ),
            "supervise/vram-out-of-memory",
            "the device has too little memory: {0}",
            "lower `n_gpu_layers` or `n_ctx`, or free the device",
        ),
        (
            (
                r"(ggml_aligned_malloc: insufficient memory|(?:unable|failed) to allocate (?:compute )?\S+ buffer"
                r"|std::bad_alloc|GGML_ASSERT\(ctx->mem_buffer != NULL\)|mmap failed: Cannot allocate memory)"
            ),
            "supervise/out-of-memory",
            "the weights or buffers do not fit into memory: {0}",
            "free memory, or choose a smaller quantization or context",
        ),
        (
            r"failed to create context with model",
            "supervise/no-context",
            "no context could be made",
            "lower `n_ctx`, `slots` or `n_ubatch`",
        ),
        (
            r"(Remote RPC server crashed or returned malformed response|Failed to connect to [\d.]+:\d+)",
            "supervise/peer-lost",
            "an RPC server that holds a part of its model is gone: {0}",
            "it is started again when all its peers (`rpc`) answer: see what became of them",
        ),
        (
            r"(GGML_ASSERT\(.*?\) failed.*)",
            "supervise/assertion",
            "llama.cpp stopped itself: {0}",
            "a bug or an unsupported combination: try `repack=false`, other K/V types, or another build",
        ),
        (
            r"error while loading shared libraries: (\S+)",
            "supervise/library-missing",
            "the binary lacks the shared library {0}",
            "set `engine.library_path`, or install it",
        ),
        (
            r"(?:failed|unable) to load model,? '?([^']*)'?",
            "supervise/model-refused",
            "the model could not be loaded",
            "read the log lines above",
        ),
    )
)

_COMPILED = tuple((re.compile(s.pattern), s) for s in _SIGNATURES)


_NO_CONTEXT = Diagnosis(
    code="supervise/crashed-loading",
    cause="it crashed (SIGSEGV) while it loaded and did not say why; most often memory was refused to it",
    remedy="compare planned and free memory (`launch check`), lower `n_ctx` or `slots`; else other K/V types or builds",
)
"""Build b10068 crashes when its context cannot be created, and its logger, a thread, loses the lines that say why: two
of three times on a busy machine. b11434 exits with code 1 and keeps all lines."""
_OOM_KILLED = Diagnosis(
    code="supervise/oom-killed",
    cause="killed by the kernel, which was out of memory",
    remedy="free memory, or plan less: compare planned and measured memory in `launch status`",
)
_ABORTED = Diagnosis(code="supervise/aborted", cause="it aborted (SIGABRT)", remedy="read its log")
_CRASH_REMEDY = "SIGILL: the build does not suit this CPU; SIGBUS: the model file shrank while mapped; else a bug"
_BY_CODE = {
    -signal.SIGKILL: Diagnosis(
        code="supervise/killed",
        cause="killed by SIGKILL: by the kernel for want of memory, or by somebody",
        remedy="look for `oom-kill` in the kernel's log; compare planned and measured memory in `launch status`",
    ),
    -signal.SIGABRT: _ABORTED,
    128 + signal.SIGABRT: _ABORTED,
    **{
        -crash: Diagnosis(code="supervise/crashed", cause=f"it crashed ({crash.name})", remedy=_CRASH_REMEDY)
        for crash in (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL)
    },
    0: Diagnosis(code="supervise/exited", cause="it exited by itself without an error", remedy="read its log"),
    127: Diagnosis(code="supervise/not-found", cause="a program was not found (127)", remedy="check `binary`"),
}
"""Diagnoses that follow from the exit code alone; negative: a signal."""


def diagnose(
    exit_code: int | None, tail: tuple[str, ...], *, oom_killed: bool = False, loading: bool = False
) -> Diagnosis:
    """The likeliest cause of an end with `exit_code` (negative = signal, None = unknown) after the lines `tail`.

    `oom_killed`: the kernel's count of OOM kills has risen meanwhile. `loading`: the process is a llama-server that was
    not ready yet. Signatures rank by their place in the table; of the log lines, the first match is taken.
    """
    for pattern, signature in _COMPILED:
        for line in tail:
            match = pattern.search(line)
            if match:
                groups = [g or "" for g in match.groups()]
                return Diagnosis(
                    code=signature.code,
                    cause=signature.cause.format(*groups),
                    remedy=signature.remedy,
                    line=line.strip(),
                )
    if loading and exit_code in (-signal.SIGSEGV, 128 + signal.SIGSEGV):
        return _NO_CONTEXT
    if oom_killed and exit_code in (-signal.SIGKILL, None):
        return _OOM_KILLED
    if exit_code in _BY_CODE:
        return _BY_CODE[exit_code]
    shown = "an unknown code" if exit_code is None else f"code {exit_code}" if exit_code > 0 else f"signal {-exit_code}"
    remedy = "read its log; or run its command by hand: as it exits, llama-server may lose its last lines"
    return Diagnosis(code="supervise/exited", cause=f"it exited with {shown}", remedy=remedy)
