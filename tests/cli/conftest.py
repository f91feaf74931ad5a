"""Running `launch` as a whole process, the way people do."""

from __future__ import annotations

import functools
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from launcher.ir.answers import DOCUMENTS, json_schema
from tests.launched import LAUNCH, launched


def holds(document: dict[str, Any], name: str) -> None:
    """`document` obeys the published schema `name`, and its type has all of its keys."""
    _validator(name).validate(document)
    assert json.loads(msgspec.json.encode(msgspec.convert(document, DOCUMENTS[name]))) == document


@functools.cache
def _validator(name: str) -> jsonschema.Draft202012Validator:
    """What holds documents against the schema `name`."""
    return jsonschema.Draft202012Validator(json_schema(name))


_LEADS_ELSEWHERE = frozenset(
    (
        *("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"),
        *("LLAMA_CACHE", "OLLAMA_MODELS"),
    )
)
"""What would lead a command out of the home of its test."""


class Cli:
    """`launch` in its own state root and working directory; fleets on ports that were free."""

    def __init__(self, home: Path, free_port: Callable[[], int]) -> None:
        self.home = home
        kept = {name: value for name, value in os.environ.items() if name not in _LEADS_ELSEWHERE}
        self.env = kept | {"XDG_STATE_HOME": str(home / "state"), "HOME": str(home), "NO_COLOR": "1"}
        self.free_port = free_port
        self.front_port, self.server_port = free_port(), free_port()
        self.front = f"http://127.0.0.1:{self.front_port}"
        self.dev = (
            "hardware=dev",
            "profile=dev",
            f"runtime.front.port={self.front_port}",
            f"servers.assistant.port={self.server_port}",
            "servers.assistant.n_ctx_per_slot=512",
            "servers.assistant.cache_ram_mib=0",
            "servers.assistant.threads=1",  # several tests share the cores: threads that wait for each other spin
        )

    def ports(self, *servers: str) -> list[str]:
        """Overrides that take `servers` and the front off their default ports: another test may be using those."""
        return [f"runtime.front.port={self.front_port}", *(f"servers.{s}.port={self.free_port()}" for s in servers)]

    def run(self, *args: str, code: int | None = 0, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """Runs `launch ARGS`; checks the exit code unless `code` is None, and that no traceback came out."""
        done = launched(args, cwd=self.home, env=self.env, timeout_s=timeout_s)
        assert "Traceback" not in done.stdout + done.stderr
        assert code is None or done.returncode == code, done.stdout + done.stderr
        return done

    def json(self, *args: str, code: int | None = 0) -> dict[str, Any]:
        """What `launch ARGS --json` prints, which is what the schema says that it names."""
        document: dict[str, Any] = json.loads(self.run(*args, "--json", code=code).stdout)
        holds(document, document["schema"])
        return document

    def start(self, *args: str) -> subprocess.Popen[str]:
        """`launch ARGS` in the background, output piped."""
        return subprocess.Popen(
            [LAUNCH, *args],
            cwd=self.home,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def process(self, name: str = "assistant") -> dict[str, Any]:
        """One process of `launch status --json`."""
        fleets = self.json("status", code=None)["fleets"]
        return next(p for fleet in fleets for p in fleet["processes"] if p["name"] == name)


@pytest.fixture
def cli(tmp_path: Path, free_port: Callable[[], int], no_orphans: None) -> Cli:
    """A command line with nothing running; the test fails when it leaves a process."""
    return Cli(tmp_path, free_port)
