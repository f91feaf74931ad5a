"""A stand-in for sbatch, squeue and scancel, for faults that a real Slurm does not show when it is asked to.

Called by those names, with LAUNCH_FAKE_SLURM naming its folder. Jobs are processes of this machine on a node `n1`; of
one name one runs at a time. Standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

FOLDER = Path(os.environ["LAUNCH_FAKE_SLURM"])
NODE = "n1"
OVER = ("CANCELLED", "FAILED", "COMPLETED", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "TIMEOUT")


def jobs() -> dict[int, dict[str, Any]]:
    """Every job that ever was."""
    return {int(file.stem): json.loads(file.read_text()) for file in sorted((FOLDER / "jobs").glob("*.json"))}


def save(number: int, job: dict[str, Any]) -> None:
    """Write a job."""
    new = FOLDER / "jobs" / f"{number}.new"
    new.write_text(json.dumps(job))
    new.rename(new.with_suffix(".json"))


def fault(program: str) -> str:
    """The next fault of `program`, which is used up; "" for none."""
    file = FOLDER / "faults.json"
    faults = json.loads(file.read_text()) if file.exists() else []
    found = next((entry for entry in faults if entry[0] == program), None)
    if found is None:
        return ""
    faults.remove(found)
    file.write_text(json.dumps(faults))
    return str(found[1])


def alive(pid: int) -> bool:
    """Whether a process is there, and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def end(job: dict[str, Any]) -> None:
    """End what runs of it."""
    if job["pid"]:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job["pid"], signal.SIGKILL)
        while alive(job["pid"]):
            time.sleep(0.005)
        job["pid"] = 0


def schedule() -> None:
    """See what ended, obey what a test wants (`state` in a file of that name), begin what may."""
    found = jobs()
    for number, job in found.items():
        wish = FOLDER / "wishes" / f"{number}"
        if wish.exists():
            end(job)
            job["state"], job["why"] = wish.read_text().split("|")
            wish.unlink()
        elif job["state"] == "RUNNING" and not alive(job["pid"]):
            job["state"], job["pid"] = "FAILED", 0
        save(number, job)
    held = (FOLDER / "hold").exists()
    for number, job in found.items():
        busy = any(o["name"] == job["name"] and o["state"] == "RUNNING" for n, o in found.items() if n != number)
        if job["state"] == "PENDING" and not held and not busy and not job["why"].startswith("JobHeld"):
            begin(number, job)
        elif job["state"] == "PENDING" and not job["why"].startswith("JobHeld"):
            job["why"] = "Resources" if held else "Dependency"
        save(number, job)


def begin(number: int, job: dict[str, Any]) -> None:
    """Run its script."""
    own = {"SLURM_JOB_ID": str(number), "SLURMD_NODENAME": NODE, "SLURM_RESTART_COUNT": str(job["restarts"])}
    script = FOLDER / "jobs" / f"{number}.sh"
    with Path(job["output"]).open("ab") as out:
        process = subprocess.Popen(
            ["bash", script], stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            env=os.environ | own,
        )  # fmt: skip
    job |= {
        "pid": process.pid,
        "state": "RUNNING",
        "why": "None",
        "began": str(time.time()),
        "restarts": job["restarts"] + 1,
    }


def sbatch() -> None:
    """Take a script."""
    how = fault("sbatch")
    if how.startswith("refuse"):
        sys.exit(f"sbatch: error: Batch job submission failed: {how.partition(':')[2]}")
    script = sys.stdin.read()
    options = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2]
        for line in script.splitlines()
        if line.startswith("#SBATCH ")
    )
    number = max(jobs(), default=0) + 1
    (FOLDER / "jobs" / f"{number}.sh").write_text(script)
    first = {"state": "PENDING", "why": "None", "began": "N/A", "pid": 0, "restarts": 0}
    save(number, first | {"name": options["job-name"], "comment": options["comment"], "output": options["output"]})
    schedule()
    if how == "late":
        sys.exit("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation")
    sys.stdout.write(f"{number}\n")


def squeue() -> None:
    """Print every job as the front asks for it."""
    how = fault("squeue")
    if how:
        sys.exit("slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
    schedule()
    for number, job in jobs().items():
        node = NODE if job["state"] != "PENDING" else ""
        fields = (number, job["state"], job["began"], node, job["name"], job["comment"], job["why"])
        sys.stdout.write("|".join(map(str, fields)) + "\n")


def scancel() -> None:
    """End jobs."""
    if fault("scancel"):
        sys.exit("scancel: error: Unable to contact slurm controller (connect failure)")
    for number in (int(word) for word in sys.argv[1:] if word.isdigit()):
        job = jobs()[number]
        if job["state"] not in OVER:
            end(job)
            job |= {"state": "CANCELLED", "why": "None"}
            save(number, job)


def main() -> None:
    """One command, alone."""
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        {"sbatch": sbatch, "squeue": squeue, "scancel": scancel}[Path(sys.argv[0]).name]()


if __name__ == "__main__":
    main()
