"""Dry runs of servers by their own binaries: in parallel, equal ones once, results cached between commands. I/O."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from time import monotonic, time
from typing import NamedTuple

import msgspec

from launcher import engine
from launcher.base.processes import ProcessScope, kill_left_behind
from launcher.catalog.sparse import write_sparse
from launcher.errors import LaunchError
from launcher.files.state import state_root
from launcher.ir.catalog import FilePart, ModelFile
from launcher.ir.config import ServerConfig
from launcher.ir.dialect import Dialect
from launcher.ir.plan import FleetPlan, ServerPlan
from launcher.render import server_command


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One dry run: command line, environment, files, and llama.cpp's name of each device → the plan's.

    `endpoints` are placeholders in the command line for RPC servers that are started for this run alone: an RPC server
    does not outlive a client that is killed.
    """

    engine: str
    words: tuple[str, ...]
    env: dict[str, str]
    model: str
    draft: str | None
    devices: dict[str, str]
    endpoints: tuple[str, ...]
    headers: tuple[str, ...]
    """Digests of the model's header and the draft's."""
    sparse: tuple[tuple[ModelFile, Path], ...] = ()
    """Files that get the catalogue's header, created if they do not exist."""


class Binary(NamedTuple):
    """An engine for dry runs: its program, its flags, and the environment in which it finds its libraries."""

    path: str
    dialect: Dialect
    env: Mapping[str, str]
    digest: str
    is_cacheable: bool
    """Whether its results may be cached."""

    def __str__(self) -> str:
        """The program and its build, for people."""
        return f"{self.path} ({self.dialect.name})"

    @property
    def has_dry_run(self) -> bool:
        """Whether it can say what it takes without taking it."""
        return "--fit" in self.dialect.index()

    def is_same(self) -> bool:
        """Whether it is still the engine that the proof began with."""
        try:
            return engine.binary_digest(Path(self.path), self.env) == self.digest
        except OSError:
            return False


class Prover(msgspec.Struct, frozen=True, kw_only=True):
    """What dry runs need: binaries by the engines' names, this CPU's features, folders."""

    engines: Mapping[str, Binary]
    features: tuple[str, ...]
    stand_ins: Mapping[str, str]
    """Device that this machine lacks → placeholder of its endpoint in a command line."""
    folder: Path
    kept: Path


FLAGS_OF_FILES_MADE_AT_START = frozenset({"--api-key-file", "--slot-save-path"})
"""Flags whose files are created when a fleet starts; memory does not depend on them."""

DRAFT_MODEL = ("--spec-draft-model", "--model-draft")
"""Flags for the draft's file; builds differ."""
DRAFT_DEVICE = ("--spec-draft-device", "--device-draft")
"""Flags for the draft's devices; builds differ."""
ATTEMPTS = 3
"""Attempts at a dry run that may have failed by chance."""
RETRY_WITHIN_S = 10.0
"""Seconds; a dry run that took longer is not tried again."""
_PREFIX = "launch-prove-"
_JUST_MADE_S = 60.0
"""Seconds; a younger folder may not be locked by its owner yet."""


class Outcome(NamedTuple):
    """How one dry run ended. `cached`: the result was kept from earlier."""

    proven: engine.Proven | None
    error: engine.DryRunError | None = None
    cached: bool = False


def binary_of(path: Path, dialect: Dialect, env: Mapping[str, str]) -> Binary:
    """The binary at `path`, as it is now. `env`: where it finds its libraries."""
    return Binary(str(path), dialect, env, engine.binary_digest(path, env), engine.may_be_kept(path, env))


def engine_here(binary: str, key: str, env: Mapping[str, str]) -> Binary | None:
    """A binary on this host, with its real flags; None if it is missing or does not answer: other checks report it."""
    located = engine.locate_binary(binary)
    if located is None:
        return None
    try:
        return binary_of(located, engine.probe(located, state_root() / "dialects", key=key, env=env), env)
    except LaunchError:
        return None


@contextlib.contextmanager
def prover(engines: Mapping[str, Binary], features: tuple[str, ...], stand_ins: Mapping[str, str]) -> Iterator[Prover]:
    """What is proven with, and its folder for the length of a proof."""
    with _folder() as folder:
        kept = state_root() / "proofs"
        yield Prover(engines=engines, features=features, stand_ins=stand_ins, folder=folder, kept=kept)


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """Make a folder of our own, and remove the folders and programs that killed proofs left behind."""
    kill_left_behind()
    for other in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            facts = other.lstat()
            if facts.st_uid == os.geteuid() and time() - facts.st_mtime > _JUST_MADE_S:
                with _locked(other):
                    shutil.rmtree(other)
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as name, contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a file system without locks: others wait until it is not new any more
            stack.enter_context(_locked(Path(name)))
        yield Path(name)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock a folder within the block. Raises OSError if it is locked already, or is no folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def run_each(prover: Prover, jobs: Mapping[str, Job]) -> dict[str, Outcome]:
    """Run the dry run of every job, as many at once as there are CPUs; equal ones are run once.

    Sparse files are made only for dry runs whose result is not cached. An engine that hung is not asked again.
    """
    keys = {name: _key(prover, job) for name, job in jobs.items()}
    done = {
        key: Outcome(kept, cached=True)
        for key in {keys[name] for name, job in jobs.items() if prover.engines[job.engine].is_cacheable}
        if (kept := engine.read_proof(prover.kept, key))
    }
    once = {key: job for name, job in jobs.items() if (key := keys[name]) not in done}
    for path, file in {path: file for job in once.values() for file, path in job.sparse}.items():
        if not path.exists():
            write_sparse(file, path)
    hung: dict[str, Outcome] = {}

    def run(key: str) -> Outcome:
        outcome = hung.get(once[key].engine) or _run(prover, once[key], scope)
        if outcome.error is not None and outcome.error.cause == "hung":
            hung[once[key].engine] = outcome
        return outcome

    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool, ProcessScope() as scope:
        done |= dict(zip(once, pool.map(run, once), strict=True))
    used = {job.engine: prover.engines[job.engine] for job in once.values()}
    same = {name for name, binary in used.items() if binary.is_cacheable and binary.is_same()}
    for key, job in once.items():
        if job.engine in same and (found := done[key].proven) is not None:
            engine.keep_proof(prover.kept, key, found)
    return {name: done[key] for name, key in keys.items()}


def _opened(prover: Prover, file: ModelFile) -> ModelFile:
    """`file` at the path that is opened: for a declared one, that of the sparse file with the catalogue's header."""
    path = str(prover.folder / f"{file.entry}.gguf") if file.source == "declared" else file.path
    return msgspec.structs.replace(file, parts=(FilePart(path=path, size_bytes=0),))


def job_of(prover: Prover, planned: FleetPlan, server: ServerPlan) -> Job:
    """The dry run of one server of a plan.

    Its projector is left out: it is no part of the breakdown.
    """
    files = [file for file in (server.model, server.draft) if file is not None]
    opened = [_opened(prover, file) for file in files]
    model, draft = opened[0], opened[1] if server.draft else None
    changed = msgspec.structs.replace(server, model=model, draft=draft, projector=None)
    engines = {name: (binary.path, binary.dialect) for name, binary in prover.engines.items()}
    command, _ = server_command(changed, planned, engines)
    drafting = (server.config.draft.devices or ()) if server.config.draft else ()
    own = tuple(d for d in drafting if d not in server.settings.devices)
    beside = named_devices(msgspec.structs.replace(server.config, devices=()))
    together = dict.fromkeys((*server.settings.devices, *beside))
    return Job(
        engine=server.config.engine,
        words=without(command.words, FLAGS_OF_FILES_MADE_AT_START),
        env=command.env,
        model=model.path,
        draft=changed.draft_path,
        devices=names_of(command.words, server.settings.devices, own),
        endpoints=tuple(prover.stand_ins[d] for d in together if d in prover.stand_ins),
        headers=tuple(file.header_digest for file in files),
        sparse=tuple((f, Path(o.path)) for f, o in zip(files, opened, strict=True) if f.source == "declared"),
    )


def names_of(words: tuple[str, ...], devices: tuple[str, ...], drafting: tuple[str, ...] = ()) -> dict[str, str]:
    """The server's name of each device that `words` give it and its draft → the plan's name."""
    rpc = _value(words, "--rpc")
    seen = [rpc[int(n.removeprefix("RPC"))] if n.startswith("RPC") and rpc else n for n in _given(words)]
    return dict(zip(seen, (*devices, *drafting), strict=False))


def in_order(words: tuple[str, ...], devices: tuple[str, ...]) -> tuple[str, ...]:
    """`devices` in the order of `words`, if llama.cpp calls them the same; else as they are."""
    called = {device.lower(): device for device in devices}
    given = tuple(called[name.lower()] for name in _given(words) if name.lower() in called)
    return given if len(given) == len(devices) else devices


def _given(words: tuple[str, ...]) -> tuple[str, ...]:
    """The devices that `words` give the server, then those of its draft alone."""
    return tuple(dict.fromkeys(n for flag in ("--device", *DRAFT_DEVICE) for n in _value(words, flag) if n != "none"))


def named_devices(server: ServerConfig) -> tuple[str, ...]:
    """Devices that a server, its draft and its projector name."""
    draft, sees = (server.draft.devices or ()) if server.draft else (), server.projector_device
    return (*server.devices, *draft, *((sees,) if sees is not None and sees != "cpu" else ()))


def without(words: tuple[str, ...], flags: Collection[str]) -> tuple[str, ...]:
    """`words` without `flags` and the value of each."""
    return tuple(w for before, w in pairwise(("", *words)) if w not in flags and before not in flags)


def _value(words: tuple[str, ...], flag: str) -> list[str]:
    """The items of a flag's comma-separated value; none where it is not given."""
    return words[words.index(flag) + 1].split(",") if flag in words else []


def _key(prover: Prover, job: Job) -> str:
    """The key that a result is cached under: names, ports and folders do not count."""
    ignored = {"--model", "--alias", "--host", "--port", "--rpc", *DRAFT_MODEL}
    flags = [word for before, word in pairwise(job.words) if before not in ignored]
    flags += [*map(str, sorted(job.env.items())), *job.devices.values()]
    return engine.proof_key(prover.engines[job.engine].digest, flags, job.headers, prover.features)


def _run(prover: Prover, job: Job, scope: ProcessScope) -> Outcome:
    begun = monotonic()
    for attempt in range(ATTEMPTS):
        try:
            found = _dry_run(prover, job, scope)
        except engine.DryRunError as error:
            if not error.may_be_chance or attempt == ATTEMPTS - 1 or monotonic() - begun > RETRY_WITHIN_S:
                return Outcome(None, error)
        else:
            return Outcome(found)
    raise AssertionError


def _dry_run(prover: Prover, job: Job, scope: ProcessScope) -> engine.Proven:
    """Run one job, with RPC servers in place of devices that this machine lacks. Raises DryRunError."""
    binary = prover.engines[job.engine]
    with engine.stand_in_devices(Path(binary.path), len(job.endpoints), scope) as real:
        stood = dict(zip(job.endpoints, real, strict=True))
        return engine.dry_run(
            tuple(_with_endpoints(word, stood) for word in job.words),
            {_with_endpoints(name, stood): ours for name, ours in job.devices.items()},
            model=job.model,
            draft=job.draft,
            env=job.env,
            jsonl=engine.AS_JSON in binary.dialect.index(),
            scope=scope,
        )


def _with_endpoints(word: str, real: Mapping[str, str]) -> str:
    for name, endpoint in real.items():
        word = word.replace(name, endpoint)
    return word
