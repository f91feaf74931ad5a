"""State of a server, from Slurm's queue and from what its job writes about itself. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from launcher.base.decoding import decoded
from launcher.supervise.scheduled import Seen

FORMAT = "%A|%T|%S|%N|%j|%k|%r"
"""Format of squeue: job, state, start time, nodes, name, comment (the server's name), and why it waits."""
_FIELDS = 7
_OVER = {
    "BOOT_FAIL": "its node did not boot",
    "CANCELLED": "its job was cancelled",
    "COMPLETED": "its job has ended",
    "DEADLINE": "its job's deadline has passed",
    "FAILED": "its job has failed",
    "NODE_FAIL": "its node has failed",
    "OUT_OF_MEMORY": "its job took more memory than it has",
    "PREEMPTED": "its job had to go for another",
    "REVOKED": "its job runs on another cluster",
    "TIMEOUT": "its job has reached its time limit",
}
_HOPELESS = frozenset(
    {
        *("AccountNotAllowed", "BadConstraints", "DependencyNeverSatisfied", "InvalidAccount", "InvalidQOS"),
        *("JobHeldAdmin", "JobHeldUser", "PartitionNodeLimit", "PartitionTimeLimit", "QOSNotAllowed"),
    }
)
"""Reasons why a job does not start that waiting does not change: the job or the cluster must be changed."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One job as the queue shows it."""

    id: int
    state: str
    began: str
    nodes: str
    name: str
    server: str
    why: str

    @property
    def over(self) -> bool:
        """Whether nothing of it is left on any node, as far as Slurm knows."""
        return self.state in _OVER


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """What a job has written about itself (`launcher.render.jobs`). `run` is different for every process."""

    job: str
    run: str
    node: str
    host: str
    port: int
    state: str
    code: int


def jobs_of(text: str) -> list[Job]:
    """The jobs in squeue's output, printed in `FORMAT`; other lines are ignored."""
    found = []
    for line in text.splitlines():
        fields = line.strip().split("|", _FIELDS - 1)
        if len(fields) == _FIELDS and fields[0].isascii() and fields[0].isdigit():
            state, began, nodes, name, server, why = fields[1:]
            number = int(fields[0])
            found.append(Job(id=number, state=state, began=began, nodes=nodes, name=name, server=server, why=why))
    return found


def by_server(jobs: Iterable[Job], names: Mapping[str, str]) -> dict[str, list[Job]]:
    """`jobs` of each server, the oldest first; `names`: job name by server."""
    found: dict[str, list[Job]] = {}
    for job in sorted(jobs, key=lambda job: job.id):
        if names.get(job.server) == job.name:
            found.setdefault(job.server, []).append(job)
    return found


def place_of(text: bytes) -> Place | None:
    """The place that a job has written; None: the text is none."""
    place = decoded(text, Place)
    return place if place is not None and place.host and 0 < place.port < 65536 else None


def seen(jobs: Iterable[Job], places: Mapping[int, Place]) -> Seen:
    """State of the server of `jobs`, from the one that is not over; `places` by job id."""
    everyone = list(jobs)
    living = [job for job in everyone if not job.over]
    if not living:
        last = everyone[-1] if everyone else None
        return Seen(stage="none") if last is None else _ended(last, places.get(last.id))
    running = [job for job in living if job.state == "RUNNING"]
    return _of_job((running or living)[0], places)


def surplus(jobs: Iterable[Job]) -> list[int]:
    """Ids of jobs of one server that are too many: all that live but the running one, or the oldest."""
    living = [job for job in jobs if not job.over]
    if len(living) < 2:
        return []
    kept = next((job for job in living if job.state == "RUNNING"), living[0])
    return [job.id for job in living if job is not kept and job.state in ("PENDING", "RUNNING", "SUSPENDED")]


def _of_job(job: Job, places: Mapping[int, Place]) -> Seen:
    if job.state == "RUNNING":
        place = places.get(job.id)
        if place is None or place.job != str(job.id) or place.node != job.nodes:
            return Seen(stage="coming", why=f"its job has begun on {job.nodes}")
        if place.state != "up":
            return Seen(stage="over", why="its process has ended", code=place.code)
        run = f"{job.id}/{job.began}/{place.run}"
        return Seen(stage="running", run=run, address=(place.host, place.port))
    if job.state in ("SUSPENDED", "STOPPED"):
        return Seen(stage="over", why=f"its job is {job.state.lower()} for another's sake")
    if job.state in ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESIZING"):
        held = "held" in job.why.lower() or job.state in ("REQUEUE_HOLD", "SPECIAL_EXIT")
        hopeless = held or job.why in _HOPELESS
        return Seen(stage="coming", why=f"its job waits: {job.why}", hopeless=hopeless, waits=not hopeless)
    return Seen(stage="ending", why=f"its job is {job.state.lower()}")


def _ended(job: Job, place: Place | None) -> Seen:
    code = place.code if place is not None and place.state == "ended" else None
    words = _OVER[job.state] + (f" ({job.why})" if job.why not in ("None", "") else "")
    return Seen(stage="none", why=words, code=code, oom_killed=job.state == "OUT_OF_MEMORY")
