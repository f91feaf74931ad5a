"""Ask a llama-server binary what it accepts; read and write recorded dialects. I/O."""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import mmap
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from launcher.base.processes import signal_name
from launcher.base.programs import why_not_runnable
from launcher.base.regular import read_json
from launcher.engine.asking import NoAnswerError, ask
from launcher.engine.help import parse_help
from launcher.engine.identity import identity, may_be_kept, sha256_of
from launcher.errors import EngineError, Finding, Fix, fault
from launcher.ir.config import EngineConfig
from launcher.ir.dialect import Dialect

_END = b"\0(unknown)\0"
_BEGIN = b"\0clip\0"
_FAR = 16384
_NAME = re.compile(rb"[a-z0-9][a-z0-9_.-]{1,40}")


def architectures(library: bytes | mmap.mmap, candidates: Iterable[str]) -> tuple[str, ...]:
    """Architectures that a llama.cpp library knows, by its table of names, sorted; () without a table. Pure.

    `LLM_ARCH_NAMES` (llama.cpp src/llama-arch.cpp) begins with "clip" and ends with "(unknown)"; compilers lay its
    strings out one after the other. The linker may have dropped a name that ends a longer one ("qwen2" in
    "rwkv6qwen2"), so such names are looked for among `candidates`.
    """
    end = library.find(_END)
    while end >= 0:
        begin = library.rfind(_BEGIN, max(0, end - _FAR), end)
        if begin >= 0:
            table = bytes(library[begin + 1 : end + 1])
            names = {n.decode() for n in table.split(b"\0") if _NAME.fullmatch(n)}
            names |= {c for c in candidates if library.find(c.encode() + b"\0") >= 0}
            return tuple(sorted(names - {"clip"}))
        end = library.find(_END, end + 1)
    return ()


RECORDED_DIR = Path(__file__).parent / "recorded"
PACKAGE_SCHEME = "pkg://"
BUILT_SCHEME = "built://"
"""Prefix of programs of the engine that `make engine` built last."""
PROBE_TIMEOUT_S = 20.0
"""Seconds: `--help` of a CUDA build loads its backends first, which takes seconds from a cold disk."""
TAIL_LINES = 8
SHOWN_MAX = 200
"""Characters of an output line that a finding shows."""
CACHE_TYPE_FLAGS = ("--cache-type-", "--spec-draft-type-")
"""Prefixes of the flags that take a K/V cache type."""
FLAGS_MIN = 40
"""Real builds list some 250 flags; fewer than this is another program's help."""

_BUILD = re.compile(r"version:\s+(?:\S+ \(build (\d{1,9}), commit (\w+)\)|(\d{1,9}) \((\w+)\))")


def engines_dir() -> Path:
    """Directory of the engines built here: `$XDG_DATA_HOME/launch/engines`."""
    data = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local/share")
    return Path(data, "launch/engines")


def resolve_binary(engine: EngineConfig, *, key: str = "engine") -> str:
    """The program that `engine.binary` names: an absolute path, or a bare name left for PATH at run time.

    `pkg://package/file` is found through the package's spec, without importing it; `built://file` in the engine that
    `make engine` built last. Raises EngineError (`engine/missing-binary`, at `key`.binary) if there is none.
    """
    if "\0" in engine.binary:
        raise EngineError([_missing(key, f"{engine.binary!a} names no program")])
    if engine.binary.startswith(BUILT_SCHEME):
        built = engines_dir() / "current/bin" / engine.binary.removeprefix(BUILT_SCHEME)
        if not os.path.exists(built):  # noqa: PTH110 - False, too, for what may not be looked at
            raise EngineError([_missing(key, f"no engine was built here: there is no {built}", remedy="`make engine`")])
        return str(built)
    if not engine.binary.startswith(PACKAGE_SCHEME):
        return engine.binary
    package, _, inner = engine.binary.removeprefix(PACKAGE_SCHEME).partition("/")
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations or not inner:
        raise EngineError([_missing(key, f"no installed Python package provides {engine.binary}", package)])
    return str(Path(spec.submodule_search_locations[0], inner))


def locate_binary(binary: str) -> Path | None:
    """The file that running `binary` would execute now (a bare name is found through PATH); None: it cannot run."""
    found = binary if "/" in binary else shutil.which(binary)
    return Path(found) if found and why_not_runnable(found) is None else None


def probe(
    binary: Path,
    cache_dir: Path | None,
    *,
    key: str = "engine",
    env: Mapping[str, str] | None = None,
    timeout_s: float = PROBE_TIMEOUT_S,
    candidates: Iterable[str] = (),
) -> Dialect:
    """The dialect of `binary`, by its own `--help` and `--version`, each within `timeout_s` seconds.

    Cached in `cache_dir` under the engine's identity, with its libraries: a llama-server may be a stub of 14 kB whose
    flags live in a shared library. `env` is added to ours (a library path); `candidates`: see `architectures`.

    Raises EngineError: `engine/missing-binary`, `engine/probe-failed`, at `key`.binary.
    """
    if (why := why_not_runnable(str(binary))) is not None:
        raise EngineError([_missing(key, f"{binary} {why}")])
    located = locate_binary(str(binary)) or binary
    try:
        digest = sha256_of(located)
    except OSError as error:
        raise EngineError([probe_failed(key, f"{located} cannot be read: {error.strerror}")]) from None
    kept = cache_dir is not None and may_be_kept(located, env or {})
    cached = cache_dir / f"{identity(located, digest, env or {})}.json" if cache_dir and kept else None
    if cached is not None and (dialect := read_json(cached, Dialect)) is not None:
        return dialect
    help_text = _ask(located, "--help", key, env, timeout_s)
    version = _ask(located, "--version", key, env, timeout_s)
    flags = parse_help(help_text)
    if len(flags) < FLAGS_MIN or not any("--model" in f.names for f in flags):
        message = f"{located} --help is not llama-server's: {len(flags)} flags"
        note = "name a llama-server, or leave it out"
        raise EngineError([probe_failed(key, message, (note,))])
    first_line = next((line for line in version.splitlines() if line.startswith("version:")), "").strip()
    known = _architectures(located, env or {}, candidates or _recorded_architectures())
    dialect = Dialect(
        name=_recorded_as(digest) or _name(first_line),
        version=first_line,
        digest=f"sha256:{digest}",
        flags=flags,
        architectures=known,
    )
    if cached is not None and cached.stem == identity(located, sha256_of(located), env or {}):
        write_atomically(cached, msgspec.json.encode(dialect))
    return dialect


def recorded_names() -> tuple[str, ...]:
    """Names of the dialects that come with the package, oldest build first."""
    return tuple(sorted((p.stem for p in RECORDED_DIR.glob("*.json")), key=lambda n: (len(n), n)))


def recorded(name: str, *, key: str = "engine") -> Dialect:
    """The recorded dialect `name` (`b10434`). Raises EngineError (`engine/unknown-dialect`, at `key`.dialect)."""
    names = recorded_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        finding = fault(
            "engine/unknown-dialect",
            f"{key}.dialect",
            f"no recorded dialect {name!r}; there are {', '.join(names)}",
            *((f"did you mean {near[0]!r}?",) if near else ()),
            fixes=(Fix(override=f"{key}.dialect={near[0] if near else names[-1]}"),),
        )
        raise EngineError([finding])
    return msgspec.json.decode((RECORDED_DIR / f"{name}.json").read_bytes(), type=Dialect)


def record(name: str, binary: Path, directory: Path = RECORDED_DIR, *, candidates: Iterable[str] = ()) -> Path:
    """Probe `binary` and write its dialect to `directory`/`name.json`, one flag per line; returns that path.

    `candidates` are architectures that it may know beside those that its table lists (see `architectures`).
    """
    dialect = msgspec.structs.replace(probe(binary, None, candidates=tuple(candidates)), name=name)
    about = ("name", "version", "digest", "architectures")
    head = msgspec.json.encode({field: getattr(dialect, field) for field in about})
    lines = b",\n".join(msgspec.json.encode(_sparse(flag)) for flag in dialect.flags)
    path = directory / f"{name}.json"
    path.write_bytes(head[:-1] + b',"flags":[\n' + lines + b"\n]}\n")
    return path


def _recorded_as(digest: str) -> str | None:
    """The name under which this binary's dialect was recorded: wheels do not know their own build number."""
    return next((name for name in recorded_names() if recorded(name).digest == f"sha256:{digest}"), None)


def _recorded_architectures() -> tuple[str, ...]:
    return tuple(sorted({a for name in recorded_names() for a in recorded(name).architectures}))


def _architectures(binary: Path, env: Mapping[str, str], candidates: Iterable[str]) -> tuple[str, ...]:
    """The architectures that the llama library of `binary` knows: beside it, on its library path, or in itself."""
    directories = [binary.resolve().parent, *(Path(d) for d in env.get("LD_LIBRARY_PATH", "").split(":") if d)]
    libraries = [p for d in directories for p in sorted(d.glob("libllama.so*"))]
    for path in (*libraries, binary):
        try:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as library:
                found = architectures(library, candidates)
        except (OSError, ValueError):
            continue
        if found:
            return found
    return ()


def _sparse(flag: msgspec.Struct) -> dict[str, object]:
    """`flag` as JSON values, fields at their defaults left out."""
    return {k: v for k, v in msgspec.to_builtins(flag).items() if v or k == "arity"}


def _ask(binary: Path, flag: str, key: str, env: Mapping[str, str] | None, timeout_s: float) -> str:
    """Output of `binary flag`: stdout, or stderr if that is empty (`--version`). Raises EngineError."""
    try:
        status, out, err = ask((str(binary), flag), env, timeout_s=timeout_s)
    except OSError as error:
        raise EngineError([probe_failed(key, f"{binary} cannot be run: {error.strerror}")]) from None
    except NoAnswerError as error:
        raise EngineError([probe_failed(key, f"{binary} {flag} {error}")]) from None
    if status != 0:
        raise EngineError([_died(key, binary, flag, status, err or out)])
    return out if out.strip() else err


def _died(key: str, binary: Path, flag: str, status: int, output: str) -> Finding:
    """The finding for an exit status other than 0: how it ended, the end of its output, and a remedy."""
    how = f"was killed by signal {-status} ({signal_name(-status)})" if status < 0 else f"exited {status}"
    tail = tuple(line.strip()[:SHOWN_MAX] for line in output.splitlines()[-TAIL_LINES:] if line.strip())
    remedy: tuple[str, ...] = ()
    if "error while loading shared libraries" in output:
        remedy = (f"put the directory of that library into {key}.library_path",)
    elif -status == signal.SIGILL:
        remedy = ("this build uses CPU instructions that this machine lacks; use a build for it",)
    return probe_failed(key, f"{binary} {flag} {how}", (*tail, *remedy))


def probe_failed(key: str, message: str, notes: tuple[str, ...] = ()) -> Finding:
    """An `engine/probe-failed` error at the engine's binary."""
    return fault("engine/probe-failed", f"{key}.binary", message, *notes)


def _missing(key: str, message: str, package: str | None = None, *, remedy: str = "") -> Finding:
    first = remedy or (f"install {package}" if package else "")
    rest = f"set {key}.binary to the path of a llama-server; planning needs none with {key}.dialect=b10434"
    note = f"{first}, or {rest}" if first else rest
    return fault("engine/missing-binary", f"{key}.binary", message, note)


def _name(version_line: str) -> str:
    """`b10434` from a version line with a real build number, else `commit-7e4c0a9`, else `unknown`."""
    match = _BUILD.search(version_line)
    if match is None:
        return "unknown"
    number, commit = (match[1], match[2]) if match[1] else (match[3], match[4])
    return f"b{number}" if int(number) > 1 else f"commit-{commit}"


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` whole or not at all; a cache that cannot be written is no error."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            try:
                file.write(data)
                file.flush()
                Path(file.name).replace(path)
            except OSError:
                Path(file.name).unlink()


def with_cache_types(dialect: Dialect, types: tuple[str, ...]) -> Dialect:
    """`dialect` with K/V cache types that its engine accepts beside those in the recorded build's help."""
    if not types:
        return dialect
    flags = (
        msgspec.structs.replace(f, choices=(*f.choices, *(t for t in types if t not in f.choices)))
        if f.choices and any(name.startswith(CACHE_TYPE_FLAGS) for name in f.names)
        else f
        for f in dialect.flags
    )
    return msgspec.structs.replace(dialect, flags=tuple(flags))
