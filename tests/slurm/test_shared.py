"""The lease in a file: changed by one at a time, and taken by another when its holder is silent or gives it back."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from launcher.supervise.scheduled import Election, SchedulerError, identity
from launcher.supervise.scheduled.lease import claim_of, taken
from launcher.supervise.slurm.shared import LeaseFile, SharedFiles


def lease_file(folder: Path, limit_s: float = 30) -> LeaseFile:
    """One front's."""
    return LeaseFile(SharedFiles(folder / "fleet", limit_s=limit_s), limit_s=limit_s)


async def test_one_change_a_version(tmp_path: Path) -> None:
    """Of all that change what they saw, one does; the others are told so. Nonsense in the file is nobody's lease."""
    fronts = [lease_file(tmp_path) for _ in range(4)]
    seen = [await front.ask("GET", "") for front in fronts]
    assert {claim_of(lease).holder for lease in seen} == {""}
    changes = (
        front.ask("PUT", "", body=taken(lease, f"f{i}", 5, "t"))
        for i, (front, lease) in enumerate(zip(fronts, seen, strict=True))
    )
    done = await asyncio.gather(*changes, return_exceptions=True)
    refused = [error.status for error in done if isinstance(error, SchedulerError)]
    assert refused == [409, 409, 409]
    holder = claim_of(await fronts[0].ask("GET", "")).holder
    assert done[int(holder[1:])] == await fronts[1].ask("GET", "")
    for nonsense in (b"", b"\xff", b"[1]", b'{"metadata":{}}', b'{"metadata":{"resourceVersion":"x"}}'):
        (tmp_path / "fleet/lease.json").write_bytes(nonsense)
        lease = await fronts[0].ask("GET", "")
        assert claim_of(lease).holder == ""
        assert claim_of(await fronts[2].ask("PUT", "", body=taken(lease, "me", 5, "t"))).holder == "me"


async def test_one_leads(tmp_path: Path) -> None:
    """The first leads, and the other as soon as it gives the lease back."""
    first, second = (Election(lease_file(tmp_path), "", identity(f"h:{n}", "1", "x"), 30) for n in (1, 2))
    leading = asyncio.create_task(first.run())
    waiting = None
    try:
        async with asyncio.timeout(60):
            await first.elected.wait()
            waiting = asyncio.create_task(second.run())
            while second.leader() is None:  # noqa: ASYNC110 - of a file
                await asyncio.sleep(0.01)
            assert (second.leader(), second.leads, first.leads) == (("h", 1), False, True)
            await first.give_back()
            await second.elected.wait()
        assert (first.leads, second.leads) == (False, True)
    finally:
        for task in (leading, waiting):
            if task is not None:
                task.cancel()
        await asyncio.gather(leading, *([waiting] if waiting else []), return_exceptions=True)


async def test_a_folder_of_others(tmp_path: Path) -> None:
    """Where others may write, anybody could say where a server is: nothing there is believed."""
    (tmp_path / "fleet").mkdir(mode=0o777)
    (tmp_path / "fleet").chmod(0o777)
    with pytest.raises(SchedulerError, match="not ours alone"):
        await lease_file(tmp_path).ask("GET", "")


async def test_a_file_system_that_does_not_answer(tmp_path: Path) -> None:
    """A look that is stuck ends in time, and no other begins until it is back."""
    files, released = SharedFiles(tmp_path, limit_s=0.05), threading.Event()
    with pytest.raises(SchedulerError, match="no answer within"):
        await files.do(released.wait)
    with pytest.raises(SchedulerError, match="does not answer"):
        await files.do(lambda: None)
    released.set()
    async with asyncio.timeout(60):
        while True:
            try:
                assert await SharedFiles.do(files, lambda: 7) == 7
                break
            except SchedulerError:
                await asyncio.sleep(0.01)
