"""A real runtime with one WARM server, and every event of it with the time at which it came."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import msgspec

from benchmarks.latency.bare import completion
from launcher.files.state import deployment_state_dir
from launcher.ir.fleet import (
    BreakerUnit,
    DeviceBudget,
    DeviceNeed,
    FleetManifest,
    FrontUnit,
    RouteTarget,
    RoutingTable,
    ServerUnit,
    SupervisorUnit,
)
from launcher.manifest import argv_digest, encode_document
from launcher.runtime import ControlClient

NAME = "model"
_GIVE_UP_S = 120.0


class WarmRuntime:
    """`python -m launcher.runtime` for the length of a `with` block; its server is started by requests only."""

    def __init__(self, directory: Path, argv: tuple[str, ...], model: Path, port: int, front_port: int) -> None:
        """`argv` starts the server; `directory` holds the deployment and the state."""
        self._directory = directory
        self._front = f"http://127.0.0.1:{front_port}"
        self._events: list[tuple[float, dict[str, Any]]] = []
        self._came = threading.Condition()
        os.environ["LAUNCH_STATE_DIR"] = str(directory / "state")
        fleet = _manifest(argv, model, port)
        (directory / "fleet.json").write_bytes(encode_document(fleet))
        (directory / "routes.json").write_bytes(encode_document(_routes(fleet, front_port)))

    def __enter__(self) -> Self:
        """Start it, and return when it serves."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "launcher.runtime", str(self._directory)], stderr=subprocess.PIPE
        )
        threading.Thread(target=self._read, daemon=True).start()
        self.wait("FleetReady", 0)
        self._client = httpx.Client(timeout=_GIVE_UP_S)
        self._client.get(f"{self._front}/health")
        self._control = ControlClient(deployment_state_dir("latency"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Drain and end it."""
        self._client.close()
        self._control.close()
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(_GIVE_UP_S)

    def ask(self, tokens: int) -> float:
        """Seconds of a request that finds the server stopped, and starts it."""
        begun = time.perf_counter()
        answer = self._client.post(f"{self._front}/completion", json={"model": NAME, **completion(tokens)})
        seconds = time.perf_counter() - begun
        answer.raise_for_status()
        return seconds

    def stop(self) -> None:
        """Stop the server, not the runtime."""
        self._control.stop((NAME,))

    def mark(self) -> int:
        """A place in the events, to `wait` from."""
        with self._came:
            return len(self._events)

    def wait(self, kind: str, after: int) -> tuple[float, dict[str, Any]]:
        """The first event of `kind` after the place `after`, with its time (`time.perf_counter`)."""
        with self._came:
            while True:
                for when, event in self._events[after:]:
                    if event["event"] == kind:
                        return when, event
                if not self._came.wait(_GIVE_UP_S):
                    raise TimeoutError(f"no {kind} within {_GIVE_UP_S:g} s")

    def _read(self) -> None:
        """Keep every event with its time."""
        assert self._process.stderr is not None
        for line in self._process.stderr:
            when = time.perf_counter()
            try:
                event = msgspec.json.decode(line)
            except msgspec.DecodeError:
                sys.stderr.write(line.decode(errors="replace"))
                continue
            with self._came:
                self._events.append((when, event))
                self._came.notify_all()


def _manifest(argv: tuple[str, ...], model: Path, port: int) -> FleetManifest:
    """One WARM server that never idles out."""
    server = ServerUnit(
        name=NAME,
        roles=(),
        aliases=(),
        argv=argv,
        env={},
        host="127.0.0.1",
        port=port,
        model=model.stem,
        model_path=str(model),
        files=(str(model),),
        slots=int(argv[argv.index("-np") + 1]),
        n_ctx_per_slot=512,
        probe="completion",
        tier="warm",
        start="demand",
        idle_timeout_s=3600,
        expansion_threshold=0,
        exclusive=None,
        default=False,
        after=(),
        start_timeout_s=_GIVE_UP_S,
        stall_timeout_s=0,
        request_timeout_s=_GIVE_UP_S,
        stop_grace_s=10,
        fatal=True,
        request_defaults={},
        memory=(DeviceNeed(device="ram", committed_bytes=1, peak_bytes=1, file_bytes=0),),
        argv_digest=argv_digest(argv),
    )
    supervisor = SupervisorUnit(
        state_dir=None,
        log_max_bytes=1 << 24,
        log_files=2,
        backoff_s=1,
        backoff_max_s=10,
        crash_loop_failures=3,
        crash_loop_window_s=60,
        health_interval_s=10,
        health_failures=3,
        drain_timeout_s=10,
        max_parallel_starts=1,
    )
    return FleetManifest(
        deployment="latency",
        input_digest="sha256:0",
        launch_version="0",
        hardware="any",
        devices=(DeviceBudget(name="ram", kind="ram", capacity_bytes=1 << 40, budget_bytes=1 << 40),),
        servers=(server,),
        services=(),
        hooks=(),
        supervisor=supervisor,
    )


def _routes(fleet: FleetManifest, front_port: int) -> RoutingTable:
    """One name for the one server."""
    (server,) = fleet.servers
    front = FrontUnit(
        host="127.0.0.1",
        port=front_port,
        api_key_file=None,
        max_body_bytes=1 << 20,
        max_header_bytes=1 << 16,
        header_timeout_s=10,
        idle_timeout_s=75,
        connect_timeout_s=5,
        queue_size=64,
        queue_timeout_s=_GIVE_UP_S,
        allowed_hosts=(),
        access_log=False,
    )
    target = RouteTarget(
        name=NAME,
        host=server.host,
        port=server.port,
        slots=server.slots,
        n_ctx_per_slot=server.n_ctx_per_slot,
        model=server.model,
        roles=(),
        aliases=(),
        start="demand",
        exclusive=None,
        request_timeout_s=_GIVE_UP_S,
        request_defaults={},
        embedding=False,
        modalities=("text",),
    )
    return RoutingTable(
        deployment=fleet.deployment,
        front=front,
        targets={NAME: target},
        names={NAME: (NAME,)},
        default=NAME,
        pools=(),
        fallback={},
        escalation={},
        max_retries=0,
        max_escalations=0,
        breaker=BreakerUnit(failures=3, open_s=1, open_max_s=2),
        timeouts_s={},
    )
