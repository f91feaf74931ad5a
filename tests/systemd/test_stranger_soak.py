"""Installed: whatever is killed, swapped or restarted meanwhile, no answer carries another server's name."""

from __future__ import annotations

import json
import random
import subprocess
import time

import pytest

from tests.systemd.conftest import FRONT, Fleet
from tests.systemd.scenarios import Units, describe

pytestmark = [pytest.mark.xdist_group("systemd"), pytest.mark.timeout(900)]

CLIENT = """
import http.client, json, random, sys, time
names, count, seed = sys.argv[1].split(","), int(sys.argv[2]), int(sys.argv[3])
draw, told = random.Random(seed), {}
while sum(told.values()) - told.get("no front", 0) < count:
    name = draw.choice(names)
    body = json.dumps({"model": name, "prompt": "1", "max_tokens": 1})
    try:
        line = http.client.HTTPConnection("127.0.0.1", 8000, timeout=60)
        line.request("POST", "/v1/completions", body, {"content-type": "application/json"})
        answer = line.getresponse()
        said = json.loads(answer.read())
        if answer.status == 200:
            right = said["model"] == name == answer.headers["x-launch-server"]
            key = "right" if right else f"WRONG {name} {said['model']}"
        else:
            key = said["error"]["code"]
    except OSError:
        key = "no front"
    except (ValueError, http.client.HTTPException):
        key = "cut off"
    told[key] = told.get(key, 0) + 1
    if key != "right":
        time.sleep(0.1)
print(json.dumps(told))
"""
CLIENTS, REQUESTS = 8, 250


@pytest.mark.slow
def test_two_thousand_requests_while_everything_dies(fleet: Fleet) -> None:
    """Random swaps, kill -9 of any server and of the runtime, a restart of it: 2,000 answers, none by a stranger."""
    describe(fleet)
    fleet.config["runtime"]["crash_loop_failures"] = 1000
    run, host, draw = Units(fleet), fleet.host, random.Random(7)  # noqa: S311 # which one dies next
    run.bring_up()
    (host.root / "srv/client.py").write_text(CLIENT)
    names = ",".join(("alpha", "beta") * 12 + ("one", "two", "warm"))
    clients = [
        subprocess.Popen(
            host.command("python3", "/srv/client.py", names, str(REQUESTS), str(n)), stdout=subprocess.PIPE, text=True
        )
        for n in range(CLIENTS)
    ]
    disturbed = 0
    while any(client.poll() is None for client in clients):
        time.sleep(draw.uniform(1, 3))
        unit = draw.choice(["alpha", "beta", "one", "two", "warm", "dev-trio"])
        pid = host.main_pid(f"launch-{unit}.service")
        if pid:
            host.run("kill", "-KILL", str(pid), check=False)
            disturbed += 1
    told: dict[str, int] = {}
    for client in clients:
        for key, count in json.loads(client.communicate()[0]).items():
            told[key] = told.get(key, 0) + count
    assert sum(told.values()) - told.get("no front", 0) == CLIENTS * REQUESTS
    assert not [key for key in told if key.startswith("WRONG")], told
    assert told["right"] > CLIENTS * REQUESTS / 4, told
    assert disturbed > 5, told
    run.until(lambda: run.status().get("ready"), "ready again")
    assert fleet.ask(FRONT, "/ready")[0] == 200
    print(told, disturbed)  # noqa: T201 # what `-s` shows
