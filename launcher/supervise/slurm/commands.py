"""Slurm's commands, each with a time limit. I/O."""

from __future__ import annotations

import asyncio
import os

from launcher.base.environment import passed_on
from launcher.supervise.scheduled import SchedulerError
from launcher.supervise.slurm.queue import FORMAT, Job, jobs_of

_LIMIT_S = 20.0
"""Seconds for a command; Slurm's own messages have 10 s (MessageTimeout)."""
_KEPT = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS")
"""Variables that choose the Slurm cluster; all others of a job would be options of the next job."""
_TRANSIENT = (
    *("unable to contact", "timed out", "connection refused", "connection failure", "connection reset"),
    *("temporarily", "try again", "zero bytes", "communication", "transport endpoint", "authentication error"),
    *("munge", "unexpected message", "resource busy", "in progress"),
)
"""Parts of Slurm's messages after which the command may be repeated."""
_UNSURE = ("timed out", "zero bytes", "connection reset", "unexpected message")
"""Those of them after which the command may have been carried out."""


async def queue() -> list[Job]:
    """Our jobs, those that have just ended too. Raises SchedulerError."""
    return jobs_of(await _run("squeue", "--noheader", "--me", "--states=all", f"--format={FORMAT}"))


async def submit(script: str) -> int:
    """Submit a job that runs `script`; returns its id. Raises SchedulerError."""
    output = await _run("sbatch", "--parsable", given=script.encode())
    number = output.strip().partition(";")[0]
    if not (number.isascii() and number.isdigit()):
        raise SchedulerError(0, f"sbatch says no job: {output[:200]!r}")
    return int(number)


async def cancel(jobs: list[int]) -> None:
    """Cancel `jobs`; it is no error if some are over. Raises SchedulerError."""
    if jobs:
        await _run("scancel", "--quiet", *map(str, jobs))


async def _run(program: str, *words: str, given: bytes | None = None) -> str:
    """Run a program; returns its output. Raises SchedulerError."""
    kept = passed_on(os.environ) | {name: os.environ[name] for name in _KEPT if name in os.environ}
    try:
        process = await asyncio.create_subprocess_exec(
            program,
            *words,
            stdin=asyncio.subprocess.DEVNULL if given is None else asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=kept | {"LC_ALL": "C.UTF-8"},
        )
    except OSError as error:
        raise SchedulerError(503, f"{program} cannot be run: {error.strerror or error}") from None
    try:
        async with asyncio.timeout(_LIMIT_S):
            out, err = await process.communicate(given)
    except TimeoutError:
        raise SchedulerError(0, f"{program}: no answer within {_LIMIT_S:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        output = " ".join(err.decode(errors="replace").split())[:300] or f"exit code {process.returncode}"
        raise SchedulerError(_status(output), output)
    return out.decode(errors="replace")


def _status(output: str) -> int:
    """The kind of refusal as an HTTP status: 0 (may have been done), 503 (may be repeated), 422 (refused)."""
    plain = output.lower()
    if any(part in plain for part in _UNSURE):
        return 0
    return 503 if any(part in plain for part in _TRANSIENT) else 422
