"""A fleet of real servers for the page: one that answers with markup, two that take turns."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Cli, cli  # noqa: F401 - a fixture

HELLO = "\u05e9\u05dc\u05d5\u05dd"
EVIL = HELLO + """<script>document.title='owned'</script><img src=x onerror="document.title='owned'">"""


def fleet_file(own: Cli, model: Path, tiny: Callable[[str], Path]) -> str:
    """The fleet: `chat` says EVIL whatever it is asked; `left`, which sees, and `right` are never up together.

    `tiny`: where a tiny model of an architecture lies.
    """
    for name, arch in (("tiny", "llama"), ("seeing", "qwen2vl"), ("mmproj", "qwen2vl-projector")):
        shutil.copy(tiny(arch), own.home / f"{name}.gguf")
    grammar = f"root ::= {json.dumps(EVIL)}"
    ports = {name: own.free_port() for name in ("chat", "left", "right")}
    servers = {
        "chat": {
            "file": str(model),
            "slots": 2,
            "n_ctx": 4096,
            "threads": 1,
            "request_defaults": {"grammar": grammar},
            "cache_ram_mib": 0,
        },
        "left": {
            "file": "~/seeing.gguf",
            "projector": "~/mmproj.gguf",
            "exclusive": "turns",
            "default": True,
            "slots": 1,
            "threads": 1,
        },
        "right": {"file": "~/tiny.gguf", "exclusive": "turns", "slots": 1, "threads": 1},
    }
    upstreams = {"cloud": {"url": "http://127.0.0.1:9/v1", "models": {"big": "vendor/big"}}}
    return json.dumps(
        {"servers": servers, "upstreams": upstreams, "ports": ports, "runtime": {"front": {"port": own.front_port}}}
    )


@pytest.fixture
def paged(cli: Cli, smollm2: Path, tiny_models: Callable[..., Path]) -> Iterator[Cli]:  # noqa: F811
    """The fleet, started from its file."""
    (cli.home / "launch.yaml").write_text(fleet_file(cli, smollm2, tiny_models))
    cli.run("--detach")
    yield cli
    cli.run("stop", "--all")
