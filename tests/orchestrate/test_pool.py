"""The warm pool with real files: what is in RAM is measured, held, locked, let go; nothing waits for it."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from launcher.errors import SuperviseError
from launcher.ir.config import OrchestrationConfig, WarmPoolConfig
from launcher.ir.events import Happened
from launcher.ir.fleet import DeviceBudget, DeviceNeed, FleetManifest
from launcher.orchestrate import resident as program
from launcher.orchestrate.pool import WarmPool
from launcher.orchestrate.resident import OpenFile
from launcher.runtime.keeping import keep_pins
from tests.supervise.conftest import fake, manifest, routes

MIB = 1024**2
SIZE = 4 * MIB
Pool = Callable[..., WarmPool]
PROGRAM = Path(program.__file__)
PR_CAPBSET_DROP, CAP_IPC_LOCK = 24, 14


def cold(path: Path, size: int = SIZE) -> Path:
    """A file on the disk and not in RAM."""
    path.write_bytes(os.urandom(size))
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    return path


def resident(path: Path) -> float:
    """Percent of a file in RAM, as another program sees it."""
    part = OpenFile(str(path))
    try:
        return 100 * part.resident() / part.size
    finally:
        part.close()


def fleet_of(directory: Path, names: str, free_bytes: int) -> FleetManifest:
    """GPU workers with a file each; the plan leaves `free_bytes` of RAM."""
    need = DeviceNeed(device="ram", committed_bytes=1, peak_bytes=1, file_bytes=0)
    units = [
        fake(name, 9, start="demand", exclusive="gpu", files=(str(directory / name),), memory=(need,)) for name in names
    ]
    units = [msgspec.structs.replace(unit, model_path=unit.files[0]) for unit in units]
    ram = DeviceBudget(
        name="ram", kind="ram", capacity_bytes=10**12, budget_bytes=10**11 + free_bytes, worst_bytes=10**11
    )
    return manifest(*units, devices=(ram,))


def section(names: str, **pool: Any) -> OrchestrationConfig:
    """The orchestration of a routing table."""
    return OrchestrationConfig(router=names[0], workers=tuple(names), warm_pool=msgspec.convert(pool, WarmPoolConfig))


@pytest.fixture
async def pool(tmp_path: Path, no_orphans: None) -> AsyncIterator[Pool]:
    """`pool("abc", free_bytes=…, **warm_pool)` → a started pool over cold files of these names, closed at the end."""
    made: list[WarmPool] = []

    def make(
        names: str,
        *,
        free_bytes: int,
        available: int = 10**12,
        emit: Callable[[Happened], None] = lambda _: None,
        **config: Any,
    ) -> WarmPool:
        for name in names:
            cold(tmp_path / name)
        fleet = fleet_of(tmp_path, names, free_bytes)
        table = msgspec.structs.replace(routes(fleet, 9), orchestration=section(names, **config))
        made.append(WarmPool(fleet, table, available=lambda: {"ram": available}, emit=emit))
        made[-1].start()
        return made[-1]

    yield make
    for one in made:
        await one.close()


def first_to_go(pid: int) -> bool:
    """Whether the kernel ends this process before any other when memory runs out."""
    return Path(f"/proc/{pid}/oom_score_adj").read_text() == "1000\n"


async def until(holds: Callable[[], object], timeout_s: float = 60) -> None:
    """Poll until `holds()`."""
    async with asyncio.timeout(timeout_s):
        while not holds():  # noqa: ASYNC110 - another process changes it, and signals nobody
            await asyncio.sleep(0.02)


def states(pool: WarmPool, names: str) -> list[str]:
    """What the pool does with the files of each."""
    return [pool.residency(name)[1] for name in names]


async def test_it_holds_what_the_plan_left_room_for(pool: Pool, tmp_path: Path) -> None:
    """Room for two of three: two are read and locked, measured from outside too; the third stays on the disk."""
    warm = pool("abc", free_bytes=2 * SIZE + MIB, models_max=3)
    await until(lambda: states(warm, "abc") == ["locked", "locked", ""])
    assert [resident(tmp_path / name) for name in "abc"] == [100, 100, 0]
    assert [warm.residency(name)[0] for name in "abc"] == [100, 100, 0]
    assert f"launch_warm_pool_budget_bytes {2 * SIZE + MIB}" in warm.metrics()
    descriptor = os.open(tmp_path / "a", os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    assert resident(tmp_path / "a") == 100


async def test_what_somebody_wants_comes_before_any_forecast(pool: Pool, tmp_path: Path) -> None:
    """Fetched, pinned, unpinned and sent away by hand, with room for one; told with its cause; refused in words."""
    told: list[Happened] = []
    warm = pool("abc", free_bytes=SIZE + MIB, models_max=2, emit=told.append)
    await until(lambda: states(warm, "abc") == ["locked", "", ""])
    warm.by_hand("preload", "b")
    await until(lambda: states(warm, "abc") == ["", "locked", ""])
    assert [(e.kind, e.name, e.cause) for e in told if e.name == "b"] == [("preload", "b", "somebody asked for it")]
    warm.domain("whatever")
    assert states(warm, "b") == ["locked"]
    warm.by_hand("pin", "c")
    await until(lambda: states(warm, "abc") == ["", "", "locked"])
    assert [warm.is_pinned(name) for name in "abc"] == [False, False, True]
    for verb, name, why in (
        ("preload", "b", "do not fit beside what runs and is pinned"),
        ("pin", "a", "do not fit"),
        ("evict", "c", "it is pinned"),
        ("unpin", "b", "nobody pinned it"),
        ("evict", "b", "does not hold it"),
    ):
        with pytest.raises(SuperviseError, match=rf"supervise/pool-refused.*{verb} {name}: .*{why}"):
            warm.by_hand(verb, name)
    with pytest.raises(KeyError):
        warm.by_hand("pin", "nobody")
    assert [warm.is_pinned(name) for name in "abc"] == [False, False, True]
    warm.by_hand("unpin", "c")
    warm.started("c")
    with pytest.raises(SuperviseError, match="c run on its files"):
        warm.by_hand("evict", "c")
    warm.ended("c")
    warm.by_hand("evict", "c")
    await until(lambda: states(warm, "abc") == ["locked", "", ""])  # what is declared first; never what was sent away
    warm.by_hand("preload", "c")
    await until(lambda: states(warm, "abc") == ["", "", "locked"])
    assert [e.kind for e in told if e.name == "c"] == [
        "preload",
        "pinned",
        "unpinned",
        "prediction",
        "dropped",
        "preload",
    ]


async def test_what_is_pinned_stays_so_over_a_restart(pool: Pool, tmp_path: Path) -> None:
    """The next run pins it, too, before any forecast; what the fleet no longer has, or was unpinned, it does not."""
    state = tmp_path / "state"
    state.mkdir()
    first = pool("abc", free_bytes=SIZE + MIB, models_max=2)
    keep_pins(first, lambda: state)
    await until(lambda: states(first, "abc") == ["locked", "", ""])
    first.by_hand("pin", "c")
    await first.close()
    second = pool("abc", free_bytes=SIZE + MIB, models_max=2)
    keep_pins(second, lambda: state)
    await until(lambda: states(second, "abc") == ["", "", "locked"])
    assert [second.is_pinned(name) for name in "abc"] == [False, False, True]
    second.by_hand("unpin", "c")
    await second.close()
    assert json.loads((state / "pinned.json").read_bytes()) == []
    (state / "pinned.json").write_text(json.dumps([str(tmp_path / "a"), "/gone"]))
    third = pool("abc", free_bytes=SIZE + MIB, models_max=2)
    keep_pins(third, lambda: state)
    assert [third.is_pinned(name) for name in "abc"] == [True, False, False]
    await until(lambda: states(third, "a") == ["locked"])


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1}', b"[1]", b"\xff", b'["\xff"]', b"[" * 100_000])
async def test_pins_that_cannot_be_read_or_written_cost_pins_alone(pool: Pool, tmp_path: Path, content: bytes) -> None:
    """A damaged file is as none, and told of; a directory that takes nothing stops nobody who pins."""
    (tmp_path / "pinned.json").write_bytes(content)
    warm = pool("a", free_bytes=10 * SIZE, models_max=1)
    keep_pins(warm, lambda: tmp_path)
    assert not warm.is_pinned("a")
    await until(lambda: states(warm, "a") == ["locked"])
    keep_pins(warm, lambda: tmp_path / "nowhere")
    warm.by_hand("pin", "a")
    assert warm.is_pinned("a")


async def test_what_followed_what_is_known_after_a_restart(pool: Pool) -> None:
    """An earlier run had `a`, `c`, `a`, `c`, …: after `a` comes `c`, though `b` is declared before it."""
    warm = pool("abc", free_bytes=10 * SIZE, models_max=3)
    await until(lambda: states(warm, "abc") == ["locked"] * 3)
    warm.remember((*("a", "other", "c") * 4, "a"))
    first = warm._predictor.forecast()[0]
    assert (first.worker, first.why) == ("c", "history")


async def test_configured_bytes_count_and_models_do(pool: Pool, tmp_path: Path) -> None:
    """The smaller of plan and configuration; never more models than configured; less where RAM is short."""
    one = pool("ab", free_bytes=100 * SIZE, ram_bytes=SIZE, models_max=3)
    await until(lambda: states(one, "ab") == ["locked", ""])
    few = pool("ab", free_bytes=100 * SIZE, models_max=1)
    await until(lambda: states(few, "ab") == ["locked", ""])
    none = pool("ab", free_bytes=100 * SIZE, models_max=3, available=SIZE // 2)
    await until(lambda: none.residency("b")[0] is not None)
    assert states(none, "ab") == ["", ""]
    assert none.budget_bytes == SIZE // 2


async def test_the_predicted_one_comes_and_the_oldest_goes(pool: Pool, tmp_path: Path) -> None:
    """`a` runs, then a rule says `c`: `b`, unused, goes and was a waste; `a` never goes; the swap to `c` is a hit."""
    warm = pool("abc", free_bytes=2 * SIZE, models_max=1, predict={"code": "c"})
    await until(lambda: states(warm, "a") == ["locked"])
    warm.started("a")
    await until(lambda: states(warm, "bc") == ["locked", ""])
    warm.domain("code")
    await until(lambda: states(warm, "bc") == ["", "locked"])
    assert [resident(tmp_path / name) for name in "abc"] == [100, 0, 100]
    warm.started("c")
    warm.ended("a")
    score = warm.score
    assert (score.hits, score.foreseen, score.wasted_bytes >= SIZE // 2) == (2, 2, True)
    metrics = warm.metrics()
    assert "launch_warm_pool_hits_total 2" in metrics
    assert f"launch_warm_pool_wasted_bytes_total {score.wasted_bytes}" in metrics


async def test_a_child_that_dies_is_replaced_and_never_waited_for(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed: the pool knows nothing for a while, then holds again. Its runtime's end ends it, locks and all."""
    monkeypatch.setattr("launcher.orchestrate.pool._AGAIN_S", 0.05)
    warm = pool("a", free_bytes=SIZE, models_max=1)
    await until(lambda: states(warm, "a") == ["locked"])
    child = warm._child
    assert child is not None
    assert first_to_go(child.pid)
    child.send_signal(signal.SIGKILL)
    await until(lambda: warm._child is not child and states(warm, "a") == ["locked"])
    second = warm._child
    assert second is not None
    await warm.close()
    assert not psutil.pid_exists(second.pid)


async def test_a_file_that_is_replaced_is_seen_and_held_anew(pool: Pool, tmp_path: Path) -> None:
    """Another file at the path: its size, and its pages, count from then on."""
    warm = pool("a", free_bytes=3 * SIZE, models_max=1)
    await until(lambda: states(warm, "a") == ["locked"])
    cold(tmp_path / "new", 2 * SIZE).rename(tmp_path / "a")
    await until(lambda: f'file_bytes{{file="{tmp_path / "a"}"}} {2 * SIZE}' in warm.metrics())
    await until(lambda: states(warm, "a") == ["locked"])
    assert resident(tmp_path / "a") == 100


def test_a_file_that_is_replaced_as_it_is_opened_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is open is the old file: the new one at its path makes it stale, whatever its size."""
    path, new = cold(tmp_path / "a"), cold(tmp_path / "new")
    really_open = os.open

    def open_late(name: str, *flags: int) -> int:
        descriptor = really_open(name, *flags)
        if new.exists():
            new.rename(path)
        return descriptor

    monkeypatch.setattr(os, "open", open_late)
    files = program.Files([str(path)])
    assert files.is_stale()
    files = files.reopened()
    assert not files.is_stale()
    files.close()


def test_commands_about_known_files_open_none(tmp_path: Path) -> None:
    """Every reload sends them: descriptors would run out."""
    path, known = cold(tmp_path / "a"), dict[str, program.Files]()
    program.obey(json.dumps({"watch": "a", "paths": [str(path)]}), known)
    before = len([*Path("/proc/self/fd").iterdir()])
    for verb in ("watch", "hold", "drop", "watch"):
        program.obey(json.dumps({verb: "a", "paths": [str(path)]}), known)
    assert len([*Path("/proc/self/fd").iterdir()]) == before
    known["a"].close()


def test_a_disk_that_does_not_read_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other files of the model, and the other models, are read."""
    bad, good = cold(tmp_path / "bad", 3 * program.CHUNK_BYTES), cold(tmp_path / "good")
    files = program.Files([str(bad), str(good)])
    really_read, broken = os.pread, files.parts[0].fd

    def read(descriptor: int, length: int, offset: int) -> bytes:
        if descriptor == broken and offset:
            raise OSError(errno.EIO, "Input/output error")
        return really_read(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", read)
    files.hold()
    while files.at is not None:
        files.step()
    assert resident(good) == 100
    assert files.read == program.CHUNK_BYTES + SIZE
    files.close()


def test_the_child_ends_with_its_runtime(tmp_path: Path) -> None:
    """No runtime at the other end of its pipe: it goes, in the middle of a big file too."""
    path = cold(tmp_path / "big", 64 * MIB)
    child = subprocess.Popen([sys.executable, "-I", "-S", str(PROGRAM)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    command = msgspec.json.encode({"hold": "big", "paths": [str(path), "/nowhere"]})
    child.communicate(command + b"\n", timeout=20)
    assert child.returncode == 0


def test_a_file_beyond_the_lock_limit_is_warm_and_not_locked(tmp_path: Path) -> None:
    """`ulimit -l` below its size, without the privilege to ignore that: it is in RAM, and said not to be locked."""
    path = cold(tmp_path / "model")

    def lessen() -> None:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (MIB, MIB))
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_IPC_LOCK)

    argv = [sys.executable, "-I", "-S", str(PROGRAM)]
    child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=lessen)  # noqa: PLW1509 - no threads here
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(msgspec.json.encode({"hold": "m", "paths": [str(path)]}) + b"\n")
    child.stdin.flush()
    facts: dict[str, Any] = {"loading": True}
    while facts["loading"]:
        facts = msgspec.json.decode(child.stdout.readline())
    child.communicate(timeout=10)
    assert (facts["resident"], facts["locked"]) == (SIZE, 0)
