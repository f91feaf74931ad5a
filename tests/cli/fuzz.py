"""`python -m tests.cli.fuzz --seconds 600`: hand-made files, environments and descriptors against the command line.

A case spoils a rendered bundle, a state directory, an install record or the environment, and runs commands. Whatever
they are: each ends with a code of the contract other than 1, a sentence where it fails, and no file outside changes.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import typer.main

from launcher.cli import main as launch
from launcher.manifest import encode_document

LAUNCH = Path(sys.executable).with_name("launch")
CODES = {0, 2, 3, 4, 5, 6, 7, 8, 130, 141}
_HANGS_AFTER_S = 120
VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        -1,
        0,
        1,
        1 << 31,
        1 << 64,
        -1e300,
        1.5,
        "",
        "x",
        "../../x",
        "/etc/passwd",
        "a\0b",
        "a\nb",
        "\x1b[2J",
    ),
    *("..", ".", "%n%s", "$(id)", "é" * 300, [], {}, [[]], {"a": None}, ["x"] * 50, "NaN", "-1", "sha256:0"),
)
RAW = (
    b"",
    b"{",
    b"[" * 100_000,
    b"\xff\xfe\x00",
    b"null",
    b"{}",
    b"[]",
    b'{"schema":1}',
    b"\0" * 10,
    b'"' + b"a" * 9999,
)
COMMANDS = (
    *("status", "status --json", "stop --all", "reload", "logs", "events", "checkpoint list", "checkpoint create x"),
    *(
        "install {bundle} --root {tree}",
        "install {bundle} --root {tree} --dry-run --json",
        "uninstall fz --root {tree}",
    ),
    *("stop a", "memory", "reload a --json", "install {bundle} --root {tree} --force", "checkpoint show x"),
)


def spoil(rng: random.Random, value: Any) -> Any:
    """`value` with one part of it replaced or left out."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(sorted(value))
        rest = {k: v for k, v in value.items() if k != key}
        if rng.random() < 0.1:
            return rest
        name = rng.choice(VALUES[9:24]) if rng.random() < 0.05 else key
        return {**rest, str(name): spoil(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.9:
        at = rng.randrange(len(value))
        return [*value[:at], spoil(rng, value[at]), *value[at + 1 :]]
    return rng.choice(VALUES)


def spoil_file(rng: random.Random, path: Path) -> None:
    """One file: its JSON, its bytes, its kind or its place."""
    data = path.read_bytes() if path.is_file() else b"{}"
    kind = rng.random()
    if kind < 0.6:
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
            plain = msgspec.json.decode(data)
            for _ in range(rng.randint(1, 3)):
                plain = spoil(rng, plain)
            path.write_bytes(msgspec.json.encode(plain))
            return
    if kind < 0.75:
        at = rng.randrange(len(data) + 1)
        path.write_bytes(rng.choice([data[:at], data[:at] + os.urandom(3) + data[at:], rng.choice(RAW)]))
        return
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    if kind < 0.82:
        path.mkdir()
    elif kind < 0.9:
        path.symlink_to(rng.choice([path.name, "/nowhere/at/all", "/dev/full", "/proc/self/mem", "..", "/etc"]))


class Arena:
    """A directory with a bundle, a state root and a tree, made anew for each case."""

    def __init__(self, base: Path) -> None:
        """`base` is empty."""
        from tests.supervise.conftest import manifest, unit, write_deployment_dir

        self.base = base
        self.good = base / "good"
        server = unit("a", ("/bin/true",), 1, "/m")
        self.good.mkdir()
        write_deployment_dir(self.good / "bundle", manifest(server, deployment="fz"), 1)
        owned = {f.name: _sum(f.read_bytes()) for f in sorted((self.good / "bundle").iterdir())}
        listed = {"schema": "launch.files/v1", "deployment": "fz", "files": owned}
        (self.good / "bundle/.launch-files.json").write_bytes(msgspec.json.encode(listed))
        state = self.good / "state/fz"
        for part in ("servers", "logs", "deployment"):
            (state / part).mkdir(parents=True)
        record = {
            "schema": "launch.state/v1",
            "deployment": "fz",
            "input_digest": "x",
            "name": "a",
            "kind": "server",
            "roles": [],
            "tier": "hot",
            "argv": ["/bin/true"],
            "argv_digest": "x",
            "host": "127.0.0.1",
            "port": 1,
            "model": "m",
            "log_file": "/dev/null",
            "stop_grace_s": 0.1,
            "started_at": 1.0,
            "pid": 1,
        }
        (state / "servers/a.json").write_bytes(msgspec.json.encode(record))
        (state / "runtime.lock").write_bytes(b'{"pid":1,"start_ticks":1,"boot_id":"x"}')
        request = {"schema": "launch.request/v1", "overrides": ["hardware=dev", "profile=dev"], "config_dirs": []}
        (state / "request.json").write_bytes(msgspec.json.encode(request))
        (state / "deployment/fleet.json").write_bytes(encode_document(manifest(server, deployment="fz")))
        installed = self.good / "tree/var/lib/launch/installed"
        installed.mkdir(parents=True)
        files = {"/etc/systemd/system/launch-a.service": "sha256:0", "/etc/launch/fz/fleet.json": "sha256:0"}
        known = {"schema": "launch.installed/v1", "deployment": "fz", "input_digest": "x", "files": files}
        (installed / "fz.json").write_bytes(msgspec.json.encode(known))
        (base / "outside").mkdir()
        (base / "outside/file").write_text("theirs")

    @contextlib.contextmanager
    def case(self, rng: random.Random) -> Iterator[Path]:
        """A copy of the good state with some of it spoilt; what is outside must not change."""
        place = self.base / "case"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.good, place)
        files = sorted(p for p in place.rglob("*") if p.is_file())
        for path in rng.sample(files, rng.randint(1, 2)):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                spoil_file(rng, path)
        if rng.random() < 0.1:
            link = place / "tree" / rng.choice(["etc", "etc/systemd", "var/lib"])
            shutil.rmtree(link, ignore_errors=True)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(self.base / "outside")
        yield place
        found = {str(p.relative_to(self.base)) for p in (self.base / "outside").rglob("*")}
        assert found == {"outside/file"}, found
        assert (self.base / "outside/file").read_text() == "theirs"


def run_here(words: list[str]) -> tuple[int, str]:
    """`launch` in this process: its code and what it said. Raises what it should not."""
    said = io.StringIO()
    signal.alarm(_HANGS_AFTER_S)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                launch(words)
            except SystemExit as end:
                return int(end.code or 0), said.getvalue()
    finally:
        signal.alarm(0)
    return 0, said.getvalue()


ENVIRONMENTS: tuple[Callable[[], dict[bytes, bytes]], ...] = (
    lambda: {b"HOME": b"/dev/null"},
    lambda: {b"LAUNCH_STATE_DIR": b"/tmp/\xff\xfe"},
    lambda: {b"LAUNCH_STATE_DIR": b"/dev/null/x"},
    lambda: {b"XDG_STATE_HOME": b"relative", b"HOME": b""},
    lambda: {b"XDG_CONFIG_HOME": b"/proc/self/mem"},
    lambda: {b"TMPDIR": b"/nowhere", b"LC_ALL": b"C", b"PYTHONUTF8": b"0", b"PYTHONIOENCODING": b"ascii"},
    lambda: {b"COLUMNS": b"-5", b"LINES": b"x", b"TERM": b"\xff"},
)


def run_there(rng: random.Random, base: Path) -> tuple[int, str]:
    """`launch` as a process with a hostile environment and few or closed descriptors."""
    words = rng.choice(
        ["status", "plan hardware=dev profile=dev", "stop --all", "config models", "explain plan/no-server"]
    )
    state = {b"LAUNCH_STATE_DIR": os.fsencode(base / "empty"), b"HOME": os.fsencode(base)}
    env = {**os.environb, **state, **rng.choice(ENVIRONMENTS)()}
    limit, closed = rng.choice([0, 0, 8, 16, 32]), rng.choice([(), (), (0,), (1,), (2,), (0, 1, 2)])

    def before() -> None:
        if limit:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        for number in closed:
            os.close(number)

    argv = [str(LAUNCH), *words.split()]
    done = subprocess.run(argv, env=env, capture_output=True, preexec_fn=before, check=False, timeout=60, cwd=base)
    said = (done.stdout + done.stderr).decode(errors="replace")
    # below 16 descriptors the interpreter itself cannot read its own modules: nothing of ours runs yet
    early = limit and limit < 16 and "launcher/cli/app.py" not in said
    heard = said or ("nobody could hear it" if closed or early else "")
    return (2 if early else done.returncode), heard


def main() -> None:
    """Fuzz until the time is over; the first fault ends it with everything needed to see it again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    signal.signal(signal.SIGALRM, _hangs)
    typer.main.get_command = functools.cache(typer.main.get_command)  # else nine tenths of the time are spent there
    until, tried = time.monotonic() + options.seconds, 0
    with tempfile.TemporaryDirectory(prefix="launch-fuzz-") as name:
        arena = Arena(Path(name))
        os.environ.update(LAUNCH_STATE_DIR=f"{name}/case/state", HOME=name)
        os.chdir(name)
        while time.monotonic() < until:
            seed = options.seed + tried
            rng = random.Random(seed)  # noqa: S311 - nothing secret
            tried += 1
            print(f"seed {seed}", end="\r", flush=True)  # noqa: T201 - of the case that never ends
            if rng.random() < 0.05:
                code, said = run_there(rng, Path(name))
                _judge(seed, "a process of its own", code, said)
                continue
            with arena.case(rng) as place:
                for command in rng.sample(COMMANDS, 3):
                    words = command.format(bundle=place / "bundle", tree=place / "tree").split()
                    code, said = run_here(words)
                    _judge(seed, command, code, said)
    print(f"{tried} cases in {options.seconds:.0f} s, from seed {options.seed}")  # noqa: T201 - a program's answer


def _hangs(*_: object) -> None:
    """A command that does not end."""
    raise AssertionError(f"it hangs for {_HANGS_AFTER_S} s")


def _judge(seed: int, command: str, code: int, said: str) -> None:
    """Raise AssertionError for what is no answer."""
    assert code in CODES, (seed, command, code, said[-2000:])
    assert "Traceback" not in said, (seed, command, said[-2000:])
    assert code in (0, 130, 141) or said.strip(), (seed, command, code, "no word")


def _sum(data: bytes) -> str:
    from launcher.ir.deployment import content_digest

    return content_digest(data)


if __name__ == "__main__":
    main()
