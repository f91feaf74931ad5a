"""A three-tier fleet of tiny models on a real Slurm of two nodes: what befalls jobs, nodes and fronts; who answers."""

from __future__ import annotations

import contextlib
import functools
import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import httpx
import psutil
import pytest
import yaml

from tests.ports import free_port
from tests.slurm.lab import Lab, fetched
from tests.tinymodels import shape_of

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm"), pytest.mark.timeout(900)]

ALWAYS = ("router", "validator")
TURNS = ("coder", "writer")
WARM = ("fast",)
_HOST = {"router": "alpha", "validator": "beta", "coder": "beta", "writer": "beta", "fast": "alpha"}


def note(figure: str) -> None:
    """For who runs this with -s."""
    sys.stdout.write(f"\n{figure}\n")


def ask(port: int, model: str, timeout_s: float = 120) -> tuple[int, str, str]:
    """Status, who says it answered, and an error's code; 0 without an answer."""
    body = {"model": model, "prompt": "1", "max_tokens": 1, "temperature": 0}
    try:
        answer = httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=body, timeout=timeout_s)
    except httpx.TransportError:
        return 0, "", "connection"
    found = answer.json()
    if answer.status_code != 200:
        return answer.status_code, "", found["error"]["code"]
    assert answer.headers["x-launch-server"] == found["model"]
    return 200, found["model"], ""


class Front:
    """`launch serve` as a process, on a port of its own."""

    def __init__(self, lab: Lab, directory: Path, work: Path, port: int) -> None:
        self.port = port
        routes = json.loads((directory / "slurm/routes.json").read_bytes())
        routes["front"]["port"] = port
        own = work / f"front-{port}"
        own.mkdir()
        (own / "routes.json").write_text(json.dumps(routes))
        (own / "fleet.json").write_bytes((directory / "slurm/fleet.json").read_bytes())
        self._log = work / f"front-{port}.log"
        self._words = [sys.executable, "-m", "launcher.runtime", str(own)]
        self._env = {**lab.env, "LAUNCH_STATE_DIR": str(own / "state"), "PYTHONPATH": str(Path(__file__).parents[2])}
        self.process = self._begun()

    def _begun(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(self._words, env=self._env, stdout=log, stderr=log)

    def again(self) -> None:
        """Start it once more."""
        self.process = self._begun()

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """By a signal."""
        self.process.send_signal(number)
        self.process.wait(60)

    def ask(self, model: str, timeout_s: float = 120) -> tuple[int, str, str]:
        """As `ask`."""
        return ask(self.port, model, timeout_s)

    def states(self) -> dict[str, str]:
        """By server, as the control API says it; empty where nobody answers."""
        with contextlib.suppress(httpx.TransportError, ValueError, KeyError):
            answer = httpx.get(f"http://127.0.0.1:{self.port}/v1/launch/status", timeout=10).json()
            return {p["name"]: p["state"] for p in answer["processes"]}
        return {}

    def log(self) -> str:
        """What it wrote."""
        return self._log.read_text(errors="replace")


class Fleet:
    """Two servers that are always on, two that take turns, one on demand: rendered, with a front."""

    def __init__(self, lab: Lab, work: Path, model: Path, binary: Path) -> None:
        self.lab, self.work = lab, work
        shape = shape_of("llama")
        config: dict[str, Any] = {
            "profile": {"name": "trio"},
            "hardware": {"hosts": {"alpha": {"address": "127.0.0.1"}, "beta": {"address": "127.0.0.2"}}},
            "engines": {"default": {"binary": str(binary), "dialect": "b10068"}},
            "models": {
                "tiny": {
                    "title": "tiny",
                    "source": "tests/tinymodels",
                    "architecture": {
                        "arch": "llama",
                        "n_layer": shape.n_layer,
                        "n_embd": shape.n_embd,
                        "n_head": shape.n_head,
                        "n_head_kv": shape.n_head_kv,
                        "key_length": shape.head_dim,
                        "value_length": shape.head_dim,
                        "n_ff": shape.n_ff,
                        "n_vocab": shape.n_vocab,
                        "n_ctx_train": shape.n_ctx_train,
                    },
                    "files": {"f16": {"path": str(model)}},
                }
            },
            "runtime": {"health_interval_s": 1, "backoff_s": 0.2, "front": {"port": free_port()}},
            "routing": {"breaker": {"open_s": 0.5, "open_max_s": 1}},
            "tiers": {"warm": {"start": "demand", "idle_timeout_s": 8}},
            "deploy": {"launch": str(work / "launch")},
            "servers": {},
        }
        (work / "launch").write_text(
            f"#!/bin/sh\nexport PYTHONPATH={Path(__file__).parents[2]}\n"
            f"exec {sys.executable} -c 'from launcher.cli import main; main()' \"$@\"\n"
        )
        (work / "launch").chmod(0o755)
        ports = {name: free_port() for name in (*TURNS, *WARM)}
        ports |= dict.fromkeys(ALWAYS, free_port())  # the same on both nodes, which are one machine here
        for name in (*ALWAYS, *TURNS, *WARM):
            config["servers"][name] = {
                "model": "tiny",
                "quantization": "f16",
                "tier": "hot" if name in ALWAYS else "warm",
                "host": _HOST[name],
                "port": ports[name],
                "slots": 1,
                "n_ctx": 256,
                "threads": 1,
                "cache_ram_mib": 0,
                "start_timeout_s": 60,
                "stall_timeout_s": 60,
                "request_timeout_s": 30,
                "stop_grace_s": 5,
                "fatal": False,
                **({"exclusive": "turns", "min_stay_s": 0} if name in TURNS else {}),
            }
        folder = work / "conf/profile"
        folder.mkdir(parents=True)
        (folder / "trio.yaml").write_text(f"# @package _global_\n{yaml.safe_dump(config, sort_keys=False)}")
        words = ["hardware=dev", "profile=trio", "deploy=slurm", f"deploy.slurm.shared_dir={work}/shared"]
        words += ["deploy.slurm.listen=127.0.0.1", f"--config-dir={work}/conf", f"--output={work}/generated"]
        done = subprocess.run(
            [sys.executable, "-c", "from launcher.cli import main; main()", "render", *words],
            capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        self.directory = next((work / "generated").iterdir())
        self.port: int = config["runtime"]["front"]["port"]
        self.fronts: list[Front] = []

    def front(self) -> Front:
        """One more."""
        self.fronts.append(Front(self.lab, self.directory, self.work, free_port()))
        return self.fronts[-1]

    def close(self) -> None:
        """End the fronts; what runs is Slurm's."""
        for front in self.fronts:
            if front.process.poll() is None:
                front.process.kill()
                front.process.wait()


class Clients:
    """Who asks for every server all the time, and notes who answered."""

    def __init__(self, fronts: Callable[[], list[Front]]) -> None:
        self.counts: Counter[str] = Counter()
        self.wrong: list[tuple[str, str]] = []
        self._fronts = fronts
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(name,)) for name in (*ALWAYS, *TURNS, *WARM)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, name: str) -> None:
        while not self._over.wait(0.3):
            for front in self._fronts():
                status, who, code = front.ask(name, timeout_s=60)
                self.counts["answered" if status == 200 else code] += 1
                if status == 200 and who != name:
                    self.wrong.append((name, who))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Up once for all tests here; they bring every node back."""
    try:
        fetched()
    except RuntimeError as error:
        pytest.skip(f"no Slurm here: {error}")
    made = Lab(tmp_path_factory.mktemp("slurm"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def fleet(
    lab: Lab, tmp_path_factory: pytest.TempPathFactory, tiny_models: Callable[..., Path], llama_server: Path
) -> Iterator[Fleet]:
    """With one front, that leads."""
    made = Fleet(lab, tmp_path_factory.mktemp("fleet"), tiny_models("llama"), llama_server)
    made.front()
    yield made
    made.close()


@pytest.fixture
def front(fleet: Fleet, lab: Lab) -> Front:
    """The front, and what is always on is up."""
    found = fleet.fronts[0]
    lab.until(lambda: all(found.states().get(name) == "ready" for name in ALWAYS), f"ready\n{found.log()}")
    return found


def answers(front: Front) -> bool:
    """Whether it answers for what is always on."""
    return front.ask("validator")[0] == 200


def server_process(lab: Lab, name: str) -> psutil.Process:
    """The llama-server of a job."""
    job = lab.job_of(name)
    assert job is not None
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            if process.environ().get("SLURM_JOB_ID") == job["id"] and "llama-server" in words[0]:
                return process
    raise AssertionError(f"no process of {job}")


def test_scripts_are_taken(fleet: Fleet, lab: Lab) -> None:
    """Sbatch takes every script as it is, and says where it would run."""
    scripts = sorted((fleet.directory / "slurm").rglob("*.sbatch"))
    assert len(scripts) == 6
    for script in scripts:
        done = subprocess.run(
            ["sbatch", "--test-only", script], env=lab.env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_start(front: Front, lab: Lab) -> None:
    """What is always on is a job on its node, with its memory; a request is answered by it."""
    for name in ALWAYS:
        job = lab.job_of(name)
        assert job is not None
        assert (job["state"], job["node"], job["name"]) == ("RUNNING", _HOST[name], f"launch:dev-trio:{name}")
        assert front.ask(name) == (200, name, "")
    assert [lab.job_of(name) for name in (*TURNS, *WARM)] == [None] * 3


def test_on_demand(front: Front, lab: Lab) -> None:
    """A request submits its job and waits for it; idle, it is cancelled."""
    began = time.monotonic()
    assert front.ask("fast") == (200, "fast", "")
    note(f"from a request to its answer by a job that did not run: {time.monotonic() - began:.2f} s")
    assert (lab.job_of("fast") or {})["state"] == "RUNNING"
    lab.until(lambda: lab.job_of("fast") is None, "cancelled when idle")
    lab.until(lambda: front.states().get("fast") == "stopped", "stopped")


def test_turns(front: Front, lab: Lab) -> None:
    """Those that take turns never run at once, and their jobs have one name."""
    for name in (*TURNS, *TURNS):
        began = time.monotonic()
        assert front.ask(name) == (200, name, "")
        note(f"a swap to {name}: {time.monotonic() - began:.2f} s")
        turns = [job for job in lab.jobs() if job["server"] in TURNS]
        assert [job["name"] for job in turns if job["state"] == "RUNNING"] == ["launch:dev-trio:turns:turns"]


def test_a_server_is_killed(front: Front, lab: Lab) -> None:
    """A job whose process is killed is submitted again."""
    before = lab.job_of("router")
    server_process(lab, "router").kill()
    began = time.monotonic()
    lab.until(lambda: front.ask("router")[0] == 200 and lab.job_of("router") != before, "back")
    note(f"after kill -9: answered again in {time.monotonic() - began:.2f} s")


def test_a_node_is_drained(front: Front, lab: Lab) -> None:
    """What runs there runs on; what would be started waits, and requests end with a type until the node is back."""
    lab.run("scontrol", "update", "nodename=alpha", "state=drain", "reason=test")
    try:
        assert front.ask("router") == (200, "router", "")
        assert front.ask("fast") == (503, "", "start_timeout")
        lab.until(lambda: (lab.job_of("fast") or {}).get("state") == "PENDING", "its job waits")
    finally:
        lab.run("scontrol", "update", "nodename=alpha", "state=resume")
    lab.until(lambda: front.ask("fast")[0] == 200, "answered again")


def test_a_node_is_down(front: Front, lab: Lab) -> None:
    """Its jobs are ended, and nobody answers in their place; they are back with the node."""
    lab.run("scontrol", "update", "nodename=alpha", "state=down", "reason=test")
    try:
        lab.until(lambda: front.states().get("router") != "ready", "noticed")
        status, who, code = front.ask("router")
        assert (status, who) == (503, ""), code
        assert front.ask("validator") == (200, "validator", "")
    finally:
        lab.run("scontrol", "update", "nodename=alpha", "state=resume")
    lab.until(lambda: front.ask("router")[0] == 200, "answered again")


def test_a_job_is_requeued(front: Front, lab: Lab) -> None:
    """What Slurm has begun anew is another process: its place is learnt anew."""
    job = lab.job_of("router")
    assert job is not None
    lab.run("scontrol", "requeue", job["id"])
    lab.until(lambda: (lab.job_of("router") or job)["id"] != job["id"], "submitted anew")
    lab.until(lambda: front.ask("router") == (200, "router", ""), "answered again")


def test_a_node_loses_its_power(front: Front, lab: Lab) -> None:
    """Slurm finds out after a while; until then its requests fail with a type, and others are answered."""
    lab.power_off("alpha")
    try:
        status, who, _ = front.ask("router")
        assert status in (502, 503)
        assert who == ""
        assert front.ask("validator") == (200, "validator", "")
        lab.until(lambda: lab.states().get("alpha", "").startswith("down"), "down", 180)
    finally:
        lab.power_on("alpha")
    lab.until(lambda: front.ask("router")[0] == 200, "answered again")


def test_a_front_is_killed(front: Front, fleet: Fleet, lab: Lab) -> None:
    """Jobs run on, and the next front takes them over as they are."""
    before = {name: lab.job_of(name) for name in ALWAYS}
    front.end(signal.SIGKILL)
    front.again()
    began = time.monotonic()
    lab.until(lambda: all(front.ask(name)[0] == 200 for name in ALWAYS), "answered again")
    note(f"a killed front's successor answers after {time.monotonic() - began:.2f} s")
    assert {name: lab.job_of(name) for name in ALWAYS} == before


def test_the_front_is_a_job(front: Front, fleet: Fleet, lab: Lab) -> None:
    """On a node it does what it does on the login node, and submits from there."""
    before = {name: lab.job_of(name) for name in ALWAYS}
    front.end()
    place = fleet.directory / "slurm"
    done = subprocess.run(
        ["sbatch", "--parsable", "front.sbatch"], cwd=place, env=lab.env, capture_output=True, check=True
    )
    try:
        lab.until(lambda: ask(fleet.port, "router")[0] == 200, "answered by the job")
        assert {name: lab.job_of(name) for name in ALWAYS} == before
        assert ask(fleet.port, "fast") == (200, "fast", "")
    finally:
        lab.run("scancel", done.stdout.decode().strip())
        front.again()
    lab.until(functools.partial(answers, front), "answered by the next")


def test_two_fronts(front: Front, fleet: Fleet, lab: Lab) -> None:
    """The second passes on to who leads; it leads at once when that one ends; nobody is answered by another."""
    second = fleet.front()
    lab.until(lambda: second.ask("router")[0] == 200, "passed on")
    with Clients(lambda: [front, second]) as clients:
        for leader, other in ((front, second), (second, front), (front, second)):
            time.sleep(5)  # some of everything
            leader.end()
            lab.until(functools.partial(answers, other), "the other leads")
            leader.again()
            lab.until(functools.partial(answers, leader), "passed on")
            with contextlib.suppress(AssertionError, psutil.Error):
                server_process(lab, "router").kill()
    note(str(dict(clients.counts)))
    assert clients.wrong == []
    assert clients.counts["answered"] > 50
