"""Thousands of requests through starts on demand, swaps, reloads and kills: each ends once, and none begins twice.

`python -m tests.soak.once --requests 10000` prints the figures and fails when something is not as it must be.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from launcher.files.state import deployment_state_dir
from launcher.ir.fleet import ServerUnit
from launcher.supervise.control import ControlClient
from tests.soak.clients import TYPED
from tests.soak.soak import HOT, NAMES, SWAPPED, WARM, WARM_BYTES, Chaos, Fleet, need
from tests.supervise.conftest import unit

CLIENTS = 16
ASKED = (*NAMES, "hot")
_SERVER = Path(__file__).parent / "counting_server.py"


class CountingFleet(Fleet):
    """The soak's fleet, of servers that note what they begin."""

    def __init__(self, directory: Path, tally: Path) -> None:
        """`tally`: the file they all append to."""
        self._tally = tally
        super().__init__(directory, _SERVER, {name: Path(f"/models/{name}.gguf") for name in NAMES})

    def _server(self, name: str) -> ServerUnit:
        """One server in its present version."""
        model, port = str(self._models[name]), self._ports[name]
        own = ("--port", str(port), "--model", model, "--tally", str(self._tally))
        argv = (sys.executable, "-S", str(_SERVER), *own, "--timeout", str(self._versions[name]))
        changes: dict[str, Any] = {"fatal": False, "stop_grace_s": 1, "slots": 2}
        if name in SWAPPED:
            changes |= {"exclusive": "device", "default": name == SWAPPED[0]}
        if name in WARM:
            changes |= {"start": "demand", "idle_timeout_s": 1, "memory": need(WARM_BYTES)}
        return unit(name, argv, port, model, **changes)


class Crowd:
    """Clients with kept-alive connections that ask `requests` times, and note how each ended."""

    def __init__(self, url: str, requests: int, seed: int) -> None:
        """Nobody asks yet."""
        self.ends: dict[str, list[str]] = {str(number): [] for number in range(requests)}
        self._left = list(self.ends)
        self._url = url
        self._random = random.Random(seed)  # noqa: S311 - the same crowd again

    async def run(self) -> None:
        """Until every request has ended."""
        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(self._client())

    async def _client(self) -> None:
        """One client, one connection."""
        async with httpx.AsyncClient(base_url=self._url, timeout=60, trust_env=False, verify=False) as client:  # noqa: S501 - http on loopback
            while self._left:
                number = self._left.pop()
                name = self._random.choice(ASKED)
                try:
                    self.ends[number].append(await self._ask(client, number, name))
                except httpx.TransportError as error:
                    self.ends[number].append(f"wrong: {type(error).__name__}")

    async def _ask(self, client: httpx.AsyncClient, number: str, name: str) -> str:
        """How one request ended."""
        asked: dict[str, Any] = {"model": name, "prompt": "x" * self._random.randrange(2000)}
        asked["stream"] = self._random.random() < 0.3
        # no key of our own: servers are killed under these, and all with a rare key would be of the kind that did it
        asked["metadata"] = {"id": number, "sleep_s": self._random.random() * 0.02}
        answer = await client.post("/completion", json=asked)
        if answer.status_code != 200:
            code = answer.json().get("error", {}).get("code")
            return f"{answer.status_code} {code}" if code in TYPED else f"wrong: {answer.text[:200]}"
        if asked["stream"]:
            events = [json.loads(line[5:]) for line in answer.text.splitlines() if line.startswith("data:")]
            if "error" in events[-1] or "error" in answer.text:
                return "stream ended with an error event"
            said = events[-1]["content"]
        else:
            said = answer.json()["content"]
        allowed = HOT if name == "hot" else (name,)
        return "answered" if said in {f"/models/{n}.gguf {number}" for n in allowed} else f"wrong: {name} said {said}"


async def once(requests: int, directory: Path, seed: int) -> dict[str, Any]:
    """Run it; the figures, with everything that must not be under `wrong`."""
    tally = directory / "tally"
    tally.touch()
    fleet = CountingFleet(directory / "deployment", tally)
    state_dir = deployment_state_dir("test", create=True)
    log, figures = directory / "events", directory / "figures.json"
    argv = [sys.executable, "-m", "tests.soak.host", str(fleet.directory), str(figures)]
    with log.open("wb") as output:
        runtime = await asyncio.create_subprocess_exec(*argv, stderr=output)
    crowd = Crowd(f"http://127.0.0.1:{fleet.front}", requests, seed)
    chaos = Chaos(fleet, state_dir, seed)
    began = time.monotonic()
    try:
        async with asyncio.timeout(60):
            while b"FleetReady" not in log.read_bytes():  # noqa: ASYNC110 - a file has no event
                await asyncio.sleep(0.05)
        breaking = asyncio.create_task(chaos.run())
        await crowd.run()
        seconds = time.monotonic() - began
        chaos.ending = True
        await breaking
        with ControlClient(state_dir) as control:
            control.stop()
        code = await asyncio.wait_for(runtime.wait(), 30)
    finally:
        if runtime.returncode is None:
            runtime.kill()
            await runtime.wait()
    begun = Counter(tally.read_text().split())
    wrong = [f"request {n} began {times} times" for n, times in begun.items() if times > 1]
    wrong += [f"request {n} ended {len(ends)} times" for n, ends in crowd.ends.items() if len(ends) != 1]
    wrong += [f"request {n}: {end}" for n, ends in crowd.ends.items() for end in ends if end.startswith("wrong")]
    wrong += [
        f"{n} was answered and never begun" for n, ends in crowd.ends.items() if "answered" in ends and not begun[n]
    ]
    wrong += [f"the runtime ended with {code}"] if code else []
    return {
        "requests": requests,
        "seconds": round(seconds, 1),
        "outcomes": dict(Counter(end for ends in crowd.ends.values() for end in ends).most_common()),
        "begun": len(begun),
        "chaos": dict(chaos.done),
        "wrong": wrong,
    }


def main() -> int:
    """By itself."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        os.environ["LAUNCH_STATE_DIR"] = str(directory / "state")
        report = asyncio.run(once(options.requests, directory, options.seed))
    print(json.dumps({"seed": options.seed, **report}, indent=1))  # noqa: T201 - its result
    return 1 if report["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
